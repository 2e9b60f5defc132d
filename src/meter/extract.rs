use axum::extract::FromRequestParts;
use http::{Response, request::Parts};

use super::Meter;
use crate::{
    body::ResponseBody,
    error::{ErrorCode, Problem},
};

#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> FromRequestParts<S> for Meter {
    /// 500 `layer_missing` when no [`MeterLayer`](super::MeterLayer) is around the handler.
    type Rejection = Response<ResponseBody<axum::body::Body>>;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            tracing::error!("a handler asks for a Meter, but no MeterLayer is around it: add one");
            Problem::new(ErrorCode::LayerMissing).into_response(&parts.method)
        })
    }
}
