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
    hook::LimitDegraded,
    layer::Settings,
    rule::Unit,
    set::{LimitSet, ScopeValues},
    store::{LimitCall, LimitStore, Settlement},
};
use crate::{
    body::ResponseBody,
    error::{ErrorCode, Problem},
    grpc::Watch,
    meter::Meter,
};

/// What one call asks for, and what it holds from its admission to its end. Dropping it settles.
///
/// One allocation from the question to the settlement: what is moved from future to body is a pointer.
#[derive(Debug)]
pub(super) struct Charge {
    pub(super) settings: Arc<Settings>,
    pub(super) set: Arc<LimitSet>,
    pub(super) scopes: ScopeValues,
    pub(super) cost: Cost,
    pub(super) decision: Decision,
    /// Only where a rule counts what the handler names.
    pub(super) meter: Option<Meter>,
    /// The store gave no answer, and the one in this process decided.
    pub(super) degraded: Option<LimitDegraded>,
    pub(super) ending: Ending,
    /// Of a gRPC call alone.
    pub(super) grpc: Option<Watch>,
}

/// In the extensions of a refusal by a [`LimitLayer`](super::LimitLayer), for another one outside of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefusedByLimit;

/// How the call ended, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The call is not admitted, or not yet: nothing is held.
    NotAdmitted,
    /// The client left, or the call was served.
    Used,
    /// The service failed, or a layer behind the limit refused the call.
    Failed,
    /// Another limit behind this one refused the call.
    RefusedByLimit,
}

impl Charge {
    /// Notes how the response speaks of the call, and lets the response speak of the limits.
    pub(super) fn observe<B: Body>(&mut self, response: &mut Response<B>) {
        let extensions = response.extensions();
        let code = extensions.get::<Problem>().map(Problem::code);
        self.ending = if extensions.get::<RefusedByLimit>().is_some() {
            Ending::RefusedByLimit
        } else if response.status().is_server_error() || code.is_some_and(ErrorCode::is_refusal) {
            Ending::Failed
        } else {
            Ending::Used
        };
        if let Some(grpc) = &mut self.grpc {
            grpc.answered(response);
            if response.body().is_end_stream() {
                grpc.ended();
            }
        }
        headers::write(
            self.settings.headers,
            &self.set,
            &self.decision,
            response.headers_mut(),
        );
    }

    /// Notes what a frame of the body says of a gRPC call; `None` stands for the end.
    fn saw(&mut self, frame: Option<&Frame<Bytes>>, is_end: bool) {
        if let Some(grpc) = &mut self.grpc {
            if let Some(frame) = frame {
                grpc.saw(frame);
            }
            if is_end || frame.is_none_or(Frame::is_trailers) {
                grpc.ended();
            }
        }
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
            Ending::NotAdmitted => None,
            Ending::RefusedByLimit => Some(Settlement::Cancel),
            Ending::Failed => Some(Settlement::Refund),
            Ending::Used if std::thread::panicking() => Some(Settlement::Refund),
            Ending::Used if self.grpc.as_ref().is_some_and(Watch::failed) => {
                Some(Settlement::Refund)
            }
            Ending::Used => {
                let traits = self.set.rule_set().traits();
                if !traits.counts_custom && !traits.holds_slots {
                    return None;
                }
                let actual = self.actual();
                (actual != self.cost || traits.holds_slots).then_some(Settlement::Actual(actual))
            }
        }
    }

    pub(super) const fn is_overage(&self) -> bool {
        matches!(self.decision.outcome, Outcome::Admitted { overage: true })
    }

    fn store(&self) -> &dyn LimitStore {
        if self.degraded.is_some() {
            self.settings.fallback.store()
        } else {
            &*self.settings.store
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(settlement) = self.settlement() {
            // The time of now, not of the decision: a bucket has been refilled in between.
            let now = self.settings.clock.now();
            let call = LimitCall::new(&self.set, &self.scopes, &self.cost, now);
            self.store()
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
        let mut this = self.project();
        let before = this.charge.as_mut().map(|charge| charge.enter());
        let poll = this.body.as_mut().poll_frame(cx);
        if let (Some(charge), Some(before)) = (this.charge.as_mut(), before) {
            charge.leave(before);
        }
        let frame = std::task::ready!(poll);
        if let Some(charge) = this.charge {
            match &frame {
                Some(Ok(frame)) => charge.saw(Some(frame), this.body.is_end_stream()),
                Some(Err(_)) => charge.ending = Ending::Failed,
                None => charge.saw(None, true),
            }
        }
        if frame.is_none() {
            drop(this.charge.take());
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
