//! What Stripe does not get, and why.

use std::{
    collections::{BTreeSet, HashMap},
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tollgate::{
    http_send::ReqwestSend,
    id::TenantId,
    sink::{
        StripeCustomers, StripeMeter, StripeMeterSink, StripeMeterSinkBuilder, UsageSink, Verdict,
    },
};

use super::{
    sample::{NOON, accept, each, left, settled, tenant},
    stripe_meter::{Customers, DAY, Stand, call, calls, with_meters},
};
use crate::common::{
    fault_proxy::{Fault, FaultProxy},
    stripe::SECRET,
};

#[tokio::test]
async fn what_stripe_would_not_take_is_not_sent_and_is_listed() {
    let stand = Stand::start().await;
    let builder = with_meters(stand.builder_at(stand.stripe.url()));
    let sink = builder.backfill().build().expect("a sink");
    let now = NOON + 30;
    let max = 999_999_999_999_999;
    let batch = [
        call(1, "acme", now - 35 * DAY - 61, 7),
        call(2, "acme", now - 35 * DAY + 61, 7),
        call(3, "acme", now + 200, 7),
        call(4, "acme", now + 361, 7),
        call(5, "nobody", now, 7),
        call(6, "acme", now, max + 1),
        call(7, "acme", now, u64::MAX),
        // Together more than 15 digits: in two values.
        call(8, "initech", now, max),
        call(9, "initech", now, 1),
    ];
    let verdicts = settled(&sink, &batch).await;
    let rejected = |reason| Verdict::Rejected { reason };
    assert_eq!(
        verdicts,
        [
            rejected("older_than_35_days"),
            Verdict::Accepted,
            Verdict::Accepted,
            rejected("ahead_of_time"),
            rejected("no_stripe_customer"),
            rejected("value_too_many_digits"),
            rejected("value_too_many_digits"),
            Verdict::Accepted,
            Verdict::Accepted,
        ]
    );
    assert_eq!(stand.totals("cus_acme"), (2, 14));
    assert_eq!(stand.totals("cus_initech"), (2, u128::from(max) + 1));
    assert!(
        stand.stripe.calls().iter().all(|call| call.status == 200),
        "nothing was sent in vain"
    );
    let listed: BTreeSet<_> = sink
        .corrections()
        .into_iter()
        .map(|it| (it.reason, it.event_name.to_string(), it.value))
        .collect();
    let row = |reason, meter: &str, value| (reason, meter.to_owned(), value);
    for expected in [
        row("older_than_35_days", "tokens", 7),
        row("ahead_of_time", "calls", 1),
        row("no_stripe_customer", "tokens", 7),
        row("value_too_many_digits", "calls", 1),
        row("value_too_many_digits", "tokens", u64::MAX),
    ] {
        assert!(listed.contains(&expected), "{expected:?} in {listed:?}");
    }
}

#[tokio::test]
async fn what_was_never_answered_is_not_sent_after_a_day() {
    let stand = Stand::start().await;
    let proxy = FaultProxy::before(stand.stripe.port()).await;
    let sink = with_meters(stand.builder_at(format!("http://{}", proxy.addr)))
        .build()
        .expect("a sink");
    // From after the start of the sink, so that it knows what it did.
    let batch = [1, 2].map(|n| call(n, "acme", NOON + 60, 10));
    proxy.set(Fault::CutAfter(0));
    sink.write(&batch).await.expect_err("no answer");
    proxy.set(Fault::None);
    stand.clock.advance(Duration::from_secs(DAY));
    let verdicts = each(sink.write(&batch).await.expect("verdicts"), 2);
    assert_eq!(
        verdicts,
        [Verdict::Rejected {
            reason: "unknown_for_a_day"
        }; 2]
    );
    // Stripe would have taken it as new.
    assert_eq!(stand.totals("cus_acme"), (2, 20));
    assert!(!sink.corrections().is_empty());
}

#[tokio::test]
async fn what_an_earlier_process_may_have_sent_is_not_sent_after_a_day() {
    let stand = Stand::start().await;
    let batch = calls(2);
    accept(&stand.sink(), &batch).await;
    // The batch waited for something else, and came whole again after a restart.
    stand.clock.advance(Duration::from_secs(DAY));
    let verdicts = settled(&stand.sink(), &batch).await;
    let maybe = Verdict::Rejected {
        reason: "maybe_sent_before",
    };
    assert_eq!(verdicts, [maybe; 2]);
    assert_eq!(stand.totals("cus_acme"), (2, 20));
    // Of its own, a sink knows: what was never sent by it is sent, however late.
    let sink = stand.sink();
    let late = [call(9, "acme", NOON + DAY + 60, 5)];
    stand.clock.advance(Duration::from_secs(2 * DAY));
    accept(&sink, &late).await;
    assert_eq!(stand.totals("cus_acme"), (3, 25));
}

#[tokio::test]
async fn a_wrong_key_rejects_nothing_and_shows_nowhere() {
    let stand = Stand::start().await;
    let client = ReqwestSend::new().expect("a client");
    let builder =
        StripeMeterSink::builder(client, "hunter2", Customers).base_url(stand.stripe.url());
    let sink = with_meters(builder)
        .clock(Arc::new(stand.clock.clone()))
        .build()
        .expect("a sink");
    let error = sink.write(&calls(2)).await.expect_err("no verdict");
    let cause = error.source().expect("a cause").to_string();
    assert!(cause.contains("401"), "{cause}");
    assert!(!format!("{sink:?} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_customer_who_cannot_be_looked_up_waits_and_others_do_not() {
    #[derive(Debug, Default)]
    struct Flaky(AtomicBool);

    #[async_trait]
    impl StripeCustomers for Flaky {
        async fn customer(
            &self,
            tenant: &TenantId,
        ) -> Result<Option<Arc<str>>, Box<dyn Error + Send + Sync>> {
            if tenant.as_str() == "flaky" && !self.0.load(Ordering::SeqCst) {
                return Err("the database is away".into());
            }
            Customers.customer(tenant).await
        }
    }

    let stand = Stand::start().await;
    let customers = Arc::new(Flaky::default());
    let client = ReqwestSend::new().expect("a client");
    let builder = StripeMeterSink::builder(client, SECRET, Arc::clone(&customers))
        .base_url(stand.stripe.url());
    let sink = with_meters(builder)
        .clock(Arc::new(stand.clock.clone()))
        .build()
        .expect("a sink");
    let batch = vec![call(1, "flaky", NOON, 1), call(2, "acme", NOON, 1)];
    let verdicts = each(sink.write(&batch).await.expect("verdicts"), 2);
    assert_eq!(
        verdicts,
        [
            Verdict::Retry {
                after: Duration::ZERO
            },
            Verdict::Accepted
        ]
    );
    let batch = left(batch, &verdicts);
    sink.write(&batch)
        .await
        .expect_err("nothing at all is known");
    customers.0.store(true, Ordering::SeqCst);
    accept(&sink, &batch).await;
    assert_eq!(stand.totals("cus_flaky"), (1, 1));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let builder = |secret: &str| {
        let customers: HashMap<TenantId, Arc<str>> =
            HashMap::from([(tenant("acme"), Arc::from("cus_1"))]);
        StripeMeterSink::builder(ReqwestSend::new().expect("a client"), secret, customers)
    };
    let calls = || StripeMeter::calls("calls").expect("a name");
    let fault =
        |builder: StripeMeterSinkBuilder| builder.build().expect_err("a fault").path().to_owned();
    assert_eq!(fault(builder("x")), "meters");
    assert_eq!(
        fault(builder("x").meter(calls()).meter(calls())),
        "meters[1]"
    );
    assert_eq!(fault(builder("").meter(calls())), "secret");
    assert_eq!(fault(builder("a\nb").meter(calls())), "secret");
    assert_eq!(
        fault(builder("x").meter(calls()).base_url("stripe")),
        "base_url"
    );
    assert_eq!(
        fault(builder("x").meter(calls()).api_version("")),
        "api_version"
    );
    for name in ["", &"x".repeat(101)] {
        assert_eq!(
            StripeMeter::calls(name).expect_err("a fault").path(),
            "event_name"
        );
    }
}
