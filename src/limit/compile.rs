//! Rules checked once and turned into numbers.

use std::{sync::Arc, time::Duration};

use super::{
    concurrency::ConcurrencyParameters,
    quota::QuotaParameters,
    rule::{Action, Algorithm, Period, Rule, Scope, Unit},
    set::ScopeValues,
    sliding_window::{LogParameters, WindowParameters},
    token_bucket::BucketParameters,
};
use crate::error::ConfigError;

/// The longest name of a rule: it stands in headers and in the keys of stores.
const MAX_NAME_BYTES: usize = 64;

/// One rule in the form that stores decide with: names checked, every number an integer in range.
#[derive(Clone, Debug)]
pub struct CompiledRule {
    rule: Rule,
    algorithm: CompiledAlgorithm,
    shape: Arc<str>,
    thresholds: Box<[Threshold]>,
    // What follows from the above and is asked on each call.
    limit: u64,
    quoted_name: Box<str>,
    refuses: bool,
    window_micros: Option<u64>,
}

/// How a rule counts, as integers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CompiledAlgorithm {
    /// A token bucket.
    TokenBucket(BucketParameters),
    /// A sliding window cut into cells.
    SlidingWindow(WindowParameters),
    /// A sliding window with an exact log.
    SlidingLog(LogParameters),
    /// A calendar quota.
    Quota(QuotaParameters),
    /// A number of calls in flight.
    Concurrency(ConcurrencyParameters),
    /// Counts nothing and refuses nothing.
    Unlimited,
}

/// A share of a limit worth telling someone about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Threshold {
    /// The share in percent, 1 to 100.
    pub percent: u8,
    /// The least use in units that reaches it.
    pub units: u64,
}

impl CompiledRule {
    /// The rule as it was written.
    #[must_use]
    pub const fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The rule's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.rule.name()
    }

    /// The name as a string of RFC 9651 section 3.3.3: no character of it needs an escape.
    pub(super) const fn quoted_name(&self) -> &str {
        &self.quoted_name
    }

    /// How the rule counts, as it was written.
    #[must_use]
    pub const fn algorithm(&self) -> &Algorithm {
        &self.rule.algorithm
    }

    /// How the rule counts, as integers.
    #[must_use]
    pub const fn compiled(&self) -> &CompiledAlgorithm {
        &self.algorithm
    }

    /// For whom the rule counts.
    #[must_use]
    pub const fn scope(&self) -> &Scope {
        &self.rule.scope
    }

    /// The route template whose calls alone the rule counts; every route when `None`.
    #[must_use]
    pub fn route(&self) -> Option<&str> {
        self.rule.route.as_deref()
    }

    /// Whether the rule applies to a call of these scopes: it is for every route or for this one, and its custom
    /// scope, if it has one, has a value. A store leaves a rule that does not apply out of its decision.
    #[must_use]
    pub fn applies_to(&self, scopes: &ScopeValues) -> bool {
        let of_route = match &self.rule.route {
            None => true,
            route => *route == scopes.route,
        };
        of_route
            && match &self.rule.scope {
                Scope::Custom(name) => scopes.custom.iter().any(|(known, _)| known == name),
                _ => true,
            }
    }

    /// What the rule counts.
    #[must_use]
    pub const fn unit(&self) -> &Unit {
        &self.rule.unit
    }

    /// The form of the rule's stored state: its kind with window or period and zone, but not its limit, such
    /// as `bucket`, `window/60000000/10` or `quota/month/UTC`, after `every/` or `by/` for a rule that a
    /// [`LimitLayer`](super::LimitLayer) brings along. A state of another shape is never shared.
    #[must_use]
    pub const fn shape(&self) -> &Arc<str> {
        &self.shape
    }

    /// The same rule, whose state is never shared with that of rules of another origin.
    pub(super) fn of_origin(&self, origin: &str) -> Self {
        Self {
            shape: format!("{origin}/{}", self.shape).into(),
            ..self.clone()
        }
    }

    /// The limit: a bucket's burst, a window's or a quota's limit; [`u64::MAX`] when unlimited.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The length of the window that the limit is for, where it is always the same: a bucket's time to fill, a
    /// window's length.
    #[must_use]
    pub fn window(&self) -> Option<Duration> {
        self.window_micros.map(Duration::from_micros)
    }

    pub(super) const fn window_micros(&self) -> Option<u64> {
        self.window_micros
    }

    /// Whether the rule refuses calls above its limit: neither a shadow rule nor one that warns or counts
    /// overage.
    #[must_use]
    pub const fn refuses(&self) -> bool {
        self.refuses
    }

    /// Whether the rule is decided without a count: a limit of zero that refuses needs none, and a bucket that
    /// holds nothing has none.
    pub(super) fn needs_no_count(&self) -> bool {
        self.limit == 0
            && (self.refuses || matches!(self.algorithm, CompiledAlgorithm::TokenBucket(_)))
    }

    /// Whether the count of the rule is known from its owner alone, whatever the call.
    pub(super) const fn is_fixed_by_owner(&self) -> bool {
        matches!(self.rule.scope, Scope::Tenant | Scope::Key) && self.rule.route.is_none()
    }

    /// Whether the rule has a count and its owner alone tells which.
    pub(super) fn counts_by_owner(&self) -> bool {
        let counts = !matches!(self.algorithm, CompiledAlgorithm::Unlimited);
        counts && !self.needs_no_count() && self.is_fixed_by_owner()
    }

    /// The thresholds in rising order, each once.
    #[must_use]
    pub fn thresholds(&self) -> &[Threshold] {
        &self.thresholds
    }

    /// The highest threshold, in percent, that a use of so many units reaches; 0 when none.
    #[must_use]
    pub fn threshold_at(&self, used: u64) -> u8 {
        match self.thresholds.first() {
            Some(lowest) if used >= lowest.units => {}
            _ => return 0,
        }
        self.thresholds
            .iter()
            .rev()
            .find(|threshold| used >= threshold.units)
            .map_or(0, |threshold| threshold.percent)
    }
}

pub(super) fn compile(rules: &[Rule]) -> Result<Box<[CompiledRule]>, ConfigError> {
    rules
        .iter()
        .enumerate()
        .map(|(place, rule)| {
            check_unique(rule, rules.get(..place).unwrap_or_default())
                .and_then(|()| compile_one(rule))
                .map_err(|error| error.under(format_args!("rules[{place}]")))
        })
        .collect()
}

fn compile_one(rule: &Rule) -> Result<CompiledRule, ConfigError> {
    check_text("name", &rule.name)?;
    if let Some(route) = &rule.route {
        check_route(route)?;
    }
    if let Scope::Custom(name) = &rule.scope {
        check_text("scope", name)?;
    }
    if let Unit::Custom(name) = &rule.unit {
        check_text("unit", name)?;
    }
    let (algorithm, shape) = compile_algorithm(&rule.algorithm)?;
    let limit = algorithm.limit();
    Ok(CompiledRule {
        rule: rule.clone(),
        shape: shape.into(),
        thresholds: compile_thresholds(&rule.thresholds, limit)?,
        limit,
        quoted_name: format!("\"{}\"", rule.name).into(),
        refuses: !rule.shadow && rule.action == Action::Refuse,
        window_micros: match (&algorithm, &rule.algorithm) {
            (CompiledAlgorithm::TokenBucket(bucket), _) => Some(bucket.refill_micros()),
            (_, Algorithm::SlidingWindow { window, .. } | Algorithm::SlidingLog { window, .. }) => {
                Some(crate::clock::micros(*window))
            }
            _ => None,
        },
        algorithm,
    })
}

impl CompiledAlgorithm {
    const fn limit(&self) -> u64 {
        match self {
            Self::TokenBucket(bucket) => bucket.burst(),
            Self::SlidingWindow(window) => window.limit(),
            Self::SlidingLog(log) => log.limit(),
            Self::Quota(quota) => quota.limit(),
            Self::Concurrency(gauge) => gauge.limit(),
            Self::Unlimited => u64::MAX,
        }
    }
}

fn compile_algorithm(algorithm: &Algorithm) -> Result<(CompiledAlgorithm, String), ConfigError> {
    Ok(match algorithm {
        Algorithm::TokenBucket { n, period, burst } => {
            let bucket = BucketParameters::new(*n, exact_micros("period", *period)?, *burst)?;
            (CompiledAlgorithm::TokenBucket(bucket), "bucket".to_owned())
        }
        Algorithm::SlidingWindow {
            limit,
            window,
            cells,
            edge,
        } => {
            let micros = exact_micros("window", *window)?;
            let window = WindowParameters::new(*limit, micros, cells.get(), *edge)?;
            (
                CompiledAlgorithm::SlidingWindow(window),
                format!("window/{micros}/{cells}"),
            )
        }
        Algorithm::SlidingLog { limit, window } => {
            let micros = exact_micros("window", *window)?;
            let log = LogParameters::new(*limit, micros)?;
            (CompiledAlgorithm::SlidingLog(log), format!("log/{micros}"))
        }
        Algorithm::Quota {
            limit,
            period,
            time_zone,
        } => {
            let quota = QuotaParameters::new(*limit, *period, time_zone.as_ref())?;
            let period = match period {
                Period::Hour => "hour",
                Period::Day => "day",
                Period::Month => "month",
                Period::Billing => "billing",
            };
            let zone = time_zone.as_deref().unwrap_or("UTC");
            (
                CompiledAlgorithm::Quota(quota),
                format!("quota/{period}/{zone}"),
            )
        }
        Algorithm::Concurrency { limit, lease } => {
            let gauge = ConcurrencyParameters::new(*limit, exact_micros("lease", *lease)?)?;
            (
                CompiledAlgorithm::Concurrency(gauge),
                "concurrency".to_owned(),
            )
        }
        Algorithm::Unlimited => (CompiledAlgorithm::Unlimited, "unlimited".to_owned()),
    })
}

fn compile_thresholds(percents: &[u8], limit: u64) -> Result<Box<[Threshold]>, ConfigError> {
    if let Some(wrong) = percents
        .iter()
        .find(|percent| !(1..=100).contains(*percent))
    {
        return Err(ConfigError::new(
            "thresholds",
            format!("{wrong} is not a percentage from 1 to 100"),
        ));
    }
    let mut percents = percents.to_vec();
    percents.sort_unstable();
    percents.dedup();
    if limit == 0 {
        // Nothing is a share of nothing.
        percents.clear();
    }
    let threshold = |percent: u8| {
        let units = (u128::from(limit) * u128::from(percent)).div_ceil(100);
        Threshold {
            percent,
            // At most the limit itself.
            units: u64::try_from(units).unwrap_or(limit),
        }
    };
    Ok(percents.into_iter().map(threshold).collect())
}

fn exact_micros(path: &'static str, duration: Duration) -> Result<u64, ConfigError> {
    if !duration.subsec_nanos().is_multiple_of(1_000) {
        return Err(ConfigError::new(
            path,
            format!("{duration:?} is not a whole number of microseconds"),
        ));
    }
    u64::try_from(duration.as_micros()).map_err(|source| {
        ConfigError::new(path, "this is longer than half a million years: write less")
            .caused_by(source)
    })
}

fn check_unique(rule: &Rule, earlier: &[Rule]) -> Result<(), ConfigError> {
    if let Some(place) = earlier.iter().position(|known| known.name == rule.name) {
        return Err(ConfigError::new(
            "name",
            format!(
                "{:?} is the name of rules[{place}] too: give one of them a name of its own with `.named(..)`",
                rule.name
            ),
        ));
    }
    Ok(())
}

/// A template such as `/v1/chat/{id}`: what stands in no path would apply to no call.
fn check_route(route: &str) -> Result<(), ConfigError> {
    if route.starts_with('/') && !route.contains(['?', '#']) && !route.chars().any(char::is_control)
    {
        return Ok(());
    }
    let reason = format!(
        "{route:?} is not a route: write its template without a method, such as `/v1/chat/{{id}}`"
    );
    Err(ConfigError::new("route", reason))
}

/// Names stand inside quotes in header fields (RFC 9651 section 3.3.3), where nothing is escaped.
fn check_text(path: &'static str, text: &str) -> Result<(), ConfigError> {
    let reason = if text.is_empty() {
        "this must not be empty"
    } else if text.len() > MAX_NAME_BYTES {
        "this is longer than 64 bytes: shorten it"
    } else if !text
        .bytes()
        .all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
    {
        "this stands in header fields: write printable ASCII without `\"` and `\\`"
    } else {
        return Ok(());
    };
    Err(ConfigError::new(path, reason))
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{Concurrency, Quota, Rate, Window};
    use super::*;

    fn fault(rule: impl Into<Rule>) -> String {
        let rules = [Rate::per_second(1).into(), rule.into()];
        compile(&rules).unwrap_err().path().to_owned()
    }

    #[test]
    fn a_fault_names_the_rule_and_the_field() {
        let named = |rule: Rate| rule.named("other");
        assert_eq!(
            fault(named(Rate::per(1, Duration::ZERO))),
            "rules[1].period"
        );
        assert_eq!(
            fault(named(Rate::per(1, Duration::from_nanos(1)))),
            "rules[1].period"
        );
        assert_eq!(fault(named(Rate::per(1, Duration::MAX))), "rules[1].period");
        assert_eq!(fault(named(Rate::per_second(5).burst(0))), "rules[1].burst");
        assert_eq!(
            fault(named(Rate::per_day(1).burst(u64::MAX))),
            "rules[1].burst"
        );
        assert_eq!(fault(named(Rate::per_second(u64::MAX))), "rules[1].limit");
        assert_eq!(fault(Rate::per_second(2)), "rules[1].name");
        assert_eq!(
            fault(Window::new(1, Duration::from_micros(9))),
            "rules[1].window"
        );
        assert_eq!(
            fault(Window::new(1, Duration::ZERO).exact_log()),
            "rules[1].window"
        );
        let cells = 101.try_into().unwrap();
        assert_eq!(
            fault(Window::new(1, Duration::from_secs(1)).cells(cells)),
            "rules[1].cells"
        );
        assert_eq!(
            fault(Window::new(10_001, Duration::from_secs(1)).exact_log()),
            "rules[1].limit"
        );
        assert_eq!(fault(Quota::daily(u64::MAX)), "rules[1].limit");
        assert_eq!(
            fault(Quota::daily(1).time_zone("Mars/Olympus")),
            "rules[1].time_zone"
        );
        assert_eq!(
            fault(Concurrency::new(1).lease(Duration::ZERO)),
            "rules[1].lease"
        );
        assert_eq!(
            fault(Quota::daily(1).thresholds([0])),
            "rules[1].thresholds"
        );
        assert_eq!(
            fault(Quota::daily(1).thresholds([101])),
            "rules[1].thresholds"
        );
        assert_eq!(fault(Quota::daily(1).named("")), "rules[1].name");
        assert_eq!(fault(Quota::daily(1).named("a\"b")), "rules[1].name");
        assert_eq!(fault(Quota::daily(1).named("a\\b")), "rules[1].name");
        assert_eq!(fault(Quota::daily(1).named("é")), "rules[1].name");
        assert_eq!(
            fault(Quota::daily(1).named("x".repeat(65))),
            "rules[1].name"
        );
        assert_eq!(
            fault(Quota::daily(1).unit(Unit::custom(""))),
            "rules[1].unit"
        );
        assert_eq!(
            fault(Quota::daily(1).scope(Scope::Custom("\n".into()))),
            "rules[1].scope"
        );
    }

    #[test]
    fn thresholds_are_sorted_and_count_whole_units() {
        let rules = compile(&[Quota::daily(7).thresholds([100, 80, 80, 1])]).unwrap();
        let units: Vec<_> = rules[0]
            .thresholds()
            .iter()
            .map(|threshold| (threshold.percent, threshold.units))
            .collect();
        assert_eq!(units, [(1, 1), (80, 6), (100, 7)]);
        assert_eq!(rules[0].threshold_at(5), 1);
        assert_eq!(rules[0].threshold_at(6), 80);
        assert_eq!(rules[0].threshold_at(u64::MAX), 100);
        assert_eq!(rules[0].threshold_at(0), 0);
    }

    #[test]
    fn the_shape_tells_windows_apart_but_not_limits() {
        let shape = |rule: Rule| compile(&[rule]).unwrap()[0].shape().to_string();
        let window = |limit, seconds| Window::new(limit, Duration::from_secs(seconds));
        assert_eq!(shape(window(1, 60).into()), "window/60000000/10");
        assert_eq!(shape(window(2, 60).into()), shape(window(1, 60).into()));
        assert_ne!(shape(window(1, 60).into()), shape(window(1, 61).into()));
        assert_ne!(
            shape(window(1, 60).into()),
            shape(window(1, 60).exact_log().into())
        );
        assert_eq!(shape(Quota::monthly(1).into()), "quota/month/UTC");
        assert_eq!(
            shape(Quota::daily(1).time_zone("Europe/Berlin").into()),
            "quota/day/Europe/Berlin"
        );
    }

    #[test]
    fn a_limit_of_zero_is_legal() {
        let rules = [
            Rate::per_second(0).into(),
            Window::new(0, Duration::from_secs(1)).into(),
            Quota::monthly(0).thresholds([80]),
            Concurrency::new(0).into(),
        ];
        let rules = compile(&rules).unwrap();
        assert!(rules.iter().all(|rule| rule.limit() == 0));
        assert_eq!(rules[2].threshold_at(10), 0);
    }
}
