//! Drafts of invoices as Stripe's invoice items.

mod builder;
mod call;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;

pub use self::builder::StripeInvoiceItemsBuilder;
use self::call::{Caller, DRAFT, Item, LINE, Made};
use super::{InvoiceSink, InvoiceSinkError, Issued};
use crate::{
    http_send::HttpSend,
    pricing::{InvoiceDraft, InvoiceLine, Money},
    sink::StripeCustomers,
};

/// Pages of a hundred items that are read of a customer.
const MAX_PAGES: usize = 1_000;
/// How many failures that Stripe repeats for a key are passed over.
const MAX_REPLAYS: u32 = 8;

/// Makes an invoice item of each line of a draft: `POST /v1/invoiceitems`.
///
/// Stripe puts pending items on the customer's next invoice; the charge, tax and dunning stay with Stripe.
///
/// 1. Every item tells in its metadata of which draft and line it is (`tollgate_invoice`, `tollgate_line`). Before any is
///    made, the customer's items are listed, and what is there already is not made again: a draft that is issued twice,
///    or whose first attempt broke off, comes to the same items, also after Stripe has forgotten the keys.
/// 2. Every `POST` carries an `Idempotency-Key` of the draft (tenant, period, version) and the line, so that two
///    processes that issue one draft at the same time make each item once.
/// 3. An item that is there with another amount is a [`Conflict`](InvoiceSinkError::Conflict), and nothing is made. So
///    make the next version of a draft, never another draft of the same.
/// 4. A line that comes to nothing makes no item. A credit makes one below zero.
///
/// Amounts are in Stripe's own smallest unit, which for a few currencies is not that of ISO 4217: `ISK` and `UGX` are
/// sent with two decimals, `MGA` without any, and amounts of three decimals (`KWD` and the like) must be rounded to ten.
///
/// ```
/// use std::{collections::HashMap, sync::Arc};
///
/// use async_trait::async_trait;
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use tollgate::{
///     clock::Timestamp,
///     http_send::{HttpSend, HttpSendError},
///     id::{PlanName, TenantId},
///     invoicing::{InvoiceSink, StripeInvoiceItems},
///     pricing::{BillingPeriod, InvoiceDraft, PriceBook, Prices, UsageTotals},
/// };
///
/// #[derive(Debug)]
/// struct Stripe;
///
/// #[async_trait]
/// impl HttpSend for Stripe {
///     async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpSendError> {
///         if request.method() == "POST" {
///             let form = String::from_utf8_lossy(request.body());
///             assert!(form.starts_with("customer=cus_1&amount=2900&currency=usd&description=base&"));
///             assert!(request.headers().contains_key("idempotency-key"));
///         }
///         Ok(Response::new(Bytes::from_static(br#"{"data": [], "has_more": false}"#)))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let acme = TenantId::new("acme")?;
/// let customers: HashMap<TenantId, Arc<str>> = HashMap::from([(acme.clone(), Arc::from("cus_1"))]);
/// let items = StripeInvoiceItems::builder(Stripe, "the secret key", customers).build()?;
///
/// let prices = Arc::new(PriceBook::new(&Prices::new("USD").fee("base", "29.00"))?);
/// let period = BillingPeriod::new(Timestamp::UNIX_EPOCH, Timestamp::from_unix_seconds(2_678_400))?;
/// let draft = InvoiceDraft::builder(acme, period).plan(PlanName::new("pro")?, prices, UsageTotals::new()).draft()?;
/// items.issue(&draft).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct StripeInvoiceItems {
    caller: Caller,
    customers: Arc<dyn StripeCustomers>,
}

/// A tenant has no customer at Stripe.
#[derive(Debug, thiserror::Error)]
#[error("the tenant has no customer at Stripe")]
struct NoCustomer;

/// Stripe has no such amount.
#[derive(Debug, thiserror::Error)]
#[error("Stripe has no amount of {0}: its smallest unit is another")]
struct NoAmount(Money);

/// A customer has more items than are read.
#[derive(Debug, thiserror::Error)]
#[error("the customer has more than {MAX_PAGES} pages of invoice items")]
struct TooManyItems;

/// Stripe repeats the failure of an earlier call.
#[derive(Debug, thiserror::Error)]
#[error("Stripe repeats earlier failures for this line")]
struct StillFailing;

impl StripeInvoiceItems {
    /// A sink that sends with an HTTP client under a secret key, for the customers that tenants are. A restricted key
    /// that may read and write invoice items is enough. Neither `Debug` nor an error shows the key.
    pub fn builder(
        client: impl HttpSend,
        secret: impl Into<Box<str>>,
        customers: impl StripeCustomers,
    ) -> StripeInvoiceItemsBuilder {
        StripeInvoiceItemsBuilder::new(Arc::new(client), secret.into(), Arc::new(customers))
    }

    /// The items of a draft that are there, by line.
    async fn existing(
        &self,
        customer: &str,
        draft: &InvoiceDraft,
    ) -> Result<BTreeMap<String, Item>, InvoiceSinkError> {
        let mut existing = BTreeMap::new();
        let mut after: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let page = self.caller.page(customer, after.as_deref()).await?;
            after = page.data.last().map(|item| item.id.clone());
            for item in page.data {
                if item.metadata.get(DRAFT).is_some_and(|id| **id == *draft.id)
                    && let Some(line) = item.metadata.get(LINE)
                {
                    existing.insert(line.clone(), item);
                }
            }
            if !page.has_more || after.is_none() {
                return Ok(existing);
            }
        }
        Err(InvoiceSinkError::unavailable(TooManyItems))
    }

    /// Makes the item of a line; `false` when another process was first.
    async fn create(
        &self,
        customer: &str,
        draft: &InvoiceDraft,
        line: &InvoiceLine,
        amount: i64,
    ) -> Result<bool, InvoiceSinkError> {
        for attempt in 0..MAX_REPLAYS {
            let mut key = format!("tollgate-{}-{}", draft.id, line.id);
            if attempt > 0 {
                key.push_str(&format!("-{attempt}"));
            }
            match self
                .caller
                .create(&key, form(customer, draft, line, amount))
                .await?
            {
                Made::Done => return Ok(true),
                Made::Mismatch => return Err(InvoiceSinkError::Conflict),
                Made::OldFailure => {
                    // That call is over, so that a look tells whether it made the item before it failed.
                    let existing = self.existing(customer, draft).await?;
                    if let Some(item) = existing.get(&*line.id) {
                        return is_same(item, draft, amount)
                            .then_some(false)
                            .ok_or(InvoiceSinkError::Conflict);
                    }
                }
            }
        }
        Err(InvoiceSinkError::unavailable(StillFailing))
    }
}

fn is_same(item: &Item, draft: &InvoiceDraft, amount: i64) -> bool {
    item.amount == amount && item.currency.eq_ignore_ascii_case(draft.currency.code())
}

fn form(customer: &str, draft: &InvoiceDraft, line: &InvoiceLine, amount: i64) -> String {
    let seconds = |at: crate::clock::Timestamp| at.as_unix_seconds().to_string();
    form_urlencoded::Serializer::new(String::new())
        .append_pair("customer", customer)
        .append_pair("amount", &amount.to_string())
        .append_pair("currency", &draft.currency.code().to_ascii_lowercase())
        .append_pair("description", &line.description)
        .append_pair("period[start]", &seconds(draft.period.start()))
        .append_pair("period[end]", &seconds(draft.period.end()))
        .append_pair(&format!("metadata[{DRAFT}]"), &draft.id)
        .append_pair(&format!("metadata[{LINE}]"), &line.id)
        .finish()
}

/// The amount in Stripe's smallest unit (docs.stripe.com/currencies#zero-decimal and #special-cases).
fn stripe_amount(amount: Money) -> Result<i64, InvoiceSinkError> {
    let minor = amount.minor();
    let divided = |by: i128| (minor % by == 0).then(|| minor / by);
    let units = match (amount.currency().code(), amount.currency().exponent()) {
        ("ISK" | "UGX", _) => minor.checked_mul(100),
        ("MGA", exponent) => divided(10_i128.pow(exponent)),
        (_, 3) => divided(10).map(|_| minor),
        _ => Some(minor),
    };
    units
        .and_then(|units| i64::try_from(units).ok())
        .ok_or_else(|| InvoiceSinkError::refused(NoAmount(amount)))
}

#[async_trait]
impl InvoiceSink for StripeInvoiceItems {
    async fn issue(&self, draft: &InvoiceDraft) -> Result<Issued, InvoiceSinkError> {
        let mut wanted = Vec::new();
        for line in draft.lines.iter().filter(|line| !line.amount.is_zero()) {
            wanted.push((line, stripe_amount(line.amount)?));
        }
        if wanted.is_empty() {
            return Ok(Issued::Already);
        }
        let customer = self.customers.customer(&draft.tenant).await;
        let customer = customer
            .map_err(InvoiceSinkError::Unavailable)?
            .ok_or_else(|| InvoiceSinkError::refused(NoCustomer))?;
        let existing = self.existing(&customer, draft).await?;
        let known = |line: &InvoiceLine| existing.get(&*line.id);
        let differs = wanted
            .iter()
            .any(|(line, amount)| known(line).is_some_and(|item| !is_same(item, draft, *amount)));
        let is_foreign = existing
            .keys()
            .any(|id| wanted.iter().all(|(line, _)| *line.id != **id));
        if differs || is_foreign {
            return Err(InvoiceSinkError::Conflict);
        }
        let mut issued = Issued::Already;
        for (line, amount) in wanted {
            if known(line).is_none() && self.create(&customer, draft, line, amount).await? {
                issued = Issued::Now;
            }
        }
        Ok(issued)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_in_stripes_own_unit() {
        for (amount, units) in [
            ("12.34 USD", Some(1_234)),
            ("-12.34 USD", Some(-1_234)),
            ("500 JPY", Some(500)),
            ("5 ISK", Some(500)),
            ("5 UGX", Some(500)),
            ("5.00 MGA", Some(5)),
            ("5.01 MGA", None),
            ("5.120 KWD", Some(5_120)),
            ("5.123 KWD", None),
            ("99999999999999999999 USD", None),
        ] {
            let amount: Money = amount.parse().unwrap();
            assert_eq!(stripe_amount(amount).ok(), units, "{amount}");
        }
    }
}
