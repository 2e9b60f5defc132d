use std::{
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Account;
use crate::{clock::Timestamp, error::ConfigError};

/// The shortest time for which a ledger may remember events: providers send for three days by themselves, and much later
/// when a person asks them to.
pub const MIN_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

pub(super) fn check_retention(retention: Duration) -> Result<Duration, ConfigError> {
    if retention < MIN_RETENTION {
        return Err(ConfigError::new(
            "retention",
            "an event that is forgotten can be sent again and is new then: remember events for 30 days or longer",
        ));
    }
    Ok(retention)
}

/// Names an event within the ledger: the endpoint that it came to, and its own id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EventKey {
    /// The name that the service has for its endpoint.
    pub endpoint: Arc<str>,
    /// The event's id.
    pub id: Arc<str>,
}

impl EventKey {
    /// The key of an event.
    #[must_use]
    pub fn new(endpoint: impl Into<Arc<str>>, id: impl Into<Arc<str>>) -> Self {
        Self {
            endpoint: endpoint.into(),
            id: id.into(),
        }
    }
}

/// The right to handle an event, until its lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// The event.
    pub key: EventKey,
    /// Tells this claim from others of the event.
    pub token: u64,
    /// Which try this is, from 1: those that ended in a crash count, those that were forgiven do not.
    pub attempt: u32,
}

impl Claim {
    /// The right to handle an event; for implementors of [`EventLedger`].
    #[must_use]
    pub const fn new(key: EventKey, token: u64, attempt: u32) -> Self {
        Self {
            key,
            token,
            attempt,
        }
    }
}

/// What a ledger says of an event that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claimed {
    /// The caller handles it.
    New(Claim),
    /// Somebody else handles it, and has until then.
    InProgress {
        /// When that lease ends, by the ledger's clock.
        until: Timestamp,
    },
    /// It was handled, or put aside as a dead letter.
    Done,
    /// An event of this id has come before, and said something else.
    OtherContent,
}

/// Whether a try that failed counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Try {
    /// It does.
    Counts,
    /// It does not, as the event was not the cause.
    Forgiven,
}

/// An event that could not be handled, put aside until somebody looks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The event.
    pub key: EventKey,
    /// The provider's name for what happened.
    pub name: Box<str>,
    /// How often it was tried.
    pub attempts: u32,
    /// Why the last try failed.
    pub reason: Box<str>,
    /// When it was put aside.
    pub buried_at: Timestamp,
    /// When it happened, by the provider's clock.
    pub created: Timestamp,
    /// The body as it came. It holds what the customers would not like to see anywhere.
    #[serde(with = "text")]
    pub body: Bytes,
}

/// A body that was read as JSON is text.
mod text {
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(body))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Bytes, D::Error> {
        String::deserialize(deserializer).map(Bytes::from)
    }
}

impl DeadLetter {
    /// An event to be put aside.
    #[must_use]
    pub fn new(
        claim: &Claim,
        name: &str,
        created: Timestamp,
        reason: &str,
        body: Bytes,
        now: Timestamp,
    ) -> Self {
        Self {
            key: claim.key.clone(),
            name: name.into(),
            attempts: claim.attempt,
            reason: reason.into(),
            buried_at: now,
            created,
            body,
        }
    }
}

/// The body does not show.
impl Debug for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("key", &self.key)
            .field("name", &self.name)
            .field("attempts", &self.attempts)
            .field("reason", &self.reason)
            .field("buried_at", &self.buried_at)
            .finish_non_exhaustive()
    }
}

/// A ledger failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The claim's lease has ended and somebody else has taken the event, or the ledger has forgotten it.
    #[error("the claim is no longer valid")]
    ClaimLost,
    /// The account was changed in the meantime: read it again and repeat the change.
    #[error("the account was changed in the meantime")]
    Conflict,
    /// There is no such dead letter.
    #[error("there is no such dead letter")]
    NotFound,
    /// The ledger cannot be reached or does not serve now. What was asked may have been done.
    #[error("the ledger of billing events is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The ledger holds something that is not its own.
    #[error("the ledger of billing events holds something that cannot be read")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Remembers which events have come, so that each is handled once.
///
/// # Contract
///
/// - [`claim`](Self::claim) is atomic: of any number at once exactly one is [`Claimed::New`].
/// - A claim that is neither completed nor given back ends with its lease, as after a crash: then the next claim is
///   [`Claimed::New`] with another token and the next attempt. The old claim is lost from then on.
/// - A lease is measured by the ledger's own clock, so that all processes share one.
/// - What is completed or buried stays so for at least [`MIN_RETENTION`].
/// - The content of an event is fixed by its first claim, whatever becomes of that.
#[async_trait]
pub trait EventLedger: Debug + Send + Sync + 'static {
    /// Claims an event for as long as `lease`. `fingerprint` is the digest of its content.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Unavailable`] or [`LedgerError::Corrupt`].
    async fn claim(
        &self,
        key: &EventKey,
        fingerprint: &[u8; 32],
        lease: Duration,
    ) -> Result<Claimed, LedgerError>;

    /// Says that the event was handled.
    ///
    /// # Errors
    ///
    /// [`LedgerError::ClaimLost`] when the lease has ended and somebody else has claimed the event; or a failure of the
    /// ledger.
    async fn complete(&self, claim: &Claim) -> Result<(), LedgerError>;

    /// Gives a claim back, so that the event can be claimed at once. Giving a lost claim back changes nothing.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Unavailable`] or [`LedgerError::Corrupt`].
    async fn release(&self, claim: &Claim, outcome: Try) -> Result<(), LedgerError>;

    /// Puts the claimed event aside: it is done, and stands in the list of dead letters.
    ///
    /// # Errors
    ///
    /// As [`complete`](Self::complete).
    async fn bury(&self, claim: &Claim, letter: DeadLetter) -> Result<(), LedgerError>;

    /// The dead letters of an endpoint, oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Unavailable`] or [`LedgerError::Corrupt`].
    async fn dead_letters(
        &self,
        endpoint: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, LedgerError>;

    /// Lets a dead letter's event be claimed again, from its first attempt, and gives the letter. It stays in the list
    /// until it is [discarded](Self::discard).
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotFound`], or a failure of the ledger.
    async fn reopen(&self, key: &EventKey) -> Result<DeadLetter, LedgerError>;

    /// Takes a dead letter off the list. Whether its event is done does not change.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotFound`], or a failure of the ledger.
    async fn discard(&self, key: &EventKey) -> Result<(), LedgerError>;
}

/// Keeps what is known of the provider's customers.
///
/// # Contract
///
/// - [`save`](Self::save) is a compare-and-set on [`Account::version`]: of two concurrent ones exactly one succeeds.
/// - Nothing is ever deleted, and nothing is forgotten after a time.
#[async_trait]
pub trait AccountStore: Debug + Send + Sync + 'static {
    /// The account of a customer, `None` when there is none.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Unavailable`] or [`LedgerError::Corrupt`].
    async fn load(&self, customer: &str) -> Result<Option<Account>, LedgerError>;

    /// Writes an account whose version is the stored one's, or 0 when there is none; the stored version grows by one.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Conflict`], or a failure of the store.
    async fn save(&self, account: &Account) -> Result<(), LedgerError>;

    /// Accounts in the order of their customers' ids, from after `after` on, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Unavailable`] or [`LedgerError::Corrupt`].
    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Account>, LedgerError>;
}

/// A shared handle is a ledger, so that the same one can be given to a service and kept.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: EventLedger + ?Sized> EventLedger for Arc<T> {
    async fn claim(
        &self,
        key: &EventKey,
        fingerprint: &[u8; 32],
        lease: Duration,
    ) -> Result<Claimed, LedgerError> {
        (**self).claim(key, fingerprint, lease).await
    }

    async fn complete(&self, claim: &Claim) -> Result<(), LedgerError> {
        (**self).complete(claim).await
    }

    async fn release(&self, claim: &Claim, outcome: Try) -> Result<(), LedgerError> {
        (**self).release(claim, outcome).await
    }

    async fn bury(&self, claim: &Claim, letter: DeadLetter) -> Result<(), LedgerError> {
        (**self).bury(claim, letter).await
    }

    async fn dead_letters(
        &self,
        endpoint: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, LedgerError> {
        (**self).dead_letters(endpoint, limit).await
    }

    async fn reopen(&self, key: &EventKey) -> Result<DeadLetter, LedgerError> {
        (**self).reopen(key).await
    }

    async fn discard(&self, key: &EventKey) -> Result<(), LedgerError> {
        (**self).discard(key).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: AccountStore + ?Sized> AccountStore for Arc<T> {
    async fn load(&self, customer: &str) -> Result<Option<Account>, LedgerError> {
        (**self).load(customer).await
    }

    async fn save(&self, account: &Account) -> Result<(), LedgerError> {
        (**self).save(account).await
    }

    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Account>, LedgerError> {
        (**self).list(after, limit).await
    }
}

/// A token that no other claim has.
pub(super) fn token() -> Result<u64, LedgerError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| LedgerError::Unavailable(error.into()))?;
    // 53 bits, so that Redis's scripts and JSON keep it as it is.
    Ok(u64::from_be_bytes(bytes) >> 11)
}
