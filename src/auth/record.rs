use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    id::{Environment, KeyId, PlanName, TenantId},
};

/// An API key as its store keeps it: everything but the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KeyRecord {
    /// Names the key without revealing it.
    pub id: KeyId,
    /// Whose key it is.
    pub tenant: TenantId,
    /// Live or test.
    #[serde(default)]
    pub environment: Environment,
    /// What may be shown of the key: prefix, environment and last four characters.
    pub shown: Arc<str>,
    /// The key under whose id this one is counted by rules of `Scope::Key`: the first of its line of
    /// rotations, so that a rotation doubles no quota. Its own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts_as: Option<KeyId>,
    /// A plan for this key instead of the tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanName>,
    /// What the key may do.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub scopes: BTreeSet<Arc<str>>,
    /// Networks that the key may be used from; any when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_networks: Vec<IpNet>,
    /// Rules for this key: each replaces the plan's rule of the same name, or is added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<crate::limit::Rule>,
    /// When the key was issued.
    pub created_at: Timestamp,
    /// When the key stops working; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When the key was revoked; it never works again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// Grows with each change. A new record has 1.
    #[serde(default)]
    pub version: u64,
}

impl KeyRecord {
    /// A live key without scopes, rules and expiry, of the tenant's own plan.
    #[must_use]
    pub const fn new(id: KeyId, tenant: TenantId, shown: Arc<str>, created_at: Timestamp) -> Self {
        Self {
            id,
            tenant,
            environment: Environment::Live,
            shown,
            counts_as: None,
            plan: None,
            scopes: BTreeSet::new(),
            allowed_networks: Vec::new(),
            limits: Vec::new(),
            created_at,
            expires_at: None,
            revoked_at: None,
            version: 0,
        }
    }

    /// Whether the key works at `now`: neither revoked nor expired. At `expires_at` itself it does not.
    #[must_use]
    pub fn is_usable_at(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|expiry| now < expiry)
    }
}
