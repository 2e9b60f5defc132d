//! Drafts of invoices as invoice items of a Stripe that fails in the middle.

use std::{collections::HashMap, sync::Arc};

use proptest::prelude::*;
use tollgate::{
    clock::{Clock, ManualClock},
    http_send::ReqwestSend,
    id::TenantId,
    invoicing::{InvoiceSink, InvoiceSinkError, Issued, StripeInvoiceItems},
    pricing::{InvoiceDraft, Money, UsageTotals, Used},
};

use crate::{
    common::stripe::{SECRET, StripeServer, Upset},
    invoice::{acme, builder},
};

async fn stripe() -> StripeServer {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
    StripeServer::start(clock).await
}

fn items(stripe: &StripeServer) -> StripeInvoiceItems {
    let customers: HashMap<TenantId, Arc<str>> = HashMap::from([(acme(), Arc::from("cus_1"))]);
    StripeInvoiceItems::builder(ReqwestSend::new().expect("a client"), SECRET, customers)
        .base_url(stripe.url())
        .build()
        .expect("a sink")
}

fn usage(calls: u64) -> UsageTotals {
    let mut usage = UsageTotals::new();
    usage.add("chat", "calls", Used::new(calls, 0));
    usage.add("chat", "tokens", Used::new(1_000_000, 0));
    usage
}

fn draft(calls: u64) -> InvoiceDraft {
    let credit: Money = "1.00 USD".parse().expect("an amount");
    builder(usage(calls))
        .credit("sla", credit)
        .draft()
        .expect("a draft")
}

/// The items are those of the draft, each once.
fn assert_made(stripe: &StripeServer, draft: &InvoiceDraft) {
    let mut made: Vec<(String, i128)> = stripe
        .invoice_items()
        .into_iter()
        .filter(|item| item.metadata["tollgate_invoice"] == *draft.id)
        .map(|item| (item.metadata["tollgate_line"].clone(), item.amount.into()))
        .collect();
    let wanted = draft.lines.iter().filter(|line| !line.amount.is_zero());
    let mut wanted: Vec<(String, i128)> = wanted
        .map(|line| (line.id.to_string(), line.amount.minor()))
        .collect();
    made.sort();
    wanted.sort();
    assert_eq!(made, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_is_delivered_again_makes_no_second_item() {
    let stripe = stripe().await;
    let first = draft(1_500);
    assert_eq!(
        items(&stripe).issue(&first).await.expect("issued"),
        Issued::Now
    );
    // By another process, and after Stripe has forgotten the keys.
    for _ in 0..3 {
        assert_eq!(
            items(&stripe).issue(&first).await.expect("issued"),
            Issued::Already
        );
        stripe.forget_keys();
    }
    assert_made(&stripe, &first);
    let item = &stripe.invoice_items()[0];
    assert_eq!(
        (&*item.customer, &*item.currency, &*item.description),
        ("cus_1", "usd", "base")
    );
    for call in stripe.calls().iter().filter(|call| call.method == "POST") {
        let key = call.idempotency_key.as_deref().expect("a key");
        let metadata = |name: &str| call.form[&format!("metadata[{name}]")].clone();
        assert_eq!(
            key,
            format!(
                "tollgate-{}-{}",
                metadata("tollgate_invoice"),
                metadata("tollgate_line")
            )
        );
        assert_eq!(call.version.as_deref(), Some("2026-10-28.endive"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_version_adds_items_of_differences() {
    let stripe = stripe().await;
    let first = draft(1_500);
    let sink = items(&stripe);
    sink.issue(&first).await.expect("issued");
    let credit: Money = "1.00 USD".parse().expect("an amount");
    let late = builder(usage(100)).credit("sla", credit).correct(&first);
    let second = late.expect("priced").expect("a difference");
    assert_eq!(sink.issue(&second).await.expect("issued"), Issued::Now);
    assert_made(&stripe, &first);
    assert_made(&stripe, &second);
    let sum: i64 = stripe.invoice_items().iter().map(|item| item.amount).sum();
    assert_eq!(i128::from(sum), second.standing_total.minor());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_draft_under_the_same_name_makes_nothing() {
    let stripe = stripe().await;
    let first = draft(1_500);
    items(&stripe).issue(&first).await.expect("issued");
    let other = items(&stripe).issue(&draft(1_501_000)).await;
    assert!(
        matches!(other, Err(InvoiceSinkError::Conflict)),
        "{other:?}"
    );
    // A line fewer is another draft, too.
    let fewer = builder(usage(1_500)).draft().expect("a draft");
    let fewer = items(&stripe).issue(&fewer).await;
    assert!(
        matches!(fewer, Err(InvoiceSinkError::Conflict)),
        "{fewer:?}"
    );
    assert_made(&stripe, &first);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_issue_one_draft_at_once_make_each_item_once() {
    let stripe = stripe().await;
    let first = draft(1_500);
    let issues = (0..6).map(|_| {
        let (sink, first) = (items(&stripe), first.clone());
        tokio::spawn(async move { sink.issue(&first).await })
    });
    for issue in issues.collect::<Vec<_>>() {
        // Busy is an answer as well.
        let issued = issue.await.expect("no panic");
        assert!(
            matches!(issued, Ok(_) | Err(InvoiceSinkError::Unavailable(_))),
            "{issued:?}"
        );
    }
    items(&stripe).issue(&first).await.expect("issued");
    assert_made(&stripe, &first);
}

#[tokio::test(flavor = "multi_thread")]
async fn items_on_later_pages_are_found() {
    let stripe = stripe().await;
    let sink = items(&stripe);
    let first = draft(1_500);
    sink.issue(&first).await.expect("issued");
    // Sixty more periods push the first off the first page.
    for n in 1..=60_u64 {
        let period = tollgate::pricing::BillingPeriod::new(
            crate::pricing::seconds(n * 100_000_000),
            crate::pricing::seconds(n * 100_000_000 + 1_000),
        );
        let later = InvoiceDraft::builder(acme(), period.expect("a period")).plan(
            "pro".parse().expect("a name"),
            crate::invoice::pro(),
            usage(5_000),
        );
        sink.issue(&later.draft().expect("a draft"))
            .await
            .expect("issued");
    }
    stripe.forget_keys();
    assert_eq!(sink.issue(&first).await.expect("issued"), Issued::Already);
    assert_made(&stripe, &first);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_refuses_is_told_without_the_secret() {
    let stripe = stripe().await;
    let customers: HashMap<TenantId, Arc<str>> = HashMap::from([(acme(), Arc::from("nobody"))]);
    let client = || ReqwestSend::new().expect("a client");
    let sink = |secret: &str, customers: HashMap<TenantId, Arc<str>>| {
        let builder = StripeInvoiceItems::builder(client(), secret, customers);
        builder.base_url(stripe.url()).build().expect("a sink")
    };
    let nobody = sink(SECRET, customers.clone());
    let refused = nobody.issue(&draft(5)).await;
    let Err(InvoiceSinkError::Refused(cause)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(
        cause.to_string(),
        "Stripe answered 400 Bad Request (resource_missing)"
    );
    let refused = sink(SECRET, HashMap::new()).issue(&draft(5)).await;
    assert!(
        matches!(refused, Err(InvoiceSinkError::Refused(_))),
        "{refused:?}"
    );
    let closed = sink("another-secret", customers);
    let answer = closed.issue(&draft(5)).await;
    assert!(
        matches!(answer, Err(InvoiceSinkError::Unavailable(_))),
        "{answer:?}"
    );
    let told = format!("{closed:?} {answer:?}");
    assert!(!told.contains("another-secret"), "{told}");
    for (secret, url, path) in [
        ("", "http://localhost", "secret"),
        ("a\nb", "http://localhost", "secret"),
        ("a", "localhost", "base_url"),
        ("a", "ftp://x", "base_url"),
    ] {
        let builder = StripeInvoiceItems::builder(client(), secret, HashMap::new());
        let error = builder.base_url(url).build().expect_err("a fault");
        assert_eq!(error.path(), path);
    }
    assert_eq!(stripe.invoice_items(), []);
}

fn upset() -> impl Strategy<Value = Upset> {
    prop_oneof![
        3 => Just(Upset::None),
        1 => Just(Upset::Refuse { status: 429, retry_after: None }),
        1 => Just(Upset::Refuse { status: 503, retry_after: Some(1) }),
        1 => Just(Upset::FailBefore),
        1 => Just(Upset::FailAfter),
        1 => Just(Upset::CutBefore),
        1 => Just(Upset::CutAfter),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_draft_that_broke_off_anywhere_is_completed_and_nothing_is_made_twice(
        upsets in prop::collection::vec(upset(), 0..14),
        forget in prop::collection::vec(any::<bool>(), 20),
    ) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let stripe = stripe().await;
            stripe.upset(upsets);
            let first = draft(1_500);
            let mut n_failed = 0;
            while let Err(error) = items(&stripe).issue(&first).await {
                assert!(matches!(error, InvoiceSinkError::Unavailable(_)), "{error:?}");
                if forget[n_failed] {
                    stripe.forget_keys();
                }
                n_failed += 1;
                assert!(n_failed < 20, "an end");
            }
            assert_made(&stripe, &first);
        });
    }
}
