//! From an event to a changed account, and from that to what was changed.

use async_trait::async_trait;

use super::{
    super::{
        Account, BillingEvent, BillingEventHandler, BillingObject, Checkout, EventKind, Handled,
        HandlerError, Invoice, LedgerError, Notice, Subscription, SubscriptionStatus,
        facts::{Fold, Source},
    },
    ProvisionError, Provisioner,
    target::Target,
};
use crate::{
    id::{Environment, TenantId},
    identity::NewKey,
    tenant::AccessState,
};

/// How often a change is repeated because others changed the account meanwhile.
const MAX_TRIES: usize = 64;

const CUSTOMER: &str = "data.object.customer";
const ID: &str = "data.object.id";
const CURRENCY: &str = "data.object.currency";
const TENANT_NAME: &str = "tenant_name";
const PRICE: &str = "data.object.items.data[0].price.id";

type Id<'a> = Option<&'a str>;

fn required<'a>(
    value: &'a Option<Box<str>>,
    field: &'static str,
) -> Result<&'a str, ProvisionError> {
    value
        .as_deref()
        .ok_or(ProvisionError::MissingField { field })
}

#[async_trait]
impl BillingEventHandler for Provisioner {
    async fn handle(&self, event: &BillingEvent) -> Result<Handled, HandlerError> {
        Ok(self.provision(event).await?)
    }
}

impl Provisioner {
    /// Does what follows from an event, as [`BillingEventHandler::handle`] does.
    ///
    /// # Errors
    ///
    /// [`ProvisionError`], with the field of the event where one is wrong.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have done a part; the same event again does the rest.
    pub async fn provision(&self, event: &BillingEvent) -> Result<Handled, ProvisionError> {
        let source = Source {
            event: event.id(),
            created: event.created(),
            kind: event.kind(),
        };
        let environment = match event.livemode() {
            Some(false) => Environment::Test,
            _ => Environment::Live,
        };
        match (event.kind(), event.object()) {
            (EventKind::CheckoutCompleted, BillingObject::Checkout(checkout)) => {
                self.checkout(checkout, source, environment).await
            }
            (_, BillingObject::Subscription(subscription)) => {
                self.subscription(subscription, source, environment).await
            }
            (
                EventKind::InvoicePaid | EventKind::InvoicePaymentFailed | EventKind::InvoiceVoided,
                BillingObject::Invoice(invoice),
            ) => self.invoice(invoice, source, environment).await,
            (_, BillingObject::Entitlements(summary)) => {
                let customer = required(&summary.customer, CUSTOMER)?;
                let fold = |account: &mut Account| account.fold_entitlements(summary, source);
                self.change(customer, environment, fold).await
            }
            (EventKind::CustomerDeleted, BillingObject::Customer(customer)) => {
                let customer = required(&customer.id, ID)?;
                if self.account(customer).await?.is_none() {
                    return Ok(Handled::Ignored);
                }
                let fold = |account: &mut Account| account.fold_deletion(source.created);
                self.change(customer, environment, fold).await
            }
            _ => Ok(Handled::Ignored),
        }
    }

    async fn checkout(
        &self,
        checkout: &Checkout,
        source: Source<'_>,
        environment: Environment,
    ) -> Result<Handled, ProvisionError> {
        if checkout
            .mode
            .as_deref()
            .is_some_and(|mode| mode != "subscription")
        {
            return Ok(Handled::Ignored);
        }
        let id = required(&checkout.id, ID)?;
        let customer = required(&checkout.customer, CUSTOMER)?;
        self.check_currency(checkout.currency.as_deref())?;
        let named = self
            .settings
            .tenant_name
            .as_ref()
            .and_then(|name| name(checkout));
        let (name, field) = match &named {
            Some(name) => (name.as_str(), TENANT_NAME),
            None => (customer, CUSTOMER),
        };
        let tenant = TenantId::new(name)
            .map_err(|source| ProvisionError::InvalidTenant { field, source })?;
        let fold = |account: &mut Account| {
            account.fold_checkout(id, checkout, tenant.clone(), source.created)
        };
        self.change(customer, environment, fold).await
    }

    async fn subscription(
        &self,
        subscription: &Subscription,
        source: Source<'_>,
        environment: Environment,
    ) -> Result<Handled, ProvisionError> {
        let id = required(&subscription.id, ID)?;
        let customer = required(&subscription.customer, CUSTOMER)?;
        self.check_subscription(subscription)?;
        let known = self.known(customer).await?;
        let mut asked = None;
        if let Some(refetch) = &self.settings.refetch
            && known.is_some_and(|account| account.ties_with(subscription, source))
        {
            asked = refetch.refetch(id).await.map_err(ProvisionError::Refetch)?;
        }
        if let Some(asked) = &asked {
            self.check_subscription(asked)?;
        }
        // The answer is about the tie: what came meanwhile, such as the end, is not overwritten by it.
        let fold = |account: &mut Account| match &asked {
            Some(asked) if account.ties_with(subscription, source) => {
                account.fold_subscription(id, asked, source, true)
            }
            _ => account.fold_subscription(id, subscription, source, false),
        };
        self.change(customer, environment, fold).await
    }

    async fn invoice(
        &self,
        invoice: &Invoice,
        source: Source<'_>,
        environment: Environment,
    ) -> Result<Handled, ProvisionError> {
        let customer = required(&invoice.customer, CUSTOMER)?;
        self.check_currency(invoice.currency.as_deref())?;
        self.known(customer).await?;
        let subscription = invoice.subscription.as_deref().unwrap_or_default();
        let pay_url: Id<'_> = invoice.pay_url.as_deref();
        let fold = |account: &mut Account| account.fold_invoice(subscription, pay_url, source);
        self.change(customer, environment, fold).await
    }

    fn check_currency(&self, found: Id<'_>) -> Result<(), ProvisionError> {
        let currencies = &self.settings.currencies;
        match found {
            Some(found)
                if !currencies.is_empty() && !currencies.iter().any(|it| **it == *found) =>
            {
                Err(ProvisionError::OtherCurrency {
                    field: CURRENCY,
                    expected: currencies.join(", "),
                    found: found.into(),
                })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_subscription(
        &self,
        subscription: &Subscription,
    ) -> Result<(), ProvisionError> {
        self.check_currency(subscription.currency.as_deref())?;
        if subscription.status == SubscriptionStatus::Unknown {
            return Err(ProvisionError::UnknownStatus {
                field: "data.object.status",
            });
        }
        // What has ended needs no plan, and with entitlements a price need not lead to one.
        if subscription.status.is_terminal() || !self.settings.entitlements.is_empty() {
            return Ok(());
        }
        let names = subscription.names();
        match (names.first(), self.settings.plan_of(&names)) {
            (_, Some(_)) => Ok(()),
            (None, None) => Err(ProvisionError::MissingField { field: PRICE }),
            (Some(price), None) => Err(ProvisionError::UnknownPrice {
                field: PRICE,
                price: price.clone(),
            }),
        }
    }

    /// The customer's account, which must be there where unknown customers are refused.
    async fn known(&self, customer: &str) -> Result<Option<Account>, ProvisionError> {
        let known = self.account(customer).await?;
        let has_bought = known
            .as_ref()
            .is_some_and(|account| account.tenant().is_some());
        if self.settings.refuse_unknown && !has_bought {
            return Err(ProvisionError::UnknownCustomer {
                field: CUSTOMER,
                customer: customer.into(),
            });
        }
        Ok(known)
    }

    /// Changes a customer's account, and then all that follows from it.
    pub(super) async fn change(
        &self,
        customer: &str,
        environment: Environment,
        fold: impl Fn(&mut Account) -> Fold + Send,
    ) -> Result<Handled, ProvisionError> {
        let accounts = &self.settings.accounts;
        for _ in 0..MAX_TRIES {
            let now = self.settings.clock.now().wall();
            let known = accounts.load(customer).await?;
            let mut account = match &known {
                Some(known) => known.clone(),
                None => Account::new(customer, environment),
            };
            let folded = fold(&mut account);
            if folded == Fold::OtherTenant {
                return Err(ProvisionError::OtherTenant {
                    field: TENANT_NAME,
                    customer: customer.into(),
                });
            }
            let target = self.settings.target(&account, now);
            if let Some(target) = &target {
                self.settings.note(&mut account, target, now);
            }
            if known.as_ref() != Some(&account) {
                match accounts.save(&account).await {
                    Err(LedgerError::Conflict) => continue,
                    saved => saved?,
                }
                account = account.at_version(account.version().saturating_add(1));
            }
            let Some(target) = target else {
                return Ok(Handled::Waiting);
            };
            self.bring_about(account, target).await?;
            return Ok(match folded {
                Fold::Newest => Handled::Applied,
                _ => Handled::Stale,
            });
        }
        Err(LedgerError::Conflict.into())
    }

    /// Makes tenant and keys as the account says, and tells people. Repeated until the account has not changed meanwhile:
    /// of two at once, the last to finish has seen the newest.
    async fn bring_about(
        &self,
        mut account: Account,
        mut target: Target,
    ) -> Result<(), ProvisionError> {
        let settings = &self.settings;
        let mut is_told = false;
        for _ in 0..MAX_TRIES {
            self.apply(&account, &target).await?;
            let notices = std::mem::take(&mut account.outbox);
            self.tell(&notices).await?;
            if notices.is_empty() && !is_told {
                let newest = settings.accounts.load(account.customer()).await?;
                match newest {
                    Some(newest) if newest.version() != account.version() => account = newest,
                    _ => return Ok(()),
                }
            } else {
                match settings.accounts.save(&account).await {
                    Err(LedgerError::Conflict) => {}
                    saved => return Ok(saved?),
                }
                let newest = settings.accounts.load(account.customer()).await?;
                let Some(mut newest) = newest else {
                    return Ok(());
                };
                newest.outbox.retain(|notice| !notices.contains(notice));
                (account, is_told) = (newest, true);
            }
            match settings.target(&account, settings.clock.now().wall()) {
                Some(newest) => target = newest,
                None => return Ok(()),
            }
        }
        Err(LedgerError::Conflict.into())
    }

    async fn apply(&self, account: &Account, target: &Target) -> Result<(), ProvisionError> {
        let settings = &self.settings;
        settings.tenants.check_plan(&target.plan)?;
        settings
            .tenants
            .ensure(&target.tenant, &target.plan)
            .await?;
        let set = |record: &mut crate::tenant::TenantRecord| {
            // Closed by the service's own people, who alone open it again.
            if record.access != AccessState::Closed {
                record.access = target.access;
            }
            record.plan = target.plan.clone();
            if target.billing_anchor.is_some() {
                record.billing_anchor = target.billing_anchor;
            }
            if target.pay_url.is_some() {
                record.pay_url.clone_from(&target.pay_url);
            } else if record.pay_url == target.old_pay_url {
                record.pay_url = None;
            }
        };
        settings.tenants.update(&target.tenant, set).await?;
        for checkout in account.checkouts.keys() {
            let new = NewKey::for_tenant(&target.tenant)
                .environment(account.environment)
                .scopes(settings.scopes.iter().cloned());
            settings
                .keys
                .issue_derived(new, &settings.secret, checkout)
                .await?;
        }
        Ok(())
    }

    async fn tell(&self, notices: &[Notice]) -> Result<(), ProvisionError> {
        for notice in notices {
            self.settings.notifier.notify(notice).await?;
        }
        Ok(())
    }
}
