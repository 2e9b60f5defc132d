//! The limiter alone, beside governor and limitador.

use std::{collections::HashMap, hint::black_box, num::NonZeroU32, sync::Arc};

use limitador::{
    RateLimiter,
    limit::{Context, Limit, Namespace},
};
use tollgate::{
    clock::{Clock, SystemClock},
    limit::{Quota, Rate},
};

use super::{
    common::{self, GENEROUS, Governor, Limits},
    rounds::{Rounds, Slice, Twin, slice, time},
};

const CHECKS: u64 = 5_000;
const MANY: usize = 100_000;
/// More than in a slice of one thread: waking the other takes time.
const CHECKS_ON_TWO: u64 = 20_000;
const LIMITADOR_CHECKS: u64 = 200;
const TENANTS: usize = 1_000;

pub(crate) const GOVERNOR: &str = "governor 0.10, keyed check";

/// A stride that visits every one of `n`, in an order that caches do not foresee.
pub(crate) fn scattered(i: u64, n: usize) -> usize {
    (i.wrapping_mul(7_919) % n as u64) as usize
}

pub(crate) fn governor_check(governor: &Governor, name: &String) {
    assert!(black_box(governor.check_key(name)).is_ok());
}

/// Two limits for each tenant in limitador's memory storage, by a variable as its documentation has it. Room
/// for every counter; the values of every tenant are made beforehand.
struct Limitador {
    limiter: RateLimiter,
    namespace: Namespace,
    contexts: Vec<Context<'static>>,
}

impl Limitador {
    fn by_variable(names: &[String], per_second: u64, per_month: u64) -> Self {
        let limiter = RateLimiter::new(10 * names.len() as u64);
        for (max, seconds) in [(per_second, 1), (per_month, 30 * 86_400)] {
            let tenant = "tenant".try_into().expect("a variable");
            limiter.add_limit(Limit::new("api", max, seconds, vec![], vec![tenant]));
        }
        let context = |name: &String| HashMap::from([("tenant".to_owned(), name.clone())]).into();
        Self {
            limiter,
            namespace: "api".into(),
            contexts: names.iter().map(context).collect(),
        }
    }

    /// Whether a call of the tenant passes both limits, and is then counted.
    fn admits(&self, tenant: usize) -> bool {
        let context = &self.contexts[tenant];
        let checked = self
            .limiter
            .check_rate_limited_and_update(&self.namespace, context, 1);
        !black_box(checked).expect("memory does not fail").limited
    }
}

/// The same without variables: a namespace of fixed limits for each tenant, which limitador counts without its
/// cache.
struct LimitadorFixed {
    limiter: RateLimiter,
    namespaces: Vec<Namespace>,
    context: Context<'static>,
}

impl LimitadorFixed {
    fn new(names: &[String], per_second: u64, per_month: u64) -> Self {
        let limiter = RateLimiter::new(1);
        for name in names {
            for (max, seconds) in [(per_second, 1), (per_month, 30 * 86_400)] {
                limiter.add_limit(Limit::new(name.as_str(), max, seconds, vec![], vec![]));
            }
        }
        Self {
            limiter,
            namespaces: names.iter().map(|name| name.as_str().into()).collect(),
            context: Context::default(),
        }
    }

    fn admits(&self, tenant: usize) -> bool {
        let namespace = &self.namespaces[tenant];
        let checked = self
            .limiter
            .check_rate_limited_and_update(namespace, &self.context, 1);
        !black_box(checked).expect("memory does not fail").limited
    }
}

/// A limit of two admits two calls and refuses the third, whoever counts.
pub(crate) fn all_refuse() {
    let names = common::names(2);
    let governor = Governor::keyed(governor::Quota::per_hour(
        NonZeroU32::new(2).expect("not zero"),
    ));
    let admits_two = |mut admits: Box<dyn FnMut() -> bool + '_>| {
        assert_eq!([admits(), admits(), admits()], [true, true, false]);
    };
    admits_two(Box::new(|| governor.check_key(&names[0]).is_ok()));
    let ours = Limits::new(&names, [Rate::per_hour(2)].map(Into::into));
    admits_two(Box::new(|| ours.admits_at(0, SystemClock::new().now())));
    let ours = Limits::new(&names, [common::rate(), Quota::monthly(2).into()]);
    admits_two(Box::new(|| ours.admits_at(0, SystemClock::new().now())));
    let by_variable = Limitador::by_variable(&names, 1_000, 2);
    admits_two(Box::new(|| by_variable.admits(0)));
    assert!(by_variable.admits(1), "tenants count apart");
    let fixed = LimitadorFixed::new(&names, 1_000, 2);
    admits_two(Box::new(|| fixed.admits(0)));
    assert!(fixed.admits(1), "tenants count apart");
}

pub(crate) fn rows(rounds: &mut Rounds) {
    one_rule(rounds);
    two_rules(rounds);
}

fn one_rule(rounds: &mut Rounds) {
    let (names, governor) = (common::names(1), Arc::new(common::governor_limiter()));
    let limits = Arc::new(Limits::new(&names, [common::rate()]));
    let now = SystemClock::new().now();
    let against = || {
        let (governor, name) = (Arc::clone(&governor), names[0].clone());
        move |_| governor_check(&governor, &name)
    };
    let ours = || {
        let limits = Arc::clone(&limits);
        move |_| limits.check(0)
    };
    let what = "limiter check, hot key";
    rounds.ratio(
        what,
        "<= 0.60",
        slice(CHECKS, ours()),
        GOVERNOR,
        slice(CHECKS, against()),
    );
    // Counts of its own: for those above, its time would lie far back.
    let read_before = Limits::new(&names, [common::rate()]);
    rounds.ratio(
        "limiter check, hot key, the time being read already",
        "-",
        slice(CHECKS, move |_| read_before.check_at(0, now)),
        GOVERNOR,
        slice(CHECKS, against()),
    );
    let twin = Twin::start();
    rounds.ratio(
        "limiter check, hot key, 2 threads",
        "<= 0.40",
        twin.slice(CHECKS_ON_TWO, ours()),
        GOVERNOR,
        twin.slice(CHECKS_ON_TWO, against()),
    );
    let (names, governor) = (common::names(MANY), common::governor_limiter());
    let limits = Limits::new(&names, [common::rate()]);
    rounds.ratio(
        "limiter check, 100 k keys",
        "<= 0.55",
        over_many(move |tenant| limits.check(tenant)),
        GOVERNOR,
        over_many(move |tenant| governor_check(&governor, &names[tenant])),
    );
}

/// Each slice goes on where the last one stopped, so that none finds its keys in a cache.
fn over_many(check: impl Fn(usize) + 'static) -> Slice {
    let mut first = 0;
    Box::new(move || {
        first += CHECKS;
        time(CHECKS, |i| check(scattered(first + i, MANY)))
    })
}

fn two_rules(rounds: &mut Rounds) {
    let names = common::names(TENANTS);
    let limits = Arc::new(Limits::new(&names, [common::rate(), common::quota()]));
    let ours = || {
        let limits = Arc::clone(&limits);
        slice(CHECKS, move |i| limits.check(scattered(i, TENANTS)))
    };
    let what = "limiter and quota check, 1 k tenants";
    let by_variable = Limitador::by_variable(&names, GENEROUS.into(), 1 << 50);
    rounds.ratio(
        what,
        "<= 1/60",
        ours(),
        "limitador 0.14 in memory, two limits by a variable",
        slice(LIMITADOR_CHECKS, move |i| {
            assert!(by_variable.admits(scattered(i, TENANTS)));
        }),
    );
    let fixed = LimitadorFixed::new(&names, GENEROUS.into(), 1 << 50);
    rounds.ratio(
        what,
        "-",
        ours(),
        "limitador 0.14 in memory, two fixed limits for each tenant",
        slice(LIMITADOR_CHECKS, move |i| {
            assert!(fixed.admits(scattered(i, TENANTS)));
        }),
    );
}
