use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use reqwest::{Client, Url, redirect::Policy};

use super::{HttpSend, HttpSendError};
use crate::error::ConfigError;

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BYTES: usize = 1024 * 1024;

/// Sends requests by the reqwest client, over HTTPS.
///
/// Plain HTTP is for this machine alone (`localhost`, 127.0.0.0/8, `[::1]`). Redirects are not followed, and at most
/// 1 MiB of an answer is read. Proxies of the environment (`HTTPS_PROXY`) are used.
#[derive(Clone)]
pub struct ReqwestSend {
    client: Client,
    any_http: bool,
}

impl fmt::Debug for ReqwestSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReqwestSend").finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("plain HTTP is for this machine alone: write https")]
struct Unencrypted;

impl ReqwestSend {
    /// A client that waits ten seconds for an answer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when TLS cannot be set up.
    pub fn new() -> Result<Self, ConfigError> {
        Self::with_timeout(TIMEOUT)
    }

    /// A client that waits at most so long for a whole answer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when TLS cannot be set up.
    pub fn with_timeout(timeout: Duration) -> Result<Self, ConfigError> {
        let client = Client::builder()
            .redirect(Policy::none())
            .timeout(timeout)
            .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| {
                ConfigError::new("http", "no HTTP client can be made").caused_by(source)
            })?;
        Ok(Self {
            client,
            any_http: false,
        })
    }

    /// Sends over plain HTTP too: for a network that you trust as much as this process.
    #[must_use]
    pub const fn dangerous_plain_http(mut self) -> Self {
        self.any_http = true;
        self
    }
}

/// Whether the address is one of this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[async_trait]
impl HttpSend for ReqwestSend {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpSendError> {
        // An address may hold a query that others need not read.
        let not_sent = |error: reqwest::Error| HttpSendError::NotSent(error.without_url().into());
        let unanswered = |error: reqwest::Error| {
            let is_refused = error.is_connect() || error.is_builder();
            let error = error.without_url().into();
            if is_refused {
                HttpSendError::NotSent(error)
            } else {
                HttpSendError::Unanswered(error)
            }
        };
        let request = reqwest::Request::try_from(request).map_err(not_sent)?;
        let url = request.url();
        if url.scheme() != "https" && !self.any_http && !is_loopback(url) {
            return Err(HttpSendError::NotSent(Unencrypted.into()));
        }
        let mut answer = self.client.execute(request).await.map_err(unanswered)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unanswered)? {
            if chunk.len() > MAX_BYTES - body.len() {
                return Err(HttpSendError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = answer.status();
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        Ok(response)
    }
}
