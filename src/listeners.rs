//! Who hears of a store's changes.

use std::sync::{Mutex, PoisonError, Weak};

/// Listeners that are held weakly: one that nobody else holds any more is forgotten.
pub(crate) struct Listeners<L: ?Sized>(Mutex<Vec<Weak<L>>>);

impl<L: ?Sized> Listeners<L> {
    pub(crate) fn add(&self, listener: Weak<L>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(listener);
    }

    /// Tells all of them, without a lock: one may ask the store, or bring another listener.
    pub(crate) fn tell(&self, tell: impl Fn(&L)) {
        let listeners: Vec<_> = {
            let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.retain(|listener| listener.strong_count() > 0);
            listeners.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            tell(&listener);
        }
    }
}

impl<L: ?Sized> Default for Listeners<L> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    #[test]
    fn those_that_live_hear_and_those_that_are_gone_are_forgotten() {
        let listeners = Listeners::default();
        let (lives, gone) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        listeners.add(Arc::downgrade(&lives));
        listeners.add(Arc::downgrade(&gone));
        drop(gone);
        for _ in 0..2 {
            listeners.tell(|it| {
                it.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(lives.load(Ordering::Relaxed), 2);
        assert_eq!(listeners.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_listener_may_bring_another() {
        let listeners = Listeners::default();
        let lives = Arc::new(AtomicU64::new(0));
        listeners.add(Arc::downgrade(&lives));
        listeners.tell(|_| listeners.add(Arc::downgrade(&lives)));
        assert_eq!(listeners.0.lock().unwrap().len(), 2);
    }
}
