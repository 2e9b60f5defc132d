use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::meter::UsageEvent;

/// Names a batch by its events: the first 16 bytes of the SHA-256 of their ids, in their order.
///
/// Written as 32 hexadecimal digits. For destinations that drop an insert whose token they have seen: a batch that is
/// offered again has the same id, and one that has lost an event to a verdict has another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(u128);

impl BatchId {
    /// The id as one number.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

/// The id of a batch; see [`BatchId`].
///
/// ```
/// use tollgate::{
///     clock::Timestamp,
///     id::{PlanName, TenantId},
///     meter::{EventId, UsageEvent},
///     sink::batch_id,
/// };
///
/// let time = Timestamp::from_unix_seconds(1_768_478_400);
/// let event = |n| {
///     let (tenant, plan) = (TenantId::new("acme")?, PlanName::new("pro")?);
///     Ok::<_, tollgate::id::InvalidId>(UsageEvent::new(EventId::new(1, n), time, tenant, plan))
/// };
/// let batch = [event(1)?, event(2)?];
/// assert_eq!(batch_id(&batch), batch_id(&batch.clone()));
/// assert_ne!(batch_id(&batch), batch_id(&batch[1..]));
/// assert_eq!(batch_id(&batch).to_string().len(), 32);
/// # Ok::<(), tollgate::id::InvalidId>(())
/// ```
#[must_use]
pub fn batch_id(batch: &[UsageEvent]) -> BatchId {
    let mut digest = Sha256::new();
    for event in batch {
        digest.update(event.id.as_u128().to_be_bytes());
    }
    let digest = digest.finalize();
    let first = digest.iter().take(16);
    BatchId(first.fold(0, |id, byte| id << 8 | u128::from(*byte)))
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
