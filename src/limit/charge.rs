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
    clock::Now,
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
    pub(super) now: Now,
    pub(super) decision: Decision,
    pub(super) meter: Option<Meter>,
    pub(super) ending: Ending,
}

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
        self.ending = match response.extensions().get::<Problem>().map(Problem::code) {
            Some(
                ErrorCode::RateLimited | ErrorCode::QuotaExceeded | ErrorCode::ConcurrencyLimited,
            ) => Ending::RefusedByLimit,
            Some(_) => Ending::Failed,
            None if response.status().is_server_error() => Ending::Failed,
            None => Ending::Used,
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

    /// What the call really took: a custom quantity that the handler has named replaces what was held.
    fn actual(&self) -> Cost {
        let mut actual = self.cost.clone();
        let Some(meter) = &self.meter else {
            return actual;
        };
        for rule in self.set.rules() {
            if let Unit::Custom(name) = &rule.rule().unit
                && let Some(used) = meter.named_quantity(name)
            {
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
            let call = LimitCall::new(&self.set, &self.scopes, &self.cost, self.now);
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
