//! What the payment provider says, what is owed and what is asked for, through the public API.

#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the other test targets"
)]
mod common;

#[path = "billing/endpoint.rs"]
mod endpoint;
#[path = "billing/events.rs"]
mod events;
#[path = "billing/invoice.rs"]
mod invoice;
#[path = "billing/invoice_sinks.rs"]
mod invoice_sinks;
#[path = "billing/ledgers.rs"]
mod ledgers;
#[path = "billing/lifecycle.rs"]
mod lifecycle;
#[path = "billing/official.rs"]
mod official;
#[path = "billing/openapi.rs"]
mod openapi;
#[path = "billing/openapi_random.rs"]
mod openapi_random;
#[path = "billing/pricing.rs"]
mod pricing;
#[path = "billing/pricing_faults.rs"]
mod pricing_faults;
#[path = "billing/pricing_model.rs"]
mod pricing_model;
#[path = "billing/provisioner.rs"]
mod provisioner;
#[path = "billing/provisioner_faults.rs"]
mod provisioner_faults;
#[path = "billing/service.rs"]
mod service;
#[path = "billing/service_input.rs"]
mod service_input;
#[path = "billing/shuffles.rs"]
mod shuffles;
#[path = "billing/signatures.rs"]
mod signatures;
#[path = "billing/stripe_items.rs"]
mod stripe_items;
#[path = "billing/support.rs"]
mod support;
