//! The endpoint that deliveries come to.

mod answer;
mod builder;
mod process;
mod read;

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::Body;
use tower_service::Service;

use self::{answer::Answer, builder::Settings};
pub use self::{builder::WebhookBuilder, process::ReplayError};
use super::{DeadLetter, Delivered, Handled, LedgerError, Signature};
use crate::{body::FullBody, id::Environment};

/// What the service's answer is made by.
pub type WebhookFuture =
    Pin<Box<dyn Future<Output = Result<Response<FullBody>, Infallible>> + Send + 'static>>;

/// The endpoint that a payment provider sends its events to: a tower service for any route, outside of the gate.
///
/// Cloning gives a second handle to the same endpoint. It answers the provider, whose only question is whether to send the
/// event again:
///
/// | answer | when |
/// | --- | --- |
/// | 200 `{"status":"processed"}` | the handlers have done what follows |
/// | 200 `{"status":"ignored"}` | no handler has a use for the event |
/// | 200 `{"status":"already_processed"}` | it was done before |
/// | 200 `{"status":"dead_lettered"}` | it failed too often and is put aside |
/// | 400 `invalid_signature` | it is not known to be the provider's |
/// | 400 `invalid_event`, `mode_mismatch`, `event_mismatch` | it is signed and cannot be right |
/// | 405, 408, 413 | not a POST; too slow; too large |
/// | 409 `event_in_progress` | somebody handles it now |
/// | 500 `event_failed`, 503 `billing_unavailable` | send it again |
///
/// Handlers go on where the provider hangs up. No payload is logged. The service needs tokio.
///
/// ```
/// use axum::{Router, body::Body, http::Request};
/// use tollgate::billing::{StripeSignature, WebhookService};
/// use tollgate::id::Environment;
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let signature = StripeSignature::new(["whsec_of_the_dashboard"])?;
/// let webhooks = WebhookService::builder(signature.clone()).environment(Environment::Test).build()?;
/// let app: Router = Router::new().route_service("/webhooks/stripe", webhooks);
///
/// let body = r#"{"id":"evt_1","type":"invoice.paid","created":1763769590,"livemode":false,"data":{"object":{}}}"#;
/// let now = tollgate::clock::Timestamp::from(jiff::Timestamp::now());
/// let post = || Request::post("/webhooks/stripe");
/// let signed = post().header("stripe-signature", signature.sign(body.as_bytes(), now)).body(Body::from(body))?;
/// assert_eq!(app.clone().oneshot(signed).await?.status(), 200);
/// assert_eq!(app.oneshot(post().body(Body::from(body))?).await?.status(), 400);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct WebhookService {
    settings: Arc<Settings>,
}

impl WebhookService {
    /// Begins an endpoint whose deliveries are signed this way.
    pub fn builder(signature: impl Into<Signature>) -> WebhookBuilder {
        WebhookBuilder::new(signature.into())
    }

    /// The dead letters of this endpoint, oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] when the ledger failed.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, LedgerError> {
        let settings = &self.settings;
        settings
            .ledger
            .dead_letters(&settings.endpoint, limit)
            .await
    }

    /// Gives a dead letter to the handlers again, after what hindered them was mended. Where they do it, it leaves the
    /// list; where they fail, it stays.
    ///
    /// # Errors
    ///
    /// [`ReplayError`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future may leave the event claimed until its lease ends; the letter stays in the list until it was
    /// handled.
    pub async fn replay(&self, event: &str) -> Result<Handled, ReplayError> {
        self.settings.replay(event).await
    }

    async fn answer<B>(settings: Arc<Settings>, request: Request<B>) -> Answer
    where
        B: Body + Send + 'static,
        B::Data: Send,
    {
        let (head, body) = request.into_parts();
        if head.method != Method::POST {
            return Answer::NotPost;
        }
        let body = match read::read(body, settings.max_body_bytes, settings.read_deadline).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        let delivered = match settings.accept(&head.headers, &body) {
            Ok(delivered) => delivered,
            Err(answer) => return answer,
        };
        // A task of its own, so that a provider that hangs up does not stop it half way.
        let processing = tokio::spawn(async move { settings.process(&delivered, body).await });
        processing.await.unwrap_or(Answer::Failed)
    }
}

impl Settings {
    /// Verifies a delivery and only then reads it.
    fn accept(&self, headers: &HeaderMap, body: &Bytes) -> Result<Delivered, Answer> {
        let now = self.clock.now().wall();
        let verified = self.signature.verify(headers, body, now);
        verified.map_err(Answer::BadSignature)?;
        let delivered = match &self.signature {
            Signature::Paddle(_) => Delivered::from_paddle(body),
            Signature::StandardWebhooks(standard) => {
                let id = standard.id(headers).map_err(Answer::BadSignature)?;
                Delivered::from_standard_webhooks(id, standard.signed_at(headers), body)
            }
            Signature::Stripe(_) => Delivered::from_stripe(body),
        };
        let delivered = delivered.map_err(Answer::BadEvent)?;
        let is_live = self.environment == Environment::Live;
        if delivered
            .livemode()
            .is_some_and(|livemode| livemode != is_live)
        {
            return Err(Answer::OtherMode);
        }
        if let Some(account) = self.account.as_deref() {
            let is_other = match &delivered {
                Delivered::Event(event) => event.account() != Some(account),
                Delivered::Thin(thin) => thin.account().is_some_and(|other| other != account),
            };
            if is_other {
                return Err(Answer::OtherAccount);
            }
        }
        Ok(delivered)
    }
}

impl<B> Service<Request<B>> for WebhookService
where
    B: Body + Send + 'static,
    B::Data: Send,
{
    type Response = Response<FullBody>;
    type Error = Infallible;
    type Future = WebhookFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> WebhookFuture {
        let settings = Arc::clone(&self.settings);
        Box::pin(async move {
            let method = request.method().clone();
            let counters = Arc::clone(&settings);
            let answer = Self::answer(settings, request).await;
            counters.metrics.count(&answer);
            let now = counters.clock.now().wall();
            counters.refusals.log(&answer, &counters.endpoint, now);
            Ok(answer.into_response(&method))
        })
    }
}

impl fmt::Debug for WebhookService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookService")
            .field("endpoint", &self.settings.endpoint)
            .field("environment", &self.settings.environment)
            .field("signature", &self.settings.signature)
            .finish_non_exhaustive()
    }
}
