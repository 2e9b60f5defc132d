//! What a tenant owes: prices, what use comes to, and drafts of invoices.
//!
//! Pure functions on whole numbers: nothing here does I/O, reads a clock or rounds before the end of a line.
//!
//! 1. [`Prices`] belong to a plan: fees of the period, and for each meter a [`MeterPrice`] (per unit, graduated,
//!    volume, package or flat) with included units, overage, discount, minimum, cap and shares of others. A
//!    [`PriceBook`] is prices that were checked; a fault is a `ConfigError` that names the field.
//! 2. [`UsageTotals`] say what was used, by API and meter, filled from usage events or from anything else that counts.
//! 3. [`rate()`] makes lines of both, each with a trace of how it came about and rounded once. A change of plan within
//!    a period is two [`Part`]s of it, which add up to the whole.
//! 4. An [`InvoiceDraft`] is what one tenant owes for one period. Later versions hold corrections.
//! 5. [`margin_report`] holds what came in against what it cost you.
//!
//! The [guide](crate::guide::pricing) works an example of each model.
//!
//! ```
//! use std::sync::Arc;
//! use tollgate::{clock::Timestamp, id::{PlanName, TenantId}, pricing::*};
//!
//! let prices = Prices::new("USD").fee("base", "29.00").meter(MeterPrice::per_unit("calls", "0.0005").included(1_000));
//! let book = Arc::new(PriceBook::new(&prices)?);
//! let period = BillingPeriod::new(Timestamp::UNIX_EPOCH, Timestamp::from_unix_seconds(2_678_400))?;
//!
//! let mut usage = UsageTotals::new();
//! usage.add("chat", "calls", Used::new(13_000, 0));
//! let (acme, pro) = (TenantId::new("acme")?, PlanName::new("pro")?);
//! let draft = InvoiceDraft::builder(acme.clone(), period).plan(pro.clone(), book.clone(), usage.clone()).draft()?;
//! assert_eq!(draft.total.to_string(), "35.00 USD");
//!
//! // A hundred calls arrive late: the next version asks for them alone.
//! usage.add("chat", "calls", Used::new(100, 0));
//! let late = InvoiceDraft::builder(acme, period).plan(pro, book, usage).correct(&draft)?.expect("a difference");
//! assert_eq!((late.version, late.total.to_string()), (2, "0.05 USD".to_owned()));
//!
//! // A price below nothing is refused by name.
//! let error = PriceBook::new(&Prices::new("USD").meter(MeterPrice::per_unit("calls", "-1"))).unwrap_err();
//! assert_eq!(error.path(), "meters[0].price");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod book;
mod decimal;
mod invoice;
mod line;
mod margin;
mod model;
mod money;
mod period;
mod rate;
mod reconcile;
mod usage;

pub use self::{
    book::PriceBook,
    decimal::{DecimalError, Exact, Percent, Rounding, UnitPrice},
    invoice::{InvoiceDraft, InvoiceDraftBuilder, InvoiceLine, StandingLine},
    line::{Line, LineKind, PricingError, Rated, Share, TraceStep, Unpriced},
    margin::{MarginReport, margin_report},
    model::{MeterPrice, Model, Partial, Prices, Tier},
    money::{Currency, Money, MoneyError},
    period::{BillingPeriod, Part},
    rate::rate,
    reconcile::{ReconcileReport, ReconciledMeter},
    usage::{CALLS, REQUEST_BYTES, RESPONSE_BYTES, UsageTotals, Used},
};
