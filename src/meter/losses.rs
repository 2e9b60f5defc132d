//! What was lost, by tenant and day: so that an invoice knows by how much it may be too low.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

use super::{event::UsageEvent, meter::Call};
use crate::{clock::Timestamp, id::TenantId};

/// Why an event was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LossReason {
    /// The queue was full.
    QueueFull,
    /// The queue was full, as the spool held as much as it may.
    SpoolFull,
    /// The queue was full, as the spool's disk was.
    SpoolNoSpace,
    /// The queue was full, as the spool could not be written.
    SpoolFailed,
    /// The event waited in the spool for longer than it may.
    Expired,
    /// The event's record in the spool was damaged.
    Corrupt,
    /// The sink rejected the event, and newer dead letters took its place.
    DeadLettersFull,
    /// The recorder ended before the event was written.
    Shutdown,
}

impl LossReason {
    /// The reason as a label of `tollgate_usage_dropped_total`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::SpoolFull => "spool_full",
            Self::SpoolNoSpace => "spool_no_space",
            Self::SpoolFailed => "spool_failed",
            Self::Expired => "expired",
            Self::Corrupt => "corrupt",
            Self::DeadLettersFull => "dead_letters_full",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What was lost of one tenant on one day for one reason; see [`Recorder::losses`](super::Recorder::losses).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Loss {
    /// Whose events; `None` where nobody can tell, as of damaged records, or where too many others were noted before.
    pub tenant: Option<TenantId>,
    /// The begin of the day of the calls, in UTC; `None` where nobody can tell.
    pub day: Option<Timestamp>,
    /// Why.
    pub reason: LossReason,
    /// How many events.
    pub events: u64,
    /// What they would have said, by name; sums stay at `u64::MAX` where they would overflow.
    pub quantities: BTreeMap<Arc<str>, u64>,
}

/// Past this many notes, losses are noted without a name.
const MAX_NOTES: usize = 4_096;
/// Past this many names in one note, a quantity is not noted.
const MAX_NAMES: usize = 16;

type Key = (Option<(TenantId, u64)>, LossReason);

#[derive(Default)]
struct Note {
    events: u64,
    quantities: BTreeMap<Arc<str>, u64>,
}

/// The notes. Taken for what is lost only: a call that is kept never comes here.
#[derive(Default)]
pub(super) struct Ledger(Mutex<HashMap<Key, Note>>);

const DAY_SECONDS: u64 = 86_400;

impl Ledger {
    pub(super) fn call(&self, call: &Call, reason: LossReason) {
        let Some(identity) = call.identity() else {
            return self.unnamed(1, reason);
        };
        let quantities: Vec<_> = call.quantities().unreported(call.billed()).collect();
        let tenant = identity.tenant().id().clone();
        self.note(tenant, call.started.wall(), reason, quantities);
    }

    pub(super) fn event(&self, event: &UsageEvent, reason: LossReason) {
        let quantities = event.quantities.iter();
        let quantities = quantities.map(|(name, n)| (Arc::clone(name), *n));
        self.note(event.tenant.clone(), event.time, reason, quantities);
    }

    /// Events of which nothing is known.
    pub(super) fn unnamed(&self, n: u64, reason: LossReason) {
        if n > 0 {
            let mut notes = self.lock();
            let note = notes.entry((None, reason)).or_default();
            note.events = note.events.saturating_add(n);
        }
    }

    fn note(
        &self,
        tenant: TenantId,
        time: Timestamp,
        reason: LossReason,
        quantities: impl IntoIterator<Item = (Arc<str>, u64)>,
    ) {
        let mut key = (Some((tenant, time.as_unix_seconds() / DAY_SECONDS)), reason);
        let mut notes = self.lock();
        if notes.len() >= MAX_NOTES && !notes.contains_key(&key) {
            key.0 = None;
        }
        let note = notes.entry(key).or_default();
        note.events = note.events.saturating_add(1);
        for (name, n) in quantities {
            if note.quantities.len() < MAX_NAMES || note.quantities.contains_key(&name) {
                let sum = note.quantities.entry(name).or_default();
                *sum = sum.saturating_add(n);
            }
        }
    }

    pub(super) fn losses(&self) -> Vec<Loss> {
        let notes = self.lock();
        let mut losses: Vec<Loss> = notes
            .iter()
            .map(|((of, reason), note)| Loss {
                tenant: of.as_ref().map(|(tenant, _)| tenant.clone()),
                day: of
                    .as_ref()
                    .map(|(_, day)| Timestamp::from_unix_seconds(day.saturating_mul(DAY_SECONDS))),
                reason: *reason,
                events: note.events,
                quantities: note.quantities.clone(),
            })
            .collect();
        drop(notes);
        losses.sort_by(|a, b| (&a.tenant, a.day, a.reason).cmp(&(&b.tenant, b.day, b.reason)));
        losses
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Note>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}
