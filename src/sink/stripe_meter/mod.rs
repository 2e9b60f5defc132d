//! Usage as Stripe's meter events.

mod builder;
mod call;
mod customers;
mod meter;
mod unit;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

pub use self::{builder::StripeMeterSinkBuilder, customers::StripeCustomers, meter::StripeMeter};
use self::{
    call::{Caller, Outcome, SURE_FOR},
    unit::{Charge, Grouping, Unit, group},
};
use super::{
    SinkError, UsageSink, Verdict, Verdicts,
    fan_out::all,
    isolate::{ENOUGH, is_final, unsettled},
};
use crate::{
    clock::{Clock, Timestamp},
    http_send::HttpSend,
    id::TenantId,
    meter::UsageEvent,
};

/// How old a meter event may be (docs.stripe.com/api/billing/meter-event/create).
const MAX_AGE: Duration = Duration::from_secs(35 * 24 * 60 * 60);
const MAX_AHEAD: Duration = Duration::from_secs(5 * 60);
const MAX_CORRECTIONS: usize = 1_000;

/// Sends usage to Stripe's meters: `POST /v1/billing/meter_events`.
///
/// 1. The events of a batch are added up by tenant and minute, and sent as one value for each meter. Test events and
///    those that no meter counts are accepted and go nowhere.
/// 2. Every value has an `identifier` of tenant, meter, minute and the lowest event id in it. Stripe takes an identifier
///    once within 24 hours; that it is there already is as good as accepted.
/// 3. All events of a tenant's minute in a batch have one verdict. A batch that is offered again is the same values
///    under the same identifiers, so that nothing counts twice, whatever became of the first attempt.
/// 4. One call at a time for each customer and meter, as Stripe refuses a second one; up to
///    [`max_calls`](StripeMeterSinkBuilder::max_calls) for different ones. A 429 or an error of Stripe's is tried again.
/// 5. What Stripe would not take is not sent: values of more than 15 digits, and usage older than 35 days or more than
///    five minutes ahead. Nor is what Stripe would take twice, as identifiers are known for a day only: what was sent a
///    day ago and never answered, and usage older than a day from before this sink was made, unless it
///    [`backfill`](StripeMeterSinkBuilder::backfill)s. Such usage is rejected, and listed in
///    [`corrections`](StripeMeterSink::corrections): bill it by hand.
///
/// That nothing counts twice holds for batches that stay as they are, as those of the recorder do, also over a restart. An
/// event that comes in another batch, from a replay of dead letters, say, is another value: for such sources use
/// [`each_event`](StripeMeterSinkBuilder::each_event).
///
/// *Deployment*: a 200 means that Stripe has stored a meter event, not that it will bill it. Whether the customer and
/// the meter exist is found out later, and told by the webhook events `v1.billing.meter.error_report_triggered` and
/// `v1.billing.meter.no_meter_found`: subscribe to both. Send through one process for each tenant where you can, as
/// two that send for one customer at once make each other wait.
///
/// ```
/// use std::{collections::HashMap, sync::Arc};
///
/// use async_trait::async_trait;
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use tollgate::{
///     clock::{Clock, SystemClock},
///     http_send::{HttpSend, HttpSendError},
///     id::{PlanName, TenantId},
///     meter::{EventId, UsageEvent},
///     sink::{StripeMeter, StripeMeterSink, UsageSink, Verdicts},
/// };
///
/// #[derive(Debug)]
/// struct Stripe;
///
/// #[async_trait]
/// impl HttpSend for Stripe {
///     async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpSendError> {
///         let form = String::from_utf8_lossy(request.body());
///         assert!(form.contains("event_name=api_calls&payload%5Bstripe_customer_id%5D=cus_1&payload%5Bvalue%5D=2"));
///         Ok(Response::new(Bytes::new()))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let acme = TenantId::new("acme")?;
/// let customers: HashMap<TenantId, Arc<str>> = HashMap::from([(acme.clone(), Arc::from("cus_1"))]);
/// let sink = StripeMeterSink::builder(Stripe, "the secret key", customers)
///     .meter(StripeMeter::calls("api_calls")?)
///     .build()?;
///
/// let now = SystemClock::new().now().wall();
/// let event = |n| UsageEvent::new(EventId::new(1, n), now, acme.clone(), PlanName::new("pro").unwrap());
/// assert_eq!(sink.write(&[event(1), event(2)]).await?, Verdicts::AllAccepted);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct StripeMeterSink {
    caller: Caller,
    customers: Arc<dyn StripeCustomers>,
    meters: Vec<StripeMeter>,
    max_calls: usize,
    grouping: Grouping,
    /// What is from before may have been sent by an earlier process; `None` when that is of no concern.
    since: Option<Timestamp>,
    clock: Arc<dyn Clock>,
    corrections: Mutex<VecDeque<Correction>>,
    /// Two writes at once might call for one customer and meter.
    one_at_a_time: tokio::sync::Mutex<()>,
}

/// Usage that Stripe did not get and will not get by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Correction {
    /// Whose it is.
    pub tenant: TenantId,
    /// The meter's `event_name`.
    pub event_name: Arc<str>,
    /// The start of the minute, or the event's own time where one event is at fault.
    pub time: Timestamp,
    /// How much it is.
    pub value: u64,
    /// Why it was not sent or not taken.
    pub reason: &'static str,
}

/// What is known of a unit while its charges are sent.
#[derive(Debug, Default)]
struct Progress {
    n_left: usize,
    n_new: usize,
    refused: Option<&'static str>,
    wait: Duration,
}

/// One charge on its way.
#[derive(Debug)]
struct Job {
    unit: usize,
    customer: Arc<str>,
    time: Timestamp,
    charge: Charge,
}

/// Charges that must not be sent at the same time.
type Lane = Vec<Job>;

impl StripeMeterSink {
    /// A sink that sends with an HTTP client under a secret key, for the customers that tenants are. A restricted key
    /// that may write meter events is enough. Neither `Debug` nor an error shows the key.
    pub fn builder(
        client: impl HttpSend,
        secret: impl Into<Box<str>>,
        customers: impl StripeCustomers,
    ) -> StripeMeterSinkBuilder {
        StripeMeterSinkBuilder::new(Arc::new(client), secret.into(), Arc::new(customers))
    }

    /// The latest 1,000 values that were rejected, oldest first. In memory only: the events themselves are in the dead
    /// letters.
    #[must_use]
    pub fn corrections(&self) -> Vec<Correction> {
        self.noted().iter().cloned().collect()
    }

    fn noted(&self) -> MutexGuard<'_, VecDeque<Correction>> {
        self.corrections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what Stripe does not get: how much, by the meters' places.
    fn correct(
        &self,
        (tenant, time): (&TenantId, Timestamp),
        values: impl Iterator<Item = (usize, u64)>,
        reason: &'static str,
    ) {
        tracing::warn!(%tenant, %time, reason, "usage does not reach Stripe: bill it by hand");
        let mut noted = self.noted();
        for (place, value) in values {
            let Some(meter) = self.meters.get(place) else {
                continue;
            };
            if noted.len() >= MAX_CORRECTIONS {
                noted.pop_front();
            }
            noted.push_back(Correction {
                tenant: tenant.clone(),
                event_name: Arc::clone(meter.shared_name()),
                time,
                value,
                reason,
            });
        }
    }

    /// Puts charges into lanes, and says of each unit what is known before anything is sent. The error is the last one
    /// of looking for customers.
    async fn lanes(
        &self,
        units: &[Unit],
        now: Timestamp,
    ) -> (
        Vec<Lane>,
        Vec<Progress>,
        Option<Box<dyn Error + Send + Sync>>,
    ) {
        let mut lanes: BTreeMap<(Arc<str>, usize), Lane> = BTreeMap::new();
        let mut known: HashMap<&TenantId, Option<Option<Arc<str>>>> = HashMap::new();
        let (mut progress, mut failure) = (Vec::with_capacity(units.len()), None);
        for (place, unit) in units.iter().enumerate() {
            let mut own = Progress::default();
            if now.saturating_since(unit.time) > MAX_AGE {
                own.refused = Some("older_than_35_days");
            } else if unit.time.saturating_since(now) > MAX_AHEAD {
                own.refused = Some("ahead_of_time");
            } else if self.since.is_some_and(|since| unit.time < since)
                && now.saturating_since(unit.time) > SURE_FOR
            {
                own.refused = Some("maybe_sent_before");
            } else {
                let customer = match known.get(&unit.tenant) {
                    Some(customer) => customer.clone(),
                    None => {
                        let asked = self.customers.customer(&unit.tenant).await;
                        let customer = asked.map_err(|error| failure = Some(error)).ok();
                        known.insert(&unit.tenant, customer.clone());
                        customer
                    }
                };
                match customer {
                    // Not known now.
                    None => own.n_left = 1,
                    Some(None) => own.refused = Some("no_stripe_customer"),
                    Some(Some(customer)) => {
                        for charge in unit.charges(&self.meters) {
                            own.n_left += 1;
                            let lane = (Arc::clone(&customer), charge.meter);
                            lanes.entry(lane).or_default().push(Job {
                                unit: place,
                                customer: Arc::clone(&customer),
                                time: unit.time,
                                charge,
                            });
                        }
                    }
                }
            }
            progress.push(own);
        }
        (lanes.into_values().collect(), progress, failure)
    }

    /// Sends a lane's charges one after the other, until Stripe asks for patience or time is up.
    async fn run(&self, lane: Lane, run: &Run) {
        for job in lane {
            if run.is_over() {
                return;
            }
            let Some(meter) = self.meters.get(job.charge.meter) else {
                continue;
            };
            let (name, now) = (meter.event_name(), self.clock.now().wall());
            let outcome = self
                .caller
                .send(&job.charge, name, &job.customer, job.time, now)
                .await;
            if !run.note(job.unit, outcome) {
                return;
            }
        }
    }

    /// The verdict on a unit.
    fn judge(&self, unit: &Unit, progress: &Progress) -> Verdict {
        if progress.n_left > 0 {
            return Verdict::Retry {
                after: progress.wait,
            };
        }
        // Not before all its charges are settled, or those that are still to come would not be sent.
        if let Some(reason) = progress.refused {
            let charges = unit.charges(&self.meters);
            let values = charges.iter().map(|charge| (charge.meter, charge.value));
            self.correct((&unit.tenant, unit.time), values, reason);
            return Verdict::Rejected { reason };
        }
        if progress.n_new == 0 {
            return Verdict::Duplicate;
        }
        Verdict::Accepted
    }
}

/// The state of one write, shared by its lanes.
#[derive(Debug)]
struct Run {
    started: Instant,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    lanes: VecDeque<Lane>,
    progress: Vec<Progress>,
    failure: Option<Box<dyn Error + Send + Sync>>,
    /// Stripe takes nothing now.
    is_over: bool,
}

impl Run {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_lane(&self) -> Option<Lane> {
        self.notes().lanes.pop_front()
    }

    fn is_over(&self) -> bool {
        self.started.elapsed() >= ENOUGH || self.notes().is_over
    }

    /// Notes what became of a unit's charge; false when its lane must wait.
    fn note(&self, unit: usize, outcome: Outcome) -> bool {
        let mut notes = self.notes();
        let Notes {
            progress,
            failure,
            is_over,
            ..
        } = &mut *notes;
        let Some(progress) = progress.get_mut(unit) else {
            return true;
        };
        match outcome {
            Outcome::Accepted => progress.n_new += 1,
            Outcome::Duplicate => {}
            Outcome::Refused(reason) => progress.refused = Some(reason),
            Outcome::Later(after) => {
                progress.wait = progress.wait.max(after);
                return false;
            }
            Outcome::Failed(cause) => {
                *failure = Some(cause);
                *is_over = true;
                return false;
            }
        }
        progress.n_left = progress.n_left.saturating_sub(1);
        true
    }
}

#[async_trait]
impl UsageSink for StripeMeterSink {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let _alone = self.one_at_a_time.lock().await;
        let mut verdicts = unsettled(batch.len());
        let units = group(batch, &self.meters, self.grouping, &mut verdicts);
        for (event, verdict) in batch.iter().zip(&verdicts) {
            if let Verdict::Rejected { reason } = verdict {
                let amounts = self.meters.iter().map(|meter| meter.amount(event));
                let values = amounts.enumerate().filter(|(_, amount)| *amount > 0);
                self.correct((&event.tenant, event.time), values, reason);
            }
        }
        let now = self.clock.now().wall();
        let (lanes, progress, failure) = self.lanes(&units, now).await;
        let run = Run {
            started: Instant::now(),
            notes: Mutex::new(Notes {
                lanes: lanes.into(),
                progress,
                failure,
                is_over: false,
            }),
        };
        let run = &run;
        let workers = (0..self.max_calls).map(|_| async move {
            while let Some(lane) = run.next_lane() {
                self.run(lane, run).await;
            }
        });
        all(workers.collect()).await;

        let notes = std::mem::take(&mut *run.notes());
        for (unit, progress) in units.iter().zip(&notes.progress) {
            let verdict = self.judge(unit, progress);
            for place in &unit.places {
                if let Some(known) = verdicts.get_mut(*place) {
                    *known = verdict;
                }
            }
        }
        match notes.failure {
            Some(cause) if !verdicts.iter().any(is_final) => Err(SinkError::unavailable(cause)),
            _ if verdicts.iter().all(|it| *it == Verdict::Accepted) => Ok(Verdicts::AllAccepted),
            _ => Ok(Verdicts::Each(verdicts)),
        }
    }
}
