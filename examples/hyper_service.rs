// cargo run --example hyper_service
//! The gate around a bare hyper service, HTTP/1 and HTTP/2, without a framework.

use std::{convert::Infallible, env, error::Error, pin::pin, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tollgate::{
    Tollgate,
    head::PeerAddress,
    identity::{Identity, NewKey},
    limit::{Concurrency, Rate},
    meter::Meter,
    plan::Plan,
    route::RouteTemplate,
};
use tower::{ServiceBuilder, service_fn};

/// Echoes a POST body in upper case and says how many bytes it took.
async fn shout(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let identity = request.extensions().get::<Identity>().cloned();
    let meter = request.extensions().get::<Meter>().cloned();
    let answer = |status, body: Vec<u8>| {
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        Ok(response)
    };
    if request.method() != Method::POST || request.uri().path() != "/shout" {
        return answer(StatusCode::NOT_FOUND, Vec::new());
    }
    let Ok(body) = request.into_body().collect().await else {
        return answer(StatusCode::BAD_REQUEST, Vec::new());
    };
    let mut text = body.to_bytes().to_ascii_uppercase();
    if let (Some(meter), Some(identity)) = (meter, identity) {
        meter.add("letters", text.len() as u64);
        text.extend_from_slice(format!(" ({})\n", identity.tenant().id()).as_bytes());
    }
    answer(StatusCode::OK, text)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let gate = Tollgate::builder()
        .plans([Plan::new("basic")
            .rule(Rate::per_second(3))
            .rule(Concurrency::new(8))])
        // Without a router the service itself knows its routes: a bounded set, for labels and events.
        .route_of(|head: &tollgate::head::RequestHead<'_>| {
            (head.uri().path() == "/shout").then(|| RouteTemplate::from("/shout"))
        })
        .build()?;
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("basic"))
        .await?;
    let service = ServiceBuilder::new()
        .layer(gate.layer())
        .service(service_fn(shout));

    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    println!("key: {}", issued.key.expose());
    let mut stop = pin!(tokio::signal::ctrl_c());
    loop {
        let (stream, peer) = tokio::select! {
            connection = listener.accept() => connection?,
            _ = &mut stop => break,
        };
        let service = service.clone();
        // The peer's address, for the failure limiter and for rules by address.
        let service = ServiceBuilder::new()
            .map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(PeerAddress(peer));
                request
            })
            .service(service);
        tokio::spawn(async move {
            let connection = auto::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(service);
            if let Err(error) = connection
                .serve_connection(TokioIo::new(stream), service)
                .await
            {
                eprintln!("connection from {peer}: {error}");
            }
        });
    }
    println!("{:?}", gate.shutdown(Duration::from_secs(5)).await);
    Ok(())
}
