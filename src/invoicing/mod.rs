//! Where drafts of invoices go.
//!
//! 1. An [`InvoiceSink`] takes an [`InvoiceDraft`](crate::pricing::InvoiceDraft), each once: a draft that is issued
//!    again changes nothing, another one of the same tenant, period and version is refused.
//! 2. [`MemoryInvoices`] keeps them in the process. `PostgresInvoices` (feature `postgres`) keeps them in a table.
//!    `StripeInvoiceItems` (feature `stripe`) makes an invoice item of each line.
//!
//! The [guide](crate::guide::invoices) tells of versions and corrections.
//!
//! ```
//! use std::sync::Arc;
//! use tollgate::{clock::Timestamp, id::{PlanName, TenantId}, invoicing::*, pricing::*};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let book = Arc::new(PriceBook::new(&Prices::new("EUR").fee("base", "29.00"))?);
//! let period = BillingPeriod::new(Timestamp::UNIX_EPOCH, Timestamp::from_unix_seconds(2_678_400))?;
//! let (acme, pro) = (TenantId::new("acme")?, PlanName::new("pro")?);
//! let draft = InvoiceDraft::builder(acme.clone(), period).plan(pro, book, UsageTotals::new());
//!
//! let invoices = MemoryInvoices::new();
//! assert_eq!(invoices.issue(&draft.clone().draft()?).await?, Issued::Now);
//! assert_eq!(invoices.issue(&draft.clone().draft()?).await?, Issued::Already);
//!
//! let other = draft.credit("sla", "1.00 EUR".parse()?);
//! assert!(matches!(invoices.issue(&other.clone().draft()?).await, Err(InvoiceSinkError::Conflict)));
//! let last = invoices.latest(&acme, period).expect("a draft");
//! assert!(other.correct(&last)?.is_some());
//! # Ok(())
//! # }
//! ```

mod memory;
#[cfg(feature = "postgres")]
mod postgres_invoices;
mod sink;
#[cfg(feature = "stripe")]
mod stripe_items;

#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use self::postgres_invoices::PostgresInvoices;
#[cfg(feature = "stripe")]
#[cfg_attr(docsrs, doc(cfg(feature = "stripe")))]
pub use self::stripe_items::{StripeInvoiceItems, StripeInvoiceItemsBuilder};
pub use self::{
    memory::MemoryInvoices,
    sink::{InvoiceSink, InvoiceSinkError, Issued},
};
