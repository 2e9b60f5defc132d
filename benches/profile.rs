//! scratch
use http::{Request, Response};
use std::{
    convert::Infallible,
    future::{Future, ready},
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Instant,
};
use tollgate::{
    prelude::*,
    sink::{Filter, MemorySink},
};
use tower::{Layer, Service, service_fn};
fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(o) => o,
        Poll::Pending => panic!(),
    }
}
fn main() {
    let gate = Tollgate::builder()
        .plans([Plan::new("pro")
            .rule(Rate::per_second(1_000_000_000))
            .rule(Quota::monthly(1 << 50))])
        .usage(Filter::new(MemorySink::new(), |_: &_| false))
        .build()
        .unwrap();
    let keys: Vec<String> = (0..1000)
        .map(|i| {
            finish(
                gate.keys()
                    .issue(NewKey::for_tenant(format!("tenant-{i}")).plan("pro")),
            )
            .unwrap()
            .key
            .expose()
            .to_owned()
        })
        .collect();
    let mut service = gate.layer().layer(service_fn(|_: Request<String>| {
        ready(Ok::<_, Infallible>(Response::new(String::new())))
    }));
    let mut bare =
        service_fn(|_: Request<String>| ready(Ok::<_, Infallible>(Response::new(String::new()))));
    let n = 500_000u64;
    for round in 0..2 {
        let s = Instant::now();
        for i in 0..n {
            let r = Request::get("/")
                .header("x-api-key", &keys[i as usize % 1000])
                .body(String::new())
                .unwrap();
            black_box(finish(bare.call(r)).unwrap());
        }
        println!(
            "{round} bare {:.1}",
            s.elapsed().as_nanos() as f64 / n as f64
        );
        let s = Instant::now();
        for i in 0..n {
            let r = Request::get("/")
                .header("x-api-key", &keys[i as usize % 1000])
                .body(String::new())
                .unwrap();
            black_box(finish(service.call(r)).unwrap());
        }
        println!(
            "{round} gate {:.1}",
            s.elapsed().as_nanos() as f64 / n as f64
        );
    }
}
