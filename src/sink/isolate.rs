//! Finds the events for which a destination refuses a whole batch.

use std::{error::Error, ops::Range, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{SinkError, Verdict, Verdicts};

/// A write begins no request after this time, so that a slow destination gets verdicts through before whoever offered
/// the batch loses patience. What is left is offered again.
pub(super) const ENOUGH: Duration = Duration::from_secs(3);

/// What became of one request.
#[derive(Debug)]
pub(super) enum Sent {
    /// Every event is there.
    Accepted,
    /// One verdict for each event.
    Each(Vec<Verdict>),
    /// Refused for what is in it, and nothing of it is there or it may be sent again.
    Refused(&'static str),
    /// The destination takes nothing for so long.
    Later(Duration),
    /// No word on any event.
    Failed(Box<dyn Error + Send + Sync>),
}

/// Sends a part of a batch in one request.
#[async_trait]
pub(super) trait Deliver: Sync {
    async fn deliver(&self, part: Range<usize>) -> Sent;
}

/// Verdicts of a batch in the making: what has none yet is to be offered again.
pub(super) fn unsettled(n: usize) -> Vec<Verdict> {
    let again = Verdict::Retry {
        after: Duration::ZERO,
    };
    vec![again; n]
}

/// Sends the parts one after the other, and halves those that are refused until the events at fault stand alone.
///
/// `verdicts` holds those of events in no part. The halves of a part are always the same, so that a destination which
/// knows requests by their content knows them again.
pub(super) async fn isolate(
    to: &impl Deliver,
    mut parts: Vec<Range<usize>>,
    mut verdicts: Vec<Verdict>,
) -> Result<Verdicts, SinkError> {
    let started = Instant::now();
    // The next one is at the end.
    parts.reverse();
    while let Some(part) = parts.pop() {
        match to.deliver(part.clone()).await {
            Sent::Accepted => settle(&mut verdicts, part, Verdict::Accepted),
            Sent::Each(said) => {
                for (known, said) in verdicts.iter_mut().skip(part.start).zip(said) {
                    *known = said;
                }
            }
            Sent::Refused(reason) if part.len() <= 1 => {
                settle(&mut verdicts, part, Verdict::Rejected { reason });
            }
            Sent::Refused(_) => {
                let middle = part.start + part.len() / 2;
                parts.extend([middle..part.end, part.start..middle]);
            }
            Sent::Later(after) => {
                tracing::warn!(
                    ?after,
                    "a usage sink asks for patience: the rest will be offered again"
                );
                parts.push(part);
                for part in parts.drain(..) {
                    settle(&mut verdicts, part, Verdict::Retry { after });
                }
            }
            Sent::Failed(cause) => {
                if !verdicts.iter().any(is_final) {
                    return Err(SinkError::unavailable(cause));
                }
                tracing::warn!(
                    error = &*cause as &dyn Error,
                    "a usage sink failed within a batch: the rest will be offered again"
                );
                break;
            }
        }
        if started.elapsed() >= ENOUGH {
            break;
        }
    }
    Ok(if verdicts.iter().all(|it| *it == Verdict::Accepted) {
        Verdicts::AllAccepted
    } else {
        Verdicts::Each(verdicts)
    })
}

pub(super) const fn is_final(verdict: &Verdict) -> bool {
    !matches!(verdict, Verdict::Retry { .. })
}

fn settle(verdicts: &mut [Verdict], part: Range<usize>, verdict: Verdict) {
    if let Some(part) = verdicts.get_mut(part) {
        part.fill(verdict);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Mutex};

    use proptest::prelude::*;

    use super::*;

    /// Refuses whatever holds a bad event; falls silent after some requests.
    struct Picky {
        bad: HashSet<usize>,
        accepted: Mutex<Vec<usize>>,
        n_requests: Mutex<usize>,
        silent_after: usize,
    }

    #[async_trait]
    impl Deliver for Picky {
        async fn deliver(&self, part: Range<usize>) -> Sent {
            let mut n_requests = self.n_requests.lock().unwrap();
            *n_requests += 1;
            if *n_requests > self.silent_after {
                return Sent::Failed("silent".into());
            }
            if part.clone().any(|place| self.bad.contains(&place)) {
                return Sent::Refused("bad");
            }
            self.accepted.lock().unwrap().extend(part);
            Sent::Accepted
        }
    }

    fn picky(bad: HashSet<usize>, silent_after: usize) -> Picky {
        Picky {
            bad,
            accepted: Mutex::default(),
            n_requests: Mutex::default(),
            silent_after,
        }
    }

    proptest! {
        #[test]
        fn the_bad_are_rejected_and_the_rest_is_accepted_once(
            n in 1..200_usize,
            bad in prop::collection::hash_set(0..200_usize, 0..6),
            silent_after in prop_oneof![Just(usize::MAX), 0..20_usize],
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let to = picky(bad.clone(), silent_after);
            let half = n / 2;
            let verdicts = runtime.block_on(isolate(&to, vec![0..half, half..n], unsettled(n)));
            let mut accepted = to.accepted.into_inner().unwrap();
            accepted.sort_unstable();
            let Ok(verdicts) = verdicts else {
                prop_assert!(silent_after < 20 && accepted.is_empty());
                return Ok(());
            };
            let verdicts = match verdicts {
                Verdicts::AllAccepted => vec![Verdict::Accepted; n],
                Verdicts::Each(verdicts) => verdicts,
            };
            prop_assert_eq!(verdicts.len(), n);
            for (place, verdict) in verdicts.iter().enumerate() {
                match verdict {
                    Verdict::Accepted => prop_assert!(accepted.binary_search(&place).is_ok()),
                    Verdict::Rejected { .. } => prop_assert!(bad.contains(&place)),
                    _ => prop_assert!(silent_after < 20),
                }
            }
            let n_accepted = verdicts.iter().filter(|it| **it == Verdict::Accepted).count();
            prop_assert_eq!(n_accepted, accepted.len());
        }
    }

    #[test]
    fn one_bad_event_of_a_thousand_costs_twenty_requests() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let to = picky(HashSet::from([617]), usize::MAX);
        let parts = std::iter::once(0..1024).collect();
        runtime
            .block_on(isolate(&to, parts, unsettled(1024)))
            .unwrap();
        assert_eq!(to.accepted.into_inner().unwrap().len(), 1023);
        assert!(to.n_requests.into_inner().unwrap() <= 21);
    }
}
