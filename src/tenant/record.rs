use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::AccessState;
use crate::{
    clock::Timestamp,
    id::{PlanName, TenantId},
};

/// A tenant as its store keeps it: who it is, what it bought and whether it paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TenantRecord {
    /// The tenant's name in every count, event and invoice.
    pub id: TenantId,
    /// The plan it bought.
    pub plan: PlanName,
    /// What its payments let it do.
    #[serde(default)]
    pub access: AccessState,
    /// The start of its billing periods; a calendar month when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub billing_anchor: Option<Timestamp>,
    /// Where its people can pay; shown in the 402 problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pay_url: Option<Arc<str>>,
    /// A hint for routers that serve tenants from different back ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_hint: Option<Arc<str>>,
    /// Grows with each change; compare-and-set is against this number. A new record has 1.
    #[serde(default)]
    pub version: u64,
}

impl TenantRecord {
    /// An active tenant on a plan.
    #[must_use]
    pub const fn new(id: TenantId, plan: PlanName) -> Self {
        Self {
            id,
            plan,
            access: AccessState::Active,
            billing_anchor: None,
            pay_url: None,
            route_hint: None,
            version: 0,
        }
    }
}
