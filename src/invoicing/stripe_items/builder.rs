use std::{fmt, sync::Arc};

use http::{HeaderValue, Uri};

use super::{StripeInvoiceItems, call::Caller};
use crate::{error::ConfigError, http_send::HttpSend, sink::StripeCustomers};

/// The version of Stripe's API that this crate was written for.
const API_VERSION: &str = "2026-10-28.endive";
const BASE_URL: &str = "https://api.stripe.com";

/// Settings of [`StripeInvoiceItems`]; made by [`StripeInvoiceItems::builder`].
#[must_use]
pub struct StripeInvoiceItemsBuilder {
    client: Arc<dyn HttpSend>,
    secret: Box<str>,
    customers: Arc<dyn StripeCustomers>,
    base_url: Box<str>,
    api_version: Box<str>,
}

impl fmt::Debug for StripeInvoiceItemsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StripeInvoiceItemsBuilder")
            .field("customers", &self.customers)
            .finish_non_exhaustive()
    }
}

impl StripeInvoiceItemsBuilder {
    pub(super) fn new(
        client: Arc<dyn HttpSend>,
        secret: Box<str>,
        customers: Arc<dyn StripeCustomers>,
    ) -> Self {
        Self {
            client,
            secret,
            customers,
            base_url: Box::from(BASE_URL),
            api_version: Box::from(API_VERSION),
        }
    }

    /// The `Stripe-Version` of the calls; `2026-10-28.endive` unless set.
    pub fn api_version(mut self, version: impl Into<Box<str>>) -> Self {
        self.api_version = version.into();
        self
    }

    /// Where Stripe is; `https://api.stripe.com` unless set.
    pub fn base_url(mut self, url: impl Into<Box<str>>) -> Self {
        self.base_url = url.into();
        self
    }

    /// Checks the settings; nothing is sent.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the secret key or the version is empty or holds what no header field can, or the base URL is
    /// none.
    pub fn build(self) -> Result<StripeInvoiceItems, ConfigError> {
        let base = self.base_url.trim_end_matches('/');
        let is_base = base.parse::<Uri>().is_ok_and(|url| {
            let is_http = matches!(url.scheme_str(), Some("http" | "https"));
            is_http && url.host().is_some() && url.query().is_none()
        });
        if !is_base {
            return Err(ConfigError::new(
                "base_url",
                "is no URL: write https://host",
            ));
        }
        let mut authorization = header("secret", &self.secret, "Bearer ")?;
        authorization.set_sensitive(true);
        let version = header("api_version", &self.api_version, "")?;
        let caller = Caller::new(self.client, base.into(), authorization, version);
        Ok(StripeInvoiceItems {
            caller,
            customers: self.customers,
        })
    }
}

/// A header field's value, which may hold a secret that no error shows.
fn header(path: &str, value: &str, prefix: &str) -> Result<HeaderValue, ConfigError> {
    HeaderValue::try_from(format!("{prefix}{value}"))
        .ok()
        .filter(|_| !value.is_empty())
        .ok_or_else(|| {
            ConfigError::new(
                path,
                "is empty or no visible ASCII: write it as Stripe shows it",
            )
        })
}
