//! The arithmetic of named quantities: what was added, what of it was handed over, what of it was reported.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{MAX_QUANTITIES, abort::Billed, meter::is_quantity_name};

/// The quantities of one call. Sums stay at `u64::MAX` where they would overflow.
#[derive(Clone, Debug, Default)]
pub(super) struct Quantities {
    entries: SmallVec<[Entry; 2]>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: Arc<str>,
    added: u64,
    /// At most `added`.
    delivered: u64,
    /// At most `delivered`.
    reported: u64,
}

impl Entry {
    const fn billed(&self, billed: Billed) -> u64 {
        match billed {
            Billed::All => self.added,
            Billed::Delivered => self.delivered,
            Billed::Nothing => 0,
        }
    }
}

impl Quantities {
    /// Adds to a quantity; false when its name is not to be heard.
    #[must_use]
    pub(super) fn add(&mut self, name: &str, n: u64) -> bool {
        self.entry(name).is_some_and(|entry| {
            entry.added = entry.added.saturating_add(n);
            true
        })
    }

    /// Adds what is handed over already; false when its name is not to be heard.
    #[must_use]
    pub(super) fn add_delivered(&mut self, name: &str, n: u64) -> bool {
        self.entry(name).is_some_and(|entry| {
            entry.added = entry.added.saturating_add(n);
            entry.delivered = entry.delivered.saturating_add(n).min(entry.added);
            true
        })
    }

    /// The first name that `matches`.
    pub(super) fn find(&self, matches: impl Fn(&str) -> bool) -> Option<Arc<str>> {
        let mut names = self.entries.iter().map(|entry| &entry.name);
        names.find(|name| matches(name)).map(Arc::clone)
    }

    fn entry(&mut self, name: &str) -> Option<&mut Entry> {
        let known = self.entries.iter().position(|entry| *entry.name == *name);
        if known.is_none() {
            if self.entries.len() >= MAX_QUANTITIES || !is_quantity_name(name) {
                return None;
            }
            self.entries.push(Entry {
                name: Arc::from(name),
                added: 0,
                delivered: 0,
                reported: 0,
            });
        }
        match known {
            Some(place) => self.entries.get_mut(place),
            None => self.entries.last_mut(),
        }
    }

    /// Everything added so far is handed over.
    pub(super) fn deliver(&mut self) {
        for entry in &mut self.entries {
            entry.delivered = entry.added;
        }
    }

    /// What counts of a quantity; `None` when it was never named.
    pub(super) fn amount(&self, name: &str, billed: Billed) -> Option<u64> {
        let mut entries = self.entries.iter();
        entries
            .find(|entry| *entry.name == *name)
            .map(|entry| entry.billed(billed))
    }

    /// What counts and was not reported before.
    pub(super) fn unreported(&self, billed: Billed) -> impl Iterator<Item = (Arc<str>, u64)> {
        self.entries.iter().map(move |entry| {
            let rest = entry.billed(billed).saturating_sub(entry.reported);
            (Arc::clone(&entry.name), rest)
        })
    }

    /// Takes what was handed over since the last report, as quantities of their own.
    pub(super) fn report(&mut self) -> Self {
        let mut part = Self::default();
        for entry in &mut self.entries {
            let n = entry.delivered.saturating_sub(entry.reported);
            entry.reported = entry.delivered;
            if n > 0 {
                part.entries.push(Entry {
                    name: Arc::clone(&entry.name),
                    added: n,
                    delivered: n,
                    reported: 0,
                });
            }
        }
        part
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Add(u64),
        AddDelivered(u64),
        Deliver,
        Report,
    }

    fn step() -> impl Strategy<Value = Step> {
        let amount = prop_oneof![0..1_000_u64, Just(u64::MAX), Just(u64::MAX / 2)];
        prop_oneof![
            amount.clone().prop_map(Step::Add),
            amount.prop_map(Step::AddDelivered),
            Just(Step::Deliver),
            Just(Step::Report),
        ]
    }

    proptest! {
        /// Against sums that cannot overflow.
        #[test]
        fn reports_and_the_rest_are_what_counts_and_nothing_wraps(steps in prop::collection::vec(step(), 0..40)) {
            let mut quantities = Quantities::default();
            let (mut added, mut delivered, mut reported) = (0_u128, 0_u128, 0_u128);
            let cut = |sum: u128| u64::try_from(sum).unwrap_or(u64::MAX);
            for step in steps {
                match step {
                    Step::Add(n) => {
                        assert!(quantities.add("n", n));
                        added = u128::from(cut(added + u128::from(n)));
                    }
                    Step::AddDelivered(n) => {
                        assert!(quantities.add_delivered("n", n));
                        added = u128::from(cut(added + u128::from(n)));
                        delivered = (delivered + u128::from(n)).min(added);
                    }
                    Step::Deliver => {
                        quantities.deliver();
                        delivered = added;
                    }
                    Step::Report => {
                        let part = quantities.report();
                        reported += u128::from(part.amount("n", Billed::All).unwrap_or(0));
                        prop_assert_eq!(reported, delivered);
                    }
                }
                let known = !quantities.is_empty();
                for (billed, sum) in [(Billed::All, added), (Billed::Delivered, delivered), (Billed::Nothing, 0)] {
                    prop_assert_eq!(quantities.amount("n", billed), known.then_some(cut(sum)));
                    let rest = quantities.unreported(billed).map(|(_, n)| n).sum::<u64>();
                    prop_assert_eq!(u128::from(rest), sum.saturating_sub(reported));
                }
            }
        }
    }

    #[test]
    fn names_that_are_not_heard_are_told() {
        let mut quantities = Quantities::default();
        assert!(!quantities.add("", 1) && !quantities.add_delivered("a\nb", 1));
        for n in 0..MAX_QUANTITIES {
            assert!(quantities.add(&format!("name {n}"), 1));
        }
        assert!(!quantities.add("one more", 1));
        assert!(quantities.add("name 0", 1));
        assert_eq!(quantities.len(), MAX_QUANTITIES);
    }
}
