use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use super::{AccessState, TenantRecord};
use crate::{
    clock::Timestamp,
    error::ConfigError,
    id::{PlanName, TenantId},
};

/// Tenants as a file keeps them; any serde format will do.
///
/// In an entry only `id` and `plan` must be given; a field that is not known is refused, so that a
/// misspelt one is found at the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantDocument {
    pub(crate) tenants: Vec<TenantEntry>,
}

/// The fields of a [`TenantRecord`]. Apart from it, since a record in a store may have fields of a later
/// version.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantEntry {
    id: TenantId,
    plan: PlanName,
    #[serde(default)]
    access: AccessState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    billing_anchor: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pay_url: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    route_hint: Option<Arc<str>>,
    #[serde(default)]
    version: u64,
}

impl TenantDocument {
    /// Reads a document from JSON.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the entry and the field, such as `tenants[3].plan`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        ConfigError::read_json(text)
    }

    /// Reads a document from any format, such as TOML. Of the format's own error only the last line is kept, as
    /// some quote the document.
    ///
    /// # Errors
    ///
    /// As [`TenantDocument::from_json`].
    pub fn from_deserializer<'de, D>(deserializer: D) -> Result<Self, ConfigError>
    where
        D: Deserializer<'de>,
    {
        ConfigError::read(deserializer)
    }

    /// The tenants.
    pub fn into_records(self) -> impl Iterator<Item = TenantRecord> {
        self.tenants.into_iter().map(|entry| TenantRecord {
            id: entry.id,
            plan: entry.plan,
            access: entry.access,
            billing_anchor: entry.billing_anchor,
            pay_url: entry.pay_url,
            route_hint: entry.route_hint,
            version: entry.version,
        })
    }
}

impl FromIterator<TenantRecord> for TenantDocument {
    fn from_iter<I: IntoIterator<Item = TenantRecord>>(records: I) -> Self {
        let entries = records.into_iter().map(|record| TenantEntry {
            id: record.id,
            plan: record.plan,
            access: record.access,
            billing_anchor: record.billing_anchor,
            pay_url: record.pay_url,
            route_hint: record.route_hint,
            version: record.version,
        });
        Self {
            tenants: entries.collect(),
        }
    }
}
