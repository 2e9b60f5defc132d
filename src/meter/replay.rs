//! Dead letters that are offered again: they stay dead letters on the disk until the spool has them as events.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
};

use super::{
    batch::Frozen,
    dead_letters::DeadLetter,
    event::UsageEvent,
    flush::Flusher,
    inner::{Core, lock},
    spool::Secured,
};

impl Flusher {
    /// Makes batches of the dead letters that are to be offered again, each as long as one of new events.
    pub(super) fn take_replays(&mut self, core: &Core) {
        let mut letters = std::mem::take(&mut *lock(&core.replays)).into_iter();
        loop {
            let mut batch = Vec::new();
            let mut n_bytes = 0;
            while batch.len() < core.settings.max_batch && n_bytes < core.settings.max_batch_bytes {
                let Some(letter) = letters.next() else { break };
                n_bytes += letter.event.about_bytes();
                batch.push(letter);
            }
            if batch.is_empty() {
                return;
            }
            let events = batch.iter().map(|letter| letter.event.clone()).collect();
            let frozen = Arc::new(Frozen::new(events));
            let number = self.wait(self.waiting.len(), frozen, false);
            self.replaying.push((number, batch));
        }
    }

    /// Forgets the letters of batches that the spool has, or that are finished: the file of dead letters is written
    /// without them next.
    pub(super) fn forget_replayed(&mut self, core: &Core) {
        let n_before = self.replaying.len();
        let mut replaying = std::mem::take(&mut self.replaying);
        replaying.retain(|(number, _)| {
            self.find(*number).is_some_and(|waiting| {
                matches!(waiting.frozen.secured(), None | Some(Secured::Never))
            })
        });
        self.replaying = replaying;
        if self.replaying.len() < n_before {
            core.letters_changed.store(true, Ordering::Release);
        }
    }

    /// The dead letters, when they have changed since they were written: with those that are to be offered again and
    /// that the spool has not yet.
    pub(super) fn new_letters(&self, core: &Core) -> Option<Vec<DeadLetter>> {
        if !core.letters_changed.swap(false, Ordering::AcqRel) {
            return None;
        }
        let mut letters = self.letters_in_hand();
        let kept = lock(&core.dead_letters);
        letters.extend(lock(&core.replays).iter().cloned());
        letters.extend(kept.iter().cloned());
        Some(letters)
    }

    /// The letters that are offered again and have no last word.
    fn letters_in_hand(&self) -> Vec<DeadLetter> {
        if self.replaying.is_empty() {
            return Vec::new();
        }
        let open = |event: &UsageEvent| event.id;
        let open: HashSet<_> = self
            .waiting
            .iter()
            .flat_map(|waiting| waiting.events.iter().map(open))
            .collect();
        let letters = self.replaying.iter().flat_map(|(_, letters)| letters);
        letters
            .filter(|letter| open.contains(&letter.event.id))
            .cloned()
            .collect()
    }

    /// Makes dead letters again of those that are still to be offered and that the spool has not taken.
    pub(super) fn give_replays_back(&mut self, core: &Core) {
        let letters = self.letters_in_hand();
        let replaying = std::mem::take(&mut self.replaying);
        let numbers: HashSet<_> = replaying.into_iter().map(|(number, _)| number).collect();
        self.waiting
            .retain(|waiting| !numbers.contains(&waiting.number()));
        core.keep_letters(letters);
    }
}
