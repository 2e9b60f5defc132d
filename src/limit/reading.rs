//! What an algorithm says about one rule at one moment. Pure data.

/// How long a call has to wait until a rule lets it pass, if nothing else comes in between.
///
/// The order is the order of restriction: the greater one is reported first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Wait {
    /// The call passes now.
    Zero,
    /// The call passes once some other call ends; nobody can know when.
    Unknown,
    /// The call passes after exactly so many microseconds, at least one.
    Micros(u64),
    /// The call never passes: it takes more than the limit could ever hold.
    Forever,
}

impl Wait {
    /// A wait of so many microseconds; none is [`Wait::Zero`].
    #[must_use]
    pub const fn micros(micros: u64) -> Self {
        if micros == 0 {
            Self::Zero
        } else {
            Self::Micros(micros)
        }
    }

    /// Whether the call passes now.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        matches!(self, Self::Zero)
    }
}

/// One rule's count at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reading {
    /// Units used; above the limit when it is overdrawn.
    pub used: u64,
    /// Units left.
    pub remaining: u64,
    /// Microseconds until more units than now are left; `None` when none are used or nobody can know.
    pub reset_micros: Option<u64>,
    /// The length in microseconds of the calendar period that is counted, where one is.
    pub window_micros: Option<u64>,
}

impl Reading {
    /// A reading from its parts; for implementors of [`LimitStore`](super::LimitStore).
    #[must_use]
    pub const fn new(used: u64, remaining: u64, reset_micros: Option<u64>) -> Self {
        Self {
            used,
            remaining,
            reset_micros,
            window_micros: None,
        }
    }

    /// The same reading, of a calendar period of so many microseconds.
    #[must_use]
    pub const fn over(mut self, window_micros: u64) -> Self {
        self.window_micros = Some(window_micros);
        self
    }
}
