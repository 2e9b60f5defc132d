//! A secret sent through every path is found nowhere.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use metrics_util::debugging::DebuggingRecorder;
use tollgate::{
    auth::{Extractor, KeyHasher, KeySource, Pepper},
    id::Environment,
    identity::{CacheSettings, Identity, NewKey},
    limit::Rate,
    meter::Meter,
    plan::Plan,
    tenant::AccessState,
};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};
use tracing_subscriber::fmt::MakeWriter;

use super::{BoxError, Stand, TestBody, boxed, get, invented, stand};
use crate::common::far_stores::{FakeKeys, Mood};

/// Everything that anybody could have written the secret to.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Seen {
    fn note(&self, text: &str) {
        self.0.lock().unwrap().extend_from_slice(text.as_bytes());
    }
}

impl io::Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Seen {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Shows everything that it was called with, and does what the path says.
async fn leaky(
    seen: Seen,
    request: Request<Full<Bytes>>,
) -> Result<Response<TestBody>, Infallible> {
    let (parts, _) = request.into_parts();
    seen.note(&format!("{parts:?}"));
    if !parts.uri.path().starts_with("/open") {
        // No field of a request that was judged holds the key, sensitive or not.
        for (name, value) in &parts.headers {
            seen.note(&format!(
                "{name}: {}",
                String::from_utf8_lossy(value.as_bytes())
            ));
        }
    }
    for value in [
        format!("{:?}", parts.extensions.get::<Identity>()),
        format!("{:?}", parts.extensions.get::<Meter>()),
    ] {
        seen.note(&value);
    }
    let mut response = Response::new(boxed(Full::from("fine")));
    match parts.uri.path() {
        "/panic" => panic!("{parts:?}"),
        "/fail" => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
        "/missing" => *response.status_mut() = StatusCode::NOT_FOUND,
        "/hang" => std::future::pending().await,
        "/broken" => {
            let frames = [
                Ok(Frame::data(Bytes::from_static(b"half"))),
                Err(BoxError::from("the source broke")),
            ];
            *response.body_mut() = boxed(StreamBody::new(tokio_stream::iter(frames)));
        }
        _ => {}
    }
    Ok(response)
}

async fn send(stand: &Stand, seen: &Seen, request: Request<Full<Bytes>>) -> u16 {
    let inside = seen.clone();
    let service = service_fn(move |request| leaky(inside.clone(), request));
    let service = stand.gate.layer().layer(service);
    seen.note(&format!("{service:?}"));
    let response = service.oneshot(request).await.expect("an answer");
    let status = response.status().as_u16();
    seen.note(&format!("{response:?}"));
    let (parts, mut body) = response.into_parts();
    for (name, value) in &parts.headers {
        seen.note(&format!(
            "{name}: {}",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    while let Some(frame) = body.frame().await {
        seen.note(&format!("{frame:?}"));
    }
    status
}

/// Polls a call once, and drops it while the service or a store is still at work.
async fn abandon(stand: &Stand, seen: &Seen, request: Request<Full<Bytes>>) {
    let inside = seen.clone();
    let service = service_fn(move |request| leaky(inside.clone(), request));
    let mut service = stand.gate.layer().layer(service);
    let mut future = Box::pin(service.call(request));
    seen.note(&format!("{future:?}"));
    let poll = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    assert!(poll.is_pending());
}

/// The three places that this gate reads a key from.
fn carrying(path: &str, key: &str) -> [Request<Full<Bytes>>; 3] {
    let bearer = format!("Bearer {key}");
    [
        get(path, &[("x-api-key", key)]),
        get(path, &[("authorization", &bearer)]),
        get(&format!("{path}?a=1&key={key}"), &[]),
    ]
}

async fn everywhere(seen: &Seen) -> Vec<String> {
    let keys = FakeKeys::slow();
    let store = Arc::clone(&keys);
    let sources = [
        KeySource::header("x-api-key").expect("a name"),
        KeySource::Bearer,
        KeySource::query("key"),
    ];
    let pepper = Pepper::new("a pepper of sixteen bytes").expect("long enough");
    let plans = [
        Plan::new("free").rule(Rate::per_second(1_000_000)),
        Plan::new("tiny").rule(Rate::per_day(1)),
    ];
    let stand = stand(move |builder| {
        builder
            .plans(plans)
            .keys(store)
            .key_hasher(KeyHasher::hmac(pepper))
            .extractor(Extractor::new(sources).expect("legal sources"))
            .only(Environment::Live)
            .cache(CacheSettings::new().stale_if_error(Duration::ZERO))
            .public(["/open"])
    });
    let issue = async |new: NewKey| stand.gate.keys().issue(new).await.expect("a key");
    let acme = issue(NewKey::for_tenant("acme").plan("free")).await;
    let limited = issue(NewKey::for_tenant("limited").plan("tiny")).await;
    let revoked = issue(NewKey::for_tenant("acme").scopes(["read"])).await;
    let test = issue(NewKey::for_tenant("acme").environment(Environment::Test)).await;
    let bound = issue(NewKey::for_tenant("acme").allow_networks(["192.0.2.0/24"])).await;
    let unpaid = issue(NewKey::for_tenant("unpaid").plan("free")).await;
    let unpaid_id = unpaid.record.tenant.clone();
    stand
        .gate
        .keys()
        .revoke(&revoked.record.id)
        .await
        .expect("revoked");
    let tenants = stand.gate.tenants();
    tenants
        .set_access(&unpaid_id, AccessState::Suspended)
        .await
        .expect("suspended");
    seen.note(&format!(
        "{:?} {acme:?} {:?} {:?}",
        stand.gate,
        tenants,
        stand.gate.keys()
    ));

    let mut secrets = Vec::new();
    let guess = invented();
    let cases = [
        (acme.key.expose(), "/", 200),
        (acme.key.expose(), "/open", 200),
        (acme.key.expose(), "/missing", 404),
        (acme.key.expose(), "/fail", 500),
        (acme.key.expose(), "/panic", 500),
        (acme.key.expose(), "/broken", 200),
        (unpaid.key.expose(), "/", 402),
        (test.key.expose(), "/", 400),
        (bound.key.expose(), "/", 403),
        (revoked.key.expose(), "/", 401),
        (&guess, "/", 401),
        (&guess[..guess.len() - 1], "/", 401),
    ];
    for (key, path, expected) in cases {
        secrets.push(key.to_owned());
        for request in carrying(path, key) {
            if path == "/open" && request.uri().query().is_some() {
                // Nobody looks for a key on a public path; what a target says there is the service's own.
                continue;
            }
            assert_eq!(send(&stand, seen, request).await, expected, "{path}");
        }
    }
    let twice = [("x-api-key", acme.key.expose()), ("x-api-key", &*guess)];
    assert_eq!(send(&stand, seen, get("/", &twice)).await, 400);
    secrets.push(limited.key.expose().to_owned());
    for expected in [200, 429] {
        assert_eq!(
            send(
                &stand,
                seen,
                get("/", &[("x-api-key", limited.key.expose())])
            )
            .await,
            expected
        );
    }
    for request in carrying("/hang", acme.key.expose()) {
        abandon(&stand, seen, request).await;
    }
    for request in carrying("/", &invented()) {
        abandon(&stand, seen, request).await;
    }
    // The store fails when what is cached has run out.
    keys.behaviour.becomes(Mood::Fail);
    stand.clock.advance(Duration::from_secs(100));
    for request in carrying("/", acme.key.expose()) {
        assert_eq!(send(&stand, seen, request).await, 503);
    }
    // And in the end the address has had its share of failures.
    keys.behaviour.becomes(Mood::Trip);
    for _ in 0..40 {
        let guess = invented();
        send(&stand, seen, get("/", &[("x-api-key", &*guess)])).await;
        secrets.push(guess);
    }
    assert_eq!(
        send(&stand, seen, get("/", &[("x-api-key", &*guess)])).await,
        429
    );
    stand.gate.usage().flush().await;
    seen.note(&format!(
        "{:?} {:?}",
        stand.sink.events(),
        stand.gate.usage().counters()
    ));
    let json = serde_json::to_string(&stand.sink.events()).expect("events as JSON");
    seen.note(&json);
    seen.note(&format!("{:?}", keys.store.to_document()));
    let health = stand
        .gate
        .health()
        .oneshot(Request::new(()))
        .await
        .expect("an answer");
    seen.note(&format!("{health:?}"));
    secrets
}

fn assert_not_in(seen: &Seen, secrets: &[String]) {
    let text = String::from_utf8_lossy(&seen.0.lock().unwrap()).into_owned();
    for secret in secrets {
        // The first 8 bytes and the last 4 may be shown.
        for part in secret.as_bytes()[8..secret.len() - 4].chunks_exact(8) {
            let part = std::str::from_utf8(part).expect("ASCII");
            if let Some(place) = text.find(part) {
                panic!(
                    "{part} in {:?}",
                    &text[place.saturating_sub(300)..place + 20]
                );
            }
        }
    }
}

/// What a call says under a subscriber that takes everything and a recorder of all metrics.
fn observed<T>(seen: &Seen, run: impl Future<Output = T>) -> T {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_writer(seen.clone())
        .finish();
    // All tasks run on this thread, so that both hear everything.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let result = tracing::subscriber::with_default(subscriber, || {
        metrics::with_local_recorder(&recorder, || runtime.block_on(run))
    });
    for (key, ..) in snapshotter.snapshot().into_vec() {
        seen.note(&format!("{key:?}"));
    }
    result
}

#[test]
fn no_path_of_a_call_shows_a_key_to_anybody() {
    let seen = Seen::default();
    let secrets = observed(&seen, everywhere(&seen));
    assert!(secrets.len() > 50);
    let text = String::from_utf8_lossy(&seen.0.lock().unwrap()).into_owned();
    for sign in [
        "authentication refused",
        "tollgate_auth_failures_total",
        "the service panicked",
    ] {
        assert!(text.contains(sign), "nothing was heard of {sign}");
    }
    assert_not_in(&seen, &secrets);
}

#[test]
fn no_path_of_a_call_over_a_connection_shows_a_key_to_anybody() {
    let seen = Seen::default();
    let noted = seen.clone();
    let secret = observed(&seen, async move {
        let stand = stand(|builder| builder);
        let key = stand.issue("acme").await;
        let service = service_fn(async |request: Request<hyper::body::Incoming>| {
            let text = format!("{request:?}");
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
        });
        let server = crate::common::serve(stand.gate.layer().layer(service)).await;
        for key in [&*key, &invented()] {
            for header in ["x-api-key", "authorization"] {
                let mut request = crate::common::request("GET", "/");
                let value = if header == "authorization" {
                    format!("Bearer {key}")
                } else {
                    key.to_owned()
                };
                request
                    .headers_mut()
                    .insert(header, value.parse().expect("a value"));
                for answer in [
                    server.send(request.clone()).await,
                    server.send_http2(request).await,
                ] {
                    noted.note(&format!("{answer:?}"));
                }
            }
        }
        key
    });
    assert_not_in(&seen, &[secret]);
}

#[test]
fn no_path_of_a_call_shows_a_token_to_anybody() {
    use crate::jwt::{
        signer::{P256, Signer},
        stand::{AUDIENCE, ISSUER, all_keys, claims, with},
    };
    use tollgate::{
        auth::jwt::{HttpJwks, SharedSecret},
        clock::Clock as _,
        identity::JwtAuthenticator,
    };

    let seen = Seen::default();
    let shared = "a shared secret of thirty-two bytes or more";
    let secrets = observed(&seen, async {
        let (down, old) = ("https://down.example/", "https://old.example/");
        let provider = HttpJwks::new("http://127.0.0.1:1/jwks?client=canary-in-a-query");
        let tokens = JwtAuthenticator::builder()
            .issuer(ISSUER, all_keys())
            .issuer(down, provider.expect("an address"))
            .issuer_with_secret(old, SharedSecret::hs256(shared).expect("long enough"))
            .audience(AUDIENCE);
        seen.note(&format!("{tokens:?}"));
        let stand = stand(|builder| builder.jwt(tokens).public(["/open"]));
        stand.issue("acme").await;
        seen.note(&format!("{:?}", stand.gate));
        let claims = with(
            claims(stand.clock.now()),
            "email",
            "canary@example.com".into(),
        );
        let sign =
            |name: &str, value: serde_json::Value| P256.token(&with(claims.clone(), name, value));
        let good = sign("jti", 1.into());
        let mut secrets = Vec::new();
        for (token, path, expected) in [
            (good.clone(), "/", 200),
            (good.clone(), "/open", 200),
            (good.clone(), "/missing", 404),
            (good.clone(), "/fail", 500),
            (good.clone(), "/panic", 500),
            (good.clone(), "/broken", 200),
            (format!("{}AA", &good[..good.len() - 2]), "/", 401),
            (format!("{good}.{good}"), "/", 401),
            (sign("exp", 1.into()), "/", 401),
            (sign("aud", "x".into()), "/", 401),
            (sign("iss", "x".into()), "/", 401),
            (sign("iss", old.into()), "/", 401),
            (sign("iss", down.into()), "/", 503),
            (sign("tenant", "nobody".into()), "/", 401),
            (Signer::p256("unknown").token(&claims), "/", 401),
            (Signer::p256("p256").token(&claims), "/", 401),
        ] {
            let bearer = format!("Bearer {token}");
            for header in [("x-api-key", &*token), ("authorization", &*bearer)] {
                let status = send(&stand, &seen, get(path, &[header])).await;
                assert_eq!(status, expected, "{path}");
            }
            secrets.push(token);
        }
        abandon(&stand, &seen, get("/hang", &[("x-api-key", &*good)])).await;
        stand.gate.usage().flush().await;
        seen.note(&format!("{:?}", stand.sink.events()));
        secrets
    });
    let text = String::from_utf8_lossy(&seen.0.lock().unwrap()).into_owned();
    for sign in [
        "bad_signature",
        "wrong_issuer",
        "no key set",
        "tollgate_token_cache_total",
    ] {
        assert!(text.contains(sign), "nothing was heard of {sign}");
    }
    for secret in ["canary@", "canary-in-a-query", shared] {
        assert!(!text.contains(secret), "{secret}");
    }
    // A second token shares its start with the first: what is secret is all of it but the last four characters.
    assert_not_in(&seen, &secrets);
}
