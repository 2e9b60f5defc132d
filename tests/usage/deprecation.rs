//! Versions that come to their end: what callers are told, and who still calls.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode};
use proptest::prelude::*;
use tollgate::{
    Tollgate,
    clock::{ManualClock, Timestamp},
    error::{ErrorCode, Problem},
    identity::{DeprecationLayer, NewKey},
    limit::{Quota, Rate},
    plan::Plan,
    sink::MemorySink,
    usage::{DeprecationReport, UsageMinute},
};
use tower::{Layer, ServiceExt, service_fn};

use super::minutes::{at, minute, tenant};

/// 2026-03-01 and 2026-12-01.
const MARCH: u64 = 1_772_323_200;
const DECEMBER: u64 = 1_796_083_200;

fn layer() -> DeprecationLayer {
    DeprecationLayer::since(at(MARCH))
        .sunset(at(DECEMBER))
        .unwrap()
        .document("https://docs.example.com/v0")
        .unwrap()
        .sunset_document("/sunset")
        .unwrap()
        .successor("https://api.example.com/v1/hello?a=b")
        .unwrap()
}

/// The answer of a service behind the layer that answers by itself, and whether it was asked.
async fn answer(
    layer: DeprecationLayer,
    own: impl Fn() -> Response<String> + Clone,
) -> (Response<()>, bool) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let service = layer.layer(service_fn(move |_: Request<()>| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok::<_, Infallible>(own()))
    }));
    let answer = service.oneshot(Request::new(())).await.unwrap();
    (answer.map(drop), asked.load(Ordering::Relaxed) == 1)
}

#[tokio::test]
async fn callers_are_told_in_the_forms_of_the_standards() {
    let clock = Arc::new(ManualClock::at(at(MARCH - 5)));
    let (told, _) = answer(layer().clock(clock), Response::default).await;
    let fields = told.headers();
    // RFC 9651: an Item that is a Date, checked by another's parser.
    let date = sfv::Parser::new(fields["deprecation"].as_bytes())
        .with_version(sfv::Version::Rfc9651)
        .parse::<sfv::Item>()
        .expect("a structured field");
    let sfv::BareItem::Date(date) = date.bare_item else {
        panic!("{date:?}");
    };
    assert_eq!(
        i64::from(date.unix_seconds()),
        i64::try_from(MARCH).unwrap()
    );
    assert_eq!(fields["sunset"], "Tue, 01 Dec 2026 00:00:00 GMT");
    let links: Vec<_> = fields.get_all("link").iter().collect();
    assert_eq!(
        links,
        [
            "<https://docs.example.com/v0>; rel=\"deprecation\"; type=\"text/html\"",
            "</sunset>; rel=\"sunset\"; type=\"text/html\"",
            "<https://api.example.com/v1/hello?a=b>; rel=\"successor-version\"",
        ]
    );
    let (told, _) = answer(DeprecationLayer::since(at(MARCH)), Response::default).await;
    assert_eq!(told.headers().len(), 1, "only what was set");
}

#[tokio::test]
async fn what_the_service_says_itself_stands_and_a_refusal_says_nothing() {
    let (told, _) = answer(layer(), || {
        let mut own = Response::new(String::new());
        own.headers_mut()
            .insert("deprecation", "@1".parse().unwrap());
        own.headers_mut()
            .insert("link", "</>; rel=\"up\"".parse().unwrap());
        *own.status_mut() = StatusCode::NOT_FOUND;
        own
    })
    .await;
    assert_eq!(told.headers()["deprecation"], "@1");
    assert_eq!(told.headers().get_all("link").iter().count(), 4);
    for (code, is_told) in [
        (ErrorCode::RateLimited, false),
        (ErrorCode::QuotaExceeded, false),
        (ErrorCode::InsufficientScope, false),
        (ErrorCode::NotFound, true),
    ] {
        let (told, _) = answer(layer(), move || {
            Problem::new(code)
                .into_response::<String>(&http::Method::GET)
                .map(|_| String::new())
        })
        .await;
        assert_eq!(
            told.headers().contains_key("deprecation"),
            is_told,
            "{code}"
        );
    }
}

#[tokio::test]
async fn after_the_sunset_calls_pass_unless_they_are_to_be_refused() {
    for (now, gone, passes) in [
        (DECEMBER - 1, true, true),
        (DECEMBER, false, true),
        (DECEMBER, true, false),
        (DECEMBER + 1_000, true, false),
    ] {
        let clock = Arc::new(ManualClock::at(at(now)));
        let mut layer = layer().clock(clock);
        if gone {
            layer = layer.gone_after_sunset();
        }
        let (told, asked) = answer(layer, Response::default).await;
        assert_eq!(asked, passes, "{now} {gone}");
        assert!(told.headers().contains_key("deprecation"));
        if !passes {
            assert_eq!(told.status(), StatusCode::GONE);
            let problem = told.extensions().get::<Problem>().expect("a problem");
            assert_eq!(problem.code(), ErrorCode::Sunset);
            assert_eq!(problem.extensions()["sunset"], "2026-12-01T00:00:00Z");
            assert_eq!(
                problem.extensions()["successor"],
                "https://api.example.com/v1/hello?a=b"
            );
        }
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let since = || DeprecationLayer::since(at(MARCH));
    let error = since().sunset(at(MARCH - 1)).unwrap_err();
    assert_eq!(error.path(), "sunset");
    assert!(
        error.to_string().contains("2026-03-01T00:00:00Z"),
        "{error}"
    );
    let _ = since().sunset(at(MARCH)).expect("the same moment");
    let _ = since().sunset(Timestamp::MAX).expect("the last date");
    for url in [
        "",
        "docs",
        "ftp",
        "https://e.example/a b",
        "/a>",
        "/\"",
        "/a\r\nx: y",
        "/<",
        "//\u{e9}",
    ] {
        assert_eq!(
            since().document(url).unwrap_err().path(),
            "document",
            "{url:?}"
        );
        assert_eq!(
            since().sunset_document(url).unwrap_err().path(),
            "sunset_document"
        );
        assert_eq!(since().successor(url).unwrap_err().path(), "successor");
    }
}

#[tokio::test]
async fn a_gate_marks_the_calls_and_gives_back_what_a_sunset_refuses() {
    let clock = ManualClock::at(at(DECEMBER - 60));
    let sink = MemorySink::new();
    let gate = Tollgate::builder()
        .plans([Plan::new("free")
            .rule(Rate::per_second(3))
            .rule(Quota::monthly(3))])
        .clock(Arc::new(clock.clone()))
        .usage(sink.clone())
        .build()
        .unwrap();
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await
        .unwrap();
    let inner = service_fn(|_: Request<String>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(String::new())))
    });
    let service = gate.layer().layer(layer().gone_after_sunset().layer(inner));
    let call = async || {
        let request = Request::get("/v0").header("x-api-key", issued.key.expose());
        let request = request.body(String::new()).unwrap();
        let answer = service.clone().oneshot(request).await.unwrap();
        (answer.status().as_u16(), answer.headers().clone())
    };
    assert_eq!(call().await.0, 200);
    clock.advance(Duration::from_secs(120));
    for _ in 0..5 {
        let (status, fields) = call().await;
        assert_eq!(status, 410, "the quota of three is not spent by refusals");
        assert!(fields.contains_key("sunset"));
        clock.advance(Duration::from_secs(1));
    }
    // In another second, a burst beyond the rate: 429, which says nothing of the version.
    let mut limited = 0;
    for _ in 0..8 {
        let (status, fields) = call().await;
        if status == 429 {
            limited += 1;
            assert!(!fields.contains_key("deprecation") && !fields.contains_key("sunset"));
        }
    }
    assert!(limited > 0);
    gate.usage().flush().await;
    let events = sink.events();
    let gone: Vec<_> = events.iter().filter(|event| event.status == 410).collect();
    assert!(
        gone.iter()
            .all(|event| event.deprecated && event.refused.as_deref() == Some("sunset"))
    );
    let limited = events
        .iter()
        .find(|event| event.status == 429)
        .expect("a limited call");
    assert!(!limited.deprecated, "it never reached the version");

    let minutes: Vec<_> = events.iter().map(UsageMinute::of).collect();
    let report = DeprecationReport::of(&minutes);
    let n = events.iter().filter(|event| event.deprecated).count() as u64;
    assert_eq!(report.to_notify(1), [(tenant("acme"), n)]);
    assert_eq!(report.to_notify(n + 1), []);
}

#[test]
fn before_its_day_a_version_is_not_counted_as_deprecated() {
    let unmarked = minute("acme", "/v0", at(MARCH), 3, 0, 1);
    assert!(DeprecationReport::of(&[unmarked]).uses.is_empty());
}

proptest! {
    #[test]
    fn the_report_adds_up(calls in prop::collection::vec((0_u8..4, 0_u8..3, 0_u64..5, 0_u64..100), 0..30), least in 0_u64..12) {
        let minutes: Vec<_> = calls
            .iter()
            .map(|(who, route, deprecated, time)| {
                let mut minute = minute(&format!("t{who}"), &format!("/{route}"), at(MARCH + 60 * time), 9, 0, 1);
                minute.totals.deprecated = *deprecated;
                minute
            })
            .collect();
        let report = DeprecationReport::of(&minutes);
        prop_assert!(report.uses.is_sorted_by(|a, b| a.calls >= b.calls));
        for each in &report.uses {
            let own = minutes.iter().filter(|it| it.key.tenant == each.tenant && it.key.route == each.route && it.totals.deprecated > 0);
            prop_assert_eq!(each.calls, own.clone().map(|it| it.totals.deprecated).sum::<u64>());
            prop_assert_eq!(Some(each.last_seen), own.map(|it| it.minute).max());
        }
        let told = report.to_notify(least);
        prop_assert!(told.is_sorted_by(|a, b| a.1 >= b.1));
        for who in 0..4 {
            let sum: u64 = calls.iter().filter(|call| call.0 == who).map(|call| call.2).sum();
            let found = told.iter().find(|(tenant, _)| *tenant.as_ref() == *format!("t{who}"));
            prop_assert_eq!(found.map(|it| it.1), (sum > 0 && sum >= least).then_some(sum));
        }
    }
}
