use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use tollgate::{
    auth::{AuthRefusal, Credential, Extractor, KeySource},
    clock::Now,
    head::RequestHead,
    identity::{Attempt, Authenticate, Grant, Identity, NewKey, PathSet, PublicPath},
    meter::{EventId, Meter},
    tenant::{Tenant, TenantRecord},
};
use tower::{Layer, Service, ServiceExt, service_fn};

use super::{
    call::{Inner, layer, request, send, to},
    fake::{far, invented, plan, tenant},
};

#[tokio::test]
async fn a_valid_key_reaches_the_service_with_its_identity_and_without_the_key() {
    let far = far();
    let key = far.issue().await;
    let bearer = format!("bearer {key}");
    for headers in [[("x-api-key", &*key)], [("authorization", &*bearer)]] {
        let inner = Inner::default();
        let answer = send(layer(&far).layer(inner.clone()), request(&headers)).await;
        assert_eq!(
            (answer.status, &*answer.body),
            (StatusCode::OK, &b"served"[..])
        );
        assert_eq!(inner.identity().unwrap().tenant().id().as_str(), "acme");
        assert!(inner.last().headers.is_empty(), "the credential is removed");
    }
}

#[tokio::test]
async fn only_the_header_that_held_the_credential_is_removed() {
    let far = far();
    let key = far.issue().await;
    let inner = Inner::default();
    let headers = [
        ("x-api-key", &*key),
        ("authorization", "Basic dXNlcjpwYXNz"),
    ];
    send(layer(&far).layer(inner.clone()), request(&headers)).await;
    let seen = inner.last().headers;
    assert!(!seen.contains_key("x-api-key"));
    assert_eq!(seen["authorization"], "Basic dXNlcjpwYXNz");
    let kept = layer(&far).keep_credential(true).layer(inner.clone());
    send(kept, request(&headers)).await;
    let seen = inner.last().headers;
    assert_eq!(seen["x-api-key"], *key);
    assert!(seen["x-api-key"].is_sensitive());
}

#[tokio::test]
async fn a_key_in_the_query_is_cut_out_of_the_target() {
    let far = far();
    let key = far.issue().await;
    let extractor = Extractor::new([KeySource::query("key")]).unwrap();
    let inner = Inner::default();
    let service = layer(&far).extractor(extractor).layer(inner.clone());
    let target = format!("/v1/hello?a=1&key={key}&b=2");
    assert_eq!(send(service, to("GET", &target, &[])).await.status, 200);
    assert_eq!(inner.last().uri, "/v1/hello?a=1&b=2");
}

#[tokio::test]
async fn public_paths_and_preflights_pass_with_a_mark_and_without_an_identity() {
    let far = far();
    let inner = Inner::default();
    let service = layer(&far)
        .public(PathSet::new(["/health", "/docs/*"]).unwrap())
        .pass_preflight(true)
        .layer(inner.clone());
    let preflight = [
        ("origin", "https://example.com"),
        ("access-control-request-method", "POST"),
    ];
    let cases: [(Request<Empty<Bytes>>, Option<PublicPath>); 6] = [
        (to("GET", "/health?full=1", &[]), Some(PublicPath::Path)),
        (
            to("GET", "/docs/a", &[("x-api-key", "nonsense")]),
            Some(PublicPath::Path),
        ),
        (
            to("OPTIONS", "/v1/hello", &preflight),
            Some(PublicPath::Preflight),
        ),
        (to("GET", "/docs/../v1/hello", &[]), None),
        (to("POST", "/v1/hello", &preflight), None),
        (to("OPTIONS", "/v1/hello", &[]), None),
    ];
    for (request, mark) in cases {
        let shown = format!("{} {}", request.method(), request.uri());
        let answer = send(service.clone(), request).await;
        match mark {
            Some(_) => {
                assert_eq!(answer.status, 200, "{shown}");
                assert_eq!(inner.last().extensions.get::<PublicPath>().copied(), mark);
                assert!(inner.identity().is_none());
            }
            None => assert_eq!(answer.status, 401, "{shown}"),
        }
    }
    assert_eq!(far.keys.behaviour.n_asked(), 0);
}

#[tokio::test]
async fn where_a_credential_is_optional_a_wrong_one_is_refused_all_the_same() {
    let far = far();
    let key = far.issue().await;
    let inner = Inner::default();
    let service = layer(&far).optional(true).layer(inner.clone());
    assert_eq!(send(service.clone(), request(&[])).await.status, 200);
    let mark = inner.last().extensions.get::<PublicPath>().copied();
    assert_eq!(mark, Some(PublicPath::Anonymous));
    for wrong in [&*invented(), "nonsense"] {
        assert_eq!(
            send(service.clone(), request(&[("x-api-key", wrong)]))
                .await
                .status,
            401
        );
    }
    assert_eq!(
        send(service, request(&[("x-api-key", &key)])).await.status,
        200
    );
    assert!(inner.identity().is_some());
}

#[tokio::test]
async fn the_meter_learns_who_calls_and_lends_its_reading_of_the_clock() {
    let far = far();
    let new = NewKey::for_tenant("acme").plan("free");
    let key = far.issue_as(new.expires_in(Duration::from_secs(10))).await;
    let started = far.now();
    far.advance(60);
    let meter = Meter::new(EventId::new(1, 1), started);
    let mut metered = request(&[("x-api-key", &key)]);
    metered.extensions_mut().insert(meter.clone());
    let service = layer(&far).layer(Inner::default());
    let answer = send(service.clone(), metered).await;
    assert_eq!(
        answer.status, 200,
        "the key worked when the request reached the meter"
    );
    assert_eq!(meter.identity().unwrap().tenant().id().as_str(), "acme");
    let late = send(service, request(&[("x-api-key", &key)])).await;
    assert_eq!(
        late.status, 401,
        "without a meter the layer reads its own clock"
    );
}

/// Knows tokens that begin with `jwt.`, at once or by a trip.
#[derive(Debug)]
struct Tokens {
    identity: Identity,
    n_asked: AtomicUsize,
}

impl Authenticate for Tokens {
    fn authenticate(
        &self,
        credential: Option<&Credential<'_>>,
        _: &RequestHead<'_>,
        _: Now,
    ) -> Attempt {
        self.n_asked.fetch_add(1, Ordering::SeqCst);
        match credential.map(|credential| credential.value) {
            Some("jwt.now") => Attempt::Done(Ok(self.identity.clone())),
            Some("jwt.later") => {
                let identity = self.identity.clone();
                Attempt::Lookup(Box::pin(async move { Ok(identity) }))
            }
            Some("jwt.old") => Attempt::Done(Err(AuthRefusal::Expired)),
            _ => Attempt::NotMine,
        }
    }
}

fn someone(name: &str) -> Identity {
    let record = TenantRecord::new(tenant(name), plan("free"));
    let plan = super::fake::catalog().find(&plan("free")).unwrap();
    Identity::new(Tenant::new(Arc::new(record)), plan, Grant::default()).unwrap()
}

#[tokio::test]
async fn of_several_authenticators_the_first_that_knows_the_form_decides() {
    let far = far();
    let key = far.issue().await;
    let tokens = Arc::new(Tokens {
        identity: someone("token-holder"),
        n_asked: AtomicUsize::new(0),
    });
    let inner = Inner::default();
    let service = layer(&far).or(Arc::clone(&tokens)).layer(inner.clone());
    let ask = async |credential: &str| {
        send(service.clone(), request(&[("x-api-key", credential)]))
            .await
            .status
    };
    assert_eq!(ask(&key).await, 200);
    assert_eq!(inner.identity().unwrap().tenant().id().as_str(), "acme");
    assert_eq!(tokens.n_asked.load(Ordering::SeqCst), 0);
    for token in ["jwt.now", "jwt.later"] {
        assert_eq!(ask(token).await, 200);
        assert_eq!(
            inner.identity().unwrap().tenant().id().as_str(),
            "token-holder"
        );
    }
    assert_eq!(ask("jwt.old").await, 401);
    assert_eq!(ask("jwt.unheard-of").await, 401);
    assert_eq!(inner.n_calls(), 3);
}

/// A service that must be polled ready before each call, as tower asks of its callers.
#[derive(Debug, Default)]
struct MustBeReady {
    ready: bool,
}

impl Clone for MustBeReady {
    fn clone(&self) -> Self {
        Self { ready: false }
    }
}

impl Service<Request<Empty<Bytes>>> for MustBeReady {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without being ready"
        );
        std::future::ready(Ok(Response::new(Full::default())))
    }
}

#[tokio::test]
async fn the_instance_that_was_polled_ready_is_the_one_that_is_called() {
    let far = far();
    let key = far.issue().await;
    let mut service = layer(&far).layer(MustBeReady::default());
    for _ in 0..2 {
        let ready = service.ready().await.unwrap();
        let response = ready.call(request(&[("x-api-key", &key)])).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test]
async fn errors_of_the_service_pass_unchanged() {
    let far = far();
    let key = far.issue().await;
    let failing = service_fn(async |_: Request<Empty<Bytes>>| {
        Err::<Response<Full<Bytes>>, _>("the service's own error")
    });
    let service = layer(&far).layer(failing);
    let result = service.oneshot(request(&[("x-api-key", &key)])).await;
    assert_eq!(result.unwrap_err(), "the service's own error");
}

#[tokio::test]
async fn an_axum_router_takes_the_layer() {
    use axum::{Router, routing::get};
    let far = far();
    let key = far.issue().await;
    let hello = get(async |tenant: Tenant, identity: Identity| {
        format!("{} on {}", tenant.id(), identity.plan().name())
    });
    let app = Router::new().route("/v1/hello", hello).layer(layer(&far));
    let server = crate::common::serve(app).await;
    let mut request = crate::common::request("GET", "/v1/hello");
    assert_eq!(server.send(request.clone()).await.status, 401);
    request
        .headers_mut()
        .insert("x-api-key", key.parse().unwrap());
    let answer = server.send(request).await;
    assert_eq!(
        (answer.status, &*answer.body),
        (StatusCode::OK, &b"acme on free"[..])
    );
}

#[tokio::test]
async fn the_span_around_a_request_says_who_calls() {
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl<'a> MakeWriter<'a> for Buffer {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    let far = far();
    let key = far.issue().await;
    let id = far.id_of(&key).await;
    let log = Buffer::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_writer(log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let logging = service_fn(async |_: Request<Empty<Bytes>>| {
        tracing::info!("inside");
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let service = layer(&far).layer(logging);
    for _ in 0..2 {
        let span = tracing::info_span!(
            "request",
            tenant = tracing::field::Empty,
            plan = tracing::field::Empty,
            key_id = tracing::field::Empty
        );
        let call = send(service.clone(), request(&[("x-api-key", &key)]));
        tracing::Instrument::instrument(call, span).await;
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let inside: Vec<_> = log
        .lines()
        .filter(|line| line.contains("\"inside\""))
        .collect();
    assert_eq!(inside.len(), 2, "{log}");
    for line in inside {
        for field in [
            "\"tenant\":\"acme\"",
            "\"plan\":\"free\"",
            &format!("\"key_id\":\"{id}\""),
        ] {
            assert!(line.contains(field), "{field} in {line}");
        }
    }
    assert!(!log.contains(&key));
}

#[tokio::test]
async fn a_layer_that_has_served_a_key_does_not_show_it() {
    let far = far();
    let key = far.issue().await;
    let layer = layer(&far);
    assert_eq!(
        send(
            layer.layer(Inner::default()),
            request(&[("x-api-key", &key)])
        )
        .await
        .status,
        200
    );
    let shown = format!("{layer:#?} {:#?}", far.auth);
    assert!(shown.contains("KeyAuthenticator"));
    assert!(!shown.contains(&key[8..]));
}
