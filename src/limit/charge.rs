//! The end of a charge: settled once, when the response body ends or is dropped.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{
    cost::Cost,
    decision::{Decision, Outcome},
    headers,
    layer::Settings,
    rule::{Algorithm, Unit},
    set::{LimitSet, ScopeValues},
    store::{LimitCall, LimitStore, Settlement},
};
use crate::{
    body::ResponseBody,
    clock::Clock,
    error::{ErrorCode, Problem},
    meter::Meter,
};

/// What one admitted call holds until it ends. Dropping it settles.
#[derive(Debug)]
pub(super) struct Charge {
    pub(super) store: Arc<dyn LimitStore>,
    pub(super) set: Arc<LimitSet>,
    pub(super) scopes: ScopeValues,
    pub(super) cost: Cost,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) decision: Decision,
    pub(super) meter: Option<Meter>,
    pub(super) ending: Ending,
}

/// In the extensions of a refusal by a [`LimitLayer`](super::LimitLayer), for another one outside of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefusedByLimit;

/// How the call ended, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The client left, or the call was served.
    Used,
    /// The service failed, or a layer behind the limit refused the call.
    Failed,
    /// Another limit behind this one refused the call.
    RefusedByLimit,
}

impl Charge {
    /// Notes how the response speaks of the call, and lets the response speak of the limits.
    pub(super) fn observe<B>(&mut self, settings: &Settings, response: &mut Response<B>) {
        let extensions = response.extensions();
        let code = extensions.get::<Problem>().map(Problem::code);
        self.ending = if extensions.get::<RefusedByLimit>().is_some() {
            Ending::RefusedByLimit
        } else if response.status().is_server_error() || code.is_some_and(ErrorCode::is_refusal) {
            Ending::Failed
        } else {
            Ending::Used
        };
        headers::write(
            settings.headers,
            &self.set,
            &self.decision,
            response.headers_mut(),
        );
    }

    /// Code of the service begins to run. Whoever catches a panic of it may drop the charge later, when no
    /// panic is under way any more.
    pub(super) const fn enter(&mut self) -> Ending {
        std::mem::replace(&mut self.ending, Ending::Failed)
    }

    /// Code of the service has returned.
    pub(super) const fn leave(&mut self, before: Ending) {
        self.ending = before;
    }

    /// The service gave an error instead of a response.
    pub(super) fn service_failed(mut self) {
        self.ending = Ending::Failed;
    }

    /// What the call really took: a custom quantity that the handler has named replaces what was held, and a
    /// reservation that it never named was not needed.
    fn actual(&self) -> Cost {
        let mut actual = self.cost.clone();
        for rule in self.set.rules() {
            let Unit::Custom(name) = rule.unit() else {
                continue;
            };
            let named = self
                .meter
                .as_ref()
                .and_then(|meter| meter.named_quantity(name));
            if let Some(used) = named.or_else(|| self.cost.is_reserved(name).then_some(0)) {
                actual = actual.with(Arc::clone(name), used);
            }
        }
        actual
    }

    fn settlement(&self) -> Option<Settlement> {
        match self.ending {
            Ending::RefusedByLimit => Some(Settlement::Cancel),
            Ending::Failed => Some(Settlement::Refund),
            Ending::Used if std::thread::panicking() => Some(Settlement::Refund),
            Ending::Used => {
                let actual = self.actual();
                (actual != self.cost || self.holds_a_slot()).then_some(Settlement::Actual(actual))
            }
        }
    }

    pub(super) const fn is_overage(&self) -> bool {
        matches!(self.decision.outcome, Outcome::Admitted { overage: true })
    }

    fn holds_a_slot(&self) -> bool {
        let mut rules = self.set.rules().iter();
        rules.any(|rule| matches!(rule.algorithm(), Algorithm::Concurrency { .. }))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(settlement) = self.settlement() {
            // The time of now, not of the decision: a bucket has been refilled in between.
            let call = LimitCall::new(&self.set, &self.scopes, &self.cost, self.clock.now());
            self.store
                .settle(&call, &self.decision.receipt, &settlement);
        }
    }
}

pin_project! {
    /// A response body that settles its call's charge when it ends or is dropped.
    #[derive(Debug)]
    pub struct LimitBody<B> {
        #[pin]
        body: ResponseBody<B>,
        charge: Option<Box<Charge>>,
    }
}

impl<B> LimitBody<B> {
    pub(super) const fn new(body: ResponseBody<B>, charge: Option<Box<Charge>>) -> Self {
        Self { body, charge }
    }
}

impl<B: Body<Data = Bytes>> Body for LimitBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let before = this.charge.as_mut().map(|charge| charge.enter());
        let poll = this.body.poll_frame(cx);
        if let (Some(charge), Some(before)) = (this.charge.as_mut(), before) {
            charge.leave(before);
        }
        let frame = std::task::ready!(poll);
        match &frame {
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                if let Some(charge) = this.charge {
                    charge.ending = Ending::Failed;
                }
            }
            None => drop(this.charge.take()),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
