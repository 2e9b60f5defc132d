use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use crate::pricing::InvoiceDraft;

/// What became of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Issued {
    /// It was there already, whole and the same.
    Already,
    /// It is there now.
    Now,
}

/// A draft was not taken, or nobody knows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvoiceSinkError {
    /// Another draft of the same tenant, period and version was taken before. Make a correction of that one.
    #[error(
        "another invoice of this tenant, period and version was issued: make the next version of it"
    )]
    Conflict,
    /// What is kept of an invoice cannot be read.
    #[error("a kept invoice cannot be read")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The sink cannot take this draft as it is.
    #[error("the invoice was refused")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The destination cannot be reached or does not serve now: issue the draft again.
    #[error("the invoice sink is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl InvoiceSinkError {
    /// The sink cannot take this draft as it is; keeps the cause.
    #[must_use]
    pub fn refused(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Refused(cause.into())
    }

    /// The destination cannot be reached or does not serve now; keeps the cause.
    #[must_use]
    pub fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into())
    }
}

/// Where drafts of invoices go.
///
/// # Contract
///
/// - Idempotent on tenant, period and version: a draft that is issued twice is there once.
/// - [`Issued`] only when all of the draft is there, as durable as the sink promises to make it.
/// - After an error, or no answer in time, the same draft may be issued again: what is there already stays, and the
///   rest is added.
/// - Another draft of the same tenant, period and version is a [`Conflict`](InvoiceSinkError::Conflict), and changes
///   nothing.
#[async_trait]
pub trait InvoiceSink: Debug + Send + Sync + 'static {
    /// Takes a draft.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have written any part of the draft; issue it again.
    ///
    /// # Errors
    ///
    /// [`InvoiceSinkError`] when the draft is not known to be there.
    async fn issue(&self, draft: &InvoiceDraft) -> Result<Issued, InvoiceSinkError>;
}

macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<T: InvoiceSink + ?Sized> InvoiceSink for $pointer<T> {
            async fn issue(&self, draft: &InvoiceDraft) -> Result<Issued, InvoiceSinkError> {
                (**self).issue(draft).await
            }
        }
    };
}

forward!(Arc);
forward!(Box);
