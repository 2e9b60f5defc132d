use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;

use super::{
    super::{
        AccountStore, Checkout, LifecyclePolicies, LifecyclePolicy, LogNotices, Notifier,
        Subscription, lifecycle::OnEnd,
    },
    Provisioner,
};
use crate::{
    auth::KeySecret,
    clock::{Clock, SystemClock},
    error::ConfigError,
    id::{PlanName, TenantId},
    identity::{Keys, Tenants},
};

/// When a move to a lesser plan takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Downgrade {
    /// When the period ends that was paid for.
    #[default]
    AtPeriodEnd,
    /// When the provider says so.
    Immediately,
}

/// Asks the provider for a subscription as it is now, where two events of one second cannot be told apart.
#[async_trait]
pub trait RefetchSubscription: fmt::Debug + Send + Sync + 'static {
    /// The subscription as it is now, see [`Subscription::read`]; `None` when the provider has none of this id.
    ///
    /// # Errors
    ///
    /// Whatever went wrong: the event is not handled, and the provider is told to send it again.
    async fn refetch(
        &self,
        subscription: &str,
    ) -> Result<Option<Subscription>, Box<dyn std::error::Error + Send + Sync>>;
}

type TenantName = Arc<dyn Fn(&Checkout) -> Option<String> + Send + Sync>;

/// Makes a [`Provisioner`]. Plans are named cheapest first: a later one is the greater.
#[must_use]
pub struct ProvisionerBuilder {
    accounts: Arc<dyn AccountStore>,
    clock: Arc<dyn Clock>,
    currencies: Vec<Box<str>>,
    downgrade: Downgrade,
    entitlements: Vec<(Box<str>, String)>,
    keys: Keys,
    notifier: Arc<dyn Notifier>,
    pay_page: Option<Arc<str>>,
    plan_policies: Vec<(String, LifecyclePolicy)>,
    policy: LifecyclePolicy,
    prices: Vec<(Box<str>, String)>,
    refetch: Option<Arc<dyn RefetchSubscription>>,
    refuse_unknown: bool,
    scopes: Vec<Arc<str>>,
    secret: KeySecret,
    tenant_name: Option<TenantName>,
    tenant_policies: Vec<(String, LifecyclePolicy)>,
    tenants: Tenants,
}

/// What a provisioner was told.
pub(super) struct Settings {
    pub(super) accounts: Arc<dyn AccountStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) currencies: Vec<Box<str>>,
    pub(super) downgrade: Downgrade,
    pub(super) entitlements: BTreeMap<Box<str>, PlanName>,
    pub(super) keys: Keys,
    pub(super) notifier: Arc<dyn Notifier>,
    pub(super) pay_page: Option<Arc<str>>,
    pub(super) policies: LifecyclePolicies,
    pub(super) prices: BTreeMap<Box<str>, PlanName>,
    /// Cheapest first.
    pub(super) ranks: Vec<PlanName>,
    pub(super) refetch: Option<Arc<dyn RefetchSubscription>>,
    pub(super) refuse_unknown: bool,
    pub(super) scopes: Vec<Arc<str>>,
    pub(super) secret: KeySecret,
    pub(super) tenant_name: Option<TenantName>,
    pub(super) tenants: Tenants,
}

impl Settings {
    /// A greater plan has a greater number.
    pub(super) fn rank(&self, plan: &PlanName) -> Option<usize> {
        self.ranks.iter().position(|ranked| ranked == plan)
    }
}

impl ProvisionerBuilder {
    pub(super) fn new(
        keys: Keys,
        tenants: Tenants,
        accounts: Arc<dyn AccountStore>,
        secret: KeySecret,
    ) -> Self {
        Self {
            accounts,
            clock: SystemClock::shared(),
            currencies: Vec::new(),
            downgrade: Downgrade::default(),
            entitlements: Vec::new(),
            keys,
            notifier: Arc::new(LogNotices),
            pay_page: None,
            plan_policies: Vec::new(),
            policy: LifecyclePolicy::new(),
            prices: Vec::new(),
            refetch: None,
            refuse_unknown: false,
            scopes: Vec::new(),
            secret,
            tenant_name: None,
            tenant_policies: Vec::new(),
            tenants,
        }
    }

    /// Who buys this price, or a price of this product or with this lookup key, is on this plan. Of a subscription to
    /// several, the greatest plan counts.
    pub fn price(mut self, price: impl Into<Box<str>>, plan: impl Into<String>) -> Self {
        self.prices.push((price.into(), plan.into()));
        self
    }

    /// Who has a right to the feature with this lookup key is on this plan, where no price of theirs decides.
    pub fn entitlement(mut self, lookup_key: impl Into<Box<str>>, plan: impl Into<String>) -> Self {
        self.entitlements.push((lookup_key.into(), plan.into()));
        self
    }

    /// The policy for all tenants that have no other one.
    pub fn policy(mut self, policy: LifecyclePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Another policy for the tenants of a plan.
    pub fn plan_policy(mut self, plan: impl Into<String>, policy: LifecyclePolicy) -> Self {
        self.plan_policies.push((plan.into(), policy));
        self
    }

    /// Another policy for one tenant.
    pub fn tenant_policy(mut self, tenant: impl Into<String>, policy: LifecyclePolicy) -> Self {
        self.tenant_policies.push((tenant.into(), policy));
        self
    }

    /// A currency that plans are sold in, such as `eur`; every currency is right unless one is named. An event in another
    /// one is refused.
    pub fn currency(mut self, currency: impl AsRef<str>) -> Self {
        let currency = currency.as_ref().to_ascii_lowercase();
        self.currencies.push(currency.into());
        self
    }

    /// When a move to a lesser plan takes effect; at the end of the period that was paid for unless set.
    pub const fn downgrade(mut self, downgrade: Downgrade) -> Self {
        self.downgrade = downgrade;
        self
    }

    /// What the keys of checkouts may do; nothing but what needs no scope unless set.
    pub fn scopes(mut self, scopes: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        self.scopes.extend(scopes.into_iter().map(Into::into));
        self
    }

    /// How the tenant of a checkout is called; as the provider's customer unless set, and where it gives `None`.
    ///
    /// A tenant of that name may exist already, and is taken over: give it a name that your own server has written into
    /// the checkout. A payment link takes its `client_reference_id` from the buyer, who could name somebody else's tenant
    /// and be handed a key of it.
    pub fn tenant_name(
        mut self,
        name: impl Fn(&Checkout) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.tenant_name = Some(Arc::new(name));
        self
    }

    /// Where people pay, for the 402 problem, until an invoice of theirs has a page of its own.
    pub fn pay_page(mut self, url: impl Into<Arc<str>>) -> Self {
        self.pay_page = Some(url.into());
        self
    }

    /// Who tells people; the log unless set.
    pub fn notifier(mut self, notifier: impl Notifier) -> Self {
        self.notifier = Arc::new(notifier);
        self
    }

    /// Whom to ask where two events of one second cannot be told apart. Without it the later step counts: deleted, then
    /// changed, then made, then the graver status.
    pub fn refetch(mut self, refetch: impl RefetchSubscription) -> Self {
        self.refetch = Some(Arc::new(refetch));
        self
    }

    /// Refuses events of customers of whom no checkout has told; they are noted unless set, as a subscription's first
    /// event mostly comes before that of its checkout.
    pub const fn refuse_unknown_customers(mut self, on: bool) -> Self {
        self.refuse_unknown = on;
        self
    }

    /// The clock that decides what has ended.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names a plan that is not in the catalog, a price that is named twice, or says that no price is
    /// named.
    pub fn build(self) -> Result<Provisioner, ConfigError> {
        let plan = |path: String, name: &str| known_plan(&self.tenants, path, name);
        let mut ranks: Vec<PlanName> = Vec::new();
        let mut names = |path: &str, entries: &[(Box<str>, String)]| {
            let mut by_name = BTreeMap::new();
            for (name, text) in entries {
                let path = format!("{path}[{name}]");
                let plan = plan(path.clone(), text)?;
                if !ranks.contains(&plan) {
                    ranks.push(plan.clone());
                }
                if by_name.insert(name.clone(), plan).is_some() {
                    return Err(ConfigError::new(path, "named twice: remove one"));
                }
            }
            Ok(by_name)
        };
        let prices = names("prices", &self.prices)?;
        let entitlements = names("entitlements", &self.entitlements)?;
        if ranks.is_empty() {
            return Err(ConfigError::new(
                "prices",
                "no price leads to a plan: name each with `price`",
            ));
        }
        let policies = self.policies()?;
        Ok(Provisioner::of(Settings {
            accounts: self.accounts,
            clock: self.clock,
            currencies: self.currencies,
            downgrade: self.downgrade,
            entitlements,
            keys: self.keys,
            notifier: self.notifier,
            pay_page: self.pay_page,
            policies,
            prices,
            ranks,
            refetch: self.refetch,
            refuse_unknown: self.refuse_unknown,
            scopes: self.scopes,
            secret: self.secret,
            tenant_name: self.tenant_name,
            tenants: self.tenants,
        }))
    }
}

impl ProvisionerBuilder {
    fn policies(&self) -> Result<LifecyclePolicies, ConfigError> {
        let mut policies = LifecyclePolicies::new(self.policy.clone());
        check_end(&self.tenants, "policy", &self.policy)?;
        for (name, policy) in &self.plan_policies {
            let path = format!("plan_policies[{name}]");
            check_end(&self.tenants, &path, policy)?;
            policies = policies.plan(known_plan(&self.tenants, path, name)?, policy.clone());
        }
        for (name, policy) in &self.tenant_policies {
            let path = format!("tenant_policies[{name}]");
            check_end(&self.tenants, &path, policy)?;
            let tenant = TenantId::new(name)
                .map_err(|source| ConfigError::new(path, source.to_string()).caused_by(source))?;
            policies = policies.tenant(tenant, policy.clone());
        }
        Ok(policies)
    }
}

fn known_plan(tenants: &Tenants, path: String, name: &str) -> Result<PlanName, ConfigError> {
    let plan = PlanName::new(name)
        .map_err(|source| ConfigError::new(path.clone(), source.to_string()).caused_by(source))?;
    match tenants.check_plan(&plan) {
        Ok(()) => Ok(plan),
        Err(error) => Err(ConfigError::new(path, error.to_string()).caused_by(error)),
    }
}

fn check_end(tenants: &Tenants, path: &str, policy: &LifecyclePolicy) -> Result<(), ConfigError> {
    match policy.end() {
        OnEnd::Downgrade(plan) => {
            known_plan(tenants, format!("{path}.on_end"), plan.as_str()).map(drop)
        }
        _ => Ok(()),
    }
}

impl fmt::Debug for ProvisionerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProvisionerBuilder")
            .field("prices", &self.prices)
            .field("entitlements", &self.entitlements)
            .finish_non_exhaustive()
    }
}
