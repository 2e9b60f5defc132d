//! Every setting at the ends of its range: a gate that is built works, one that cannot work says why.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use http::{Request, StatusCode};
use tollgate::{
    TollgateBuilder,
    auth::{Challenge, Extractor, FailureLimit, KeyFormat, LogAuthEvents},
    clock::Timestamp,
    head::RequestHead,
    id::Environment,
    identity::{CacheSettings, NewKey},
    limit::{
        Concurrency, Cost, HeaderStyle, MemoryLimits, OnStoreFailure, Period, Quota, Rate, Rule,
        Unit, Window,
    },
    meter::Recorder,
    plan::Plan,
    sink::MemorySink,
    tenant::AccessState,
};
use tower::{Layer as _, service_fn};

use super::{Stand, call, get, invented, slow, stand, who};
use crate::common::far_stores::{FakeKeys, FarTenants};

type Setup = Box<dyn FnOnce(TollgateBuilder) -> TollgateBuilder>;

fn setup(change: impl FnOnce(TollgateBuilder) -> TollgateBuilder + 'static) -> Setup {
    Box::new(change)
}

fn cache(change: impl FnOnce(CacheSettings) -> CacheSettings + 'static) -> Setup {
    setup(move |builder| builder.cache(change(CacheSettings::new())))
}

/// Sends one good call, one without a key and one with a bad key.
async fn try_out(stand: &Stand, key: &str) -> [u16; 3] {
    let service = stand.gate.layer().layer(service_fn(who));
    [
        call(&service, get("/", &[("x-api-key", key)])).await.0,
        call(&service, get("/", &[])).await.0,
        call(&service, get("/", &[("x-api-key", &invented())]))
            .await
            .0,
    ]
}

#[tokio::test]
async fn every_setting_at_its_ends_works_or_is_refused_when_the_gate_is_built() {
    let max = Duration::MAX;
    let zero = Duration::ZERO;
    let working: Vec<(&str, Setup)> = vec![
        ("ttl 0", cache(move |c| c.ttl(zero))),
        ("ttl max", cache(move |c| c.ttl(max))),
        ("negative ttl 0", cache(move |c| c.negative_ttl(zero))),
        ("negative ttl max", cache(move |c| c.negative_ttl(max))),
        ("stale 0", cache(move |c| c.stale_if_error(zero))),
        ("stale max", cache(move |c| c.stale_if_error(max))),
        (
            "all max",
            cache(move |c| c.ttl(max).stale_if_error(max).negative_ttl(max)),
        ),
        ("deadline max", cache(move |c| c.store_deadline(max))),
        ("capacity 1", cache(|c| c.capacity(1).negative_capacity(1))),
        (
            "capacity max",
            cache(|c| c.capacity(usize::MAX).negative_capacity(usize::MAX)),
        ),
        (
            "networks max",
            setup(|b| {
                b.failure_limit(
                    FailureLimit::with_networks(1, 1, FailureLimit::MAX_NETWORKS).unwrap(),
                )
            }),
        ),
        ("waiting 1", cache(|c| c.max_waiting(1))),
        ("waiting max", cache(|c| c.max_waiting(usize::MAX))),
        (
            "limit deadline 1 ns",
            setup(move |b| b.limit_deadline(Duration::from_nanos(1))),
        ),
        ("limit deadline max", setup(move |b| b.limit_deadline(max))),
        ("processes max", setup(|b| b.processes(NonZeroU32::MAX))),
        (
            "failures 1",
            setup(|b| b.failure_limit(FailureLimit::with_networks(1, 1, 1).unwrap())),
        ),
        (
            "failures max",
            setup(|b| b.failure_limit(FailureLimit::new(u32::MAX, u32::MAX).unwrap())),
        ),
        ("failures off", setup(|b| b.failure_limit(None))),
        (
            "log 0",
            setup(|b| b.auth_events(Arc::new(LogAuthEvents::new(0, 0)))),
        ),
        (
            "log max",
            setup(|b| b.auth_events(Arc::new(LogAuthEvents::new(u32::MAX, u32::MAX)))),
        ),
        ("api long", setup(|b| b.api("x".repeat(100_000)))),
        ("api odd", setup(|b| b.api("a\n\u{1b}[31mb"))),
        ("public all", setup(|b| b.public(["/never/*"]))),
        (
            "ceiling max",
            setup(|b| b.ceiling(Rate::per_second(u32::MAX.into()))),
        ),
        ("headers off", setup(|b| b.headers(HeaderStyle::Off))),
        ("headers legacy", setup(|b| b.headers(HeaderStyle::Legacy))),
        (
            "quota status",
            setup(|b| b.quota_status(StatusCode::PAYMENT_REQUIRED)),
        ),
        (
            "challenge",
            setup(|b| b.challenge(Challenge::new("r").unwrap())),
        ),
        (
            "opaque too",
            setup(|b| {
                b.key_format(KeyFormat::default())
                    .key_format(KeyFormat::opaque())
            }),
        ),
        ("extractor", setup(|b| b.extractor(Extractor::default()))),
        (
            "cost 0",
            setup(|b| b.cost(|_: &RequestHead<'_>| Cost::requests(0))),
        ),
        (
            "limits of one key",
            setup(|b| b.limits(MemoryLimits::new().max_keys(1))),
        ),
        ("only live", setup(|b| b.only(Environment::Live))),
    ];
    for (name, setup) in working {
        let stand = stand(setup);
        let key = stand.issue("acme").await;
        for _ in 0..2 {
            let [good, none, bad] = try_out(&stand, &key).await;
            assert_eq!((good, none), (200, 401), "{name}");
            assert!(bad == 401 || bad == 429, "{name}: {bad}");
        }
        stand.assert_balanced().await;
    }
}

#[tokio::test]
async fn far_stores_work_at_the_ends_of_the_settings_too() {
    let settings = [
        CacheSettings::new().ttl(Duration::ZERO),
        CacheSettings::new()
            .ttl(Duration::MAX)
            .stale_if_error(Duration::MAX),
        CacheSettings::new().store_deadline(Duration::MAX),
        CacheSettings::new().max_waiting(1),
    ];
    for cache in settings {
        let stand = stand(|builder| {
            builder
                .cache(cache)
                .keys(FakeKeys::slow())
                .tenants(FarTenants::slow())
                .limits(Arc::new(slow::SlowLimits::default()))
                .limit_deadline(Duration::MAX)
        });
        let key = stand.issue("acme").await;
        for _ in 0..3 {
            assert_eq!(try_out(&stand, &key).await, [200, 401, 401], "{cache:?}");
        }
    }
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let refused: Vec<(&str, Setup)> = vec![
        ("cache.capacity", cache(|c| c.capacity(0))),
        ("cache.negative_capacity", cache(|c| c.negative_capacity(0))),
        ("cache.max_waiting", cache(|c| c.max_waiting(0))),
        (
            "cache.store_deadline",
            cache(|c| c.store_deadline(Duration::ZERO)),
        ),
        ("plans", setup(|b| b.plans([]))),
        ("public[0]", setup(|b| b.public(["*"]))),
        ("api", setup(|b| b.api(""))),
        (
            "limit_deadline",
            setup(|b| b.limit_deadline(Duration::ZERO)),
        ),
        ("sandbox", setup(|b| b.sandbox(""))),
        ("quota_status", setup(|b| b.quota_status(StatusCode::OK))),
        (
            "quota_status",
            setup(|b| b.quota_status(StatusCode::SWITCHING_PROTOCOLS)),
        ),
        (
            "quota_status",
            setup(|b| b.quota_status(StatusCode::NOT_MODIFIED)),
        ),
        (
            "quota_status",
            setup(|b| b.quota_status(StatusCode::INTERNAL_SERVER_ERROR)),
        ),
        (
            "read_only_status",
            setup(|b| b.read_only_status(StatusCode::NO_CONTENT)),
        ),
        (
            "ceiling.rules[0].burst",
            setup(|b| b.ceiling(Rate::per_second(1).burst(0))),
        ),
    ];
    for (path, setup) in refused {
        let builder = tollgate::Tollgate::builder().plans([Plan::new("free")]);
        let error = setup(builder).build().expect_err(path);
        assert_eq!(error.path(), path, "{error}");
    }
    assert!(FailureLimit::with_networks(1, 1, 0).is_err());
    assert!(FailureLimit::with_networks(1, 1, usize::MAX).is_err());
    let recorder = |n| {
        Recorder::builder(MemorySink::new())
            .queue_capacity(n)
            .build()
    };
    assert!(recorder(0).is_err() && recorder(usize::MAX).is_err());
}

#[tokio::test]
async fn rules_at_the_ends_of_their_numbers_neither_wrap_nor_panic() {
    let day = Duration::from_secs(86_400);
    let rules: Vec<Rule> = vec![
        Rate::per_second(u64::MAX).into(),
        Rate::per(1, Duration::MAX).into(),
        Rate::per(u64::MAX, Duration::from_nanos(1)).into(),
        Rate::per_second(1).burst(u64::MAX).into(),
        Window::new(u64::MAX, day).into(),
        Window::new(1, Duration::MAX).into(),
        Window::new(u64::MAX, Duration::from_nanos(1)).into(),
        Quota::new(u64::MAX, Period::Month).into(),
        Quota::monthly(0).into(),
        Concurrency::new(u64::MAX).into(),
        Concurrency::new(0).into(),
        Quota::monthly(u64::MAX).unit(Unit::Bytes),
        Quota::monthly(1).unit(Unit::Bytes).overage(),
        Rule::unlimited(),
    ];
    let mut n_built = 0;
    for rule in rules {
        let shown = format!("{rule:?}");
        let built = tollgate::Tollgate::builder()
            .plans([Plan::new("free").rule(rule)])
            .build();
        let Ok(gate) = built else { continue };
        n_built += 1;
        let new = NewKey::for_tenant("acme").plan("free");
        let issued = gate.keys().issue(new).await.expect("a key");
        let service = gate.layer().layer(service_fn(who));
        for length in [
            "0",
            "1",
            "9223372036854775807",
            "18446744073709551615",
            "99999999999999999999",
        ] {
            let request: Request<_> = get(
                "/",
                &[
                    ("x-api-key", issued.key.expose()),
                    ("content-length", length),
                ],
            );
            let status = call(&service, request).await.0;
            assert!(matches!(status, 200 | 429), "{shown} {length}: {status}");
        }
        assert!(gate.usage().counters().is_balanced());
    }
    assert!(n_built >= 4, "{n_built}");
}

#[tokio::test]
async fn access_states_at_the_ends_of_time_do_what_they_say() {
    let stand = stand(|builder| builder);
    let key = stand.issue("acme").await;
    let tenant = tollgate::id::TenantId::new("acme").expect("an id");
    let (first, last) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
    let cases = [
        (
            AccessState::Grace {
                until: first,
                suspend_at: None,
            },
            200,
        ),
        (
            AccessState::Grace {
                until: last,
                suspend_at: Some(last),
            },
            200,
        ),
        (
            AccessState::Grace {
                until: last,
                suspend_at: Some(first),
            },
            200,
        ),
        (
            AccessState::Grace {
                until: first,
                suspend_at: Some(first),
            },
            402,
        ),
        (
            AccessState::ReadOnly {
                suspend_at: Some(first),
            },
            402,
        ),
        (
            AccessState::ReadOnly {
                suspend_at: Some(last),
            },
            200,
        ),
        (AccessState::Closed, 401),
        (AccessState::Active, 200),
    ];
    for (state, expected) in cases {
        stand
            .gate
            .tenants()
            .set_access(&tenant, state)
            .await
            .expect("set");
        assert_eq!(try_out(&stand, &key).await[0], expected, "{state:?}");
    }
}

#[tokio::test]
async fn a_store_failure_at_the_ends_of_the_settings_decides_as_its_rule_says() {
    #[derive(Debug)]
    struct Down;

    #[async_trait::async_trait]
    impl tollgate::limit::LimitStore for Down {
        fn try_decide(
            &self,
            _: &tollgate::limit::LimitCall<'_>,
        ) -> Option<Result<tollgate::limit::Decision, tollgate::limit::LimitStoreError>> {
            Some(Err(tollgate::limit::LimitStoreError::Unavailable(
                "down".into(),
            )))
        }

        async fn decide(
            self: Arc<Self>,
            _: tollgate::limit::OwnedLimitCall,
        ) -> Result<tollgate::limit::Decision, tollgate::limit::LimitStoreError> {
            Err(tollgate::limit::LimitStoreError::Unavailable("down".into()))
        }

        fn settle(
            &self,
            _: &tollgate::limit::LimitCall<'_>,
            _: &tollgate::limit::Receipt,
            _: &tollgate::limit::Settlement,
        ) {
        }
    }

    for (policy, processes, expected) in [
        (OnStoreFailure::Deny, 1, [503, 503, 503]),
        (OnStoreFailure::Allow, 1, [200, 200, 200]),
        (OnStoreFailure::Local, 1, [200, 200, 429]),
        (OnStoreFailure::Local, u32::MAX, [200, 429, 429]),
    ] {
        let stand = stand(|builder| {
            builder
                .plans([Plan::new("free").rule(Quota::daily(2).on_store_failure(policy))])
                .limits(Down)
                .processes(NonZeroU32::new(processes).expect("not zero"))
        });
        let key = stand.issue("acme").await;
        for status in expected {
            assert_eq!(
                try_out(&stand, &key).await[0],
                status,
                "{policy:?} {processes}"
            );
        }
        stand.assert_balanced().await;
    }
}
