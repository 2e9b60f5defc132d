//! Events as a gate makes them.

use std::sync::Arc;

use tollgate::{
    clock::Timestamp,
    id::{PlanName, TenantId},
    meter::{EventId, UsageEvent},
    sink::{Verdict, Verdicts},
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

/// The events that are to be offered again.
pub(crate) fn left(batch: Vec<UsageEvent>, verdicts: &[Verdict]) -> Vec<UsageEvent> {
    let mut verdicts = verdicts.iter();
    let mut is_open = |_: &UsageEvent| matches!(verdicts.next(), Some(Verdict::Retry { .. }));
    batch.into_iter().filter(|event| is_open(event)).collect()
}
