//! Metrics: every series is in the guide, and no caller can make more of them.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body, http::Request, routing::get};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tollgate::{
    MeterLayer,
    clock::ManualClock,
    head::RequestHead,
    limit::{
        Decision, LimitCall, LimitStore, LimitStoreError, OwnedLimitCall, Receipt, Settlement,
    },
    meter::Recorder,
    prelude::*,
    route::RouteTemplate,
    sink::MemorySink,
};
use tower::{Layer as _, ServiceExt as _, service_fn};

const GUIDE: &str = include_str!("../src/guide/metrics.md");

/// A runtime whose metrics, of tasks too, go into a recorder of its own.
fn measured<T>(run: impl AsyncFnOnce() -> T) -> (T, Snapshotter) {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let result = metrics::with_local_recorder(&recorder, || runtime.block_on(run()));
    (result, snapshotter)
}

/// Each series and its value: a count, a gauge, or how many values a histogram has.
fn values(snapshotter: &Snapshotter) -> BTreeMap<String, i64> {
    let all = snapshotter.snapshot().into_vec().into_iter();
    all.map(|(key, _, _, value)| {
        let key = key.key();
        let mut labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        labels.sort();
        let value = match value {
            DebugValue::Counter(n) => i64::try_from(n).expect("a small number"),
            DebugValue::Gauge(n) => n.into_inner() as i64,
            DebugValue::Histogram(values) => i64::try_from(values.len()).expect("a small number"),
        };
        (format!("{}{{{}}}", key.name(), labels.join(",")), value)
    })
    .collect()
}

fn call(path: &str, key: &str) -> Request<Body> {
    let request = Request::get(path).header("x-api-key", key);
    request.body(Body::empty()).expect("a request")
}

async fn issue(gate: &Tollgate, tenant: &str) -> String {
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant(tenant).plan("free"))
        .await;
    issued.expect("a key").key.expose().to_owned()
}

async fn a_tick(gate: &Tollgate) {
    gate.usage().flush().await;
    tokio::time::sleep(Duration::from_millis(250)).await;
}

#[test]
fn calls_are_counted_by_route_status_and_outcome() {
    let ((), snapshotter) = measured(async || {
        let gate = Tollgate::builder()
            .plans([Plan::new("free").rule(Rate::per_hour(3))])
            .usage(MemorySink::new())
            .build()
            .expect("a gate");
        let key = issue(&gate, "acme").await;
        let app = Router::new()
            .route("/v1/chat/{room}", get(async || "hi"))
            .route(
                "/v1/panics",
                get(async || -> () { panic!("as the test wants") }),
            )
            .layer(gate.layer());
        for (path, key) in [
            ("/v1/chat/1", &*key),
            ("/v1/panics", &*key),
            ("/nowhere/1", &*key),
            ("/v1/chat/2", &*key),
            ("/v1/chat/3", "tg_live_guess"),
        ] {
            let answer = app
                .clone()
                .oneshot(call(path, key))
                .await
                .expect("an answer");
            axum::body::to_bytes(answer.into_body(), 10_000)
                .await
                .expect("a body");
        }
        a_tick(&gate).await;
    });
    let values = values(&snapshotter);
    for (series, n) in [
        (
            "tollgate_requests_total{outcome=served,route=/v1/chat/{room},status=2xx}",
            1,
        ),
        (
            "tollgate_requests_total{outcome=panicked,route=/v1/panics,status=5xx}",
            1,
        ),
        (
            "tollgate_requests_total{outcome=served,route=unmatched,status=4xx}",
            1,
        ),
        (
            "tollgate_requests_total{outcome=refused,route=/v1/chat/{room},status=4xx}",
            2,
        ),
        (
            "tollgate_request_duration_seconds{route=/v1/chat/{room}}",
            3,
        ),
        ("tollgate_refusals_total{reason=rate_limited}", 1),
        ("tollgate_refusals_total{reason=invalid_credentials}", 1),
        ("tollgate_identity_cache_entries{cache=keys}", 1),
        ("tollgate_identity_cache_entries{cache=tenants}", 1),
        ("tollgate_usage_queue_capacity{}", 65_536),
        ("tollgate_usage_queued{}", 0),
        ("tollgate_usage_acked_total{}", 4),
        ("tollgate_limit_breakers_open{}", 0),
    ] {
        let value = values.get(series).copied().unwrap_or(0);
        assert_eq!(value, n, "{series} in {values:#?}");
    }
}

#[test]
fn every_series_is_in_the_guide_and_described() {
    let ((), snapshotter) = measured(async || {
        let gate = Tollgate::builder()
            .plans([Plan::new("free").rule(Rate::per_hour(1))])
            .usage(MemorySink::new())
            .build()
            .expect("a gate");
        let key = issue(&gate, "acme").await;
        let app = Router::new()
            .route("/a", get(async || "a"))
            .layer(gate.layer());
        for key in [&*key, &*key, "nonsense"] {
            drop(
                app.clone()
                    .oneshot(call("/a", key))
                    .await
                    .expect("an answer"),
            );
        }
        a_tick(&gate).await;
    });
    let all = snapshotter.snapshot().into_vec();
    assert!(all.len() > 20, "{}", all.len());
    for (key, unit, description, _) in all {
        let name = key.key().name();
        assert!(
            GUIDE.contains(&format!("| `{name}` |")),
            "{name} is not in the guide"
        );
        assert!(
            unit.is_some() && description.is_some(),
            "{name} is not described"
        );
        for label in key.key().labels() {
            assert!(
                GUIDE.contains(&format!("`{}`", label.key())),
                "{name} {label:?}"
            );
        }
    }
}

/// Names of ours in somebody else's records, which are no metrics: the metadata of Stripe's invoice items.
const OTHERS: [&str; 2] = ["tollgate_invoice", "tollgate_line"];

/// The names that the source holds, whichever feature they belong to.
fn named_in(folder: &std::path::Path, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            named_in(&path, names);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = std::fs::read_to_string(&path).expect("a text");
            let found = text.split("\"tollgate_").skip(1);
            let name = |rest: &str| {
                rest.split('"')
                    .next()
                    .map(|rest| format!("tollgate_{rest}"))
            };
            let is_metric = |name: &String| name != "tollgate_" && !OTHERS.contains(&&**name);
            names.extend(found.filter_map(name).filter(is_metric));
        }
    }
}

#[test]
fn every_name_in_the_source_is_in_the_guide() {
    let mut names = Vec::new();
    named_in(
        concat!(env!("CARGO_MANIFEST_DIR"), "/src").as_ref(),
        &mut names,
    );
    assert!(names.len() > 25, "{names:?}");
    for name in names {
        assert!(
            GUIDE.contains(&format!("| `{name}` |")),
            "{name} is not in the guide"
        );
    }
}

/// A store that is down until it is told otherwise.
#[derive(Clone, Debug, Default)]
struct Down(Arc<AtomicBool>);

#[async_trait]
impl LimitStore for Down {
    fn try_decide(&self, _: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        Some(if self.0.load(Ordering::Relaxed) {
            Ok(Decision::unlimited())
        } else {
            Err(LimitStoreError::Unavailable("refused".into()))
        })
    }

    async fn decide(self: Arc<Self>, _: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        Ok(Decision::unlimited())
    }

    fn settle(&self, _: &LimitCall<'_>, _: &Receipt, _: &Settlement) {}
}

#[test]
fn a_breaker_is_open_while_its_store_does_not_answer() {
    const OPEN: &str = "tollgate_limit_breakers_open{}";
    let (kept, snapshotter) = measured(async || {
        let (store, clock) = (Down::default(), ManualClock::default());
        let layer = LimitLayer::new(store.clone(), [Rate::per_hour(100)]).expect("a layer");
        let service =
            layer
                .clock(Arc::new(clock.clone()))
                .layer(service_fn(async |_: Request<Body>| {
                    Ok::<_, Infallible>(http::Response::new(Body::empty()))
                }));
        for _ in 0..6 {
            drop(
                service
                    .clone()
                    .oneshot(call("/", ""))
                    .await
                    .expect("an answer"),
            );
        }
        (service, store, clock)
    });
    assert_eq!(values(&snapshotter)[OPEN], 1);
    let (service, store, clock) = kept;
    store.0.store(true, Ordering::Relaxed);
    clock.advance(Duration::from_secs(1));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    drop(
        runtime
            .block_on(service.oneshot(call("/", "")))
            .expect("an answer"),
    );
    // A snapshot of this recorder starts a gauge anew: the 1 is taken back.
    assert_eq!(values(&snapshotter)[OPEN], -1);
}

/// 100,000 tenants, each on a path of its own.
#[test]
fn a_hundred_thousand_tenants_and_paths_make_fewer_than_200_series() {
    const N: usize = 100_000;
    let ((), snapshotter) = measured(async || {
        let gate = Tollgate::builder()
            .plans([Plan::new("free").rule(Rate::per_hour(1))])
            .usage(MemorySink::new())
            .inserted_identity(true)
            .build()
            .expect("a gate");
        let plan = Arc::new(
            Plan::new("free")
                .rule(Rate::per_hour(1))
                .compile()
                .expect("a plan"),
        );
        let answer =
            |_: Request<Body>| async { Ok::<_, Infallible>(http::Response::new(Body::empty())) };
        let mut service = gate.layer().layer(service_fn(answer));
        for n in 0..N {
            let tenant = tollgate::id::TenantId::new(format!("tenant-{n}")).expect("an id");
            let mut request = call(&format!("/v1/item/{n}"), "");
            request
                .extensions_mut()
                .insert(Identity::of_tenant(tenant, Arc::clone(&plan)));
            let service = tower::ServiceExt::ready(&mut service)
                .await
                .expect("readiness");
            drop(
                tower::Service::call(service, request)
                    .await
                    .expect("an answer"),
            );
        }
        a_tick(&gate).await;
        assert_eq!(gate.usage().counters().opened, N as u64);
    });
    let values = values(&snapshotter);
    assert!(values.len() < 200, "{} series", values.len());
    let counted: i64 = values
        .iter()
        .filter(|(name, _)| name.starts_with("tollgate_requests_total{"))
        .map(|(name, n)| {
            assert!(name.contains("route=unmatched"), "{name}");
            n
        })
        .sum();
    assert_eq!(counted, N as i64);
    assert!(
        values
            .keys()
            .all(|name| !name.contains("tenant-") && !name.contains("/item/"))
    );
}

#[test]
fn a_hook_that_names_paths_cannot_make_series_without_end() {
    let ((), snapshotter) = measured(async || {
        let recorder = Recorder::new(MemorySink::new()).expect("a recorder");
        let layer = MeterLayer::new(recorder).route_of(|head: &RequestHead<'_>| {
            Some(RouteTemplate::from(Arc::<str>::from(head.uri().path())))
        });
        let service = layer.layer(service_fn(async |_: Request<Body>| {
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        }));
        for n in 0..20_000 {
            drop(
                service
                    .clone()
                    .oneshot(call(&format!("/{n}"), ""))
                    .await
                    .expect("an answer"),
            );
        }
    });
    let values = values(&snapshotter);
    assert!(values.len() < 2 * 520, "{} series", values.len());
    let n_other = values["tollgate_requests_total{outcome=served,route=other,status=2xx}"];
    assert!(n_other > 19_000, "{n_other}");
}
