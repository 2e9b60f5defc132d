//! A store that gives no answer.

use std::{num::NonZeroU32, sync::Arc};

use async_trait::async_trait;
use http::StatusCode;
use http_body_util::BodyExt;
use tollgate::{
    clock::ManualClock,
    limit::{
        Decision, LimitCall, LimitDegraded, LimitLayer, LimitStore, LimitStoreError,
        OnStoreFailure, OwnedLimitCall, Quota, Rate, Receipt, Settlement,
    },
};
use tower::{Layer, ServiceExt, service_fn};

use super::{hello, request};

/// A store that never has an answer.
#[derive(Debug)]
enum Broken {
    Hangs,
    Fails,
}

#[async_trait]
impl LimitStore for Broken {
    fn try_decide(&self, _: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        None
    }

    async fn decide(self: Arc<Self>, _: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        match *self {
            Self::Hangs => std::future::pending().await,
            Self::Fails => Err(LimitStoreError::Unavailable("10.0.0.7:6379 refused".into())),
        }
    }

    fn settle(&self, _: &LimitCall<'_>, _: &Receipt, _: &Settlement) {
        panic!("nothing was charged here");
    }
}

async fn under_failure(
    store: Broken,
    policy: OnStoreFailure,
    calls: usize,
) -> Vec<(StatusCode, bool, String)> {
    let clock = ManualClock::default();
    let service = LimitLayer::new(store, [Rate::per_minute(4).on_store_failure(policy)])
        .unwrap()
        .clock(Arc::new(clock))
        .processes(NonZeroU32::new(2).unwrap())
        .layer(service_fn(hello));
    let mut seen = Vec::new();
    for _ in 0..calls {
        let response = service.clone().oneshot(request()).await.unwrap();
        let (head, body) = response.into_parts();
        let degraded = head.extensions.get::<LimitDegraded>().is_some();
        let body = body.collect().await.unwrap().to_bytes();
        seen.push((
            head.status,
            degraded,
            String::from_utf8(body.to_vec()).unwrap(),
        ));
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn a_store_that_gives_no_answer_is_never_mistaken_for_an_unlimited_one() {
    for store in [|| Broken::Hangs, || Broken::Fails] {
        let statuses = async |policy| {
            let seen = under_failure(store(), policy, 12).await;
            assert!(seen.iter().all(|(_, degraded, _)| *degraded), "{seen:?}");
            assert!(
                seen.iter().all(|(_, _, body)| !body.contains("10.0.0.7")),
                "{seen:?}"
            );
            seen.into_iter()
                .map(|(status, ..)| status.as_u16())
                .collect::<Vec<_>>()
        };
        // The share of one of two processes is two of four.
        let mut local = [429; 12];
        local[..2].fill(200);
        assert_eq!(statuses(OnStoreFailure::Local).await, local);
        assert_eq!(statuses(OnStoreFailure::Allow).await, [200; 12]);
        assert_eq!(statuses(OnStoreFailure::Deny).await, [503; 12]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_want_of_a_store_speaks_of_no_quota() {
    let clock = ManualClock::default();
    let service = LimitLayer::new(
        Broken::Fails,
        [Quota::daily(5).on_store_failure(OnStoreFailure::Deny)],
    )
    .unwrap()
    .clock(Arc::new(clock))
    .layer(service_fn(hello));
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(!response.headers().contains_key("ratelimit"));
}
