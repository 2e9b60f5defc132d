use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    auth::KeyRecord,
    clock::Timestamp,
    error::ConfigError,
    id::{Environment, KeyId, TenantId},
    limit::{LimitSet, Owner, Rule, RuleSet},
    plan::CompiledPlan,
    tenant::{Tenant, TenantRecord},
};

/// What a credential, a key or a token, grants its bearer.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Grant {
    /// The key's id; `None` for a token that names no key.
    pub key: Option<KeyId>,
    /// Under whose id rules of `Scope::Key` count: that of the first key of a line of rotations; `key` when
    /// absent.
    pub counts_as: Option<KeyId>,
    /// Live or test.
    pub environment: Environment,
    /// What the bearer may do.
    pub scopes: BTreeSet<Arc<str>>,
    /// Networks that the credential may be used from; any when empty.
    pub allowed_networks: Vec<IpNet>,
    /// When the credential stops working; never when absent.
    pub expires_at: Option<Timestamp>,
    /// Rules of this credential: each replaces the plan's rule of the same name, or is added.
    pub limits: Vec<Rule>,
}

impl From<&KeyRecord> for Grant {
    fn from(record: &KeyRecord) -> Self {
        Self {
            key: Some(record.id.clone()),
            counts_as: record.counts_as.clone(),
            environment: record.environment,
            scopes: record.scopes.clone(),
            allowed_networks: record.allowed_networks.clone(),
            expires_at: record.expires_at,
            limits: record.limits.clone(),
        }
    }
}

/// Who calls, fully resolved: credential, tenant, plan and compiled rules.
///
/// A cheap handle; the one request extension that carries the identity. Whoever has authentication of their
/// own makes one with [`Identity::of_tenant`] or [`Identity::new`] and inserts it into the request's extensions:
/// the layers further in limit and meter by it. A whole gate takes it where
/// [`inserted_identity`](crate::TollgateBuilder::inserted_identity) is on.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    tenant: Tenant,
    plan: Arc<CompiledPlan>,
    grant: Grant,
    limits: Arc<LimitSet>,
}

impl Identity {
    /// Resolves a tenant, its plan and a credential's grant into an identity.
    ///
    /// Keep and reuse it: the rules' counts are found fastest through the same identity.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when a rule of the grant does not compile.
    pub fn new(tenant: Tenant, plan: Arc<CompiledPlan>, grant: Grant) -> Result<Self, ConfigError> {
        let rules = if grant.limits.is_empty() {
            Arc::clone(plan.rule_set())
        } else {
            RuleSet::compile(overridden(plan.rules(), &grant.limits))
                .map_err(|error| error.under("limits"))?
        };
        let owner = Owner {
            tenant: tenant.id().clone(),
            environment: grant.environment,
            key: grant.counts_as.as_ref().or(grant.key.as_ref()).cloned(),
            billing_anchor: tenant.record().billing_anchor,
        };
        let limits = Arc::new(LimitSet::new(owner, rules));
        Ok(Self(Arc::new(Inner {
            tenant,
            plan,
            grant,
            limits,
        })))
    }

    /// A tenant on a plan, without a key, scopes or limits of its own: for authentication of your own.
    ///
    /// Keep and reuse it, as with [`Identity::new`].
    #[must_use]
    pub fn of_tenant(id: TenantId, plan: Arc<CompiledPlan>) -> Self {
        let record = TenantRecord::new(id, plan.name().clone());
        let tenant = Tenant::new(Arc::new(record));
        let owner = Owner::tenant(tenant.id().clone());
        let limits = Arc::new(LimitSet::new(owner, Arc::clone(plan.rule_set())));
        Self(Arc::new(Inner {
            tenant,
            plan,
            grant: Grant::default(),
            limits,
        }))
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.0.tenant
    }

    /// The plan that governs the call: the key's own, else the sandbox plan for a test key, else the tenant's.
    #[must_use]
    pub fn plan(&self) -> &Arc<CompiledPlan> {
        &self.0.plan
    }

    /// The key's id; `None` for a token that names no key.
    #[must_use]
    pub fn key(&self) -> Option<&KeyId> {
        self.0.grant.key.as_ref()
    }

    /// Live or test.
    #[must_use]
    pub fn environment(&self) -> Environment {
        self.0.grant.environment
    }

    /// What the bearer may do.
    #[must_use]
    pub fn scopes(&self) -> &BTreeSet<Arc<str>> {
        &self.0.grant.scopes
    }

    /// Whether the credential grants a scope.
    #[must_use]
    pub fn has_scope(&self, scope: &str) -> bool {
        self.0.grant.scopes.contains(scope)
    }

    /// When the credential stops working.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.0.grant.expires_at
    }

    /// Whether the credential may be used from `address`; without one only if it has no allow list. An IPv4
    /// address mapped into IPv6 counts as IPv4.
    #[must_use]
    pub fn allows_address(&self, address: Option<IpAddr>) -> bool {
        let networks = &self.0.grant.allowed_networks;
        networks.is_empty()
            || address.is_some_and(|address| {
                let address = address.to_canonical();
                networks.iter().any(|network| network.contains(&address))
            })
    }

    /// The rules of every call of this identity, bound to their owner.
    #[must_use]
    pub fn limits(&self) -> &Arc<LimitSet> {
        &self.0.limits
    }
}

fn overridden(plan: &[Rule], own: &[Rule]) -> Vec<Rule> {
    let named = |name: &str| own.iter().find(|rule| rule.name() == name);
    let kept = plan
        .iter()
        .map(|rule| named(rule.name()).unwrap_or(rule).clone());
    let added = own
        .iter()
        .filter(|rule| plan.iter().all(|known| known.name() != rule.name()));
    kept.chain(added.cloned()).collect()
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("tenant", self.tenant().id())
            .field("key", &self.key())
            .field("plan", self.plan().name())
            .field("environment", &self.environment())
            .finish_non_exhaustive()
    }
}
