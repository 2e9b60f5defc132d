//! The address of somebody's HTTP interface, as a setting.

use http::Uri;

use crate::error::ConfigError;

/// Reads the URL of a setting.
///
/// A user and a password in it are refused: an address is shown where a secret must not be.
pub(super) fn read(field: &'static str, url: &str) -> Result<Uri, ConfigError> {
    let fault = |reason: &'static str| ConfigError::new(field, reason);
    let url: Uri = url
        .parse()
        .map_err(|source| fault("is no URL: write https://host/path").caused_by(source))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
        return Err(fault("has no scheme or no host: write https://host/path"));
    }
    if url.authority().is_some_and(|it| it.as_str().contains('@')) {
        return Err(fault(
            "holds a credential that others may read: give it by its own setting",
        ));
    }
    Ok(url)
}
