//! A batch before it is written: what can be, and what it adds up to.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::days::{Day, day_of};
use crate::{
    clock::Timestamp,
    meter::{EventId, UsageEvent},
    sink::Verdict,
    usage::{UsageKey, UsageMinute, UsageTotals},
};

const MICROS_PER_HOUR: u64 = 3_600_000_000;
/// An event whose time is further ahead than this has it from a clock that is wrong.
const MAX_AHEAD: std::time::Duration = std::time::Duration::from_secs(86_400);
const MAX_NAME_BYTES: usize = 255;

/// Verdicts as they come to be known.
pub(super) struct Judged {
    pub(super) verdicts: Vec<Option<Verdict>>,
}

impl Judged {
    /// Judges what needs no server: events that no server would take, and those that stand in the batch twice.
    pub(super) fn new(batch: &[UsageEvent], now: Timestamp) -> Self {
        let mut seen = HashSet::new();
        let verdicts = batch.iter().map(|event| {
            if let Some(reason) = objection(event, now) {
                Some(Verdict::Rejected { reason })
            } else if seen.insert(event.id) {
                None
            } else {
                Some(Verdict::Duplicate)
            }
        });
        Self {
            verdicts: verdicts.collect(),
        }
    }

    /// The places of the events without a verdict, in the order in which all processes write them.
    pub(super) fn open(&self, batch: &[UsageEvent]) -> Vec<usize> {
        let open = self.verdicts.iter().enumerate();
        let mut open: Vec<_> = open
            .filter(|(_, verdict)| verdict.is_none())
            .map(|(place, _)| place)
            .collect();
        open.sort_by_key(|place| {
            batch
                .get(*place)
                .map(|event| (day_of(event.time), event.id))
        });
        open
    }

    pub(super) fn set(&mut self, place: usize, verdict: Verdict) {
        if let Some(own) = self.verdicts.get_mut(place) {
            *own = Some(verdict);
        }
    }

    pub(super) fn days(&self, batch: &[UsageEvent]) -> BTreeSet<Day> {
        let all = batch.iter().zip(&self.verdicts);
        all.filter(|(_, verdict)| verdict.is_none())
            .map(|(event, _)| day_of(event.time))
            .collect()
    }

    /// Rejects the events of days that were dropped.
    pub(super) fn reject_days(&mut self, batch: &[UsageEvent], dropped: &BTreeSet<Day>) {
        for (event, verdict) in batch.iter().zip(&mut self.verdicts) {
            if verdict.is_none() && dropped.contains(&day_of(event.time)) {
                *verdict = Some(Verdict::Rejected {
                    reason: "the event is older than the events that are kept",
                });
            }
        }
    }
}

fn objection(event: &UsageEvent, now: Timestamp) -> Option<&'static str> {
    if event.time > now.saturating_add(MAX_AHEAD) {
        return Some("the event's time is more than a day ahead");
    }
    let texts = [&event.api, &event.route, &event.method, &event.source];
    let optional = [
        &event.refused,
        &event.request_id,
        &event.trace_id,
        &event.country,
    ];
    let texts = texts
        .into_iter()
        .chain(optional.into_iter().flatten())
        .chain(event.quantities.keys());
    for text in texts {
        if text.contains('\0') {
            return Some("a text of the event holds NUL");
        }
    }
    let is_long = |name: &std::sync::Arc<str>| name.len() > MAX_NAME_BYTES;
    event
        .quantities
        .keys()
        .any(is_long)
        .then_some("the name of a quantity is longer than 255 bytes")
}

/// What events add up to, by the start of the minute or the hour.
pub(super) type Sums = BTreeMap<(UsageKey, Timestamp), UsageTotals>;

/// The totals of minutes and of hours.
pub(super) fn sums<'a>(events: impl IntoIterator<Item = &'a UsageEvent>) -> (Sums, Sums) {
    let mut minutes = Sums::new();
    for event in events {
        let minute = UsageMinute::start_of(event.time);
        minutes
            .entry((UsageKey::of(event), minute))
            .or_default()
            .add(event);
    }
    let mut hours = Sums::new();
    for ((key, minute), totals) in &minutes {
        let micros = minute.as_unix_micros();
        let hour = Timestamp::from_unix_micros(micros - micros % MICROS_PER_HOUR);
        hours.entry((key.clone(), hour)).or_default().merge(totals);
    }
    (minutes, hours)
}

/// An id as PostgreSQL's uuid gives its bytes.
pub(super) fn id_of(bytes: &[u8]) -> Option<EventId> {
    let id = u128::from_be_bytes(bytes.try_into().ok()?);
    let [boot, sequence] = [id >> 64, id & u128::from(u64::MAX)].map(u64::try_from);
    Some(EventId::new(boot.ok()?, sequence.ok()?))
}
