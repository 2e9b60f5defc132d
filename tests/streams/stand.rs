//! A gate with every kind of rule, around a service that ends its calls in every way, and what its limits and its
//! meter say afterwards.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tollgate::{
    Tollgate, TollgateBuilder, TollgateLayer,
    clock::ManualClock,
    limit::{
        Decision, LimitCall, LimitStore, LimitStoreError, MemoryLimits, OwnedLimitCall, Receipt,
        Settlement,
    },
    meter::{Meter, Recorder, UsageEvent},
    prelude::*,
    sink::MemorySink,
};
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

use crate::common::{Server, eventually, serve};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type TestBody = UnsyncBoxBody<Bytes, BoxError>;

pub(super) fn boxed<B>(body: B) -> TestBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

pub(super) fn meter_of<B>(request: &Request<B>) -> Meter {
    let meter = request.extensions().get::<Meter>();
    meter.expect("a meter").clone()
}

/// Counts its charges and settlements, and keeps what the last call left of each rule.
#[derive(Debug, Default)]
pub(super) struct CountedLimits {
    store: MemoryLimits,
    pub(super) n_charged: AtomicU64,
    pub(super) n_settled: AtomicU64,
    left: Mutex<Vec<u64>>,
}

#[async_trait]
impl LimitStore for CountedLimits {
    fn try_decide(&self, call: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        let decision = self.store.try_decide(call);
        if let Some(Ok(decision)) = &decision
            && decision.is_admitted()
        {
            self.n_charged.fetch_add(1, Ordering::SeqCst);
            let left = decision.states.iter().map(|state| state.remaining);
            *self.left.lock().expect("a sound lock") = left.collect();
        }
        decision
    }

    async fn decide(self: Arc<Self>, _: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        panic!("counts in memory answer at once")
    }

    fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement) {
        self.n_settled.fetch_add(1, Ordering::SeqCst);
        self.store.settle(call, receipt, settlement);
    }
}

/// What the rules have left, a probe's own charge added again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) slots: u64,
    pub(super) calls: u64,
    pub(super) rate: u64,
    pub(super) tokens: u64,
    pub(super) bytes: u64,
}

/// Nothing is held and nothing was charged.
pub(super) const ALL: Left = Left {
    slots: SLOTS,
    calls: CALLS,
    rate: RATE,
    tokens: TOKENS,
    bytes: BYTES,
};

pub(super) const SLOTS: u64 = 10;
pub(super) const CALLS: u64 = 1_000_000;
pub(super) const RATE: u64 = 1_000;
pub(super) const TOKENS: u64 = 1_000_000;
pub(super) const BYTES: u64 = 1_000_000;
/// What each call reserves.
pub(super) const RESERVED: u64 = 500;

pub(super) struct Stand {
    pub(super) gate: Tollgate,
    pub(super) limits: Arc<CountedLimits>,
    pub(super) sink: MemorySink,
    pub(super) clock: ManualClock,
    pub(super) key: String,
}

/// A gate whose clock stands still, so that what a rate was charged stays visible.
pub(super) async fn stand(setup: impl FnOnce(TollgateBuilder) -> TollgateBuilder) -> Stand {
    stand_with(setup, |recorder| recorder).await
}

pub(super) async fn stand_with(
    setup: impl FnOnce(TollgateBuilder) -> TollgateBuilder,
    recording: impl FnOnce(tollgate::meter::RecorderBuilder) -> tollgate::meter::RecorderBuilder,
) -> Stand {
    let (sink, clock) = (MemorySink::new(), ManualClock::default());
    let limits = Arc::new(CountedLimits::default());
    let shared: Arc<dyn tollgate::clock::Clock> = Arc::new(clock.clone());
    let recorder = Recorder::builder(sink.clone()).clock(Arc::clone(&shared));
    let plan = Plan::new("free")
        .rule(Concurrency::new(SLOTS))
        .rule(Quota::daily(CALLS))
        .rule(Rate::per_hour(RATE))
        .rule(
            Quota::daily(TOKENS)
                .unit(Unit::custom("tokens"))
                .named("tokens"),
        )
        .rule(Quota::daily(BYTES).unit(Unit::Bytes).named("bytes"));
    let cost = |head: &RequestHead<'_>| {
        let length = head.headers().get("content-length");
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        Cost::default()
            .bytes(length.unwrap_or(0))
            .reserve("tokens", RESERVED)
    };
    let builder = Tollgate::builder()
        .plans([plan])
        .limits(Arc::clone(&limits))
        .cost(cost)
        .recorder(recording(recorder).build().expect("a recorder"))
        .clock(shared);
    let gate = setup(builder).build().expect("a legal gate");
    let new = NewKey::for_tenant("acme").plan("free");
    let key = gate.keys().issue(new).await.expect("a key").key;
    Stand {
        gate,
        limits,
        sink,
        clock,
        key: key.expose().to_owned(),
    }
}

impl Stand {
    pub(super) fn layer(&self) -> TollgateLayer {
        self.gate.layer()
    }

    pub(super) async fn serve<S, B>(&self, service: S) -> Server
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        serve(self.layer().layer(service)).await
    }

    /// Waits until `n_calls` have ended and checks that each was charged, settled and told once.
    pub(super) async fn events(&self, n_calls: u64) -> Vec<UsageEvent> {
        let counters = || self.gate.usage().counters();
        eventually(|| {
            let now = counters();
            assert!(now.is_balanced(), "{now:?}");
            assert!(now.opened <= n_calls, "a call was counted twice: {now:?}");
            now.settled == n_calls
        })
        .await;
        self.gate.usage().flush().await;
        let now = counters();
        assert!(now.is_balanced(), "{now:?}");
        assert_eq!((now.opened, now.open), (n_calls, 0), "{now:?}");
        assert_eq!((now.acked, self.sink.duplicates()), (n_calls, 0), "{now:?}");
        assert_eq!(self.limits.n_charged.load(Ordering::SeqCst), n_calls);
        assert_eq!(self.limits.n_settled.load(Ordering::SeqCst), n_calls);
        self.sink.events()
    }

    /// What the rules have left, by one more call that is made without a connection and ends at once.
    pub(super) async fn left(&self) -> Left {
        let served = service_fn(async |_: Request<Empty<Bytes>>| {
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let probe = Request::get("/")
            .header("x-api-key", &self.key)
            .body(Empty::new())
            .expect("a request");
        let before = self.limits.n_settled.load(Ordering::SeqCst);
        let answer = self.layer().layer(served).oneshot(probe).await;
        drop(answer.expect("infallible"));
        assert_eq!(self.limits.n_settled.load(Ordering::SeqCst), before + 1);
        let left = self.limits.left.lock().expect("a sound lock").clone();
        let [slots, calls, rate, tokens, bytes] = left[..] else {
            panic!("five rules left {left:?}")
        };
        Left {
            slots: slots + 1,
            calls: calls + 1,
            rate: rate + 1,
            tokens: tokens + RESERVED,
            bytes,
        }
    }

    pub(super) fn get(&self, path: &str) -> Request<Empty<Bytes>> {
        Request::get(format!("http://test{path}"))
            .header("x-api-key", &self.key)
            .body(Empty::new())
            .expect("a request")
    }

    /// A connection of HTTP/1.1 that has sent a request.
    pub(super) async fn raw(&self, server: &Server, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: test\r\nx-api-key: {}\r\n\r\n",
            self.key
        );
        stream.write_all(head.as_bytes()).await.expect("a server");
        stream
    }
}

/// A connection of HTTP/2.
pub(super) async fn http2(server: &Server) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(server.addr).await.expect("a connection");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a handshake");
    tokio::spawn(connection);
    sender
}
