use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use tollgate::{
    auth::{AuthEvent, AuthEventSink, AuthRefusal, Credential, Extractor, FailureLimit, KeySource},
    clock::Now,
    error::{ErrorCode, Problem},
    head::RequestHead,
    identity::{Attempt, AuthLayer, Authenticate, Grant, Identity, NewKey, PathSet, PublicPath},
    meter::{EventId, Meter},
    tenant::{Tenant, TenantRecord},
};
use tower::{Layer, Service, ServiceExt, service_fn};

use super::fake::{Far, Mood, far, invented, plan, tenant};

/// What reached the inner service.
#[derive(Clone, Debug, Default)]
pub(super) struct Inner {
    seen: Arc<Mutex<Vec<http::request::Parts>>>,
}

impl Inner {
    pub(super) fn n_calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(super) fn last(&self) -> http::request::Parts {
        self.seen.lock().unwrap().last().unwrap().clone()
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        self.last().extensions.get().cloned()
    }
}

impl Service<Request<Empty<Bytes>>> for Inner {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Empty<Bytes>>) -> Self::Future {
        self.seen.lock().unwrap().push(request.into_parts().0);
        std::future::ready(Ok(Response::new(Full::from("served"))))
    }
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Bytes,
    pub(super) problem: Option<Problem>,
}

impl Answer {
    pub(super) fn code(&self) -> Option<ErrorCode> {
        self.problem.as_ref().map(Problem::code)
    }
}

pub(super) async fn send<S, B>(service: S, request: Request<Empty<Bytes>>) -> Answer
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let response = service.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
        problem: parts.extensions.get().cloned(),
    }
}

pub(super) fn request(headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    to("GET", "/v1/hello", headers)
}

pub(super) fn to(method: &str, target: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut builder = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Empty::new()).unwrap()
}

fn layer(far: &Far) -> AuthLayer {
    AuthLayer::new(far.auth.clone()).clock(Arc::new(far.clock.clone()))
}

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
async fn nothing_without_a_valid_credential_reaches_the_service() {
    let far = far();
    let key = far.issue().await;
    let invented = invented();
    let inner = Inner::default();
    let service = layer(&far).failure_limit(None).layer(inner.clone());
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Headers<'_>, u16, ErrorCode); 6] = [
        (&[], 401, ErrorCode::MissingCredentials),
        (
            &[("authorization", "Basic dXNlcjpwYXNz")],
            401,
            ErrorCode::MissingCredentials,
        ),
        (
            &[("x-api-key", &invented)],
            401,
            ErrorCode::InvalidCredentials,
        ),
        (
            &[("x-api-key", "nonsense")],
            401,
            ErrorCode::InvalidCredentials,
        ),
        (
            &[("x-api-key", &key), ("x-api-key", &key)],
            400,
            ErrorCode::AmbiguousCredentials,
        ),
        (
            &[("x-api-key", &key), ("authorization", "Bearer another")],
            400,
            ErrorCode::AmbiguousCredentials,
        ),
    ];
    for (headers, status, code) in cases {
        let answer = send(service.clone(), request(headers)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (status, Some(code)),
            "{headers:?}"
        );
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!(
            answer.headers.contains_key("www-authenticate"),
            status == 401 || status == 400
        );
    }
    assert_eq!(inner.n_calls(), 0);
}

#[tokio::test]
async fn a_challenge_names_an_error_only_where_a_credential_was_sent() {
    let far = far();
    let service = layer(&far).layer(Inner::default());
    let challenges = |answer: &Answer| -> Vec<String> {
        let values = answer.headers.get_all("www-authenticate").iter();
        values
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    };
    let missing = send(service.clone(), request(&[])).await;
    assert_eq!(
        challenges(&missing),
        ["ApiKey realm=\"api\"", "Bearer realm=\"api\""]
    );
    let invalid = send(service, request(&[("x-api-key", &invented())])).await;
    assert_eq!(
        challenges(&invalid),
        [
            "ApiKey realm=\"api\"",
            "Bearer realm=\"api\", error=\"invalid_token\""
        ]
    );
}

#[tokio::test]
async fn unknown_revoked_expired_and_malformed_keys_get_the_same_answer_byte_for_byte() {
    let far = far();
    let new = NewKey::for_tenant("acme").plan("free");
    let revoked = far.issue().await;
    far.admin.revoke(&far.id_of(&revoked).await).await.unwrap();
    let expired = far.issue_as(new.expires_in(Duration::from_secs(1))).await;
    far.advance(2);
    let mut wrong_checksum = invented();
    wrong_checksum.pop();
    wrong_checksum.push('!');
    let service = layer(&far).failure_limit(None).layer(Inner::default());
    let mut answers = Vec::new();
    for key in [
        &*invented(),
        &revoked,
        &expired,
        &wrong_checksum,
        "x",
        &"y".repeat(9_000),
    ] {
        let answer = send(service.clone(), request(&[("x-api-key", key)])).await;
        answers.push((answer.status, format!("{:?}", answer.headers), answer.body));
    }
    assert_eq!(answers[0].0, StatusCode::UNAUTHORIZED);
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_a_503_and_never_a_401() {
    let far = far();
    let key = far.issue().await;
    let inner = Inner::default();
    let service = layer(&far).layer(inner.clone());
    for mood in [Mood::Fail, Mood::Hang, Mood::Panic] {
        far.keys.behaviour.becomes(mood);
        let answer = send(service.clone(), request(&[("x-api-key", &key)])).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{mood:?}");
        assert_eq!(answer.code(), Some(ErrorCode::AuthUnavailable));
        assert_eq!(answer.headers["retry-after"], "1");
    }
    assert_eq!(inner.n_calls(), 0);
    far.keys.behaviour.becomes(Mood::Answer);
    assert_eq!(
        send(service, request(&[("x-api-key", &key)])).await.status,
        200
    );
}

#[tokio::test]
async fn an_address_with_too_many_failures_is_turned_away_before_the_store() {
    let far = far();
    let key = far.issue().await;
    let attacker: IpAddr = "192.0.2.1".parse().unwrap();
    let customer: IpAddr = "192.0.2.2".parse().unwrap();
    let limit = FailureLimit::new(60, 5).unwrap();
    let inner = Inner::default();
    let service = layer(&far)
        .failure_limit(limit)
        .client_addr(|head: &RequestHead<'_>| head.extensions().get::<IpAddr>().copied())
        .layer(inner.clone());
    let ask = async |address: IpAddr, key: &str| {
        let mut request = request(&[("x-api-key", key)]);
        request.extensions_mut().insert(address);
        send(service.clone(), request).await
    };
    for _ in 0..5 {
        assert_eq!(ask(attacker, &invented()).await.status, 401);
    }
    let n_asked = far.keys.behaviour.n_asked();
    let refused = ask(attacker, &key).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.code(), Some(ErrorCode::TooManyFailedAttempts));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(far.keys.behaviour.n_asked(), n_asked);
    assert_eq!(ask(customer, &key).await.status, 200);
    far.advance(1);
    assert_eq!(ask(attacker, &key).await.status, 200);
}

#[tokio::test]
async fn a_key_bound_to_networks_is_refused_elsewhere() {
    let far = far();
    let new = NewKey::for_tenant("acme").plan("free");
    let key = far
        .issue_as(new.allow_networks(["192.0.2.0/24", "2001:db8::7"]))
        .await;
    let inner = Inner::default();
    let service = layer(&far)
        .client_addr(|head: &RequestHead<'_>| head.extensions().get::<IpAddr>().copied())
        .layer(inner.clone());
    let cases = [
        (Some("192.0.2.9"), 200),
        (Some("::ffff:192.0.2.9"), 200),
        (Some("2001:db8::7"), 200),
        (Some("198.51.100.1"), 403),
        (None, 403),
    ];
    for (address, status) in cases {
        let mut request = request(&[("x-api-key", &key), ("x-forwarded-for", "192.0.2.9")]);
        if let Some(address) = address {
            request
                .extensions_mut()
                .insert(address.parse::<IpAddr>().unwrap());
        }
        let answer = send(service.clone(), request).await;
        assert_eq!(answer.status.as_u16(), status, "{address:?}");
        if status == 403 {
            assert_eq!(answer.code(), Some(ErrorCode::IpNotAllowed));
        }
    }
    assert_eq!(inner.n_calls(), 3);
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

#[derive(Debug, Default)]
struct Recorded(Mutex<Vec<AuthEvent>>);

impl AuthEventSink for Recorded {
    fn auth_event(&self, event: &AuthEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

#[tokio::test]
async fn refusals_are_told_to_the_sink_with_no_more_of_the_key_than_may_be_shown() {
    let far = far();
    let events = Arc::new(Recorded::default());
    let service = layer(&far)
        .events(Arc::clone(&events) as _)
        .layer(Inner::default());
    let key = invented();
    for key in [&*key, "not-a-key-of-ours-at-all"] {
        send(service.clone(), request(&[("x-api-key", key)])).await;
    }
    send(service.clone(), request(&[])).await;
    let events = events.0.lock().unwrap();
    let refusals: Vec<_> = events.iter().map(|event| event.refusal).collect();
    let expected = [
        AuthRefusal::Unknown,
        AuthRefusal::Malformed,
        AuthRefusal::Missing,
    ];
    assert_eq!(refusals, expected);
    let shown = events[0].credential.unwrap();
    assert_eq!(
        shown.as_str(),
        format!("tg_live_…{}", &key[key.len() - 4..])
    );
    assert!(!format!("{events:?}").contains(&key[8..20]));
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
async fn an_answer_to_head_has_no_body() {
    let far = far();
    let service = layer(&far).layer(Inner::default());
    let answer = send(service, to("HEAD", "/v1/hello", &[])).await;
    assert_eq!(answer.status, 401);
    assert!(answer.body.is_empty());
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
