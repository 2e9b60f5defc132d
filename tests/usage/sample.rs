//! Events as a gate makes them.

use std::sync::Arc;

use tollgate::{
    clock::Timestamp,
    id::{PlanName, TenantId},
    meter::{EventId, UsageEvent},
    sink::{UsageSink, Verdict, Verdicts},
};

/// 2026-01-15T12:00:00Z.
pub(crate) const NOON: u64 = 1_768_478_400;

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a valid id")
}

/// An event by its place in the sequence of one process.
pub(crate) fn event(sequence: u64, of: &str, second: u64) -> UsageEvent {
    let mut event = UsageEvent::new(
        EventId::new(0xfeed, sequence),
        Timestamp::from_unix_seconds(second),
        tenant(of),
        PlanName::new("pro").expect("a valid name"),
    );
    event.route = Arc::from("/v1/chat");
    event
}

/// Events of the same second.
pub(crate) fn events(sequences: std::ops::Range<u64>, of: &str) -> Vec<UsageEvent> {
    sequences
        .map(|sequence| event(sequence, of, NOON))
        .collect()
}

/// One verdict for each event.
pub(crate) fn each(verdicts: Verdicts, n: usize) -> Vec<Verdict> {
    match verdicts {
        Verdicts::AllAccepted => vec![Verdict::Accepted; n],
        Verdicts::Each(verdicts) => {
            assert_eq!(verdicts.len(), n);
            verdicts
        }
        other => panic!("{other:?}"),
    }
}

/// The verdicts of a batch that is offered until each event has one: a write that takes long leaves some open.
pub(crate) async fn settled(sink: &dyn UsageSink, batch: &[UsageEvent]) -> Vec<Verdict> {
    let mut verdicts: Vec<Option<Verdict>> = vec![None; batch.len()];
    for _ in 0..100 {
        let open = batch
            .iter()
            .zip(&verdicts)
            .filter(|(_, known)| known.is_none());
        let open: Vec<UsageEvent> = open.map(|(event, _)| event.clone()).collect();
        if open.is_empty() {
            return verdicts.into_iter().flatten().collect();
        }
        let said = each(sink.write(&open).await.expect("verdicts"), open.len());
        let places = verdicts.iter_mut().filter(|known| known.is_none());
        for (known, said) in places.zip(said) {
            let is_open = matches!(said, Verdict::Retry { .. });
            *known = (!is_open).then_some(said);
        }
    }
    panic!("no end: {verdicts:?}");
}

/// Every event is accepted.
pub(crate) async fn accept(sink: &dyn UsageSink, batch: &[UsageEvent]) {
    let verdicts = settled(sink, batch).await;
    assert_eq!(verdicts, vec![Verdict::Accepted; batch.len()]);
}

/// The events that are to be offered again.
pub(crate) fn left(batch: Vec<UsageEvent>, verdicts: &[Verdict]) -> Vec<UsageEvent> {
    let mut verdicts = verdicts.iter();
    let mut is_open = |_: &UsageEvent| matches!(verdicts.next(), Some(Verdict::Retry { .. }));
    batch.into_iter().filter(|event| is_open(event)).collect()
}
