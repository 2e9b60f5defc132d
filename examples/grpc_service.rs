// cargo run --example grpc_service
//! The gate around a tonic server: health for everybody, a service for who has a key.
//!
//! It serves, calls itself by a tonic client without a key, with one and beyond the limit, prints what the client was
//! told, and goes on serving. The method is written by hand, so that no protocol file is needed.

use std::{env, error::Error, time::Duration};

use axum::routing::post;
use http::{Request, Response};
use tollgate::{
    Tollgate,
    grpc::GrpcRoutes,
    head::PeerAddress,
    identity::{Identity, NewKey},
    limit::Rate,
    meter::Meter,
    plan::Plan,
};
use tonic::{
    Status,
    body::Body,
    client::Grpc,
    service::Routes,
    transport::{
        Endpoint, Server,
        server::{TcpConnectInfo, TcpIncoming},
    },
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;
use tower::{service_fn, util::MapRequestLayer};

const SAY: &str = "/example.Shout/Say";

#[derive(Clone, PartialEq, prost::Message)]
struct Words {
    #[prost(string, tag = "1")]
    text: String,
}

/// The method: sees who calls, and says what the call used.
async fn say(request: tonic::Request<Words>) -> Result<tonic::Response<Words>, Status> {
    let (_, extensions, Words { text }) = request.into_parts();
    let caller = extensions.get::<Identity>();
    let caller = caller.ok_or_else(|| Status::internal("no gate"))?;
    if let Some(meter) = extensions.get::<Meter>() {
        meter.add("letters", text.len() as u64);
    }
    let text = format!("{} ({})", text.to_uppercase(), caller.tenant().id());
    Ok(tonic::Response::new(Words { text }))
}

/// What tonic's build step would generate for it.
async fn serve_say(request: Request<axum::body::Body>) -> Response<Body> {
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<Words, Words>::default());
    grpc.unary(service_fn(say), request).await
}

/// tonic knows the peer's address by a name of its own.
fn peer(mut request: Request<Body>) -> Request<Body> {
    let info = request.extensions().get::<TcpConnectInfo>();
    if let Some(addr) = info.and_then(TcpConnectInfo::remote_addr) {
        request.extensions_mut().insert(PeerAddress(addr));
    }
    request
}

/// What a client is told without a key, and by three calls with it.
async fn told(address: String, key: &str) -> Result<String, Box<dyn Error>> {
    let channel = Endpoint::new(address)?.connect().await?;
    let mut health = HealthClient::new(channel.clone());
    let health = health.check(HealthCheckRequest::default()).await?;
    let mut told = vec![format!("{:?}", health.into_inner().status())];
    let mut client = Grpc::new(channel);
    for key in [None, Some(key), Some(key), Some(key)] {
        let text = "hey".to_owned();
        let mut request = tonic::Request::new(Words { text });
        if let Some(key) = key {
            request.metadata_mut().insert("x-api-key", key.parse()?);
        }
        client.ready().await?;
        let codec = ProstCodec::<Words, Words>::default();
        told.push(match client.unary(request, SAY.parse()?, codec).await {
            Ok(answer) => answer.into_inner().text,
            Err(status) => format!("{:?}", status.code()),
        });
    }
    Ok(told.join(", "))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let gate = Tollgate::builder()
        .plans([Plan::new("basic").rule(Rate::per_minute(2))])
        .route_of(GrpcRoutes::new([SAY])?)
        .public(["/grpc.health.v1.Health/*"])
        .build()?;
    let new = NewKey::for_tenant("acme").plan("basic");
    let issued = gate.keys().issue(new).await?;
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    let address = format!("http://{}", listener.local_addr()?);
    let (_, health) = tonic_health::server::health_reporter();
    let routes = Routes::new(health).into_axum_router();
    let server = Server::builder()
        .layer(MapRequestLayer::new(peer))
        .layer(gate.layer())
        .add_routes(Routes::from(routes.route(SAY, post(serve_say))));
    let stop = async {
        println!("listening on {address}\nkey: {}", issued.key.expose());
        let told = told(address, issued.key.expose()).await;
        println!("told: {}", told.unwrap_or_else(|error| error.to_string()));
        let _ = tokio::signal::ctrl_c().await;
    };
    let incoming = TcpIncoming::from(listener);
    server.serve_with_incoming_shutdown(incoming, stop).await?;
    println!("{:?}", gate.shutdown(Duration::from_secs(5)).await);
    Ok(())
}
