//! A real HTTP/1.1 and HTTP/2 server for one service, and the clients that talk to it.

use std::{convert::Infallible, error::Error, net::SocketAddr, time::Duration};

use axum::extract::ConnectInfo;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tollgate::head::PeerAddress;
use tower::{Service, ServiceExt};

/// Long enough for a busy machine, short enough that a test which hangs says so.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on `127.0.0.1`; it and its connections end when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    http1: Client<HttpConnector, Full<Bytes>>,
    http2: Client<HttpConnector, Full<Bytes>>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves HTTP/1.1 and HTTP/2 on a free port. Requests carry their peer's address as a `PeerAddress` and as
/// axum's `ConnectInfo`.
pub(crate) async fn serve<S, B>(service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a free port");
    let addr = listener.local_addr().expect("a bound socket");
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, peer)) = listener.accept().await {
            let service = service.clone().map_request(move |mut request: Request<_>| {
                request.extensions_mut().insert(PeerAddress(peer));
                request.extensions_mut().insert(ConnectInfo(peer));
                request
            });
            connections.spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(
                        TokioIo::new(stream),
                        TowerToHyperService::new(service),
                    )
                    .await;
            });
        }
    });
    Server {
        addr,
        http1: Client::builder(TokioExecutor::new()).build_http(),
        http2: Client::builder(TokioExecutor::new())
            .http2_only(true)
            .build_http(),
        task: task.abort_handle(),
    }
}

/// A request without a body; `target` is a path.
pub(crate) fn request(method: &str, target: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(target)
        .body(Full::default())
        .expect("a valid request")
}

impl Server {
    /// Sends the request over HTTP/1.1.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.send_by(&self.http1, request).await
    }

    /// Sends the request over HTTP/2.
    pub(crate) async fn send_http2(&self, request: Request<Full<Bytes>>) -> Answer {
        self.send_by(&self.http2, request).await
    }

    /// Sends the request over HTTP/2; nothing when there is no whole answer.
    pub(crate) async fn try_http2(&self, mut request: Request<Full<Bytes>>) -> Option<Bytes> {
        let target = format!("http://{}{}", self.addr, request.uri());
        *request.uri_mut() = target.parse().expect("a path");
        let exchange = async {
            let response = self.http2.request(request).await.ok()?;
            Some(response.into_body().collect().await.ok()?.to_bytes())
        };
        timeout(PATIENCE, exchange).await.expect("an end in time")
    }

    /// Gets a path over HTTP/1.1.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request("GET", path)).await
    }

    async fn send_by(
        &self,
        client: &Client<HttpConnector, Full<Bytes>>,
        mut request: Request<Full<Bytes>>,
    ) -> Answer {
        let target = format!("http://{}{}", self.addr, request.uri());
        *request.uri_mut() = target.parse().expect("a path");
        let exchange = async {
            let response = client.request(request).await.expect("an answer");
            let (parts, body) = response.into_parts();
            let body = body.collect().await.expect("a whole body").to_bytes();
            Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            }
        };
        timeout(PATIENCE, exchange)
            .await
            .expect("an answer in time")
    }

    /// Writes bytes as they are, for what no client would send, and reads until the server closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let exchange = async {
            let mut stream = TcpStream::connect(self.addr).await.expect("a connection");
            stream.write_all(bytes).await.expect("a server that reads");
            let mut answer = Vec::new();
            // A server may reset instead of closing; what came before counts.
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        };
        timeout(PATIENCE, exchange).await.expect("a close in time")
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The value of a header field that must be there and be text.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        let value = value.unwrap_or_else(|| panic!("no {name} in {:?}", self.headers));
        value.to_str().expect("a text")
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text")
    }
}

/// Waits until something holds: a server drops a body after its client has read it.
pub(crate) async fn eventually(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("to hold in time");
}
