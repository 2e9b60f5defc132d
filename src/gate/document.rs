use std::{env, fs, path::Path};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    auth::{KeyDocument, KeyEntry},
    disk,
    error::ConfigError,
    plan::{PlanDocument, PlanEntry},
    tenant::{TenantDocument, TenantEntry},
};

/// Plans, tenants and keys as one document: what a gate needs to start without a server.
///
/// Given to [`TollgateBuilder::document`](super::TollgateBuilder::document) at the start, and to
/// [`Tollgate::reload`](super::Tollgate::reload) when it has changed. In TOML:
///
/// ```toml
/// [[plans]]
/// name = "free"
/// rules = [
///     { kind = "rate", limit = 5, per = "second", burst = 10 },
///     { kind = "rate", name = "chat", limit = 1, per = "second", route = "/v1/chat" },
///     { kind = "quota", limit = 1_000, period = "month" },
///     { kind = "quota", name = "tokens", limit = 50_000, period = "day", unit = "tokens" },
/// ]
///
/// [[tenants]]
/// id = "acme"
/// plan = "free"
///
/// [[keys]]
/// digest = "03ba3280d3163edc18a9e4ed19cf57a4ba49c1f822c84e7191cbe9cd6048223a"
/// tenant = "acme"
/// scopes = ["chat:write"]
/// ```
///
/// A key stands there by its digest ([`Keys::digest`](crate::identity::Keys::digest)), never as itself. `plans` is
/// a list as in a [`PlanDocument`], `tenants` as in a [`TenantDocument`], `keys` as in a [`KeyDocument`]; each may
/// be absent. A field that is not known is an error, and so is a key without its tenant, a tenant on no plan of the
/// gate, or anything that is there twice: the error names the field by its path, such as `keys[3].tenant`.
///
/// ```
/// use tollgate::{Tollgate, gate::Document};
///
/// let document = Document::from_json(
///     r#"{
///         "plans": [{"name": "free"}],
///         "tenants": [{"id": "acme", "plan": "fre"}]
///     }"#,
/// )?;
/// let error = Tollgate::builder().document(document).build().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "tenants[0].plan: there is no plan `fre`: add it to `plans`, or name one of `free`"
/// );
/// # Ok::<(), tollgate::error::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    plans: Vec<PlanEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tenants: Vec<TenantEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<KeyEntry>,
}

/// The forms of text that a document is read from and written in.
#[derive(Clone, Copy)]
enum Form {
    Json,
    Toml,
}

impl Document {
    /// Reads a document from JSON.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field by its path, such as `plans[1].rules[0].limit`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        ConfigError::read_json(text)
    }

    /// Reads a document from TOML.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field by its path, such as `plans[1].rules[0].limit`, and the line. Of the
    /// document's text it shows nothing.
    #[cfg(feature = "toml")]
    #[cfg_attr(docsrs, doc(cfg(feature = "toml")))]
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let located = |error: &toml::de::Error| {
            let line = error.span().map(|span| line_at(text, span.start));
            let place = line.map_or_else(String::new, |line| format!(" (line {line})"));
            format!("{}{place}", error.message())
        };
        let deserializer = toml::Deserializer::parse(text)
            .map_err(|error| ConfigError::new("", located(&error)))?;
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let path = error.path().to_string();
            let path = if path == "." { String::new() } else { path };
            ConfigError::new(path, located(error.inner()))
        })
    }

    /// Reads a document from any other format that serde knows. Of the format's own error only the last line is
    /// kept, as some quote the document.
    ///
    /// # Errors
    ///
    /// As [`Document::from_json`].
    pub fn from_deserializer<'de, D>(deserializer: D) -> Result<Self, ConfigError>
    where
        D: Deserializer<'de>,
    {
        ConfigError::read(deserializer)
    }

    /// Reads a file: JSON when its name ends in `.json`, else TOML, which needs the feature `toml`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the file, and the field by its path.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|source| {
            let reason = format!("`{}` cannot be read: {source}", path.display());
            ConfigError::new("", reason).caused_by(source)
        })?;
        Self::parse(&text, Form::of_name(path)).map_err(|error| error.in_file(path))
    }

    /// Reads what an environment variable holds: the document itself, as JSON when it begins with `{` and as TOML
    /// when it has more than one line or begins with `[`; else the path of a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the variable when it is not set or not UTF-8, and the field that is wrong. The
    /// variable's value is no part of the message, but for the path of a file.
    pub fn from_env(variable: &str) -> Result<Self, ConfigError> {
        let text = env::var(variable).map_err(|error| {
            // The error for a value that is not UTF-8 would show the value.
            let reason = match error {
                env::VarError::NotPresent => "the environment variable is not set",
                env::VarError::NotUnicode(_) => "the environment variable is not UTF-8",
            };
            ConfigError::new(variable, reason)
        })?;
        let text = text.trim();
        let read = if text.starts_with('{') {
            Self::parse(text, Form::Json)
        } else if text.starts_with('[') || text.contains('\n') {
            Self::parse(text, Form::Toml)
        } else {
            Self::read(text)
        };
        read.map_err(|error| error.under(variable))
    }

    fn parse(text: &str, form: Form) -> Result<Self, ConfigError> {
        match form {
            Form::Json => Self::from_json(text),
            #[cfg(feature = "toml")]
            Form::Toml => Self::from_toml(text),
            #[cfg(not(feature = "toml"))]
            Form::Toml => Err(no_toml()),
        }
    }

    /// The document as JSON, in lines.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it cannot be written.
    pub fn to_json(&self) -> Result<String, ConfigError> {
        serde_json::to_string_pretty(self).map_err(|source| unwritable("JSON").caused_by(source))
    }

    /// The document as TOML.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it cannot be written: TOML has no number above 2^63 - 1.
    #[cfg(feature = "toml")]
    #[cfg_attr(docsrs, doc(cfg(feature = "toml")))]
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|source| unwritable("TOML").caused_by(source))
    }

    /// Writes the document to a file: JSON when its name ends in `.json`, else TOML, which needs the feature
    /// `toml`. The file is replaced as a whole and on the disk when this returns: whoever reads it finds the old
    /// document or the new one. A new file is for its owner alone. Waits for the disk.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the file; the old one is as it was.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), ConfigError> {
        let path = path.as_ref();
        let text = match Form::of_name(path) {
            Form::Json => self.to_json(),
            #[cfg(feature = "toml")]
            Form::Toml => self.to_toml(),
            #[cfg(not(feature = "toml"))]
            Form::Toml => Err(no_toml()),
        };
        let text = text.map_err(|error| error.in_file(path))?;
        disk::replace(path, text.as_bytes(), None).map_err(|source| {
            let reason = format!("`{}` cannot be written: {source}", path.display());
            ConfigError::new("", reason).caused_by(source)
        })
    }

    /// How many plans, tenants and keys the document holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.plans.len() + self.tenants.len() + self.keys.len()
    }

    /// Whether the document holds nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn into_parts(self) -> (PlanDocument, TenantDocument, KeyDocument) {
        let Self {
            plans,
            tenants,
            keys,
        } = self;
        (
            PlanDocument { plans },
            TenantDocument { tenants },
            KeyDocument { keys },
        )
    }

    pub(super) fn of_parts(
        plans: PlanDocument,
        tenants: TenantDocument,
        keys: KeyDocument,
    ) -> Self {
        Self {
            plans: plans.plans,
            tenants: tenants.tenants,
            keys: keys.keys,
        }
    }

    pub(super) const fn has_plans(&self) -> bool {
        !self.plans.is_empty()
    }
}

impl Form {
    fn of_name(path: &Path) -> Self {
        let extension = path.extension();
        if extension.is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            Self::Json
        } else {
            Self::Toml
        }
    }
}

fn unwritable(form: &str) -> ConfigError {
    ConfigError::new("", format!("the document cannot be written as {form}"))
}

#[cfg(not(feature = "toml"))]
fn no_toml() -> ConfigError {
    let reason = "TOML needs the feature `toml` of this crate: add it, or name the file `.json`";
    ConfigError::new("", reason)
}

/// The line of a place in a text, from 1.
#[cfg(feature = "toml")]
fn line_at(text: &str, place: usize) -> usize {
    let before = text.as_bytes().iter().take(place);
    before.filter(|byte| **byte == b'\n').count() + 1
}
