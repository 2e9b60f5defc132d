//! Stripe's meter events, to the emulator.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use proptest::prelude::*;
use tollgate::{
    clock::{ManualClock, Timestamp},
    http_send::ReqwestSend,
    id::TenantId,
    meter::UsageEvent,
    sink::{
        StripeCustomers, StripeMeter, StripeMeterSink, StripeMeterSinkBuilder, UsageSink, Verdict,
        Verdicts,
    },
};

use super::sample::{NOON, accept, each, event, left, settled};
use crate::common::stripe::{SECRET, StripeServer, Upset};

pub(super) const DAY: u64 = 24 * 60 * 60;

pub(super) struct Stand {
    pub(super) stripe: StripeServer,
    pub(super) clock: ManualClock,
}

/// Tenant `t1` is customer `cus_t1`, but for `nobody`.
#[derive(Debug)]
pub(super) struct Customers;

#[async_trait]
impl StripeCustomers for Customers {
    async fn customer(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<Arc<str>>, Box<dyn Error + Send + Sync>> {
        let id = tenant.as_str();
        Ok((id != "nobody").then(|| Arc::from(format!("cus_{id}"))))
    }
}

impl Stand {
    pub(super) async fn start() -> Self {
        let clock = ManualClock::at(Timestamp::from_unix_seconds(NOON + 30));
        let stripe = StripeServer::start(Arc::new(clock.clone())).await;
        Self { stripe, clock }
    }

    pub(super) fn builder_at(&self, url: String) -> StripeMeterSinkBuilder {
        let client = ReqwestSend::with_timeout(Duration::from_millis(400)).expect("a client");
        StripeMeterSink::builder(client, SECRET, Customers)
            .base_url(url)
            .clock(Arc::new(self.clock.clone()))
    }

    fn builder(&self) -> StripeMeterSinkBuilder {
        self.builder_at(self.stripe.url())
    }

    /// A sink that counts calls and tokens.
    pub(super) fn sink(&self) -> StripeMeterSink {
        with_meters(self.builder()).build().expect("a sink")
    }

    pub(super) fn totals(&self, customer: &str) -> (u128, u128) {
        let total = |meter| self.stripe.meter_total(customer, meter);
        (total("calls"), total("tokens"))
    }
}

pub(super) fn with_meters(builder: StripeMeterSinkBuilder) -> StripeMeterSinkBuilder {
    builder
        .meter(StripeMeter::calls("calls").expect("a name"))
        .meter(StripeMeter::quantity("tokens", "tokens").expect("a name"))
}

/// A call that used tokens.
pub(super) fn call(sequence: u64, of: &str, second: u64, tokens: u64) -> UsageEvent {
    let mut event = event(sequence, of, second);
    event.quantities.insert(Arc::from("tokens"), tokens);
    event
}

pub(super) fn calls(n: u64) -> Vec<UsageEvent> {
    (0..n).map(|n| call(n, "acme", NOON, 10)).collect()
}

#[tokio::test]
async fn a_minute_of_a_tenant_is_one_value_for_each_meter() {
    let stand = Stand::start().await;
    let sink = stand.sink();
    let batch = [
        call(1, "acme", NOON, 100),
        call(2, "acme", NOON + 59, 11),
        call(3, "acme", NOON + 60, 1),
        call(4, "initech", NOON, 0),
    ];
    accept(&sink, &batch).await;
    let mut told: Vec<_> = stand
        .stripe
        .meter_events()
        .into_iter()
        .map(|it| {
            (
                it.customer,
                it.event_name,
                it.timestamp,
                it.value,
                it.identifier,
            )
        })
        .collect();
    told.sort();
    let row = |customer: &str, meter: &str, second, value, first| {
        let tenant = customer.trim_start_matches("cus_");
        let identifier = format!("{tenant}:{meter}:{second}:000000000000feed{first:016x}");
        (
            customer.to_owned(),
            meter.to_owned(),
            second,
            value,
            identifier,
        )
    };
    assert_eq!(
        told,
        [
            row("cus_acme", "calls", NOON, 2, 1),
            row("cus_acme", "calls", NOON + 60, 1, 3),
            row("cus_acme", "tokens", NOON, 111, 1),
            row("cus_acme", "tokens", NOON + 60, 1, 3),
            row("cus_initech", "calls", NOON, 1, 4),
        ]
    );
    for call in stand.stripe.calls() {
        assert_eq!(call.version.as_deref(), Some("2026-10-28.endive"));
        assert!(
            call.idempotency_key
                .expect("a key")
                .starts_with(&call.form["identifier"])
        );
    }
}

#[tokio::test]
async fn a_batch_that_comes_again_counts_once() {
    let stand = Stand::start().await;
    let batch = calls(20);
    accept(&stand.sink(), &batch).await;
    // The same process: the same key, and Stripe's first answer again. Another process knows as much.
    accept(&stand.sink(), &batch).await;
    assert!(stand.stripe.calls().iter().any(|call| call.is_replay));
    // Keys are forgotten at some time; the identifier is what counts.
    stand.clock.advance(Duration::from_secs(DAY - 60));
    settled(&stand.sink(), &batch).await;
    assert_eq!(stand.totals("cus_acme"), (20, 200));
}

#[tokio::test]
async fn an_identifier_that_is_there_already_is_as_good_as_accepted() {
    let stand = Stand::start().await;
    let batch = calls(3);
    accept(&stand.sink(), &batch).await;
    stand.stripe.forget_keys();
    let verdicts = settled(&stand.sink(), &batch).await;
    assert_eq!(verdicts, [Verdict::Duplicate; 3]);
    assert_eq!(stand.totals("cus_acme"), (3, 30));
}

#[tokio::test]
async fn whatever_happens_to_an_answer_counts_once() {
    let stand = Stand::start().await;
    let sink = stand.sink();
    let refuse = |status| Upset::Refuse {
        status,
        retry_after: None,
    };
    let upsets = [
        Upset::CutBefore,
        Upset::CutAfter,
        Upset::Hang,
        Upset::FailBefore,
        Upset::FailAfter,
        refuse(429),
        refuse(503),
        refuse(409),
    ];
    for (n, upset) in (0..).zip(upsets) {
        // For the first call, and for the second one: one meter is then there and the other is not.
        for place in 0..2 {
            let of = format!("t{n}-{place}");
            let batch = [call(n * 10, &of, NOON, 5), call(n * 10 + 1, &of, NOON, 6)];
            stand.stripe.upset(vec![Upset::None; place]);
            stand.stripe.upset([upset.clone()]);
            let mut verdicts = vec![Verdict::Retry {
                after: Duration::ZERO,
            }];
            for _ in 0..5 {
                if let Ok(told) = sink.write(&batch).await {
                    verdicts = each(told, 2);
                }
                let is_retry = |it: &Verdict| matches!(it, Verdict::Retry { .. });
                assert!(
                    verdicts.iter().all(is_retry) || !verdicts.iter().any(is_retry),
                    "all or none"
                );
                if !verdicts.iter().any(is_retry) {
                    break;
                }
            }
            assert!(
                matches!(verdicts[0], Verdict::Accepted | Verdict::Duplicate),
                "{upset:?}: {verdicts:?}"
            );
            assert_eq!(
                stand.totals(&format!("cus_{of}")),
                (2, 11),
                "{upset:?} at {place}"
            );
        }
    }
}

#[tokio::test]
async fn a_500_that_stripe_would_repeat_is_asked_under_another_key() {
    let stand = Stand::start().await;
    let sink = with_meters(stand.builder())
        .max_calls(1)
        .build()
        .expect("a sink");
    stand.stripe.upset([
        Upset::FailBefore,
        Upset::None,
        Upset::FailBefore,
        Upset::None,
    ]);
    let batch = calls(1);
    let mut n_writes = 0;
    while !matches!(sink.write(&batch).await, Ok(Verdicts::AllAccepted)) {
        n_writes += 1;
        assert!(n_writes < 10, "the key changes");
    }
    // A new process begins with the first key, is told of the old error once, and goes on.
    let keys: BTreeSet<_> = stand
        .stripe
        .calls()
        .into_iter()
        .filter_map(|call| call.idempotency_key)
        .collect();
    assert!(keys.len() >= 3, "{keys:?}");
    assert_eq!(stand.totals("cus_acme"), (1, 10));
}

#[tokio::test]
async fn patience_is_what_stripe_asks_for() {
    let stand = Stand::start().await;
    let sink = with_meters(stand.builder())
        .max_calls(1)
        .build()
        .expect("a sink");
    stand.stripe.upset([Upset::Refuse {
        status: 429,
        retry_after: Some(9),
    }]);
    let verdicts = each(sink.write(&calls(2)).await.expect("verdicts"), 2);
    assert_eq!(
        verdicts,
        [Verdict::Retry {
            after: Duration::from_secs(9)
        }; 2]
    );
}

#[tokio::test]
async fn one_call_at_a_time_for_a_customer_and_meter_and_others_beside_it() {
    let stand = Stand::start().await;
    let sink = Arc::new(stand.sink());
    stand.stripe.set_delay(Duration::from_millis(15));
    let batch = |from: u64| -> Vec<UsageEvent> {
        let minutes = (0..4).flat_map(|minute| (0..3).map(move |of| (minute, of)));
        let named = (from..).zip(minutes);
        named
            .map(|(n, (minute, of))| call(n, &format!("t{of}"), NOON - minute * 60, 1))
            .collect()
    };
    // Two recorders on one sink.
    let (first, second) = (batch(0), batch(100));
    let other = Arc::clone(&sink);
    let writing = tokio::spawn(async move { accept(&other, &second).await });
    accept(&sink, &first).await;
    writing.await.expect("all accepted");
    assert_eq!(stand.stripe.overlaps(), 0);
    let most = stand.stripe.most_at_once();
    assert!((2..=8).contains(&most), "{most}");
    for of in 0..3 {
        assert_eq!(stand.totals(&format!("cus_t{of}")), (8, 8));
    }
}

#[tokio::test]
async fn events_sent_one_by_one_count_once_however_they_are_cut_into_batches() {
    let stand = Stand::start().await;
    let sink = || {
        with_meters(stand.builder())
            .each_event()
            .build()
            .expect("a sink")
    };
    let all = calls(12);
    accept(&sink(), &all[..7]).await;
    // After a crash, nobody knows where the cuts were.
    settled(&sink(), &all[3..10]).await;
    settled(&sink(), &all).await;
    assert_eq!(stand.totals("cus_acme"), (12, 120));
}

#[derive(Clone, Debug)]
struct Sent {
    of: u8,
    minute: u64,
    tokens: u64,
}

fn upset() -> impl Strategy<Value = Upset> {
    prop_oneof![
        4 => Just(Upset::None),
        1 => Just(Upset::CutBefore),
        1 => Just(Upset::CutAfter),
        1 => Just(Upset::FailBefore),
        1 => Just(Upset::FailAfter),
        1 => Just(Upset::Refuse { status: 429, retry_after: None }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Whatever happens to the calls: what the meters say in the end is what the events say.
    #[test]
    fn offered_until_all_have_a_verdict_every_meter_is_right(
        sent in prop::collection::vec((0..3_u8, 0..3_u64, 0..4_u64), 1..40),
        upsets in prop::collection::vec(upset(), 0..25),
        restarts in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let stand = Stand::start().await;
            stand.stripe.upset(upsets);
            let mut sink = stand.sink();
            let sent = sent.into_iter().map(|(of, minute, tokens)| Sent { of, minute, tokens });
            let sent: Vec<_> = sent.collect();
            let mut expected: BTreeMap<String, (u128, u128)> = BTreeMap::new();
            for Sent { of, tokens, .. } in &sent {
                let totals = expected.entry(format!("cus_t{of}")).or_default();
                totals.0 += 1;
                totals.1 += u128::from(*tokens);
            }
            let mut batch: Vec<_> = (0..).zip(sent)
                .map(|(n, it)| call(n, &format!("t{}", it.of), NOON - it.minute * 60, it.tokens))
                .collect();
            for _ in 0..60 {
                if restarts {
                    // The same frozen batch, by a process that remembers nothing.
                    sink = stand.sink();
                }
                if let Ok(verdicts) = sink.write(&batch).await {
                    let verdicts = each(verdicts, batch.len());
                    let rejected = verdicts.iter().any(|it| matches!(it, Verdict::Rejected { .. }));
                    prop_assert!(!rejected, "{:?}", verdicts);
                    batch = left(batch, &verdicts);
                }
                if batch.is_empty() {
                    break;
                }
            }
            prop_assert!(batch.is_empty());
            for (customer, totals) in expected {
                prop_assert_eq!(stand.totals(&customer), totals, "{}", customer);
            }
            prop_assert_eq!(stand.stripe.overlaps(), 0);
            Ok(())
        })?;
    }
}
