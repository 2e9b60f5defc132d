//! What layers add to a service, beside governor's check and tower_governor's layer.

use std::{convert::Infallible, future::Ready, hint::black_box, sync::Arc};

use axum::body::Body;
use governor::middleware::{NoOpMiddleware, StateInformationMiddleware};
use http::{Request, Response, StatusCode};
use tokio::runtime::Runtime;
use tollgate::limit::{HeaderStyle, LimitLayer, MemoryLimits, Rate};
use tower::{Layer, Service, service_fn};
use tower_governor::{
    GovernorError, GovernorLayer,
    governor::{GovernorConfig, GovernorConfigBuilder},
    key_extractor::KeyExtractor,
};

use super::{
    common::{self, GENEROUS, Guarded, KEYS, finish},
    limiters::{GOVERNOR, governor_check, scattered},
    rounds::{Rounds, Slice, slice, time},
};

/// Calls of a slice, half of them to fill the processor's caches; so many wait for the recorder's task at most.
const CALLS: u64 = 2_000;
/// So many requests are made at once, few enough to stay in the processor's cache until they are served.
const REQUESTS: u64 = 20;
const CHECKS: u64 = 5_000;
const TEAMS: usize = 1_000;
const TEAM: &str = "x-team";

/// Nanoseconds for each call of a service that is ready, and for what it leaves behind.
fn serve<S, B>(service: &mut S, requests: Vec<Request<String>>) -> f64
where
    S: Service<Request<String>, Response = Response<B>, Error = Infallible>,
{
    let n = requests.len() as u64;
    let mut requests = requests.into_iter();
    time(n, |_| {
        let request = requests.next().expect("as many as are sent");
        let Ok(response) = finish(service.call(request));
        assert!(black_box(&response).status().is_success());
    })
}

fn requests(first: u64, field: &'static str, values: &[String]) -> Vec<Request<String>> {
    let request = |i| {
        let value = &values[scattered(i, values.len())];
        let request = Request::get("/").header(field, value);
        request.body(String::new()).expect("a legal request")
    };
    (first..first + REQUESTS).map(request).collect()
}

/// What the layers add: the layered service less the bare one.
fn added<L, B, T, U>(
    mut layered: L,
    mut bare: B,
    field: &'static str,
    values: Vec<String>,
    mut after: impl FnMut() + 'static,
) -> Slice
where
    L: Service<Request<String>, Response = Response<T>, Error = Infallible> + 'static,
    B: Service<Request<String>, Response = Response<U>, Error = Infallible> + 'static,
{
    let mut first = 0;
    Box::new(move || {
        let mut added = 0.0;
        let n_batches = CALLS / REQUESTS;
        for batch in 0..n_batches {
            first += REQUESTS;
            let with = serve(&mut layered, requests(first, field, &values));
            let without = serve(&mut bare, requests(first, field, &values));
            if batch >= n_batches / 2 {
                added += with - without;
            }
        }
        after();
        added / (n_batches - n_batches / 2) as f64
    })
}

fn hello(_: Request<String>) -> Ready<Result<Response<Body>, Infallible>> {
    std::future::ready(Ok(Response::new(Body::empty())))
}

/// The key of a call for tower_governor: the value of the same field as ours, as the same type.
#[derive(Clone, Debug)]
struct Team;

impl KeyExtractor for Team {
    type Key = Arc<str>;

    fn extract<T>(&self, request: &Request<T>) -> Result<Arc<str>, GovernorError> {
        let team = request.headers().get(TEAM).and_then(|it| it.to_str().ok());
        team.map(Arc::from).ok_or(GovernorError::UnableToExtractKey)
    }
}

/// A layer of tower_governor whose buckets hold `burst` and fill up by one each `period_nanos`.
fn theirs(burst: u32, period_nanos: u64) -> GovernorConfig<Team, NoOpMiddleware> {
    let mut builder = GovernorConfigBuilder::default().key_extractor(Team);
    builder.burst_size(burst).per_nanosecond(period_nanos);
    builder.finish().expect("legal settings")
}

/// The same with its header fields in the answer.
fn theirs_with_headers() -> GovernorConfig<Team, StateInformationMiddleware> {
    let mut builder = GovernorConfigBuilder::default().key_extractor(Team);
    builder.burst_size(GENEROUS).per_nanosecond(1);
    builder.use_headers().finish().expect("legal settings")
}

/// A service that is limited by the value of a header field.
fn ours(
    rate: Rate,
    headers: HeaderStyle,
) -> impl Service<Request<String>, Response = Response<impl Sized>, Error = Infallible> {
    let layer = LimitLayer::new(MemoryLimits::new(), [rate]).expect("a legal rule");
    let layer = layer
        .by(|head| {
            let team = head.headers().get(TEAM)?.to_str().ok()?;
            Some(Arc::<str>::from(team))
        })
        .headers(headers);
    layer.layer(service_fn(hello))
}

/// A limit of two admits two calls and refuses the third, whichever layer counts.
pub(crate) fn all_refuse() {
    fn check<B>(
        service: &mut impl Service<Request<String>, Response = Response<B>, Error = Infallible>,
    ) {
        let mut call = |team: &str| {
            let request = Request::get("/").header(TEAM, team).body(String::new());
            let Ok(response) = finish(service.call(request.expect("a legal request")));
            response.status()
        };
        let (ok, refused) = (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!([call("a"), call("a"), call("a")], [ok, ok, refused]);
        assert_eq!(call("b"), ok, "teams count apart");
    }
    let an_hour = 3_600_000_000_000;
    check(&mut GovernorLayer::new(theirs(2, an_hour)).layer(service_fn(hello)));
    check(&mut ours(Rate::per_hour(2), HeaderStyle::Off));
}

pub(crate) fn rows(rounds: &mut Rounds, runtime: &'static Runtime) {
    guarded(
        rounds,
        runtime,
        "added by identify, two rules and meter as layers, 1 k keys",
        "<= 2.7",
        common::three_layers(),
    );
    guarded(
        rounds,
        runtime,
        "added by the whole gate without header fields of limits, 1 k keys",
        "-",
        common::gate(HeaderStyle::Off, true),
    );
    guarded(
        rounds,
        runtime,
        "added by the whole gate, 1 k keys",
        "-",
        common::gate(HeaderStyle::Draft11, true),
    );
    let rate = || Rate::per_second(GENEROUS.into());
    rounds.ratio(
        "added by a limit alone, 1 k values of a header field",
        "< 1",
        added_by_team(ours(rate(), HeaderStyle::Off)),
        "added by tower_governor 0.8",
        added_by_team(GovernorLayer::new(theirs(GENEROUS, 1)).layer(service_fn(hello))),
    );
    rounds.ratio(
        "the same with `X-RateLimit` fields in the answer",
        "< 1",
        added_by_team(ours(rate(), HeaderStyle::Legacy)),
        "added by tower_governor 0.8 with `use_headers`",
        added_by_team(GovernorLayer::new(theirs_with_headers()).layer(service_fn(hello))),
    );
}

fn added_by_team<S, B>(layered: S) -> Slice
where
    S: Service<Request<String>, Response = Response<B>, Error = Infallible> + 'static,
{
    let teams = common::names(TEAMS);
    added(layered, service_fn(hello), TEAM, teams, || ())
}

fn guarded<S, B>(
    rounds: &mut Rounds,
    runtime: &'static Runtime,
    what: &'static str,
    goal: &'static str,
    guarded: Guarded<S>,
) where
    S: Service<Request<String>, Response = Response<B>, Error = Infallible> + 'static,
{
    let Guarded {
        service,
        keys,
        recorder,
    } = guarded;
    let (names, governor) = (common::names(KEYS), common::governor_limiter());
    rounds.ratio(
        what,
        goal,
        added(service, common::bare(), "x-api-key", keys, move || {
            runtime.block_on(recorder.flush());
        }),
        GOVERNOR,
        slice(CHECKS, move |i| {
            governor_check(&governor, &names[scattered(i, KEYS)]);
        }),
    );
}
