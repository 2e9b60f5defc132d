//! What a call holds from its admission to its end.

use std::task::Poll;

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};

use crate::{limit::Charge, meter::Guard};

/// The charges and the meter's guard of one call: what each of them does at a step, one after the other, inner
/// before outer. Lives in the future, then in the body; dropping it settles.
pub(super) struct Held {
    pub(super) limits: Option<Charge>,
    // Boxed: most gates have no ceiling.
    pub(super) ceiling: Option<Box<Charge>>,
    // Last: what a settlement says is still counted.
    pub(super) guard: Option<Guard>,
}

impl Drop for Held {
    /// Before the charges are settled: what they give back depends on whether the client left.
    #[inline]
    fn drop(&mut self) {
        if let Some(guard) = &self.guard {
            guard.ending();
        }
    }
}

impl Held {
    pub(super) const NOTHING: Self = Self::metered(None);

    /// A call that nothing was charged for yet.
    pub(super) const fn metered(guard: Option<Guard>) -> Self {
        Self {
            limits: None,
            ceiling: None,
            guard,
        }
    }

    /// Takes what is held to another place.
    #[inline]
    pub(super) const fn take(&mut self) -> Self {
        std::mem::replace(self, Self::NOTHING)
    }

    #[inline]
    fn charges(&mut self) -> impl Iterator<Item = &mut Charge> {
        let Self {
            limits, ceiling, ..
        } = self;
        limits.iter_mut().chain(ceiling.as_deref_mut())
    }

    /// Code of the service begins to run.
    #[inline]
    pub(super) fn enter(&mut self) {
        self.charges().for_each(Charge::enter);
        if let Some(guard) = &mut self.guard {
            guard.enter();
        }
    }

    /// Code of the service has returned.
    #[inline]
    pub(super) fn leave(&mut self) {
        self.charges().for_each(Charge::leave);
        if let Some(guard) = &mut self.guard {
            guard.leave();
        }
    }

    /// The call is answered, by the service or in its place.
    #[inline]
    pub(super) fn answered<B: Body>(&mut self, response: &mut Response<B>) {
        self.charges().for_each(|charge| charge.answered(response));
        if let Some(guard) = &mut self.guard {
            guard.answered(response);
        }
    }

    /// The service gave an error instead of an answer.
    pub(super) fn failed(&mut self) {
        self.charges().for_each(Charge::service_failed);
        if let Some(guard) = &mut self.guard {
            guard.failed();
        }
    }

    /// The response body is asked for a frame.
    #[inline]
    pub(super) fn before_frame(&mut self) {
        self.charges().for_each(Charge::enter);
        if let Some(guard) = &mut self.guard {
            guard.before_frame();
        }
    }

    /// The response body has answered.
    #[inline]
    pub(super) fn after_frame<E>(
        &mut self,
        polled: &Poll<Option<Result<Frame<Bytes>, E>>>,
        is_end: impl Fn() -> bool,
    ) {
        if let Some(charge) = &mut self.limits
            && charge.after_frame(polled, &is_end)
        {
            self.limits = None;
        }
        if let Some(charge) = &mut self.ceiling
            && charge.after_frame(polled, &is_end)
        {
            self.ceiling = None;
        }
        if let Some(guard) = &mut self.guard {
            guard.after_frame(polled, is_end);
        }
    }
}
