//! What a tenant may do after what its payment provider says. Pure: state, event and time in, state and effects out.
//!
//! | | payment failed | recovered | unpaid | paused | ended | closed |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | active | grace | active | read-only | read-only | by policy | closed |
//! | grace | grace, never longer | active | read-only | read-only | by policy | closed |
//! | read-only | read-only | active | read-only | read-only | by policy | closed |
//! | suspended | suspended | active | suspended | suspended | by policy, never more than before | closed |
//! | closed | closed | closed | closed | closed | closed | closed |
//!
//! Grace begins when the first payment failed and not when that was heard of, so that each retry of a card, an event that
//! comes late and one that comes twice give the same deadlines. What time alone brings about, the end of grace and the
//! suspension after it, [`AccessState::at`] evaluates when it is read; no job is needed.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    clock::Timestamp,
    id::{PlanName, TenantId},
    tenant::AccessState,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What happened to a tenant's payments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LifecycleEvent {
    /// A payment failed, and the provider tries again.
    PaymentFailed {
        /// When the first of this row failed.
        since: Timestamp,
    },
    /// Everything that was owed is paid.
    Recovered,
    /// The provider has given up trying, or the first payment was never made.
    Unpaid {
        /// When the first payment of this row failed.
        since: Timestamp,
    },
    /// The subscription is paused; nothing is owed.
    Paused,
    /// The subscription has ended.
    Ended,
    /// The account is closed for good, by the service's own people.
    Closed,
}

/// What becomes of a tenant whose subscription has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnEnd {
    /// It moves to this plan, such as a free one, with full access.
    Downgrade(PlanName),
    /// It keeps its plan and may read, for ever.
    ReadOnly,
    /// It may do nothing until it subscribes again.
    Suspend,
}

/// How long a tenant that does not pay keeps what, and what its end means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct LifecyclePolicy {
    grace: Duration,
    read_only: Option<Duration>,
    on_end: OnEnd,
}

impl LifecyclePolicy {
    /// Seven days of grace, then 30 days of reading, then suspended; read-only after the subscription's end.
    pub const fn new() -> Self {
        Self {
            grace: DAY.saturating_mul(7),
            read_only: Some(DAY.saturating_mul(30)),
            on_end: OnEnd::ReadOnly,
        }
    }

    /// How long everything passes after a payment failed; seven days unless set, three to seven are usual. Zero makes
    /// access read-only at once.
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long access stays read-only before it is suspended; 30 days unless set, for ever when `None`.
    pub const fn read_only(mut self, read_only: Option<Duration>) -> Self {
        self.read_only = read_only;
        self
    }

    /// What becomes of a tenant whose subscription has ended; it may read unless set.
    pub fn on_end(mut self, on_end: OnEnd) -> Self {
        self.on_end = on_end;
        self
    }

    pub(super) const fn end(&self) -> &OnEnd {
        &self.on_end
    }

    fn grace_end(&self, since: Timestamp) -> Timestamp {
        since.saturating_add(self.grace)
    }

    fn suspension(&self, since: Timestamp) -> Option<Timestamp> {
        let end = self.grace_end(since);
        self.read_only
            .map(|read_only| end.saturating_add(read_only))
    }
}

impl Default for LifecyclePolicy {
    fn default() -> Self {
        Self::new()
    }
}

/// The policies of plans and tenants: a tenant's own goes before its plan's, and that before the one for all.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct LifecyclePolicies {
    all: LifecyclePolicy,
    plans: BTreeMap<PlanName, LifecyclePolicy>,
    tenants: BTreeMap<TenantId, LifecyclePolicy>,
}

impl LifecyclePolicies {
    /// One policy for all.
    pub const fn new(all: LifecyclePolicy) -> Self {
        Self {
            all,
            plans: BTreeMap::new(),
            tenants: BTreeMap::new(),
        }
    }

    /// Another policy for the tenants of a plan.
    pub fn plan(mut self, plan: PlanName, policy: LifecyclePolicy) -> Self {
        self.plans.insert(plan, policy);
        self
    }

    /// Another policy for one tenant.
    pub fn tenant(mut self, tenant: TenantId, policy: LifecyclePolicy) -> Self {
        self.tenants.insert(tenant, policy);
        self
    }

    /// The policy of a tenant on a plan.
    pub fn of(&self, tenant: &TenantId, plan: &PlanName) -> &LifecyclePolicy {
        let own = self.tenants.get(tenant);
        own.or_else(|| self.plans.get(plan)).unwrap_or(&self.all)
    }
}

/// Something that follows from a change of state, beside the state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// The tenant moves to another plan.
    MoveToPlan(PlanName),
    /// Tell the tenant that a payment failed, and until when everything passes.
    GraceStarted {
        /// When grace ends.
        until: Timestamp,
    },
    /// Tell the tenant that it may only read.
    ReadOnlyStarted {
        /// When access is suspended; never when absent.
        suspend_at: Option<Timestamp>,
    },
    /// Tell the tenant that access is suspended.
    Suspended,
    /// Tell the tenant that everything passes again.
    Restored,
    /// Tell the tenant that the account is closed.
    Closed,
}

/// What follows from an event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// The state from now on.
    pub state: AccessState,
    /// What else follows, in this order; nothing where the state is the same as before.
    pub effects: Vec<Effect>,
}

/// What follows from an event in a state.
///
/// A deadline that has been set is never put off: a payment that fails in grace, whatever `since` says of it, leaves grace
/// at its end or brings it nearer. Only [`LifecycleEvent::Recovered`] and a downgrade at the end lift a restriction.
///
/// ```
/// use std::time::Duration;
/// use tollgate::billing::lifecycle::{Effect, LifecycleEvent, LifecyclePolicy, step};
/// use tollgate::clock::Timestamp;
/// use tollgate::tenant::AccessState;
///
/// let policy = LifecyclePolicy::new().grace(Duration::from_secs(600)).read_only(None);
/// let now = Timestamp::from_unix_seconds(1_000);
/// let failed = step(AccessState::Active, LifecycleEvent::PaymentFailed { since: now }, now, &policy);
/// let until = Timestamp::from_unix_seconds(1_600);
/// assert_eq!(failed.state, AccessState::Grace { until, suspend_at: None });
/// assert_eq!(failed.effects, [Effect::GraceStarted { until }]);
///
/// // The second failure of the same row, a minute later.
/// let now = Timestamp::from_unix_seconds(1_060);
/// let again = step(failed.state, LifecycleEvent::PaymentFailed { since: now }, now, &policy);
/// assert_eq!(again.state, failed.state);
/// assert!(again.effects.is_empty());
/// ```
#[must_use]
pub fn step(
    state: AccessState,
    event: LifecycleEvent,
    now: Timestamp,
    policy: &LifecyclePolicy,
) -> Transition {
    let before = state.at(now);
    let after = match (before, event) {
        (AccessState::Closed, _) | (_, LifecycleEvent::Closed) => AccessState::Closed,
        (_, LifecycleEvent::Recovered) => AccessState::Active,
        (_, LifecycleEvent::Ended) => end(before, policy),
        (AccessState::Suspended, _) => AccessState::Suspended,
        (_, LifecycleEvent::PaymentFailed { since }) => failed(before, since, policy),
        (_, LifecycleEvent::Unpaid { since }) => AccessState::ReadOnly {
            suspend_at: earlier(suspension_of(before), policy.suspension(since)),
        },
        // Nothing is owed, so nothing runs out but what did before.
        (_, LifecycleEvent::Paused) => AccessState::ReadOnly {
            suspend_at: suspension_of(before),
        },
    };
    let after = after.at(now);
    let mut effects = Vec::new();
    if event == LifecycleEvent::Ended
        && after != AccessState::Closed
        && let OnEnd::Downgrade(plan) = &policy.on_end
    {
        effects.push(Effect::MoveToPlan(plan.clone()));
    }
    effects.extend(told(before, after));
    Transition {
        state: after,
        effects,
    }
}

/// What a tenant is told when its state changes; nothing where only a deadline moved.
pub(super) fn told(before: AccessState, after: AccessState) -> Option<Effect> {
    use AccessState as State;
    if std::mem::discriminant(&before) == std::mem::discriminant(&after) {
        return None;
    }
    match after {
        State::Active => Some(Effect::Restored),
        State::Grace { until, .. } => Some(Effect::GraceStarted { until }),
        State::ReadOnly { suspend_at } => Some(Effect::ReadOnlyStarted { suspend_at }),
        State::Suspended => Some(Effect::Suspended),
        State::Closed => Some(Effect::Closed),
    }
}

fn failed(before: AccessState, since: Timestamp, policy: &LifecyclePolicy) -> AccessState {
    let (end, suspension) = (policy.grace_end(since), policy.suspension(since));
    match before {
        AccessState::Grace { until, suspend_at } => AccessState::Grace {
            until: until.min(end),
            suspend_at: earlier(suspend_at, suspension),
        },
        AccessState::ReadOnly { suspend_at } => AccessState::ReadOnly {
            suspend_at: earlier(suspend_at, suspension),
        },
        _ => AccessState::Grace {
            until: end,
            suspend_at: suspension,
        },
    }
}

fn end(before: AccessState, policy: &LifecyclePolicy) -> AccessState {
    match (&policy.on_end, before) {
        (OnEnd::Downgrade(_), _) => AccessState::Active,
        (OnEnd::Suspend, _) | (OnEnd::ReadOnly, AccessState::Suspended) => AccessState::Suspended,
        // What is owed runs out as it did; who owed nothing may read for ever.
        (OnEnd::ReadOnly, before) => AccessState::ReadOnly {
            suspend_at: suspension_of(before),
        },
    }
}

const fn suspension_of(state: AccessState) -> Option<Timestamp> {
    match state {
        AccessState::Grace { suspend_at, .. } | AccessState::ReadOnly { suspend_at } => suspend_at,
        AccessState::Active | AccessState::Suspended | AccessState::Closed => None,
    }
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
