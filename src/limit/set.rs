//! Rules compiled once, and the owner that they count for.

use std::{any::Any, fmt, net::IpAddr, sync::Arc, sync::OnceLock};

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use super::{
    compile::{CompiledRule, compile},
    headers::Policy,
    rule::{Algorithm, Rule, Unit},
};
use crate::{
    clock::Timestamp,
    error::ConfigError,
    id::{Environment, KeyId, TenantId},
};

/// Rules checked and compiled into numbers, in the order in which they were written.
///
/// Shared by every tenant of a plan.
#[derive(Debug)]
pub struct RuleSet {
    rules: Box<[CompiledRule]>,
    traits: Traits,
    policies: ArcSwap<Vec<Arc<Policy>>>,
}

/// What is asked about all rules of a set on each call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    /// Every rule has a count and its owner alone tells which.
    pub(super) counts_by_owner: bool,
    /// Some rule counts bytes.
    pub(super) counts_bytes: bool,
    /// Some rule counts a quantity that the service names.
    pub(super) counts_custom: bool,
    /// Some rule holds a place until the call ends.
    pub(super) holds_slots: bool,
}

impl Traits {
    fn of(rules: &[CompiledRule]) -> Self {
        let any = |what: fn(&CompiledRule) -> bool| rules.iter().any(what);
        Self {
            counts_by_owner: rules.iter().all(CompiledRule::counts_by_owner),
            counts_bytes: any(|rule| matches!(rule.unit(), Unit::Bytes)),
            counts_custom: any(|rule| matches!(rule.unit(), Unit::Custom(_))),
            holds_slots: any(|rule| matches!(rule.algorithm(), Algorithm::Concurrency { .. })),
        }
    }
}

impl RuleSet {
    /// Checks and compiles the rules.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the rule by its place, such as `rules[1].burst`, when a number is out of range,
    /// a time zone is unknown, a name is not a header-safe string or two rules share a name.
    pub fn compile(
        rules: impl IntoIterator<Item = impl Into<Rule>>,
    ) -> Result<Arc<Self>, ConfigError> {
        let rules: Vec<Rule> = rules.into_iter().map(Into::into).collect();
        Ok(Self::of(compile(&rules)?))
    }

    fn of(rules: Box<[CompiledRule]>) -> Arc<Self> {
        Arc::new(Self {
            traits: Traits::of(&rules),
            rules,
            policies: ArcSwap::default(),
        })
    }

    /// The same rules for a layer that names its owners itself. A tenant chooses its id and a hook's value may
    /// come from a client: neither may reach the counts of another origin by being named like them.
    pub(super) fn of_origin(&self, origin: &str) -> Arc<Self> {
        let rules = self.rules.iter().map(|rule| rule.of_origin(origin));
        Self::of(rules.collect())
    }

    /// The compiled rules.
    #[must_use]
    pub fn rules(&self) -> &[CompiledRule] {
        &self.rules
    }

    /// The header fields that have told of the rules.
    pub(super) const fn written_policies(&self) -> &ArcSwap<Vec<Arc<Policy>>> {
        &self.policies
    }

    pub(super) const fn traits(&self) -> &Traits {
        &self.traits
    }

    /// Whether there is nothing to decide.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// Who a set of rules counts for: a tenant in one environment, and perhaps one of its keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Owner {
    /// The tenant: all counts of one call lie in its partition of a store.
    pub tenant: TenantId,
    /// Live and test traffic count apart.
    pub environment: Environment,
    /// The key, for rules of [`Scope::Key`](super::Scope::Key).
    pub key: Option<KeyId>,
    /// The start of the tenant's billing periods, for [`Period::Billing`](super::Period::Billing).
    pub billing_anchor: Option<Timestamp>,
}

impl Owner {
    /// A tenant in the live environment, without a key or a billing anchor.
    #[must_use]
    pub const fn tenant(tenant: TenantId) -> Self {
        Self {
            tenant,
            environment: Environment::Live,
            key: None,
            billing_anchor: None,
        }
    }

    /// The same owner in another environment.
    #[must_use]
    pub const fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// The same owner with the key that called.
    #[must_use]
    pub fn key(mut self, key: KeyId) -> Self {
        self.key = Some(key);
        self
    }

    /// The same owner with the start of its billing periods.
    #[must_use]
    pub const fn billing_anchor(mut self, anchor: Timestamp) -> Self {
        self.billing_anchor = Some(anchor);
        self
    }
}

/// Compiled rules bound to their owner: what a cached identity holds, so that a decision formats nothing.
pub struct LimitSet {
    owner: Owner,
    rules: Arc<RuleSet>,
    /// The cells of the store in memory: found without a step through an allocation and a type's name.
    pub(super) in_memory: OnceLock<super::memory::Prepared>,
    prepared: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl LimitSet {
    /// Binds rules to their owner.
    #[must_use]
    pub const fn new(owner: Owner, rules: Arc<RuleSet>) -> Self {
        Self {
            owner,
            rules,
            in_memory: OnceLock::new(),
            prepared: OnceLock::new(),
        }
    }

    /// For whom the rules count.
    #[must_use]
    pub const fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The compiled rules.
    #[must_use]
    pub fn rules(&self) -> &[CompiledRule] {
        self.rules.rules()
    }

    /// The shared rule set.
    #[must_use]
    pub const fn rule_set(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// What a store keeps beside the set, made at its first decision: cells, encoded keys. `None` when
    /// another kind of store has already put its own there.
    pub fn prepared<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.prepared
            .get_or_init(|| Box::new(make()))
            .downcast_ref()
    }
}

impl fmt::Debug for LimitSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitSet")
            .field("owner", &self.owner)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// The values of one call for the scopes that are not fixed by its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScopeValues {
    /// The route template, for [`Scope::Route`](super::Scope::Route).
    pub route: Option<Arc<str>>,
    /// The client's address, for [`Scope::Address`](super::Scope::Address). Without one, all such calls
    /// share a count.
    pub address: Option<IpAddr>,
    /// Values of [`Scope::Custom`](super::Scope::Custom) by the scope's name. A rule whose value is absent
    /// does not apply to the call.
    pub custom: SmallVec<[(Arc<str>, Arc<str>); 1]>,
}

impl ScopeValues {
    /// Sets the route template.
    #[must_use]
    pub fn route(mut self, route: impl Into<Arc<str>>) -> Self {
        self.route = Some(route.into());
        self
    }

    /// Sets the client's address.
    #[must_use]
    pub const fn address(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Adds the value of a custom scope.
    #[must_use]
    pub fn custom(mut self, scope: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.custom.push((scope.into(), value.into()));
        self
    }
}
