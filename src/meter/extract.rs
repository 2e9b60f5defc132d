use axum::extract::FromRequestParts;
use http::request::Parts;

use super::{CostScope, Meter};
use crate::error::{ErrorCode, Problem};

#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> FromRequestParts<S> for Meter {
    /// 500 `layer_missing` when no [`MeterLayer`](super::MeterLayer) is around the handler.
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            Problem::new(ErrorCode::LayerMissing)
                .detail("this route takes a Meter: put it behind MeterLayer, or before `.layer(gate.layer())`")
        })
    }
}

#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> FromRequestParts<S> for CostScope {
    /// 500 `layer_missing` when no [`MeterLayer`](super::MeterLayer) is around the handler.
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        Meter::from_request_parts(parts, state)
            .await
            .map(|meter| meter.cost())
    }
}
