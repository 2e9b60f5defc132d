//! Rules as a person writes them: what is counted, for whom, how much, and what happens on excess.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::kinds::{Concurrency, Quota, Rate, Window};

/// What a rule counts.
///
/// Written as `requests`, `bytes` or by a name of the service's own, such as `tokens`. A name that is nearly one of
/// the first two is refused, as it is most likely misspelt; `custom:` before it says that it is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Unit {
    /// One per call, unless a `CostOf` hook says otherwise.
    #[default]
    Requests,
    /// Bytes of request content (`content-bytes` in the `RateLimit-Policy` header).
    Bytes,
    /// A quantity that the service names, such as `tokens`; charged from `CostOf` before the call and from
    /// `Meter::add` after it.
    Custom(Arc<str>),
}

impl Unit {
    /// A quantity that the service names, such as `tokens`.
    #[must_use]
    pub fn custom(name: impl Into<Arc<str>>) -> Self {
        Self::Custom(name.into())
    }
}

/// For whom a rule counts. Every scope lies within one tenant.
///
/// Written as `tenant`, `key`, `route`, `address` or by a name of the service's own, such as `workspace`. A name that
/// is nearly one of the first four is refused, as it is most likely misspelt; `custom:` before it says that it is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// One count for the whole tenant.
    #[default]
    Tenant,
    /// One count for each API key.
    Key,
    /// One count for each route template.
    Route,
    /// One count for each client address; IPv6 by its /64 network.
    Address,
    /// One count for each value of a `LimitKey` hook registered under this name.
    Custom(Arc<str>),
}

/// What happens to a call above the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Action {
    /// The call is refused and nothing is counted.
    #[default]
    Refuse,
    /// The call passes and is counted; the answer carries a warning.
    Warn,
    /// The call passes, is counted and is marked for pricing as overage.
    Overage,
}

/// What a rule does when its store gives no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnStoreFailure {
    /// A limiter in this process decides, with this process's share of the limit.
    #[default]
    Local,
    /// The call passes uncounted.
    Allow,
    /// The call is refused with 503 `store_unavailable`.
    Deny,
}

/// How a sliding window weighs its oldest cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Edge {
    /// The oldest cell counts whole: no window of the rule's length ever admits more than the limit; a unit
    /// comes back up to one cell late.
    #[default]
    Strict,
    /// The oldest cell counts in proportion to its overlap: smoother, but the worst window admits close to
    /// twice the limit, whatever the number of cells.
    Smooth,
}

/// How a rule counts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// Continuous refill of `n` units per `period` up to `burst`.
    TokenBucket {
        /// Units that come back in each period.
        n: u64,
        /// The period.
        period: Duration,
        /// The bucket's size.
        burst: u64,
    },
    /// At most `limit` units in a window that slides in `cells` steps.
    SlidingWindow {
        /// Units in the window.
        limit: u64,
        /// The window's length.
        window: Duration,
        /// The number of sub-windows.
        cells: NonZeroU32,
        /// How the oldest cell is weighed.
        edge: Edge,
    },
    /// At most `limit` units in any window, by an exact log of the admitted calls.
    SlidingLog {
        /// Units in the window; at most 10,000.
        limit: u64,
        /// The window's length.
        window: Duration,
    },
    /// At most `limit` units in each calendar period.
    Quota {
        /// Units in the period.
        limit: u64,
        /// The period.
        period: Period,
        /// IANA name of the zone whose midnight starts a period; `UTC` when absent.
        time_zone: Option<Arc<str>>,
    },
    /// At most `limit` units in flight.
    Concurrency {
        /// Units in flight.
        limit: u64,
        /// A hold that is neither released nor renewed lapses after this time.
        lease: Duration,
    },
    /// Counts nothing and refuses nothing.
    Unlimited,
}

/// A calendar period.
///
/// Written as `hour`, `day`, `month` or `billing`; `hourly`, `daily` and `monthly` are read too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Period {
    /// From one full hour to the next.
    Hour,
    /// From midnight to midnight; 23 or 25 hours long on the days of a clock change.
    Day,
    /// From the first of a month to the first of the next.
    Month,
    /// From the tenant's billing anchor to the same day of the next month, clamped to the month's last day.
    Billing,
}

/// One rule of a plan or a layer.
///
/// Made by [`Rate`], [`Window`], [`Quota`], [`Concurrency`] or [`Rule::unlimited`]; checked when the plan or
/// layer is built.
///
/// In a document a rule is a table with a `kind`, see [`Rule::deserialize`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub(crate) name: Arc<str>,
    pub(crate) algorithm: Algorithm,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) scope: Scope,
    pub(crate) unit: Unit,
    pub(crate) action: Action,
    pub(crate) thresholds: Arc<[u8]>,
    pub(crate) on_store_failure: OnStoreFailure,
    pub(crate) shadow: bool,
}

impl Rule {
    pub(crate) fn new(name: &str, algorithm: Algorithm) -> Self {
        Self {
            name: Arc::from(name),
            algorithm,
            route: None,
            scope: Scope::default(),
            unit: Unit::default(),
            action: Action::default(),
            thresholds: Arc::from([]),
            on_store_failure: OnStoreFailure::default(),
            shadow: false,
        }
    }

    /// A rule that never refuses and never makes a trip to a store.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new("unlimited", Algorithm::Unlimited)
    }

    /// The rule's name: in headers, metrics and stored state. Changing a number never changes the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the rule counts.
    #[must_use]
    pub const fn algorithm(&self) -> &Algorithm {
        &self.algorithm
    }
}

macro_rules! rule_setters {
    ($($(#[$docs:meta])* $name:ident($argument:ident: $kind:ty) => |$rule:ident| $body:block)+) => {
        impl Rule {
            $($(#[$docs])*
            #[must_use]
            pub fn $name(self, $argument: $kind) -> Self {
                let mut $rule = self;
                $body
                $rule
            })+
        }
        rule_setters!(@on Rate; $($(#[$docs])* $name($argument: $kind))+);
        rule_setters!(@on Window; $($(#[$docs])* $name($argument: $kind))+);
        rule_setters!(@on Quota; $($(#[$docs])* $name($argument: $kind))+);
        rule_setters!(@on Concurrency; $($(#[$docs])* $name($argument: $kind))+);
    };
    (@on $builder:ident; $($(#[$docs:meta])* $name:ident($argument:ident: $kind:ty))+) => {
        impl $builder {
            $($(#[$docs])*
            #[must_use]
            pub fn $name(self, $argument: $kind) -> Rule {
                Rule::from(self).$name($argument)
            })+

            /// Above the limit the call passes, is counted and is marked for pricing as overage.
            #[must_use]
            pub fn overage(self) -> Rule {
                Rule::from(self).action(Action::Overage)
            }

            /// Above the limit the call passes, is counted and the answer carries a warning.
            #[must_use]
            pub fn warn(self) -> Rule {
                Rule::from(self).action(Action::Warn)
            }

            /// Decides and reports, but neither refuses a call nor shows in a header.
            #[must_use]
            pub fn shadow(self) -> Rule {
                Rule::from(self).shadow()
            }
        }
    };
}

rule_setters! {
    /// Names the rule; needed when a plan has two rules of one kind.
    named(name: impl Into<Arc<str>>) => |rule| { rule.name = name.into(); }
    /// Applies the rule to calls of this route alone: its template as the service's router writes it, such as
    /// `/v1/chat/{id}`. Every route unless set. A template that no route has applies to no call.
    route(template: impl Into<Arc<str>>) => |rule| { rule.route = Some(template.into()); }
    /// For whom the rule counts; the tenant unless set.
    scope(scope: Scope) => |rule| { rule.scope = scope; }
    /// What the rule counts; requests unless set.
    unit(unit: Unit) => |rule| { rule.unit = unit; }
    /// What happens above the limit; refused unless set.
    action(action: Action) => |rule| { rule.action = action; }
    /// Percentages (1 to 100) at which the answer warns and a `ThresholdSink` is told once per period.
    thresholds(percent: impl Into<Arc<[u8]>>) => |rule| { rule.thresholds = percent.into(); }
    /// What happens when the store gives no answer; [`OnStoreFailure::Local`] unless set.
    on_store_failure(policy: OnStoreFailure) => |rule| { rule.on_store_failure = policy; }
}

impl Rule {
    /// Above the limit the call passes, is counted and is marked for pricing as overage.
    #[must_use]
    pub fn overage(self) -> Self {
        self.action(Action::Overage)
    }

    /// Above the limit the call passes, is counted and the answer carries a warning.
    #[must_use]
    pub fn warn(self) -> Self {
        self.action(Action::Warn)
    }

    /// Decides and reports, but neither refuses a call nor shows in a header.
    #[must_use]
    pub const fn shadow(mut self) -> Self {
        self.shadow = true;
        self
    }
}
