//! A gate that comes back as it was, without a server.

mod document;
mod kill;
mod mistakes;
mod reload;
mod snapshot;

use std::convert::Infallible;

use http::{Request, Response, StatusCode};
use tollgate::Tollgate;
use tower::{Layer, ServiceExt, service_fn};

/// The key of the published test vector, and its SHA-256.
pub(super) const KEY: &str = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH";
pub(super) const DIGEST: &str = "03ba3280d3163edc18a9e4ed19cf57a4ba49c1f822c84e7191cbe9cd6048223a";
pub(super) const OTHER: &str = "e599a4b4f822729e4c9d2a841735f60038f8e683585b4818132bcb5fd72f8189";

/// One call of the service behind the gate: the status, and what the `RateLimit` field says is left of the first
/// policy.
pub(super) async fn call(gate: &Tollgate, key: &str) -> (u16, Option<u64>) {
    let hello = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new("hello".to_owned()))
    });
    let request = Request::get("/")
        .header("x-api-key", key)
        .body(String::new());
    let answer = gate
        .layer()
        .layer(hello)
        .oneshot(request.unwrap())
        .await
        .unwrap();
    let left = answer.headers().get("ratelimit").map(|value| {
        let text = value.to_str().unwrap();
        let after = text.split(";r=").nth(1).unwrap();
        after.split([';', ',']).next().unwrap().parse().unwrap()
    });
    (answer.status().as_u16(), left)
}

pub(super) async fn status(gate: &Tollgate, key: &str) -> StatusCode {
    StatusCode::from_u16(call(gate, key).await.0).unwrap()
}
