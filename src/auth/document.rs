use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use super::{KeyDigest, KeyRecord};
use crate::{
    clock::Timestamp,
    error::ConfigError,
    id::{Environment, InvalidId, KeyId, PlanName, TenantId},
    limit::Rule,
};

/// Keys as a file keeps them: digests and records, never a raw key.
///
/// Any serde format will do. In an entry only `digest` (64 hexadecimal digits) and `tenant` must be given:
///
/// ```
/// use tollgate::auth::{KeyDocument, MemoryKeyStore};
///
/// let document = KeyDocument::from_json(
///     r#"{"keys": [{
///         "digest": "03ba3280d3163edc18a9e4ed19cf57a4ba49c1f822c84e7191cbe9cd6048223a",
///         "tenant": "acme",
///         "scopes": ["chat:write"]
///     }]}"#,
/// )?;
/// let store = MemoryKeyStore::from_document(document)?;
/// assert_eq!(store.to_document().len(), 1);
///
/// let error = KeyDocument::from_json(r#"{"keys": [{"digest": "not hex", "tenant": "acme"}]}"#);
/// assert!(error.unwrap_err().to_string().starts_with("keys[0].digest: "));
/// # Ok::<(), tollgate::error::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDocument {
    pub(crate) keys: Vec<KeyEntry>,
}

/// One key of a document: its digest and the fields of its record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyEntry {
    digest: KeyDigest,
    /// Made from the digest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<KeyId>,
    tenant: TenantId,
    #[serde(default)]
    environment: Environment,
    #[serde(default = "hidden")]
    shown: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counts_as: Option<KeyId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<PlanName>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    scopes: BTreeSet<Arc<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allowed_networks: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    limits: Vec<Rule>,
    #[serde(default)]
    created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Timestamp>,
    #[serde(default)]
    version: u64,
}

fn hidden() -> Arc<str> {
    Arc::from("…")
}

impl KeyDocument {
    /// A document without keys.
    #[must_use]
    pub const fn new() -> Self {
        Self { keys: Vec::new() }
    }

    /// Reads a document from JSON.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the entry and the field, such as `keys[3].digest`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        ConfigError::read_json(text)
    }

    /// Reads a document from any format, such as TOML. Of the format's own error only the last line is kept, as
    /// some quote the document.
    ///
    /// # Errors
    ///
    /// As [`KeyDocument::from_json`].
    pub fn from_deserializer<'de, D>(deserializer: D) -> Result<Self, ConfigError>
    where
        D: Deserializer<'de>,
    {
        ConfigError::read(deserializer)
    }

    /// Reads the compact form for environment variables: entries separated by commas, each
    /// `digest:tenant[:plan[:scopes]]` with scopes joined by `+`; `03ba…223a:acme::chat:read+chat:write` has
    /// scopes and no plan. All are live keys; what the form cannot say, such as a tenant whose name holds a
    /// colon, needs a document.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the entry and the field, such as `keys[0].digest`; it never shows the text, since
    /// somebody may have put a raw key there.
    pub fn from_compact(text: &str) -> Result<Self, ConfigError> {
        let entries = text.split(',').map(str::trim);
        let keys = entries
            .filter(|entry| !entry.is_empty())
            .enumerate()
            .map(|(index, entry)| {
                KeyEntry::from_compact(entry)
                    .map_err(|error| error.under(format_args!("keys[{index}]")))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { keys })
    }

    /// The keys, in the document's order, no two of one digest or one id.
    pub(crate) fn into_records(self) -> Result<Vec<(KeyDigest, KeyRecord)>, ConfigError> {
        let (mut digests, mut ids) = (HashMap::new(), HashMap::new());
        let numbered = self.keys.into_iter().enumerate();
        numbered
            .map(|(place, entry)| {
                let at = |error: ConfigError| error.under(format_args!("keys[{place}]"));
                let (digest, record) = entry.into_record().map_err(at)?;
                let twice = |field: &str, earlier: usize| {
                    let reason = format!("`keys[{earlier}]` has the same: remove one of them");
                    at(ConfigError::new(field, reason))
                };
                if let Some(earlier) = digests.insert(digest, place) {
                    return Err(twice("digest", earlier));
                }
                if let Some(earlier) = ids.insert(record.id.clone(), place) {
                    return Err(twice("id", earlier));
                }
                Ok((digest, record))
            })
            .collect()
    }

    /// How many keys the document holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the document holds no key.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl FromIterator<(KeyDigest, KeyRecord)> for KeyDocument {
    fn from_iter<I: IntoIterator<Item = (KeyDigest, KeyRecord)>>(keys: I) -> Self {
        let entries = keys.into_iter().map(KeyEntry::from);
        Self {
            keys: entries.collect(),
        }
    }
}

impl KeyEntry {
    fn into_record(self) -> Result<(KeyDigest, KeyRecord), ConfigError> {
        let id = match self.id {
            Some(id) => id,
            None => id_of(&self.digest).map_err(|source| invalid("id", source))?,
        };
        let record = KeyRecord {
            id,
            tenant: self.tenant,
            environment: self.environment,
            shown: self.shown,
            counts_as: self.counts_as,
            plan: self.plan,
            scopes: self.scopes,
            allowed_networks: self.allowed_networks,
            limits: self.limits,
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            version: self.version.max(1),
        };
        Ok((self.digest, record))
    }

    fn from_compact(text: &str) -> Result<Self, ConfigError> {
        // Four parts at most: what follows the third colon is the scopes, which have colons of their own.
        let mut parts = text.splitn(4, ':').map(str::trim);
        let digest = parts
            .next()
            .and_then(KeyDigest::from_hex)
            .ok_or_else(|| ConfigError::new("digest", "a digest is 64 hexadecimal digits"))?;
        let tenant = TenantId::new(parts.next().unwrap_or_default())
            .map_err(|source| invalid("tenant", source))?;
        let plan = parts
            .next()
            .filter(|plan| !plan.is_empty())
            .map(PlanName::new)
            .transpose()
            .map_err(|source| invalid("plan", source))?;
        let scopes = parts.next().unwrap_or_default().split('+').map(str::trim);
        let scopes = scopes.filter(|scope| !scope.is_empty()).map(Arc::from);
        Ok(Self {
            digest,
            id: None,
            tenant,
            environment: Environment::Live,
            shown: hidden(),
            counts_as: None,
            plan,
            scopes: scopes.collect(),
            allowed_networks: Vec::new(),
            limits: Vec::new(),
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: None,
            revoked_at: None,
            version: 0,
        })
    }
}

fn invalid(field: &str, source: InvalidId) -> ConfigError {
    ConfigError::new(field, source.to_string()).caused_by(source)
}

/// An id for a key whose document gives none: the same after each start. Half of a digest leads back to no
/// key.
fn id_of(digest: &KeyDigest) -> Result<KeyId, InvalidId> {
    let mut text = format!("key_{digest}");
    text.truncate(4 + 32);
    KeyId::new(text)
}

impl From<(KeyDigest, KeyRecord)> for KeyEntry {
    fn from((digest, record): (KeyDigest, KeyRecord)) -> Self {
        Self {
            digest,
            id: Some(record.id),
            tenant: record.tenant,
            environment: record.environment,
            shown: record.shown,
            counts_as: record.counts_as,
            plan: record.plan,
            scopes: record.scopes,
            allowed_networks: record.allowed_networks,
            limits: record.limits,
            created_at: record.created_at,
            expires_at: record.expires_at,
            revoked_at: record.revoked_at,
            version: record.version,
        }
    }
}
