//! Handler arguments for axum.

use axum::{
    body::Body,
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{Method, request::Parts};

use super::Identity;
use crate::{
    error::{ErrorCode, Problem},
    tenant::Tenant,
};

/// The answer to a handler that asks for an identity where there is none: 500, naming the layer to add.
#[derive(Clone, Debug)]
pub struct MissingIdentity {
    wanted: &'static str,
    method: Method,
}

impl IntoResponse for MissingIdentity {
    fn into_response(self) -> Response {
        let detail = format!(
            "a handler asked for {} and no Identity is there: put the route, which must not be a public path, \
             behind AuthLayer, or before `.layer(gate.layer())`",
            self.wanted
        );
        Problem::new(ErrorCode::LayerMissing)
            .detail(detail)
            .into_response::<Body>(&self.method)
            .map(Body::new)
    }
}

fn identity<'a>(parts: &'a Parts, wanted: &'static str) -> Result<&'a Identity, MissingIdentity> {
    parts.extensions.get::<Identity>().ok_or_else(|| {
        let method = parts.method.clone();
        MissingIdentity { wanted, method }
    })
}

impl<S: Sync> FromRequestParts<S> for Identity {
    type Rejection = MissingIdentity;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingIdentity> {
        identity(parts, "Identity").cloned()
    }
}

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = MissingIdentity;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingIdentity> {
        Ok(identity(parts, "Tenant")?.tenant().clone())
    }
}
