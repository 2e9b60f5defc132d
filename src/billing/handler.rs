use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use super::{BillingEvent, ThinEvent};

/// What a handler did with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handled {
    /// The event is nothing to this handler.
    Ignored,
    /// Something newer is known already, so nothing was changed.
    Stale,
    /// Noted, and without effect until another event comes.
    Waiting,
    /// What follows from the event is done.
    Applied,
}

/// A handler did not do what follows from an event: the provider is told to send it again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandlerError {
    /// Something that the handler needs does not answer now. The try does not count.
    #[error("the event cannot be handled now")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The event cannot be handled as things are. After some tries it is put aside as a dead letter.
    #[error("the event was not handled")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Does what follows from events.
///
/// # Contract
///
/// - An event comes at least once: again after an error, and after a crash or a lost answer even though all was done. What
///   it does twice must be as if done once; the event's id tells whether it was.
/// - Events come in any order; [`BillingEvent::created`] says which of two is newer.
/// - Two events of one customer may be handled at once.
/// - It is given a deadline by the service; what takes longer belongs into a queue of its own.
#[async_trait]
pub trait BillingEventHandler: Debug + Send + Sync + 'static {
    /// Handles one event.
    ///
    /// # Errors
    ///
    /// [`HandlerError`]: the provider is told to send the event again.
    async fn handle(&self, event: &BillingEvent) -> Result<Handled, HandlerError>;
}

/// Does what follows from events that only say which object to look up.
///
/// # Contract
///
/// As that of [`BillingEventHandler`].
#[async_trait]
pub trait ThinEventHandler: Debug + Send + Sync + 'static {
    /// Handles one event.
    ///
    /// # Errors
    ///
    /// [`HandlerError`]: the provider is told to send the event again.
    async fn handle_thin(&self, event: &ThinEvent) -> Result<Handled, HandlerError>;
}

/// A shared handle is a handler, so that the same one can be given to a service and kept.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: BillingEventHandler + ?Sized> BillingEventHandler for Arc<T> {
    async fn handle(&self, event: &BillingEvent) -> Result<Handled, HandlerError> {
        (**self).handle(event).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: ThinEventHandler + ?Sized> ThinEventHandler for Arc<T> {
    async fn handle_thin(&self, event: &ThinEvent) -> Result<Handled, HandlerError> {
        (**self).handle_thin(event).await
    }
}
