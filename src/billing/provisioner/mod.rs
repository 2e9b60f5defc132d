//! From what the provider says to tenants, plans, keys and access.
//!
//! 1. An event is folded into the [`Account`](super::Account) of its customer, the same whatever order events come in.
//! 2. From the account follows what its tenant is to be: plan, access, billing anchor, pay page, one key per checkout.
//! 3. The account is saved, by compare-and-set, with what people are to be told; then tenant and keys are made so, and
//!    then people are told.
//!
//! A crash anywhere leaves the event unhandled; it comes again and does what is missing. Whatever is done twice is done
//! once: keys follow from their checkouts, and a tenant is set to what the account says. While it is not known who bought,
//! or what, nothing is made: a subscription's first event comes before its checkout or after it.

mod error;
mod handle;
mod reconcile;
mod settings;
mod target;

use std::{fmt, sync::Arc};

use self::settings::Settings;
pub use self::{
    error::ProvisionError,
    reconcile::{Difference, DifferenceKind, ReconcileReport, reconcile_subscriptions},
    settings::{Downgrade, ProvisionerBuilder, RefetchSubscription},
};
use super::{Account, AccountStore};
use crate::{
    auth::KeySecret,
    id::Environment,
    identity::{IssuedKey, Keys, Tenants},
};

/// The handler of events that keeps tenants, plans, keys and access as the provider says.
///
/// Cloning gives a second handle to the same one. It calls no provider, but for [`RefetchSubscription`] where one is set.
///
/// ```
/// use std::sync::Arc;
/// use tollgate::{
///     auth::KeySecret, billing::{BillingEventHandler, Delivered, Handled, MemoryLedger, Provisioner},
///     id::Environment, prelude::*,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let gate = Tollgate::builder().plans([Plan::new("free"), Plan::new("pro")]).build()?;
/// let accounts = Arc::new(MemoryLedger::new());
/// let secret = KeySecret::new(b"32 random bytes or more of yours")?;
/// let provisioner = Provisioner::builder(gate.keys(), gate.tenants(), accounts, secret)
///     .price("price_pro", "pro")
///     .build()?;
///
/// for body in [
///     &br#"{"id":"evt_1","type":"customer.subscription.created","created":1763769590,"livemode":true,"data":{"object":
///         {"id":"sub_1","customer":"cus_1","status":"active","items":{"data":[{"price":{"id":"price_pro"}}]}}}}"#[..],
///     br#"{"id":"evt_2","type":"checkout.session.completed","created":1763769591,"livemode":true,"data":{"object":
///         {"id":"cs_1","customer":"cus_1","subscription":"sub_1","mode":"subscription","payment_status":"paid"}}}"#,
/// ] {
///     let Delivered::Event(event) = Delivered::from_stripe(body)? else { unreachable!() };
///     provisioner.handle(&event).await?;
/// }
/// let issued = provisioner.key_of_checkout(Environment::Live, "cs_1").await?.expect("a key");
/// assert_eq!(issued.record.tenant.as_str(), "cus_1");
/// let tenant = gate.tenants().find(&issued.record.tenant).await?.expect("a tenant");
/// assert_eq!(tenant.plan().as_str(), "pro");
/// assert!(provisioner.key_of_checkout(Environment::Live, "cs_2").await?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Provisioner {
    settings: Arc<Settings>,
}

impl Provisioner {
    /// Begins a provisioner for a gate's keys and tenants. Keys of checkouts are derived under the secret.
    pub fn builder(
        keys: &Keys,
        tenants: &Tenants,
        accounts: impl AccountStore,
        secret: KeySecret,
    ) -> ProvisionerBuilder {
        ProvisionerBuilder::new(keys.clone(), tenants.clone(), Arc::new(accounts), secret)
    }

    fn of(settings: Settings) -> Self {
        Self {
            settings: Arc::new(settings),
        }
    }

    /// The key that was issued for a checkout, to be shown to its buyer; `None` until it is paid and its subscription is
    /// known. It is derived anew each time and kept nowhere.
    ///
    /// Show it to the buyer alone: the checkout's id stands in the URL of the page after it. A page that may be found by
    /// others asks for a sign-in first.
    ///
    /// # Errors
    ///
    /// [`ProvisionError::Keys`] when the key store failed.
    pub async fn key_of_checkout(
        &self,
        environment: Environment,
        checkout: &str,
    ) -> Result<Option<IssuedKey>, ProvisionError> {
        let settings = &self.settings;
        let found = settings
            .keys
            .find_derived(environment, &settings.secret, checkout);
        Ok(found.await?)
    }

    /// What is known of a customer.
    ///
    /// # Errors
    ///
    /// [`ProvisionError::Accounts`] when the store failed.
    pub async fn account(&self, customer: &str) -> Result<Option<Account>, ProvisionError> {
        Ok(self.settings.accounts.load(customer).await?)
    }
}

impl fmt::Debug for Provisioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provisioner")
            .field("prices", &self.settings.prices)
            .field("accounts", &self.settings.accounts)
            .finish_non_exhaustive()
    }
}
