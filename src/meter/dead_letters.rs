use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::event::UsageEvent;

/// An event that the sink rejected for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The event as it was offered.
    pub event: UsageEvent,
    /// The sink's reason.
    pub reason: Cow<'static, str>,
}
