use std::{fmt, time::Duration};

use async_trait::async_trait;
use reqwest::{Client, StatusCode, Url, header, redirect::Policy};

use super::{Jwks, JwksError, JwksSource};
use crate::{error::ConfigError, http_send::is_loopback};

/// Fetches a provider's keys over HTTPS, from what its OpenID configuration calls `jwks_uri`.
///
/// Redirects are not followed, at most 1 MiB is read unless told otherwise, and the answer must be a 200. Plain
/// HTTP is for this machine alone (`localhost`, 127.0.0.0/8, `[::1]`): whoever can change the answer on its way
/// can sign tokens. Proxies of the environment (`HTTPS_PROXY`) are used.
#[derive(Clone)]
pub struct HttpJwks {
    client: Client,
    max_bytes: usize,
    url: Url,
}

const MAX_BYTES: usize = 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(10);

impl HttpJwks {
    /// Keys at this address.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it is no `https` address, holds a user name or password, or when TLS cannot be set up.
    pub fn new(url: impl AsRef<str>) -> Result<Self, ConfigError> {
        Self::at(url.as_ref(), false)
    }

    /// Keys at this address, also where the way to it is not encrypted: for a network that you trust as much as
    /// this process.
    ///
    /// # Errors
    ///
    /// As [`HttpJwks::new`], but for the scheme `http`.
    pub fn dangerous_plain_http(url: impl AsRef<str>) -> Result<Self, ConfigError> {
        Self::at(url.as_ref(), true)
    }

    fn at(url: &str, any_http: bool) -> Result<Self, ConfigError> {
        let url = Url::parse(url)
            .map_err(|source| ConfigError::new("jwks", "not an address").caused_by(source))?;
        let is_plain = match url.scheme() {
            "https" => false,
            "http" if any_http || is_loopback(&url) => true,
            _ => {
                let reason =
                    "keys are fetched by https, as whoever changes them on the way can sign tokens";
                return Err(ConfigError::new("jwks", reason));
            }
        };
        if !url.username().is_empty() || url.password().is_some() {
            let reason = "an address with a password ends up in logs: write a `JwksSource` that sends a header";
            return Err(ConfigError::new("jwks", reason));
        }
        let client = Client::builder()
            .https_only(!is_plain)
            .redirect(Policy::none())
            .timeout(TIMEOUT)
            .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| {
                ConfigError::new("jwks", "no HTTP client can be made").caused_by(source)
            })?;
        Ok(Self {
            client,
            max_bytes: MAX_BYTES,
            url,
        })
    }

    /// The most that is read, in bytes; 1 MiB unless set.
    #[must_use]
    pub const fn max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }
}

#[async_trait]
impl JwksSource for HttpJwks {
    async fn fetch(&self) -> Result<Jwks, JwksError> {
        // The address may hold a query that others need not read.
        let unavailable =
            |error: reqwest::Error| JwksError::Unavailable(error.without_url().into());
        let request = self
            .client
            .get(self.url.clone())
            .header(header::ACCEPT, "application/jwk-set+json, application/json");
        let mut response = request.send().await.map_err(unavailable)?;
        if response.status() != StatusCode::OK {
            return Err(JwksError::Status(response.status().as_u16()));
        }
        let announced = response.content_length().unwrap_or(0);
        if usize::try_from(announced).map_or(true, |n_bytes| n_bytes > self.max_bytes) {
            return Err(JwksError::TooLarge);
        }
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            if chunk.len() > self.max_bytes - document.len() {
                return Err(JwksError::TooLarge);
            }
            document.extend_from_slice(&chunk);
        }
        Jwks::from_json(document)
    }
}

impl fmt::Debug for HttpJwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpJwks")
            .field("host", &self.url.host_str())
            .field("path", &self.url.path())
            .field("max_bytes", &self.max_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine() {
        for url in [
            "https://idp.example/jwks",
            "http://127.0.0.1:1/jwks",
            "http://127.8.8.8/",
            "http://[::1]/",
            "http://localhost:80/",
        ] {
            assert!(HttpJwks::new(url).is_ok(), "{url}");
        }
        for url in [
            "http://idp.example/jwks",
            "http://127.0.0.1.example/",
            "http://localhost.example/",
            "http://10.0.0.1/",
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
            "https://user:secret@idp.example/",
            "/jwks",
            "",
        ] {
            assert_eq!(HttpJwks::new(url).unwrap_err().path(), "jwks", "{url}");
        }
        assert!(HttpJwks::dangerous_plain_http("http://10.0.0.1/").is_ok());
        assert!(HttpJwks::dangerous_plain_http("ftp://10.0.0.1/").is_err());
    }

    #[test]
    fn debug_shows_no_query() {
        let source = HttpJwks::new("https://idp.example/jwks?token=hunter2").unwrap();
        assert!(!format!("{source:?}").contains("hunter2"));
    }
}
