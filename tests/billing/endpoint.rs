//! An endpoint whose handler does as it is told, and deliveries to it.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use tokio::sync::Notify;
use tollgate::{
    billing::{
        BillingEvent, BillingEventHandler, Handled, HandlerError, StripeSignature, ThinEvent,
        ThinEventHandler, WebhookBuilder, WebhookService,
    },
    clock::ManualClock,
};
use tower::ServiceExt as _;

use super::support::{START, at};

pub(crate) const SECRET: &str = "whsec_tollgate_test_secret_one";

/// Does as it is told, and counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(pub(crate) Arc<Inner>);

#[derive(Debug, Default)]
pub(crate) struct Inner {
    mood: Mutex<Mood>,
    n_handled: AtomicU32,
    pub(crate) has_begun: Notify,
    pub(crate) may_end: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Mood {
    #[default]
    Applies,
    Fails,
    Hangs,
    Ignores,
    IsDown,
    Panics,
    Waits,
}

impl Told {
    pub(crate) fn set(&self, mood: Mood) {
        *self.0.mood.lock().unwrap() = mood;
    }

    pub(crate) fn n_handled(&self) -> u32 {
        self.0.n_handled.load(Ordering::Relaxed)
    }

    async fn act(&self) -> Result<Handled, HandlerError> {
        self.0.n_handled.fetch_add(1, Ordering::Relaxed);
        let mood = *self.0.mood.lock().unwrap();
        match mood {
            Mood::Applies => Ok(Handled::Applied),
            Mood::Ignores => Ok(Handled::Ignored),
            Mood::Fails => Err(HandlerError::Failed("c4n4ry-free reason".into())),
            Mood::IsDown => Err(HandlerError::Unavailable("no database".into())),
            Mood::Panics => panic!("on purpose"),
            Mood::Hangs => pending().await,
            Mood::Waits => {
                self.0.has_begun.notify_one();
                self.0.may_end.notified().await;
                Ok(Handled::Applied)
            }
        }
    }
}

#[async_trait]
impl BillingEventHandler for Told {
    async fn handle(&self, _: &BillingEvent) -> Result<Handled, HandlerError> {
        self.act().await
    }
}

#[async_trait]
impl ThinEventHandler for Told {
    async fn handle_thin(&self, _: &ThinEvent) -> Result<Handled, HandlerError> {
        self.act().await
    }
}

pub(crate) fn builder() -> (WebhookBuilder, Told) {
    let told = Told::default();
    let signature = StripeSignature::new([SECRET]).unwrap();
    let builder = WebhookService::builder(signature)
        .handler(told.clone())
        .clock(Arc::new(ManualClock::default()));
    (builder, told)
}

pub(crate) fn service() -> (WebhookService, Told) {
    let (builder, told) = builder();
    (builder.build().unwrap(), told)
}

pub(crate) fn signed(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let body = body.into();
    let header = StripeSignature::new([SECRET])
        .unwrap()
        .sign(&body, at(START));
    Request::post("/")
        .header("stripe-signature", header)
        .body(Full::new(body))
        .unwrap()
}

pub(crate) async fn answer<B>(service: &WebhookService, request: Request<B>) -> (u16, Value)
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
{
    let response = service.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

pub(crate) async fn send(service: &WebhookService, body: &Value) -> (u16, String) {
    let (status, answer) = answer(service, signed(body.to_string())).await;
    let word = answer["code"]
        .as_str()
        .or_else(|| answer["status"].as_str());
    (status, word.unwrap().to_owned())
}

pub(crate) fn is(status: u16, word: &str) -> (u16, String) {
    (status, word.to_owned())
}
