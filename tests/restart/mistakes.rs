//! Mistakes of a configuration that the log tells, once.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use tollgate::{
    Meter, Tollgate,
    identity::NewKey,
    limit::{Quota, Unit},
    plan::Plan,
};
use tower::{Layer, ServiceExt, service_fn};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    /// Everything that this thread logs until the guard is dropped.
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(log.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn lines(&self, part: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .filter(|line| line.contains(part))
            .map(str::to_owned)
            .collect()
    }
}

async fn gate_and_key(rule: Quota, unit: &str) -> (Tollgate, String) {
    let plan = Plan::new("ai").rule(rule.unit(Unit::custom(unit)));
    let gate = Tollgate::builder().plans([plan]).build().unwrap();
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("ai"))
        .await
        .unwrap();
    (gate, issued.key.expose().to_owned())
}

/// Calls a service that adds one of each of these quantities.
async fn call(gate: &Tollgate, key: &str, adds: &'static [&'static str]) -> u16 {
    let service = service_fn(move |request: Request<String>| async move {
        let meter = request.extensions().get::<Meter>().unwrap();
        adds.iter().for_each(|name| meter.add(name, 1));
        Ok::<_, Infallible>(Response::new("done".to_owned()))
    });
    let request = Request::get("/")
        .header("x-api-key", key)
        .body(String::new())
        .unwrap();
    let answer = gate.layer().layer(service).oneshot(request).await.unwrap();
    answer.status().as_u16()
}

#[tokio::test]
async fn a_quantity_spelt_almost_as_a_rules_own_is_told_once() {
    let (log, _guard) = Log::start();
    let (gate, key) = gate_and_key(Quota::daily(5), "token").await;
    for _ in 0..3 {
        assert_eq!(call(&gate, &key, &["tokens"]).await, 200);
    }
    let told = log.lines("spelt almost");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("rule_counts=\"token\"") && told[0].contains("handler_adds=\"tokens\""),
        "{told:?}"
    );
}

#[tokio::test]
async fn quantities_that_are_names_of_their_own_are_no_mistake() {
    let (log, _guard) = Log::start();
    let (gate, key) = gate_and_key(Quota::daily(5), "tokens").await;
    for adds in [&["images"][..], &["tokens", "token"], &[]] {
        assert_eq!(call(&gate, &key, adds).await, 200);
    }
    assert!(log.lines("spelt almost").is_empty());
}

#[tokio::test]
async fn a_layer_that_stands_twice_is_told_once_and_no_caller_without_a_key_is_taken_for_it() {
    let (log, _guard) = Log::start();
    let (gate, key) = gate_and_key(Quota::daily(5), "tokens").await;
    let hello = || {
        service_fn(|_: Request<String>| async {
            Ok::<_, Infallible>(Response::new("hello".to_owned()))
        })
    };
    let nothing = Request::get("/").body(String::new()).unwrap();
    let once = gate.layer().layer(hello());
    assert_eq!(once.oneshot(nothing).await.unwrap().status(), 401);
    assert!(log.lines("layer twice").is_empty());
    for _ in 0..2 {
        let twice = gate.layer().layer(gate.layer().layer(hello()));
        let request = Request::get("/v1")
            .header("x-api-key", &key)
            .body(String::new())
            .unwrap();
        assert_eq!(twice.oneshot(request).await.unwrap().status(), 401);
    }
    let told = log.lines("layer twice");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(!told[0].contains(&key));
}
