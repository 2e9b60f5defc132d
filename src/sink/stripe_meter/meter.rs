use std::{fmt, sync::Arc};

use crate::{
    error::ConfigError,
    id::Environment,
    meter::{CallOutcome, UsageEvent},
};

/// What [`StripeMeter::by`] counts of an event.
type Count = dyn Fn(&UsageEvent) -> u64 + Send + Sync;

/// One meter at Stripe and what of an event it counts.
///
/// Only live events count. [`calls`](Self::calls) and [`quantity`](Self::quantity) leave out what is not to be paid
/// for: calls that were refused, failed or panicked, and those that are [waived](UsageEvent::waived).
///
/// ```
/// use tollgate::sink::StripeMeter;
///
/// let calls = StripeMeter::calls("api_calls")?;
/// let tokens = StripeMeter::quantity("llm_tokens", "tokens")?;
/// let megabytes = StripeMeter::by("egress_mb", |event| event.response_bytes / 1_000_000)?;
/// assert_eq!(tokens.event_name(), "llm_tokens");
/// # let _ = (calls, megabytes);
/// # Ok::<(), tollgate::error::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct StripeMeter {
    event_name: Arc<str>,
    count: Arc<Count>,
}

impl fmt::Debug for StripeMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StripeMeter")
            .field("event_name", &self.event_name)
            .finish_non_exhaustive()
    }
}

/// Whether an event is of a call that somebody pays for.
fn is_paid(event: &UsageEvent) -> bool {
    let is_answered = matches!(event.outcome, CallOutcome::Served | CallOutcome::Aborted);
    is_answered && !event.waived
}

impl StripeMeter {
    /// Counts calls. The reports of a call that goes on are no calls of their own.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] as [`StripeMeter::by`].
    pub fn calls(event_name: &str) -> Result<Self, ConfigError> {
        Self::by(event_name, |event| {
            u64::from(is_paid(event) && event.part_of.is_none())
        })
    }

    /// Adds up a named quantity.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] as [`StripeMeter::by`].
    pub fn quantity(event_name: &str, quantity: impl Into<Box<str>>) -> Result<Self, ConfigError> {
        let quantity = quantity.into();
        Self::by(event_name, move |event| {
            let amount = event.quantities.get(&*quantity).copied();
            amount.filter(|_| is_paid(event)).unwrap_or_default()
        })
    }

    /// Adds up what a closure says of every live event, refused and failed ones too; 0 counts nothing.
    ///
    /// It must say the same of the same event each time: an event that is offered again is told by its amount, too.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the meter's `event_name` is empty or has more than 100 characters, which Stripe refuses.
    pub fn by(
        event_name: &str,
        count: impl Fn(&UsageEvent) -> u64 + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        if !(1..=100).contains(&event_name.chars().count()) {
            let reason = "has 1 to 100 characters: give the `event_name` of a meter at Stripe";
            return Err(ConfigError::new("event_name", reason));
        }
        Ok(Self {
            event_name: Arc::from(event_name),
            count: Arc::new(count),
        })
    }

    /// The meter's `event_name` at Stripe.
    #[must_use]
    pub fn event_name(&self) -> &str {
        &self.event_name
    }

    pub(super) const fn shared_name(&self) -> &Arc<str> {
        &self.event_name
    }

    pub(super) fn amount(&self, event: &UsageEvent) -> u64 {
        if event.environment == Environment::Live {
            (self.count)(event)
        } else {
            0
        }
    }
}
