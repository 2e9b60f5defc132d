//! What [`LimitModel`](super::LimitModel) keeps for one key, and the definitions that it counts by.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use crate::{
    clock::{Now, Timestamp, micros},
    limit::{
        Algorithm, CompiledAlgorithm, CompiledRule, Edge, Owner, PeriodBounds, QuotaParameters,
        Scope, ScopeValues,
    },
};

/// Longer than any wait that the model is asked for: 2^55 microseconds.
const FAR: u64 = 1 << 55;

#[derive(Debug)]
pub(super) struct Count {
    pub(super) told: BTreeSet<u8>,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Bucket(Bucket),
    /// Cell numbers and units.
    Window(Vec<(u64, u64)>),
    /// Times and units.
    Log(Vec<(u64, u64)>),
    Quota {
        bounds: PeriodBounds,
        used: u64,
    },
    Gauge(u64),
}

/// What is missing from a full bucket, in units times microseconds of the period.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    pub(super) n: u128,
    pub(super) period: u128,
    pub(super) burst: u128,
    pub(super) missing: u128,
    pub(super) at: u64,
}

impl Bucket {
    pub(super) const fn size(&self) -> u128 {
        self.burst * self.period
    }

    /// The bucket at a later time.
    pub(super) fn at(mut self, now: u64) -> Self {
        let elapsed = u128::from(now.saturating_sub(self.at));
        self.missing = self.missing.saturating_sub(elapsed * self.n);
        self.at = self.at.max(now);
        self
    }

    /// The bucket under other parameters, its level in proportion and rounded down to what one of n gives in
    /// a microsecond.
    pub(super) fn under(mut self, n: u128, period: u128, burst: u128) -> Self {
        if (self.n, self.period, self.burst) == (n, period, burst) {
            return self;
        }
        let grain = common_divisor(n, period);
        let scaled = (self.missing * (burst * period)).div_ceil(self.size() * grain) * grain;
        (self.n, self.period, self.burst) = (n, period, burst);
        self.missing = scaled.min(2 * self.size());
        self
    }

    /// Takes units, at most down to one burst of debt, and says how many.
    pub(super) fn charge(&mut self, amount: u64) -> u64 {
        let floor = 2 * self.size();
        let asked = self.missing + u128::from(amount) * self.period;
        if asked <= floor {
            self.missing = asked;
            return amount;
        }
        let taken = floor.saturating_sub(self.missing) / self.period;
        self.missing = self.missing.max(floor);
        narrow(taken)
    }
}

pub(super) fn common_divisor(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

pub(super) fn narrow(n: u128) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A limit of zero that refuses counts nothing; nor does a bucket of that size.
pub(super) fn has_count(rule: &CompiledRule) -> bool {
    rule.limit() > 0
        || (!rule.refuses() && !matches!(rule.algorithm(), Algorithm::TokenBucket { .. }))
}

/// Where a rule counts a call; `None` when it does not apply.
pub(super) fn count_name(
    owner: &Owner,
    rule: &CompiledRule,
    scopes: &ScopeValues,
) -> Option<String> {
    if rule.route().is_some() && rule.route() != scopes.route.as_deref() {
        return None;
    }
    let value = match rule.scope() {
        Scope::Tenant => String::new(),
        Scope::Key => format!("{:?}", owner.key),
        Scope::Route => format!("{:?}", scopes.route),
        Scope::Address => match scopes.address.map(|address| address.to_canonical()) {
            Some(IpAddr::V6(address)) => format!("{:x}", address.to_bits() >> 64),
            other => format!("{other:?}"),
        },
        Scope::Custom(name) => {
            let (_, value) = scopes.custom.iter().find(|(known, _)| known == name)?;
            format!("{name:?} {value:?}")
        }
    };
    Some(format!(
        "{:?} {} {:?} {} {:?} {value}",
        owner.tenant,
        owner.environment,
        rule.name(),
        rule.shape(),
        rule.scope(),
    ))
}

pub(super) fn bounds(
    rule: &CompiledRule,
    now: Timestamp,
    anchor: Option<Timestamp>,
) -> PeriodBounds {
    let calendar: Option<&QuotaParameters> = match rule.compiled() {
        CompiledAlgorithm::Quota(quota) => Some(quota),
        _ => None,
    };
    calendar.map_or(
        PeriodBounds {
            start: Timestamp::UNIX_EPOCH,
            end: Timestamp::MAX,
        },
        |calendar| calendar.bounds(now, anchor),
    )
}

pub(super) fn window_micros(rule: &CompiledRule) -> u64 {
    match rule.algorithm() {
        Algorithm::SlidingWindow { window, .. } | Algorithm::SlidingLog { window, .. } => {
            micros(*window)
        }
        _ => 1,
    }
}

pub(super) fn cell_micros(rule: &CompiledRule) -> u64 {
    match rule.algorithm() {
        Algorithm::SlidingWindow { window, cells, .. } => {
            micros(*window).div_ceil(u64::from(cells.get()))
        }
        _ => 1,
    }
}

pub(super) fn used_in_window(rule: &CompiledRule, hits: &[(u64, u64)], now: u64) -> u64 {
    let Algorithm::SlidingWindow { cells, edge, .. } = rule.algorithm() else {
        return 0;
    };
    let (cells, cell) = (u64::from(cells.get()), cell_micros(rule));
    let current = now / cell;
    let sum = |wanted: &dyn Fn(u64) -> bool| -> u64 {
        let inside = hits.iter().filter(|(at, _)| wanted(*at));
        inside.map(|(_, units)| units).sum()
    };
    let newer = sum(&|at| at + cells > current);
    let oldest = sum(&|at| at + cells == current);
    match edge {
        Edge::Strict => newer + oldest,
        Edge::Smooth => {
            // The part of the oldest cell that the window still covers, rounded up.
            let covered = u128::from(cell - now % cell);
            newer + narrow((u128::from(oldest) * covered).div_ceil(u128::from(cell)))
        }
    }
}

pub(super) fn thresholds(rule: &CompiledRule) -> impl Iterator<Item = u8> + '_ {
    let is_counted = rule.limit() > 0;
    let percents = rule.rule().thresholds.iter().copied();
    percents.filter(move |_| is_counted)
}

pub(super) fn reached(percent: u8, used: u64, limit: u64) -> bool {
    u128::from(used) * 100 >= u128::from(limit) * u128::from(percent)
}

/// The shortest wait after which something holds that stays true from then on, if nothing else happens.
pub(super) fn first(now: Now, holds: impl Fn(u64, Timestamp) -> bool) -> Option<u64> {
    let after = |wait: u64| {
        holds(
            now.monotonic_micros() + wait,
            now.wall().saturating_add(Duration::from_micros(wait)),
        )
    };
    if !after(FAR) {
        return None;
    }
    let (mut low, mut high) = (0, FAR);
    while low < high {
        let middle = low + (high - low) / 2;
        if after(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Some(low)
}
