//! The flusher's dealings with the spool: what is taken is secured before it is offered, and what is finished is
//! written down before it is forgotten.

use std::sync::{Arc, Mutex, atomic::Ordering};

use super::{
    batch::Frozen,
    counters::Overflow,
    flush::{Flusher, MAX_WAITING_EVENTS},
    inner::{Core, lock},
    losses::LossReason,
    spool::{Secured, Spool, SpoolError},
};

/// `None` once it is closed.
pub(super) type SharedSpool = Arc<Mutex<Option<Spool>>>;

/// How many events are made, appended or read back before others have a turn.
const AT_ONCE: usize = 8_192;

/// Works with the files away from the runtime's threads. The work is finished even when nobody waits for it.
async fn with_files<T: Send + 'static>(
    spool: &SharedSpool,
    work: impl FnOnce(&mut Spool) -> T + Send + 'static,
) -> Option<T> {
    let spool = Arc::clone(spool);
    let done = tokio::task::spawn_blocking(move || lock(&spool).as_mut().map(work));
    done.await.ok().flatten()
}

impl Flusher {
    /// Takes what is in the queue and appends it to the spool, where there is one; says how many events are left in
    /// the queue of those that were there.
    pub(super) async fn secure(&mut self, core: &Core) -> usize {
        core.report_long_calls();
        self.take_replays(core);
        let requested = core.persist_requested.load(Ordering::Acquire);
        let mut n_new = core.queue.len();
        let Some(spool) = &core.spool else {
            return n_new;
        };
        let mut is_well = true;
        loop {
            n_new -= self.take_some(core, n_new.min(AT_ONCE)).min(n_new);
            let pending: Vec<_> = self.unsecured();
            if pending.is_empty() {
                break;
            }
            let keep = !self.is_blocked();
            let now = core.clock.now().wall();
            let appended = with_files(spool, move |spool| {
                let appended = spool.append(&pending, now, keep);
                (appended, spool.bytes())
            });
            let Some((appended, n_bytes)) = appended.await else {
                is_well = false;
                break;
            };
            core.tally.spool_bytes.store(n_bytes, Ordering::Relaxed);
            self.let_go(core);
            self.forget_replayed(core);
            core.note_spool(&appended);
            if appended.is_err() {
                is_well = false;
                break;
            }
            if n_new == 0 {
                break;
            }
        }
        let is_secured = is_well && n_new == 0 && self.n_in_memory_only() == 0;
        core.persisted.send_replace((requested, is_secured));
        n_new
    }

    /// Takes up to `n` events from the queue; of those that the spool does not take, as many as the queue holds.
    fn take_some(&mut self, core: &Core, n: usize) -> usize {
        let n_held: usize = self
            .unsecured()
            .iter()
            .map(|batch| batch.events.len())
            .sum();
        let most = core.settings.queue_capacity.min(MAX_WAITING_EVENTS);
        let n = if n_held == 0 {
            n
        } else {
            n.min(most.saturating_sub(n_held))
        };
        let mut n_taken = 0;
        while n_taken < n {
            match self.take(core, (n - n_taken).min(core.settings.max_batch)) {
                0 => break,
                taken => n_taken += taken,
            }
        }
        n_taken
    }

    /// The batches that the spool is still to take. Not the one that the sink has at the moment: it must not be taken
    /// out of hand.
    fn unsecured(&self) -> Vec<Arc<Frozen>> {
        let pending = self.waiting.iter().filter(|waiting| {
            waiting.frozen.secured().is_none() && self.offered != Some(waiting.number())
        });
        pending.map(|waiting| Arc::clone(&waiting.frozen)).collect()
    }

    fn n_in_memory_only(&self) -> usize {
        let waiting = self.waiting.iter();
        waiting
            .filter(|waiting| matches!(waiting.frozen.secured(), None | Some(Secured::Never)))
            .count()
    }

    /// Forgets the batches that are on the disk only.
    fn let_go(&mut self, core: &Core) {
        self.waiting.retain(|waiting| {
            let is_in_hand = waiting.frozen.secured() != Some(Secured::OnDisk);
            if !is_in_hand {
                core.tally.stages().spooled += waiting.frozen.events.len() as u64;
            }
            is_in_hand
        });
    }

    /// Reads batches back; false when there were none.
    pub(super) async fn load(&mut self, core: &Core) -> bool {
        let Some(spool) = &core.spool else {
            return false;
        };
        let now = core.clock.now().wall();
        let room = MAX_WAITING_EVENTS.saturating_sub(self.n_waiting());
        let n = room.min(AT_ONCE) as u64;
        let loaded = with_files(spool, move |spool| {
            spool.expire(now);
            spool.load(n);
        });
        loaded.await;
        // Taken apart from the reading: a task that is cut off there finds them at its next turn.
        let (batches, losses) = {
            let mut spool = lock(spool);
            let Some(spool) = spool.as_mut() else {
                return false;
            };
            (spool.take_inbox(), spool.take_losses())
        };
        let n_loaded: usize = batches.iter().map(|batch| batch.events.len()).sum();
        {
            let mut stages = core.tally.stages();
            stages.spooled = stages.spooled.saturating_sub(n_loaded as u64);
        }
        core.lose_spooled(losses);
        for batch in batches {
            self.take_loaded(batch);
        }
        n_loaded > 0 || losses != (0, 0)
    }

    /// Writes down what is finished.
    pub(super) async fn commit(&mut self, core: &Core) {
        self.forget_replayed(core);
        let Some(spool) = &core.spool else { return };
        let letters = self.new_letters(core);
        if letters.is_none() && self.finished.is_empty() {
            return;
        }
        let finished = self.finished.clone();
        let has_letters = letters.is_some();
        let committed = with_files(spool, move |spool| {
            (spool.commit(letters.as_deref(), &finished), spool.bytes())
        });
        match committed.await {
            Some((Ok(()), n_bytes)) => {
                core.tally.spool_bytes.store(n_bytes, Ordering::Relaxed);
                self.finished.clear();
            }
            Some((Err(error), _)) => {
                core.letters_changed.fetch_or(has_letters, Ordering::AcqRel);
                core.note_spool(&Err(error));
            }
            None => {}
        }
    }

    /// Gives up what waits and what is in the queue: to the spool where there is one, which ends with it. Says how
    /// many events are lost. Blocks while it writes.
    pub(super) fn retire(&mut self, core: &Core) -> u64 {
        self.offered = None;
        self.take_replays(core);
        let mut spool = core.spool.as_ref().and_then(|spool| lock(spool).take());
        if let Some(spool) = &mut spool {
            let now = core.clock.now().wall();
            loop {
                let n_taken = self.take_some(core, AT_ONCE);
                let appended = spool.append(&self.unsecured(), now, false);
                self.let_go(core);
                core.note_spool(&appended);
                if n_taken == 0 || appended.is_err() {
                    break;
                }
            }
        }
        self.forget_replayed(core);
        self.give_replays_back(core);
        if let Some(spool) = spool {
            let letters = self.new_letters(core);
            core.note_spool(&spool.close(letters.as_deref(), &self.finished));
        }
        let mut lost = 0;
        for waiting in self.waiting.drain(..) {
            let n = waiting.events.len() as u64;
            match waiting.frozen.secured() {
                // Offered again, whole, by the next recorder that has the directory.
                Some(Secured::InHand(_) | Secured::OnDisk) => core.tally.stages().spooled += n,
                None | Some(Secured::Never) => {
                    for event in &*waiting.events {
                        core.ledger.event(event, LossReason::Shutdown);
                    }
                    core.tally.stages().shutdown += n;
                    lost += n;
                }
            }
        }
        lost += core.discard_queue();
        self.export(core);
        lost
    }
}

impl Core {
    /// Notes whether the spool takes events: a queue that overflows meanwhile does so for that reason.
    fn note_spool(&self, outcome: &Result<(), SpoolError>) {
        let overflow = match outcome {
            Ok(()) => Overflow::Queue,
            Err(SpoolError::Full) => Overflow::SpoolFull,
            Err(SpoolError::NoSpace(_)) => Overflow::SpoolNoSpace,
            Err(_) => Overflow::SpoolFailed,
        };
        let before = self.overflow.swap(overflow as u8, Ordering::Relaxed);
        let Err(error) = outcome else { return };
        self.tally.spool_failures.fetch_add(1, Ordering::Relaxed);
        if before != overflow as u8 {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the usage spool does not take events: they are held in memory until it does"
            );
        }
    }

    /// Counts events that the spool held and that are lost.
    pub(super) fn lose_spooled(&self, (corrupt, expired): (u64, u64)) {
        if corrupt + expired > 0 {
            self.ledger.unnamed(corrupt, LossReason::Corrupt);
            self.ledger.unnamed(expired, LossReason::Expired);
            let mut stages = self.tally.stages();
            stages.spooled = stages.spooled.saturating_sub(corrupt + expired);
            stages.corrupt += corrupt;
            stages.expired += expired;
        }
    }
}
