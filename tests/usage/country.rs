//! The country of a call, without its address.

use std::{convert::Infallible, net::IpAddr};

use http::{Request, Response};
use tollgate::{
    Tollgate,
    auth::{PeerAddr, TrustedProxies},
    clock::Now,
    head::PeerAddress,
    identity::NewKey,
    limit::Rate,
    meter::{Country, EventId, Meter, MeterLayer, Recorder},
    plan::Plan,
    sink::MemorySink,
};
use tower::{Layer, ServiceExt, service_fn};

/// A database of two networks.
fn resolver(address: IpAddr) -> Option<Country> {
    match address.to_string().split('.').next() {
        Some("192") => "de".parse().ok(),
        Some("203") => "FR".parse().ok(),
        _ => None,
    }
}

#[tokio::test]
async fn an_event_tells_the_country_and_not_the_address() {
    let sink = MemorySink::new();
    let gate = Tollgate::builder()
        .plans([Plan::new("free").rule(Rate::per_second(1).burst(4))])
        .client_addr(TrustedProxies::new(["10.0.0.0/8"]).unwrap())
        .countries(resolver)
        .usage(sink.clone())
        .build()
        .unwrap();
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await
        .unwrap();
    let service = gate.layer().layer(service_fn(|request: Request<String>| {
        // A service that knows better says so.
        if let Some(meter) = request.extensions().get::<Meter>()
            && request.uri().path() == "/own"
        {
            meter.set_country("JP".parse().unwrap());
        }
        std::future::ready(Ok::<_, Infallible>(Response::new(String::new())))
    }));
    let calls = [
        ("/", "10.0.0.1", "192.0.2.1", Some("DE")),
        ("/", "203.0.113.9", "192.0.2.1", Some("FR")),
        ("/", "198.51.100.1", "192.0.2.1", None),
        ("/own", "10.0.0.1", "192.0.2.1", Some("JP")),
        // Refused by the limit, and told all the same.
        ("/", "10.0.0.1", "192.0.2.1", Some("DE")),
    ];
    for (path, peer, forwarded, _) in calls {
        let mut request = Request::get(path)
            .header("x-api-key", issued.key.expose())
            .header("x-forwarded-for", forwarded)
            .body(String::new())
            .unwrap();
        let peer = PeerAddress((peer.parse::<IpAddr>().unwrap(), 443).into());
        request.extensions_mut().insert(peer);
        service.clone().oneshot(request).await.unwrap();
    }
    gate.usage().flush().await;
    let mut events = sink.events();
    events.sort_by_key(|event| event.id);
    let told: Vec<_> = events
        .iter()
        .map(|event| event.country.as_deref())
        .collect();
    assert_eq!(told, calls.map(|call| call.3));
    assert_eq!(events[4].status, 429);
    let text = serde_json::to_string(&events).unwrap();
    for address in ["10.0.0.1", "192.0.2.1", "203.0.113.9", "198.51.100.1"] {
        assert!(!text.contains(address), "{address} in {text}");
    }
}

#[tokio::test]
async fn a_hook_that_panics_is_the_calls_end_and_not_the_meters() {
    let sink = MemorySink::new();
    let recorder = Recorder::new(sink).unwrap();
    let panics = |_: IpAddr| -> Option<Country> { panic!("a damaged database") };
    let service = MeterLayer::new(recorder)
        .countries(panics, PeerAddr)
        .layer(service_fn(|_: Request<String>| {
            std::future::ready(Ok::<_, Infallible>(Response::new(String::new())))
        }));
    // Without an address nobody is asked.
    let answer = service.clone().oneshot(Request::new(String::new())).await;
    assert!(answer.is_ok());
    let mut request = Request::new(String::new());
    request
        .extensions_mut()
        .insert(PeerAddress(([192, 0, 2, 1], 443).into()));
    let task = tokio::spawn(service.oneshot(request));
    assert!(task.await.expect_err("it panicked").is_panic());
}

#[test]
fn a_country_is_two_letters() {
    for text in ["DE", "de", "dE"] {
        assert_eq!(text.parse::<Country>().unwrap().to_string(), "DE");
    }
    for text in ["", "D", "DEU", "D1", "\u{e4}", "d\u{e4}", "  "] {
        assert!(text.parse::<Country>().is_err(), "{text:?}");
    }
    // Outside of any layer it goes nowhere, and harms nobody.
    Meter::new(EventId::new(0, 0), Now::default()).set_country("DE".parse().unwrap());
}
