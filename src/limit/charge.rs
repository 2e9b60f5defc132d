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
use smallvec::SmallVec;

use super::{
    cost::Cost,
    decision::Receipt,
    headers::Told,
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
    meter::{Billed, Meter},
};

/// What one call holds from its admission to its end. Dropping it settles.
#[derive(Debug)]
pub(crate) struct Charge {
    pub(super) settings: Arc<Settings>,
    pub(super) set: Arc<LimitSet>,
    /// None where the rules count by their owner alone.
    pub(super) scopes: Option<Box<ScopeValues>>,
    pub(super) cost: Cost,
    pub(super) receipt: Receipt,
    /// What the answer tells of the limits.
    pub(super) told: Told,
    /// Says what the call used, whether its client left, and whether it goes on after its answer.
    pub(super) meter: Option<Meter>,
    /// The store gave no answer, and the one in this process decided.
    pub(super) degraded: Option<LimitDegraded>,
    pub(super) ending: Ending,
    /// Code of the service is running. Whoever catches a panic of it may drop the charge later, when no panic is
    /// under way any more.
    pub(super) running: bool,
    /// Of a gRPC call alone.
    pub(super) grpc: Option<Watch>,
}

pub(super) static NO_SCOPES: ScopeValues = ScopeValues {
    route: None,
    address: None,
    custom: SmallVec::new_const(),
};

/// In the extensions of a refusal by a [`LimitLayer`](super::LimitLayer), for another one outside of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefusedByLimit;

/// How the call ended, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing is held any more.
    Over,
    /// The client left, or the call was served.
    Used,
    /// The service failed, or a layer behind the limit refused the call.
    Failed,
    /// Another limit behind this one refused the call.
    RefusedByLimit,
}

impl Charge {
    /// Notes how the response speaks of the call, and lets the response speak of the limits.
    pub(crate) fn answered<B: Body>(&mut self, response: &mut Response<B>) {
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
            self.judge(response.body().is_end_stream());
        }
        std::mem::take(&mut self.told).write(response.headers_mut());
        if let Some(degraded) = self.degraded {
            response.extensions_mut().insert(degraded);
        }
    }

    /// Lets a gRPC call that has said that it failed count as failed.
    fn judge(&mut self, is_complete: bool) {
        let failed = self
            .grpc
            .as_ref()
            .is_some_and(|grpc| grpc.failed(is_complete));
        if failed && self.ending == Ending::Used {
            self.ending = Ending::Failed;
        }
    }

    /// The response body has answered; `is_end` says whether it has nothing more to give. True when the body has
    /// ended, and the charge with it.
    pub(crate) fn after_frame<E>(
        &mut self,
        polled: &Poll<Option<Result<Frame<Bytes>, E>>>,
        is_end: impl FnOnce() -> bool,
    ) -> bool {
        self.leave();
        match polled {
            Poll::Ready(None) => {
                self.judge(true);
                true
            }
            Poll::Ready(Some(Err(_))) => {
                self.ending = Ending::Failed;
                false
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(grpc) = &mut self.grpc {
                    grpc.saw(frame);
                    self.judge(frame.is_trailers() || is_end());
                }
                false
            }
            Poll::Pending => false,
        }
    }

    /// Code of the service begins to run.
    pub(crate) const fn enter(&mut self) {
        self.running = true;
    }

    /// Code of the service has returned.
    pub(crate) const fn leave(&mut self) {
        self.running = false;
    }

    /// The service gave an error instead of a response.
    pub(crate) const fn service_failed(&mut self) {
        self.ending = Ending::Failed;
    }

    /// What the call really took: a custom quantity that the handler has named replaces what was held, and a
    /// reservation that it never named was not needed; bytes that were counted replace what the head declared.
    ///
    /// When the client left, nothing but the rest of a reservation is given back.
    fn actual(&self) -> Cost {
        let mut actual = self.cost.clone();
        let Some(meter) = &self.meter else {
            return actual;
        };
        let client_left = meter.billed() != Billed::All;
        let settled = |charged: u64, used: u64| {
            if client_left { used.max(charged) } else { used }
        };
        for rule in self.set.rules() {
            match rule.unit() {
                Unit::Custom(name) => {
                    let named = meter.billed_quantity(name);
                    if named.is_none() {
                        self.settings.told.not_named(name, meter);
                    }
                    let used = if self.cost.is_reserved(name) {
                        named.unwrap_or(0)
                    } else if let Some(named) = named {
                        settled(self.cost.amount(rule.unit()), named)
                    } else {
                        continue;
                    };
                    actual = actual.with(Arc::clone(name), used);
                }
                Unit::Bytes => {
                    if let Some(received) = meter.received_bytes() {
                        actual = actual.bytes(settled(self.cost.amount(rule.unit()), received));
                    }
                }
                Unit::Requests => {}
            }
        }
        actual
    }

    fn settlement(&self) -> Option<Settlement> {
        match self.ending {
            Ending::Over => None,
            _ if self.running => Some(Settlement::Refund),
            Ending::RefusedByLimit => Some(Settlement::Cancel),
            Ending::Failed => Some(Settlement::Refund),
            Ending::Used if std::thread::panicking() => Some(Settlement::Refund),
            Ending::Used if self.is_waived() => Some(Settlement::Waive(self.actual())),
            Ending::Used => {
                let traits = self.set.rule_set().traits();
                let counts_received = || self.meter.as_ref().is_some_and(Meter::is_receiving);
                let may_differ = traits.counts_custom || (traits.counts_bytes && counts_received());
                if !may_differ && !traits.holds_slots {
                    return None;
                }
                let actual = self.actual();
                (actual != self.cost || traits.holds_slots).then_some(Settlement::Actual(actual))
            }
        }
    }

    fn is_waived(&self) -> bool {
        let meter = self.meter.as_ref();
        meter.is_some_and(|meter| meter.billed() == Billed::Nothing)
    }

    /// Leaves the settlement to the holds that keep the call open; false when there is none.
    fn outlived(&mut self) -> bool {
        if self.ending == Ending::Over {
            return false;
        }
        let Some(meter) = self.meter.as_ref().filter(|meter| meter.is_held()) else {
            return false;
        };
        let meter = meter.clone();
        let ending = std::mem::replace(&mut self.ending, Ending::Over);
        let moved = Self {
            settings: Arc::clone(&self.settings),
            set: Arc::clone(&self.set),
            scopes: std::mem::take(&mut self.scopes),
            cost: std::mem::take(&mut self.cost),
            receipt: std::mem::take(&mut self.receipt),
            told: Told::default(),
            meter: self.meter.take(),
            degraded: self.degraded,
            ending: if self.running || std::thread::panicking() {
                Ending::Failed
            } else {
                ending
            },
            running: false,
            grpc: None,
        };
        meter.keep_while_held(Box::new(moved));
        true
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
        if self.outlived() {
            return;
        }
        if let Some(settlement) = self.settlement() {
            // The time of now, not of the decision: a bucket has been refilled in between.
            let now = self.settings.clock.now();
            let scopes = self.scopes.as_deref().unwrap_or(&NO_SCOPES);
            let call = LimitCall::new(&self.set, scopes, &self.cost, now);
            self.store().settle(&call, &self.receipt, &settlement);
        }
    }
}

pin_project! {
    /// A response body that settles its call's charge when it ends or is dropped.
    #[derive(Debug)]
    pub struct LimitBody<B> {
        #[pin]
        body: ResponseBody<B>,
        charge: Option<Charge>,
    }
}

impl<B> LimitBody<B> {
    pub(super) const fn new(body: ResponseBody<B>, charge: Option<Charge>) -> Self {
        Self { body, charge }
    }

    /// The body of an answer in place of the service's.
    pub(super) const fn refused(body: ResponseBody<B>) -> Self {
        Self::new(body, None)
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
        let Some(charge) = this.charge else {
            return this.body.poll_frame(cx);
        };
        charge.enter();
        let polled = this.body.as_mut().poll_frame(cx);
        if charge.after_frame(&polled, || this.body.is_end_stream()) {
            *this.charge = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
