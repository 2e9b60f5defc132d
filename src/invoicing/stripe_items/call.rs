//! One call of Stripe's invoice items, and what its answer says.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{http_send::HttpSend, invoicing::InvoiceSinkError};

/// The field of an item's metadata that names the draft.
pub(super) const DRAFT: &str = "tollgate_invoice";
/// The field of an item's metadata that names the line.
pub(super) const LINE: &str = "tollgate_line";

/// Stripe answered, and did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("Stripe answered {status} ({code})")]
pub(super) struct Refusal {
    status: StatusCode,
    code: String,
}

/// An item that is there.
#[derive(Debug, Deserialize)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) amount: i64,
    pub(super) currency: String,
    #[serde(default)]
    pub(super) metadata: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) data: Vec<Item>,
    pub(super) has_more: bool,
}

/// What became of a call that makes something.
#[derive(Debug)]
pub(super) enum Made {
    Done,
    /// Another call under this key had other parameters.
    Mismatch,
    /// The answer is that of an earlier call under this key, which failed.
    OldFailure,
}

/// How calls are sent.
pub(super) struct Caller {
    client: Arc<dyn HttpSend>,
    base: Box<str>,
    authorization: HeaderValue,
    version: HeaderValue,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("base", &self.base)
            .field("version", &self.version)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

impl Caller {
    pub(super) const fn new(
        client: Arc<dyn HttpSend>,
        base: Box<str>,
        authorization: HeaderValue,
        version: HeaderValue,
    ) -> Self {
        Self {
            client,
            base,
            authorization,
            version,
        }
    }

    async fn send(
        &self,
        method: Method,
        path_and_query: &str,
        key: Option<&str>,
        form: String,
    ) -> Result<Response<Bytes>, InvoiceSinkError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path_and_query}", self.base))
            .header(header::AUTHORIZATION, &self.authorization)
            .header("stripe-version", &self.version);
        if let Some(key) = key {
            request = request
                .header("idempotency-key", key)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let request = request
            .body(Bytes::from(form))
            .map_err(InvoiceSinkError::refused)?;
        let answer = self.client.send(request).await;
        answer.map_err(InvoiceSinkError::unavailable)
    }

    /// A page of a customer's items, those behind one of them.
    pub(super) async fn page(
        &self,
        customer: &str,
        after: Option<&str>,
    ) -> Result<Page, InvoiceSinkError> {
        let mut pairs = vec![("customer", customer), ("limit", "100")];
        pairs.extend(after.map(|after| ("starting_after", after)));
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(pairs)
            .finish();
        let path = format!("/v1/invoiceitems?{query}");
        let answer = self.send(Method::GET, &path, None, String::new()).await?;
        if !answer.status().is_success() {
            return Err(refusal(&answer));
        }
        parsed(&answer)
    }

    /// Makes an item under an idempotency key.
    pub(super) async fn create(&self, key: &str, form: String) -> Result<Made, InvoiceSinkError> {
        let answer = self
            .send(Method::POST, "/v1/invoiceitems", Some(key), form)
            .await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(Made::Done);
        }
        if status.is_server_error() && answer.headers().contains_key("idempotent-replayed") {
            return Ok(Made::OldFailure);
        }
        if fault(&answer).kind == "idempotency_error" {
            return Ok(Made::Mismatch);
        }
        Err(refusal(&answer))
    }
}

/// An error in Stripe's form.
#[derive(Debug, Default, Deserialize)]
struct Body {
    #[serde(default)]
    error: Fault,
}

#[derive(Debug, Default, Deserialize)]
struct Fault {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    code: Option<String>,
}

fn fault(answer: &Response<Bytes>) -> Fault {
    serde_json::from_slice::<Body>(answer.body())
        .map(|body| body.error)
        .unwrap_or_default()
}

fn parsed<T: DeserializeOwned>(answer: &Response<Bytes>) -> Result<T, InvoiceSinkError> {
    serde_json::from_slice(answer.body()).map_err(InvoiceSinkError::unavailable)
}

/// Whether the same call may pass later: busy, failed, or a credential that somebody mends.
fn refusal(answer: &Response<Bytes>) -> InvoiceSinkError {
    let status = answer.status();
    let fault = fault(answer);
    // Of the code only what a code may hold, and not the message, which repeats what was sent.
    let is_code = |code: &String| {
        code.len() <= 64
            && code
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || it == b'_')
    };
    let code = fault
        .code
        .filter(is_code)
        .unwrap_or_else(|| "no code".to_owned());
    let refusal = Refusal { status, code };
    match status.as_u16() {
        400 | 402 | 404 | 405 | 410 | 413 | 422 => InvoiceSinkError::refused(refusal),
        _ => InvoiceSinkError::unavailable(refusal),
    }
}
