//! Which tables answer for which part of a time. Pure.

use crate::clock::Timestamp;

/// How fine the points of a curve lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Step {
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day in UTC.
    Day,
}

impl Step {
    const fn micros(self) -> u64 {
        match self {
            Self::Minute => 60_000_000,
            Self::Hour => 3_600_000_000,
            Self::Day => 86_400_000_000,
        }
    }

    const fn finer(self) -> Option<Self> {
        match self {
            Self::Day => Some(Self::Hour),
            Self::Hour => Some(Self::Minute),
            Self::Minute => None,
        }
    }

    /// The start of the step that a time is in.
    #[must_use]
    pub const fn start_of(self, time: Timestamp) -> Timestamp {
        let micros = time.as_unix_micros();
        Timestamp::from_unix_micros(micros - micros % self.micros())
    }

    /// The first start of a step at or after a time.
    pub(super) const fn first_at(self, time: Timestamp) -> Timestamp {
        let step = self.micros();
        Timestamp::from_unix_micros(time.as_unix_micros().div_ceil(step).saturating_mul(step))
    }
}

/// A part of a time, and the table that has a row for each of its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) step: Step,
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
}

/// Covers a time that begins and ends at whole minutes: whole steps of the coarsest size in the middle, and finer ones
/// at both ends. At most five parts.
pub(super) fn cover(from: Timestamp, until: Timestamp, coarsest: Step) -> Vec<Segment> {
    let mut parts = Vec::new();
    fill(from, until, coarsest, &mut parts);
    parts
}

fn fill(from: Timestamp, until: Timestamp, step: Step, parts: &mut Vec<Segment>) {
    if from >= until {
        return;
    }
    let Some(finer) = step.finer() else {
        parts.push(Segment { step, from, until });
        return;
    };
    let (first, last) = (step.first_at(from), step.start_of(until));
    if first >= last {
        fill(from, until, finer, parts);
        return;
    }
    fill(from, first, finer, parts);
    parts.push(Segment {
        step,
        from: first,
        until: last,
    });
    fill(last, until, finer, parts);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_minute_is_in_one_part_and_few_rows_are_read(
            from in 0_u64..10_000_000, length in 0_u64..60_000,
            coarsest in prop::sample::select(vec![Step::Minute, Step::Hour, Step::Day]),
        ) {
            let at = |minute: u64| Timestamp::from_unix_seconds(minute * 60);
            let parts = cover(at(from), at(from + length), coarsest);
            let mut end = at(from);
            let mut n_fine = 0;
            for part in &parts {
                prop_assert_eq!(part.from, end, "no gap and no overlap");
                prop_assert!(part.from < part.until && part.step <= coarsest);
                prop_assert_eq!(part.step.start_of(part.from), part.from);
                prop_assert_eq!(part.step.start_of(part.until), part.until);
                if part.step < coarsest {
                    n_fine += part.until.saturating_since(part.from).as_secs() * 1_000_000
                        / (part.step.micros());
                }
                end = part.until;
            }
            prop_assert_eq!(end, at(from + length));
            prop_assert!(parts.len() <= 5);
            prop_assert!(n_fine <= 2 * (59 + 23) || coarsest == Step::Minute, "{}", n_fine);
        }
    }
}
