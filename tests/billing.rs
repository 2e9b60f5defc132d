//! What the payment provider says, what is owed and what is asked for, through the public API.

#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the other test targets"
)]
mod common;

#[path = "billing/invoice.rs"]
mod invoice;
#[path = "billing/invoice_sinks.rs"]
mod invoice_sinks;
#[path = "billing/pricing.rs"]
mod pricing;
#[path = "billing/pricing_faults.rs"]
mod pricing_faults;
