//! Identify, limit and meter as a service without layers would call them, and the record of one call.

use std::{hint::black_box, sync::Arc};

use http::{Request, StatusCode};
use tokio::runtime::Runtime;
use tollgate::{
    auth::Extractor,
    clock::{Clock, Now, SystemClock},
    head::RequestHead,
    identity::{Attempt, Authenticate, Identity, KeyAuthenticator},
    limit::{Cost, LimitCall, LimitStore, MemoryLimits, ScopeValues},
    meter::{CallMeter, Meter, OpenCall, Recorder},
};

use super::{
    common::{self, KEYS, Parts},
    limiters::{GOVERNOR, governor_check, scattered},
    rounds::{Rounds, Slice, slice, time, warm_time},
};

/// Calls of a slice, once for each key; twice as many wait for the recorder's task at most.
const BATCH: u64 = KEYS as u64;
/// So many calls are open at once where only their end is measured: all of them fit the processor's cache.
const OPEN: u64 = 250;
const CHECKS: u64 = 5_000;

/// The parts of a gate, called one after the other.
struct ByHand {
    extractor: Extractor,
    authenticator: KeyAuthenticator,
    clock: SystemClock,
    calls: CallMeter,
    limits: MemoryLimits,
    scopes: ScopeValues,
    cost: Cost,
}

impl ByHand {
    fn identify(&self, request: &Request<()>) -> (Identity, Now) {
        let head = RequestHead::from(request);
        let credential = self.extractor.extract(&head).expect("one key");
        let now = self.clock.now();
        let attempt = self
            .authenticator
            .authenticate(credential.as_ref(), &head, now);
        let Attempt::Done(Ok(identity)) = attempt else {
            panic!("a cached key needs no trip")
        };
        (identity, now)
    }

    /// One call, with a reading of the clock when it begins and one when it ends.
    fn serve(&self, request: &Request<()>) {
        let (identity, now) = self.identify(request);
        let call = self.calls.open(now);
        call.meter().identify(&identity);
        self.decide(&identity, now);
        call.end(StatusCode::OK);
    }

    fn decide(&self, identity: &Identity, now: Now) {
        let call = LimitCall::new(identity.limits(), &self.scopes, &self.cost, now);
        let decision = self.limits.try_decide(&call);
        assert!(matches!(black_box(&decision), Some(Ok(it)) if it.is_admitted()));
    }
}

pub(crate) fn rows(rounds: &mut Rounds, runtime: &'static Runtime) {
    let Parts {
        authenticator,
        keys,
        recorder,
    } = common::parts();
    let requests = requests_of(&keys);
    let by_hand = ByHand {
        extractor: Extractor::default(),
        authenticator,
        clock: SystemClock::new(),
        calls: CallMeter::new(recorder.clone(), "bench"),
        limits: MemoryLimits::new(),
        scopes: ScopeValues::default(),
        cost: Cost::default(),
    };
    let by_hand = Arc::new(by_hand);
    let (identity, _) = by_hand.identify(&requests[0]);
    let (names, governor) = (common::names(KEYS), common::governor_limiter());
    let (served, calls) = (Arc::clone(&by_hand), by_hand.calls.clone());
    let to_flush = recorder.clone();
    rounds.ratio(
        "identify, two rules and meter by their own calls, 1 k keys",
        "<= 2.7",
        Box::new(move || {
            let mean = warm_time(BATCH, |i| served.serve(&requests[scattered(i, KEYS)]));
            runtime.block_on(to_flush.flush());
            mean
        }),
        GOVERNOR,
        slice(CHECKS, move |i| {
            governor_check(&governor, &names[scattered(i, KEYS)]);
        }),
    );
    steps(rounds, &by_hand, requests_of(&keys), &recorder, runtime);
    let counted = end_of_calls(&calls, &recorder, runtime, None);
    rounds.time("`record()` of one call, a counter", "<= 10 ns", counted);
    let queued = end_of_calls(&calls, &recorder, runtime, Some(identity));
    rounds.time(
        "`record()` of one call, an event that is queued",
        "<= 40 ns",
        queued,
    );
}

fn requests_of(keys: &[String]) -> Vec<Request<()>> {
    let request = |key| {
        let request = Request::get("/").header("x-api-key", key);
        request.body(()).expect("a legal request")
    };
    keys.iter().map(request).collect()
}

/// The same call step by step, to show where its time goes.
fn steps(
    rounds: &mut Rounds,
    by_hand: &Arc<ByHand>,
    requests: Vec<Request<()>>,
    recorder: &Recorder,
    runtime: &'static Runtime,
) {
    let identities: Vec<(Identity, Now)> = requests.iter().map(|it| by_hand.identify(it)).collect();
    let it = Arc::clone(by_hand);
    rounds.time(
        "of these: identify, with a reading of the clock",
        "-",
        slice(BATCH, move |i| {
            black_box(it.identify(&requests[scattered(i, KEYS)]));
        }),
    );
    let (it, known) = (Arc::clone(by_hand), identities.clone());
    rounds.time(
        "of these: decide by two rules",
        "-",
        slice(BATCH, move |i| {
            it.decide(&known[scattered(i, KEYS)].0, it.clock.now())
        }),
    );
    let (it, recorder) = (Arc::clone(by_hand), recorder.clone());
    rounds.time(
        "of these: meter from begin to end, with a reading of the clock",
        "-",
        Box::new(move || {
            let mean = warm_time(BATCH, |i| {
                let (identity, now) = &identities[scattered(i, KEYS)];
                let call = it.calls.open(*now);
                call.meter().identify(identity);
                call.end(StatusCode::OK);
            });
            runtime.block_on(recorder.flush());
            mean
        }),
    );
}

/// The end of calls: of those without an identity only a counter is left, the others are queued.
fn end_of_calls(
    calls: &CallMeter,
    recorder: &Recorder,
    runtime: &'static Runtime,
    identity: Option<Identity>,
) -> Slice {
    let (calls, recorder, clock) = (calls.clone(), recorder.clone(), SystemClock::new());
    Box::new(move || {
        let mut sum = 0.0;
        for _ in 0..BATCH / OPEN {
            let now = clock.now();
            let open = |_| {
                let call = calls.open(now);
                if let Some(identity) = &identity {
                    call.meter().identify(identity);
                }
                call
            };
            let mut open: Vec<OpenCall> = (0..OPEN).map(open).collect();
            // So that no end frees the memory of its call.
            let _meters: Vec<Meter> = open.iter().map(|call| call.meter().clone()).collect();
            sum += time(OPEN, |_| {
                let call = open.pop().expect("as many as are ended");
                call.end(StatusCode::OK);
            });
        }
        runtime.block_on(recorder.flush());
        sum / (BATCH / OPEN) as f64
    })
}
