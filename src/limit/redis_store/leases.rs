//! Slots of concurrency limits that are in use: their holds are renewed while the process lives.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use super::{
    driver::Queued,
    wire::{Operation, PackedCall},
};

/// A hold is renewed when a third of its lease has passed, so that one lost renewal does no harm.
const RENEWALS_PER_LEASE: u32 = 3;
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// The open receipts that hold slots.
#[derive(Debug, Default)]
pub(super) struct Leases {
    open: Mutex<HashMap<u128, Open>>,
    changed: tokio::sync::Notify,
}

#[derive(Debug)]
struct Open {
    call: PackedCall,
    shard: usize,
    pause: Duration,
    due: Instant,
}

impl Leases {
    /// Keeps a receipt's holds alive until [`close`](Self::close).
    pub(super) fn open(&self, receipt: u128, call: PackedCall, shard: usize, lease: Duration) {
        let pause = (lease / RENEWALS_PER_LEASE).max(SHORTEST_PAUSE);
        let due = Instant::now() + pause;
        self.lock().insert(
            receipt,
            Open {
                call,
                shard,
                pause,
                due,
            },
        );
        self.changed.notify_one();
    }

    pub(super) fn close(&self, receipt: u128) {
        self.lock().remove(&receipt);
    }

    pub(super) fn n_open(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u128, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The renewals that are due, and when the next ones will be.
    fn due(&self) -> (Vec<(usize, PackedCall)>, Option<Instant>) {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for open in self.lock().values_mut() {
            if open.due <= now {
                open.due = now + open.pause;
                due.push((open.shard, open.call.clone()));
            }
            next = Some(next.map_or(open.due, |next| next.min(open.due)));
        }
        (due, next)
    }

    /// Renews until the task is aborted with the store.
    pub(super) async fn renew(self: Arc<Self>, queues: Vec<mpsc::WeakSender<Queued>>) {
        loop {
            let (due, next) = self.due();
            for (shard, mut call) in due {
                let Some(queue) = queues.get(shard).and_then(mpsc::WeakSender::upgrade) else {
                    return;
                };
                call.operation = Operation::Renew;
                // A full queue is tried again when the next renewal is due.
                let _ = queue.try_send(Queued {
                    call,
                    reply: None,
                    release: None,
                });
            }
            let next = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }
}
