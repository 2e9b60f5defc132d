//! gRPC behind the gate: a tonic server, a tonic client and a socket between them.

mod errors;
mod metering;
mod streaming;
mod table;
mod wire;

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::{net::TcpListener, task::AbortHandle, time::timeout};
use tokio_stream::{Stream, StreamExt as _};
use tollgate::{
    Tollgate, TollgateBuilder,
    clock::ManualClock,
    grpc::GrpcRoutes,
    head::PeerAddress,
    identity::NewKey,
    limit::{Quota, Rate},
    meter::{Meter, UsageEvent},
    plan::Plan,
    sink::MemorySink,
};
use tonic::{
    Code, Status, Streaming,
    body::Body,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    metadata::MetadataValue,
    server::NamedService,
    transport::{
        Channel, Server,
        server::{TcpConnectInfo, TcpIncoming},
    },
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

const PATIENCE: Duration = Duration::from_secs(20);

const SAY: &str = "/test.Echo/Say";
const COUNT: &str = "/test.Echo/Count";
const JOIN: &str = "/test.Echo/Join";
const CHAT: &str = "/test.Echo/Chat";

#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

fn text(text: impl Into<String>) -> Text {
    Text { text: text.into() }
}

type Texts = Pin<Box<dyn Stream<Item = Result<Text, Status>> + Send>>;

/// What a tonic build would have generated: one method of each kind.
#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

/// Says the text again; some texts make it fail.
async fn say(request: tonic::Request<Text>) -> Result<tonic::Response<Text>, Status> {
    if let Some(meter) = request.extensions().get::<Meter>() {
        meter.add("texts", 1);
    }
    let said = request.into_inner().text;
    match said.split_once(' ') {
        Some(("fail", code)) => {
            let code = Code::from_i32(code.parse().expect("a number"));
            Err(Status::new(code, "told to fail"))
        }
        Some(("hang", _)) => std::future::pending().await,
        Some(("panic", _)) => panic!("canary of the handler"),
        _ => Ok(tonic::Response::new(text(said))),
    }
}

/// So many texts, and then the status that follows the number.
async fn count(request: tonic::Request<Text>) -> Result<tonic::Response<Texts>, Status> {
    let said = request.into_inner().text;
    let (n, end) = said.split_once(' ').unwrap_or((&said, "0"));
    let n: usize = n
        .parse()
        .map_err(|_| Status::invalid_argument("no number"))?;
    let end = match Code::from_i32(end.parse().unwrap_or(2)) {
        Code::Ok => None,
        code => Some(Err(Status::new(code, "at the end"))),
    };
    let texts = tokio_stream::iter((0..n).map(|n| Ok(text(n.to_string()))));
    Ok(tonic::Response::new(Box::pin(
        texts.chain(tokio_stream::iter(end)),
    )))
}

async fn join(request: tonic::Request<Streaming<Text>>) -> Result<tonic::Response<Text>, Status> {
    let mut texts = request.into_inner();
    let mut joined = String::new();
    while let Some(next) = texts.next().await {
        joined.push_str(&next?.text);
    }
    Ok(tonic::Response::new(text(joined)))
}

async fn chat(request: tonic::Request<Streaming<Text>>) -> Result<tonic::Response<Texts>, Status> {
    let meter = request.extensions().get::<Meter>().cloned();
    let texts = request.into_inner().map(move |next| {
        if let Some(meter) = &meter {
            meter.add("texts", 1);
        }
        next.map(|said| text(said.text.to_uppercase()))
    });
    Ok(tonic::Response::new(Box::pin(texts)))
}

impl Service<Request<Body>> for Echo {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Text, Text>::default());
            Ok(match request.uri().path() {
                SAY => grpc.unary(service_fn(say), request).await,
                COUNT => grpc.server_streaming(service_fn(count), request).await,
                JOIN => grpc.client_streaming(service_fn(join), request).await,
                CHAT => grpc.streaming(service_fn(chat), request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

/// A gate around tonic's own server.
struct Stand {
    gate: Tollgate,
    sink: Arc<MemorySink>,
    clock: ManualClock,
    addr: SocketAddr,
    server: AbortHandle,
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn builder(sink: &Arc<MemorySink>, clock: &ManualClock) -> TollgateBuilder {
    Tollgate::builder()
        .plans([Plan::new("free")
            .rule(Rate::per_second(100))
            .rule(Quota::monthly(50))])
        .usage(Arc::clone(sink))
        .clock(Arc::new(clock.clone()))
        .route_of(GrpcRoutes::new([SAY, COUNT, JOIN, CHAT]).expect("methods"))
        .reads(GrpcRoutes::new([COUNT]).expect("methods").reads())
        .public(["/grpc.health.v1.Health/*"])
}

/// The peer's address where the gate looks for it.
fn peer(mut request: Request<Body>) -> Request<Body> {
    let info = request.extensions().get::<TcpConnectInfo>();
    if let Some(addr) = info.and_then(TcpConnectInfo::remote_addr) {
        request.extensions_mut().insert(PeerAddress(addr));
    }
    request
}

async fn stand(setup: impl FnOnce(TollgateBuilder) -> TollgateBuilder) -> Stand {
    let (sink, clock) = (Arc::new(MemorySink::new()), ManualClock::default());
    let gate = setup(builder(&sink, &clock)).build().expect("a legal gate");
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let addr = listener.local_addr().expect("a bound socket");
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .layer(tower::util::MapRequestLayer::new(peer))
        .layer(gate.layer())
        .add_service(health)
        .add_service(Echo)
        .serve_with_incoming(TcpIncoming::from(listener));
    let server = tokio::spawn(server).abort_handle();
    Stand {
        gate,
        sink,
        clock,
        addr,
        server,
    }
}

impl Stand {
    async fn key(&self) -> String {
        let new = NewKey::for_tenant("acme").plan("free");
        let issued = self.gate.keys().issue(new).await.expect("a key");
        issued.key.expose().to_owned()
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.addr))
            .expect("an address")
            .connect()
            .await
            .expect("a connection")
    }

    /// A client that sends the key as `x-api-key`, or none.
    async fn client(&self, key: Option<&str>) -> Client {
        Client {
            grpc: Grpc::new(self.channel().await),
            key: key.map(str::to_owned),
        }
    }

    /// A client of a fresh key.
    async fn caller(&self) -> Client {
        let key = self.key().await;
        self.client(Some(&key)).await
    }

    /// The events of calls that have ended, once so many have.
    async fn events(&self, n_events: usize) -> Vec<UsageEvent> {
        let usage = self.gate.usage();
        crate::common::eventually(|| usage.counters().settled >= n_events as u64).await;
        usage.flush().await;
        assert!(usage.counters().is_balanced(), "{:?}", usage.counters());
        let events = self.sink.events();
        assert_eq!(events.len(), n_events, "{events:?}");
        events
    }

    /// The event of the only call.
    async fn event(&self) -> UsageEvent {
        self.events(1).await.remove(0)
    }
}

struct Client {
    grpc: Grpc<Channel>,
    key: Option<String>,
}

impl Client {
    async fn ready<T>(&mut self, message: T) -> tonic::Request<T> {
        self.grpc.ready().await.expect("a connection");
        let mut request = tonic::Request::new(message);
        if let Some(key) = &self.key {
            let value = MetadataValue::try_from(key).expect("a field");
            request.metadata_mut().insert("x-api-key", value);
        }
        request
    }

    async fn unary(&mut self, path: &'static str, said: &str) -> Result<Text, Status> {
        let request = self.ready(text(said)).await;
        let path = PathAndQuery::from_static(path);
        let codec = ProstCodec::<Text, Text>::default();
        let call = self.grpc.unary(request, path, codec);
        let answer = timeout(PATIENCE, call).await.expect("an answer in time");
        answer.map(tonic::Response::into_inner)
    }

    async fn say(&mut self, said: &str) -> Result<Text, Status> {
        self.unary(SAY, said).await
    }

    async fn count(&mut self, said: &str) -> Result<Streaming<Text>, Status> {
        let request = self.ready(text(said)).await;
        let path = PathAndQuery::from_static(COUNT);
        let codec = ProstCodec::<Text, Text>::default();
        let call = self.grpc.server_streaming(request, path, codec);
        let answer = timeout(PATIENCE, call).await.expect("an answer in time");
        answer.map(tonic::Response::into_inner)
    }
}

/// The next message, or how the stream ended.
async fn next(texts: &mut Streaming<Text>) -> Result<Option<String>, Status> {
    let next = timeout(PATIENCE, texts.message()).await;
    Ok(next.expect("a message in time")?.map(|text| text.text))
}
