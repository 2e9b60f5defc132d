//! From a delivery that is known to be the provider's to an answer: claim, handle, complete.

use std::{error::Error, fmt::Write as _, sync::Arc};

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    super::{
        Claim, Claimed, DeadLetter, Delivered, EventError, EventKey, Handled, HandlerError,
        LedgerError, Signature, Try,
    },
    answer::Answer,
    builder::Settings,
};

const TARGET: &str = "tollgate::billing";
/// What of an error's text is kept with a dead letter.
const MAX_REASON_BYTES: usize = 1024;

/// A dead letter was not handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The ledger failed, or has no such dead letter.
    #[error("the ledger did not do it")]
    Ledger(#[from] LedgerError),
    /// The letter holds no event that this version of the crate can read.
    #[error("the dead letter holds no event")]
    Event(#[from] EventError),
    /// Somebody else handles the event, or has done so.
    #[error("somebody else handles the event, or has done so")]
    NotFree,
    /// A handler failed again. The letter is still there.
    #[error("the event was not handled")]
    Handler(#[from] HandlerError),
}

/// A handler ended in a way that it cannot tell of itself.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum NoResult {
    #[error("a handler took longer than `handler_deadline`")]
    TooSlow,
    #[error("a handler panicked")]
    Panicked,
    #[error("every try ended with the process")]
    Crashed,
}

impl From<NoResult> for HandlerError {
    fn from(error: NoResult) -> Self {
        Self::Failed(error.into())
    }
}

impl Settings {
    pub(super) async fn process(&self, delivered: &Delivered, body: Bytes) -> Answer {
        let key = EventKey::new(Arc::clone(&self.endpoint), delivered.id());
        let fingerprint = delivered.fingerprint();
        let claim = match self.ledger.claim(&key, &fingerprint, self.lease).await {
            Ok(Claimed::New(claim)) => claim,
            Ok(Claimed::InProgress { .. }) => return Answer::InProgress,
            Ok(Claimed::Done) => return Answer::AlreadyProcessed,
            Ok(Claimed::OtherContent) => {
                tracing::error!(
                    target: TARGET, endpoint = %self.endpoint, event = delivered.id(),
                    "a signed event has come before and said something else"
                );
                return Answer::OtherContent;
            }
            Err(error) => return self.ledger_failed(delivered, &error),
        };
        if claim.attempt > self.max_attempts {
            let error = HandlerError::from(NoResult::Crashed);
            return self.bury(&claim, delivered, body, &error).await;
        }
        match self.handle(delivered).await {
            Ok(handled) => match self.ledger.complete(&claim).await {
                Ok(()) => Answer::Processed(handled),
                // Somebody else has the event now, and will say when it is done.
                Err(LedgerError::ClaimLost) => Answer::InProgress,
                Err(error) => self.ledger_failed(delivered, &error),
            },
            Err(error) => self.failed(&claim, delivered, body, &error).await,
        }
    }

    async fn failed(
        &self,
        claim: &Claim,
        delivered: &Delivered,
        body: Bytes,
        error: &HandlerError,
    ) -> Answer {
        let (answer, outcome) = match error {
            HandlerError::Unavailable(_) => (Answer::Unavailable, Try::Forgiven),
            HandlerError::Failed(_) => (Answer::Failed, Try::Counts),
        };
        tracing::error!(
            target: TARGET, endpoint = %self.endpoint, event = delivered.id(), name = delivered.name(),
            attempt = claim.attempt, error = chain(error), "an event was not handled"
        );
        if outcome == Try::Counts && claim.attempt >= self.max_attempts {
            return self.bury(claim, delivered, body, error).await;
        }
        // Where this fails, the lease ends by itself.
        if let Err(error) = self.ledger.release(claim, outcome).await {
            self.ledger_failed(delivered, &error);
        }
        answer
    }

    async fn bury(
        &self,
        claim: &Claim,
        delivered: &Delivered,
        body: Bytes,
        error: &HandlerError,
    ) -> Answer {
        let letter = self.letter(claim, delivered, body, error);
        match self.ledger.bury(claim, letter).await {
            Ok(()) => {
                tracing::error!(
                    target: TARGET, endpoint = %self.endpoint, event = delivered.id(), name = delivered.name(),
                    "an event is put aside as a dead letter"
                );
                Answer::DeadLettered
            }
            Err(LedgerError::ClaimLost) => Answer::InProgress,
            Err(error) => self.ledger_failed(delivered, &error),
        }
    }

    fn letter(
        &self,
        claim: &Claim,
        delivered: &Delivered,
        body: Bytes,
        error: &HandlerError,
    ) -> DeadLetter {
        let now = self.clock.now().wall();
        let (name, created) = (delivered.name(), delivered.created());
        DeadLetter::new(claim, name, created, &chain(error), body, now)
    }

    fn ledger_failed(&self, delivered: &Delivered, error: &LedgerError) -> Answer {
        tracing::error!(
            target: TARGET, endpoint = %self.endpoint, event = delivered.id(), error = chain(error),
            "the ledger of billing events failed"
        );
        Answer::Unavailable
    }

    /// Asks all handlers, within their deadline; a panic of theirs is a failure.
    async fn handle(&self, delivered: &Delivered) -> Result<Handled, HandlerError> {
        let delivered = delivered.clone();
        let (handlers, thin) = (self.handlers.clone(), self.thin.clone());
        let mut handling = tokio::spawn(async move {
            let mut most = Handled::Ignored;
            match &delivered {
                Delivered::Event(event) => {
                    for handler in &handlers {
                        most = further(most, handler.handle(event).await?);
                    }
                }
                Delivered::Thin(event) => {
                    if let Some(handler) = thin {
                        most = handler.handle_thin(event).await?;
                    }
                }
            }
            Ok(most)
        });
        match timeout(self.handler_deadline, &mut handling).await {
            Ok(Ok(handled)) => handled,
            Ok(Err(_)) => Err(NoResult::Panicked.into()),
            Err(_) => {
                handling.abort();
                Err(NoResult::TooSlow.into())
            }
        }
    }

    pub(super) async fn replay(&self, event: &str) -> Result<Handled, ReplayError> {
        let key = EventKey::new(Arc::clone(&self.endpoint), event);
        let letter = self.ledger.reopen(&key).await?;
        let delivered = match &self.signature {
            Signature::Paddle(_) => Delivered::from_paddle(&letter.body)?,
            Signature::StandardWebhooks(_) => {
                Delivered::from_standard_webhooks(event, letter.created, &letter.body)?
            }
            Signature::Stripe(_) => Delivered::from_stripe(&letter.body)?,
        };
        let fingerprint = delivered.fingerprint();
        let Claimed::New(claim) = self.ledger.claim(&key, &fingerprint, self.lease).await? else {
            return Err(ReplayError::NotFree);
        };
        match self.handle(&delivered).await {
            Ok(handled) => {
                self.ledger.complete(&claim).await?;
                self.ledger.discard(&key).await?;
                Ok(handled)
            }
            Err(error) => {
                let letter = self.letter(&claim, &delivered, letter.body, &error);
                self.ledger.bury(&claim, letter).await?;
                Err(error.into())
            }
        }
    }
}

/// Of what several handlers did, what changed most.
const fn further(a: Handled, b: Handled) -> Handled {
    const fn rank(handled: Handled) -> u8 {
        match handled {
            Handled::Ignored => 0,
            Handled::Stale => 1,
            Handled::Waiting => 2,
            Handled::Applied => 3,
        }
    }
    if rank(b) > rank(a) { b } else { a }
}

/// An error with its causes, in one line of a bounded length.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    let mut end = text.len().min(MAX_REASON_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
