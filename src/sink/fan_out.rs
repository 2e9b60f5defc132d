use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{DeliveryOrder, SinkError, UsageSink, Verdict, Verdicts, offer, offer::OfferFailure};
use crate::meter::{EventId, UsageEvent};

/// Writes every event to several sinks at once.
///
/// Each sink is asked for its own verdicts, and remembers nothing of the others:
///
/// 1. An event is final when each sink has given its last word on it. Until then it is to be offered again,
///    and only those sinks get it that have not given theirs.
/// 2. Its verdict is then `Rejected` when any sink rejected it (the others may have it), else `Duplicate` when
///    all had it already, else `Accepted`.
/// 3. A sink that fails, panics or does not answer within the patience (5 s unless set) rests, for 1 s at
///    first and up to 30 s, while the others go on. Only the first offer after a rest can make them wait.
/// 4. A sink may fall behind by 32,768 events unless set. What comes on top goes to the others only, and is
///    counted as dropped for this sink and logged.
///
/// When no sink gives a verdict at all, the whole write is an error.
///
/// Keep the patience below the recorder's write timeout (30 s), or the recorder cuts the write off and offers
/// the whole batch again.
#[derive(Debug)]
#[must_use]
pub struct FanOut {
    sinks: Vec<Arc<dyn UsageSink>>,
    patience: Duration,
    max_behind: u64,
    state: Mutex<State>,
}

/// What became of the events that were offered to one sink of a [`FanOut`].
///
/// Each event is in one of the four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SinkCounters {
    /// Accepted, or there already.
    pub accepted: u64,
    /// Rejected for good.
    pub rejected: u64,
    /// Waiting for another offer, while some other sink has given its last word.
    pub behind: u64,
    /// Given up, because the sink was too far behind.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct State {
    lanes: Vec<Lane>,
    /// The events that are not final, with each sink's word on them.
    open: HashMap<EventId, Words>,
}

#[derive(Debug, Default)]
struct Lane {
    counters: SinkCounters,
    rest: Option<Rest>,
}

/// A sink that failed, and when it is tried again.
#[derive(Debug)]
struct Rest {
    until: Instant,
    delays: ExponentialBackoff,
}

type Words = SmallVec<[Word; 4]>;

/// What one sink has said of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// Nothing final; the shortest wait that it asked for.
    Open {
        after: Duration,
    },
    Accepted,
    Duplicate,
    Rejected(&'static str),
    /// The sink was too far behind and will not be asked.
    GivenUp,
}

impl Word {
    const UNASKED: Self = Self::Open {
        after: Duration::ZERO,
    };

    const fn is_open(self) -> bool {
        matches!(self, Self::Open { .. })
    }
}

impl Default for FanOut {
    fn default() -> Self {
        Self {
            sinks: Vec::new(),
            patience: Duration::from_secs(5),
            max_behind: 32_768,
            state: Mutex::default(),
        }
    }
}

impl FanOut {
    /// A fan-out to no sink, which accepts everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sink.
    pub fn with(mut self, sink: impl UsageSink) -> Self {
        self.sinks.push(Arc::new(sink));
        self.state().lanes.push(Lane::default());
        self
    }

    /// How long one sink may take for a batch before it counts as failed; 5 s unless set.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// By how many events a sink may fall behind the others; 32,768 unless set. What comes on top is given up for this
    /// sink, also where the recorder has a spool.
    ///
    /// Above 65,536 the recorder stops for all sinks before a sink is given up. With a spool, set `u64::MAX`: what
    /// follows then waits on the disk, and no sink loses an event until the spool is full.
    pub const fn max_behind(mut self, n_events: u64) -> Self {
        self.max_behind = n_events;
        self
    }

    /// The counters of each sink, in the order in which they were added.
    #[must_use]
    pub fn counters(&self) -> Vec<SinkCounters> {
        self.state()
            .lanes
            .iter()
            .map(|lane| lane.counters)
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each sink is to be offered now: the places of the events in the batch. Empty for one that rests.
    fn plan(&self, batch: &[UsageEvent]) -> Vec<Vec<usize>> {
        let now = Instant::now();
        let state = self.state();
        let lanes = state.lanes.iter().enumerate();
        lanes
            .map(|(lane, Lane { rest, .. })| {
                if rest.as_ref().is_some_and(|rest| rest.until > now) {
                    return Vec::new();
                }
                let is_open = |event: &UsageEvent| {
                    let words = state.open.get(&event.id);
                    words
                        .and_then(|words| words.get(lane))
                        .is_none_or(|word| word.is_open())
                };
                let events = batch.iter().enumerate();
                events
                    .filter(|(_, event)| is_open(event))
                    .map(|(place, _)| place)
                    .collect()
            })
            .collect()
    }

    /// Notes the answers of the sinks and says what they make together.
    fn conclude(
        &self,
        batch: &[UsageEvent],
        asked: &[Vec<usize>],
        answers: Vec<Answer>,
    ) -> Result<Verdicts, SinkError> {
        let now = Instant::now();
        let mut state = self.state();
        let State { lanes, open } = &mut *state;
        let mut said: Vec<Words> = batch
            .iter()
            .map(|event| {
                let known = open.get(&event.id).cloned();
                known.unwrap_or_else(|| SmallVec::from_elem(Word::UNASKED, lanes.len()))
            })
            .collect();
        let mut last_failure = None;
        for (number, answer) in answers.into_iter().enumerate() {
            let (Some(lane), Some(asked)) = (lanes.get_mut(number), asked.get(number)) else {
                continue;
            };
            let verdicts = match answer {
                None => continue,
                Some(Err(failure)) => {
                    tracing::warn!(
                        sink = number,
                        error = &failure as &dyn std::error::Error,
                        "a usage sink failed: it rests while the others go on"
                    );
                    lane.fail(now);
                    last_failure = Some(failure);
                    continue;
                }
                Some(Ok(verdicts)) => verdicts,
            };
            lane.rest = None;
            let mut verdicts = match verdicts {
                Verdicts::AllAccepted => None,
                Verdicts::Each(verdicts) => Some(verdicts.into_iter()),
            };
            for place in asked {
                let word = match &mut verdicts {
                    None => Word::Accepted,
                    Some(verdicts) => verdicts.next().map_or(Word::UNASKED, Word::from),
                };
                if let Some(known) = said.get_mut(*place).and_then(|words| words.get_mut(number)) {
                    *known = word;
                }
            }
        }
        let is_silent = |words: &Words| words.iter().all(|word| word.is_open());
        if !lanes.is_empty()
            && lanes.iter().all(|lane| lane.rest.is_some())
            && said.iter().all(is_silent)
        {
            // No sink has said a word of any event: the caller need not try other batches.
            return Err(match last_failure {
                Some(failure) => SinkError::unavailable(failure),
                None => SinkError::unavailable("every sink rests after a failure"),
            });
        }
        let mut dropped = 0;
        let verdicts = batch
            .iter()
            .zip(said)
            .map(|(event, mut words)| {
                let before = open.remove(&event.id);
                dropped += count(lanes, before.as_deref(), &mut words, self.max_behind);
                let verdict = combined(lanes, &words, now);
                if matches!(verdict, Verdict::Retry { .. }) {
                    open.insert(event.id, words);
                }
                verdict
            })
            .collect();
        drop(state);
        if dropped > 0 {
            tracing::error!(
                dropped,
                max_behind = self.max_behind,
                "a usage sink is too far behind the others: events go to the others only"
            );
        }
        Ok(Verdicts::Each(verdicts))
    }
}

/// Counts each sink's change of word on one event, and gives up those that are too far behind. Says how many
/// were given up.
fn count(lanes: &mut [Lane], before: Option<&[Word]>, words: &mut Words, max_behind: u64) -> u64 {
    let mut dropped = 0;
    for (number, (lane, word)) in lanes.iter_mut().zip(words).enumerate() {
        let counters = &mut lane.counters;
        match before.and_then(|before| before.get(number)) {
            Some(Word::Open { .. }) => counters.behind -= 1,
            None => {}
            // Its last word was counted when it was said.
            Some(_) => continue,
        }
        match word {
            Word::Open { .. } if before.is_none() && counters.behind >= max_behind => {
                *word = Word::GivenUp;
                counters.dropped += 1;
                dropped += 1;
            }
            Word::Open { .. } => counters.behind += 1,
            Word::Accepted | Word::Duplicate => counters.accepted += 1,
            Word::Rejected(_) => counters.rejected += 1,
            Word::GivenUp => {}
        }
    }
    dropped
}

/// What the words of all sinks make together.
fn combined(lanes: &[Lane], words: &Words, now: Instant) -> Verdict {
    let waits = words.iter().zip(lanes).filter_map(|(word, lane)| {
        let Word::Open { after } = word else {
            return None;
        };
        let rest = lane.rest.as_ref();
        Some(rest.map_or(*after, |rest| rest.until.saturating_duration_since(now)))
    });
    // The sink that is ready first gets it first.
    if let Some(after) = waits.min() {
        return Verdict::Retry { after };
    }
    let rejected = words.iter().find_map(|word| match word {
        Word::Rejected(reason) => Some(*reason),
        _ => None,
    });
    if let Some(reason) = rejected {
        return Verdict::Rejected { reason };
    }
    if !words.is_empty() && words.iter().all(|word| *word == Word::GivenUp) {
        return Verdict::Rejected {
            reason: "every_sink_behind",
        };
    }
    if !words.is_empty() && words.iter().all(|word| *word == Word::Duplicate) {
        return Verdict::Duplicate;
    }
    Verdict::Accepted
}

impl From<Verdict> for Word {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accepted => Self::Accepted,
            Verdict::Duplicate => Self::Duplicate,
            Verdict::Retry { after } => Self::Open { after },
            Verdict::Rejected { reason } => Self::Rejected(reason),
        }
    }
}

impl Lane {
    fn fail(&mut self, now: Instant) {
        const MAX_REST: Duration = Duration::from_secs(30);
        let mut delays = self.rest.take().map_or_else(
            || {
                ExponentialBuilder::new()
                    .with_min_delay(Duration::from_secs(1))
                    .with_max_delay(MAX_REST)
                    .without_max_times()
                    .build()
            },
            |rest| rest.delays,
        );
        let until = now + delays.next().unwrap_or(MAX_REST);
        self.rest = Some(Rest { until, delays });
    }
}

/// A sink's answer; `None` when it was not asked.
type Answer = Option<Result<Verdicts, OfferFailure>>;

#[async_trait]
impl UsageSink for FanOut {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let asked = self.plan(batch);
        let writes = self
            .sinks
            .iter()
            .zip(&asked)
            .map(|(sink, places)| async move {
                if places.is_empty() {
                    None
                } else if places.len() == batch.len() {
                    Some(offer(&**sink, batch, self.patience).await)
                } else {
                    let part: Vec<UsageEvent> = places
                        .iter()
                        .filter_map(|place| batch.get(*place).cloned())
                        .collect();
                    Some(offer(&**sink, &part, self.patience).await)
                }
            });
        let answers = all(writes.collect()).await;
        self.conclude(batch, &asked, answers)
    }

    /// The order of the sink that asks for most.
    fn order(&self) -> DeliveryOrder {
        let asked = self.sinks.iter().map(|sink| sink.order());
        asked
            .max_by_key(|order| *order == DeliveryOrder::PerTenant)
            .unwrap_or_default()
    }
}

/// Runs futures side by side in one task and collects what they give, in their order.
pub(super) async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<Result<F::Output, Pin<Box<F>>>> = futures
        .into_iter()
        .map(|future| Err(Box::pin(future)))
        .collect();
    std::future::poll_fn(|cx| {
        let mut is_ready = true;
        for slot in &mut running {
            if let Err(future) = slot {
                match future.as_mut().poll(cx) {
                    Poll::Ready(output) => *slot = Ok(output),
                    Poll::Pending => is_ready = false,
                }
            }
        }
        if is_ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    running.into_iter().filter_map(Result::ok).collect()
}
