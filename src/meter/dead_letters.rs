use std::{borrow::Cow, collections::VecDeque};

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

impl DeadLetter {
    /// Its length as JSON, about.
    fn about_bytes(&self) -> usize {
        const REST: usize = 40;
        self.event.about_bytes() + self.reason.len() + REST
    }
}

/// Well below the greatest length of a file, which holds those that are replayed as well.
const MAX_BYTES: usize = 24 << 20;

/// The latest dead letters, oldest first.
#[derive(Default)]
pub(super) struct Kept {
    letters: VecDeque<DeadLetter>,
    n_bytes: usize,
}

impl Kept {
    /// Takes letters in; gives back the oldest, where there are more than `max_letters` or than 24 MiB of them.
    pub(super) fn keep(
        &mut self,
        letters: impl IntoIterator<Item = DeadLetter>,
        max_letters: usize,
    ) -> Vec<DeadLetter> {
        for letter in letters {
            self.n_bytes += letter.about_bytes();
            self.letters.push_back(letter);
        }
        let mut excess = Vec::new();
        while (self.letters.len() > max_letters || self.n_bytes > MAX_BYTES)
            && let Some(oldest) = self.letters.pop_front()
        {
            self.n_bytes -= oldest.about_bytes();
            excess.push(oldest);
        }
        excess
    }

    pub(super) fn take(&mut self) -> VecDeque<DeadLetter> {
        std::mem::take(self).letters
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &DeadLetter> {
        self.letters.iter()
    }
}
