//! Keys over HTTP, from a real server that does everything wrong.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use tollgate::auth::{
    AuthRefusal,
    jwt::{HttpJwks, JwksError, JwksRefresh, JwksSource as _},
};
use tower::service_fn;

use super::{
    signer::{P256, Signer, document},
    stand::{Stand, stand_of},
};
use crate::common::{Server, serve};

/// What the provider does with the next request.
#[derive(Clone, Debug)]
enum Mood {
    Answer(String),
    /// Never answers.
    Hang,
    /// Answers, and never ends its body.
    HangWithin,
    /// Sends so many bytes, without a length.
    Flood(usize),
    Redirect(SocketAddr),
    Status(u16),
    /// Closes the connection within the body.
    Cut,
}

struct Provider {
    mood: Arc<Mutex<Mood>>,
    n_asked: Arc<AtomicUsize>,
    n_sent: Arc<AtomicUsize>,
    server: Server,
}

type Body = BoxBody<Bytes, std::io::Error>;

/// A body that counts what is taken from it.
struct Flood {
    left: usize,
    n_sent: Arc<AtomicUsize>,
}

impl http_body::Body for Flood {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let n = self.left.min(16 * 1024);
        self.left -= n;
        self.n_sent.fetch_add(n, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(vec![b' '; n].into()))))
    }
}

fn full(text: String) -> Body {
    Full::from(text).map_err(|error| match error {}).boxed()
}

impl Provider {
    async fn start(mood: Mood) -> Self {
        let mood = Arc::new(Mutex::new(mood));
        let (n_asked, n_sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (present, asked, sent) = (Arc::clone(&mood), Arc::clone(&n_asked), Arc::clone(&n_sent));
        let service = service_fn(move |_: Request<Incoming>| {
            asked.fetch_add(1, Ordering::SeqCst);
            let mood = present.lock().unwrap().clone();
            let n_sent = Arc::clone(&sent);
            async move { Ok::<_, Infallible>(answer(mood, n_sent).await) }
        });
        Self {
            mood,
            n_asked,
            n_sent,
            server: serve(service).await,
        }
    }

    async fn with(keys: &[&Signer]) -> Self {
        Self::start(Mood::Answer(Self::document(keys))).await
    }

    fn document(keys: &[&Signer]) -> String {
        document(keys.iter().map(|signer| signer.jwk()))
    }

    fn becomes(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn n_asked(&self) -> usize {
        self.n_asked.load(Ordering::SeqCst)
    }

    fn source(&self) -> HttpJwks {
        HttpJwks::new(format!("http://{}/jwks", self.server.addr)).unwrap()
    }
}

async fn answer(mood: Mood, n_sent: Arc<AtomicUsize>) -> Response<Body> {
    let status = |status: u16, text: &str| {
        let mut response = Response::new(full(text.to_owned()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    };
    match mood {
        Mood::Answer(document) => Response::new(full(document)),
        Mood::Hang => std::future::pending().await,
        Mood::HangWithin => {
            let start = Ok(Frame::data(Bytes::from_static(b"{\"keys\":[")));
            let stream =
                tokio_stream::StreamExt::chain(tokio_stream::once(start), tokio_stream::pending());
            Response::new(BodyExt::boxed(StreamBody::new(stream)))
        }
        Mood::Flood(left) => Response::new(Flood { left, n_sent }.boxed()),
        Mood::Redirect(to) => {
            let mut response = status(302, "");
            let place = format!("http://{to}/jwks").parse().unwrap();
            response.headers_mut().insert("location", place);
            response
        }
        Mood::Status(code) => status(code, &Provider::document(&[&P256])),
        Mood::Cut => {
            let frames = [
                Ok(Frame::data(Bytes::from_static(b"{\"keys\":["))),
                Err(std::io::Error::other("cut")),
            ];
            Response::new(BodyExt::boxed(StreamBody::new(tokio_stream::iter(frames))))
        }
    }
}

/// With a deadline that a test can wait for.
fn stand(provider: &Provider) -> Stand {
    let refresh = JwksRefresh::new().deadline(Duration::from_millis(200));
    stand_of(provider.source(), |builder| builder.refresh(refresh))
}

#[tokio::test]
async fn a_document_is_fetched_and_read() {
    let provider = Provider::with(&[&P256]).await;
    let keys = provider.source().fetch().await.unwrap();
    assert_eq!(keys.key_ids().collect::<Vec<_>>(), ["p256"]);
    let stand = stand(&provider);
    let identity = stand.ask_far(&P256.token(&stand.claims())).await.unwrap();
    assert_eq!(identity.tenant().id().as_str(), "acme");
}

#[tokio::test]
async fn every_wrong_answer_is_an_error_of_its_own() {
    let elsewhere = Provider::with(&[&P256]).await;
    let provider = Provider::with(&[&P256]).await;
    let source = provider.source();
    let fails = async |mood: Mood| {
        provider.becomes(mood);
        source.fetch().await.unwrap_err()
    };
    for code in [201, 204, 304, 400, 401, 404, 500, 503] {
        let error = fails(Mood::Status(code)).await;
        assert!(
            matches!(error, JwksError::Status(told) if told == code),
            "{error:?}"
        );
    }
    let error = fails(Mood::Redirect(elsewhere.server.addr)).await;
    assert!(matches!(error, JwksError::Status(302)), "{error:?}");
    assert_eq!(elsewhere.n_asked(), 0, "a redirect is not followed");
    for text in ["", "<html></html>", "{\"keys\":", "{\"keys\":{}}"] {
        let error = fails(Mood::Answer(text.to_owned())).await;
        assert!(matches!(error, JwksError::Malformed(_)), "{error:?}");
    }
    let error = fails(Mood::Answer("{\"keys\":[]}".to_owned())).await;
    assert!(matches!(error, JwksError::NoKeys), "{error:?}");
    let error = fails(Mood::Cut).await;
    assert!(matches!(error, JwksError::Unavailable(_)), "{error:?}");
    // A length that is announced is believed; one that is not is counted.
    let padded = format!(
        "{}{}",
        Provider::document(&[&P256]),
        " ".repeat(1024 * 1024)
    );
    let error = fails(Mood::Answer(padded)).await;
    assert!(matches!(error, JwksError::TooLarge), "{error:?}");
    let error = fails(Mood::Flood(10 * 1024 * 1024)).await;
    assert!(matches!(error, JwksError::TooLarge), "{error:?}");
    let n_sent = provider.n_sent.load(Ordering::SeqCst);
    assert!(n_sent < 9 * 1024 * 1024, "{n_sent} bytes were taken");
    let small = provider.source().max_bytes(100);
    provider.becomes(Mood::Answer(Provider::document(&[&P256])));
    assert!(matches!(small.fetch().await, Err(JwksError::TooLarge)));
    assert!(source.fetch().await.is_ok());
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_unavailable_and_not_shown() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = closed.local_addr().unwrap();
    drop(closed);
    let source = HttpJwks::new(format!("http://{addr}/jwks?secret=canary")).unwrap();
    let error = source.fetch().await.unwrap_err();
    assert!(matches!(error, JwksError::Unavailable(_)));
    assert!(!format!("{error:?}").contains("canary"), "{error:?}");
}

#[tokio::test]
async fn keys_rotate_through_every_fault_of_their_provider() {
    let (first, second) = (Signer::p256("first"), Signer::ed25519("second"));
    let elsewhere = Provider::with(&[&second]).await;
    let provider = Provider::start(Mood::Hang).await;
    let stand = stand(&provider);
    let ask = async |signer: &Signer| {
        let token = signer.token(&stand.claims());
        stand.ask_far(&token).await.map(drop)
    };
    let unavailable = Err(AuthRefusal::StoreUnavailable);
    let faults = || {
        [
            Mood::Hang,
            Mood::HangWithin,
            Mood::Status(500),
            Mood::Flood(10 * 1024 * 1024),
            Mood::Answer("<html>".to_owned()),
            Mood::Answer("{\"keys\":[]}".to_owned()),
            Mood::Redirect(elsewhere.server.addr),
            Mood::Cut,
        ]
    };
    // Before there are keys nobody can tell: 503, neither 401 nor open.
    for fault in faults() {
        provider.becomes(fault.clone());
        assert_eq!(ask(&first).await, unavailable, "{fault:?}");
        stand.advance(10);
    }
    assert_eq!(provider.n_asked(), 8);
    provider.becomes(Mood::Answer(Provider::document(&[&first])));
    assert_eq!(ask(&first).await, Ok(()));
    assert_eq!(ask(&second).await, Err(AuthRefusal::Unknown));
    // With keys, each fault leaves the old ones at work and calls no new one invalid.
    for fault in faults() {
        stand.advance(10);
        provider.becomes(fault.clone());
        assert_eq!(ask(&second).await, unavailable, "{fault:?}");
        assert_eq!(ask(&second).await, unavailable, "{fault:?}");
        assert_eq!(ask(&first).await, Ok(()), "{fault:?}");
    }
    assert_eq!(provider.n_asked(), 17, "one question for each interval");
    stand.advance(10);
    provider.becomes(Mood::Answer(Provider::document(&[&second])));
    assert_eq!(ask(&second).await, Ok(()));
    assert_eq!(ask(&first).await, Err(AuthRefusal::Unknown), "withdrawn");
    assert_eq!(elsewhere.n_asked(), 0);
}
