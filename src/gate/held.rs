//! What a call holds from its admission to its end.

use std::{cell::RefCell, task::Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};

use crate::{limit::Charge, meter::Guard};

/// What each of a call's charges and its meter's guard does at a step, one after the other, inner before outer.
/// Lives in the future, then in the body; dropping it settles.
///
/// A pointer, because answers and futures are moved a dozen times on their way: what it points to is some six
/// hundred bytes. The room is used again by a later call of the thread that ended this one.
pub(super) struct Held(Option<Box<Contents>>);

#[derive(Default)]
struct Contents {
    limits: Option<Charge>,
    // Boxed: most gates have no ceiling.
    ceiling: Option<Box<Charge>>,
    guard: Option<Guard>,
}

/// So many rooms a thread keeps for later calls.
const MAX_ROOMS: usize = 64;

thread_local! {
    #[expect(clippy::vec_box, reason = "the boxes are what is kept")]
    static ROOMS: RefCell<Vec<Box<Contents>>> = const { RefCell::new(Vec::new()) };
}

fn room() -> Box<Contents> {
    let kept = ROOMS.try_with(|rooms| rooms.try_borrow_mut().ok()?.pop());
    kept.ok().flatten().unwrap_or_default()
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        let Some(mut contents) = self.0.take() else {
            return;
        };
        // Before the charges are settled: what they give back depends on whether the client left.
        if let Some(guard) = &contents.guard {
            guard.ending();
        }
        contents.limits = None;
        contents.ceiling = None;
        // Last: what a settlement says is still counted.
        contents.guard = None;
        // A thread that ends keeps none.
        let _ = ROOMS.try_with(|rooms| {
            if let Ok(mut rooms) = rooms.try_borrow_mut()
                && rooms.len() < MAX_ROOMS
            {
                rooms.push(contents);
            }
        });
    }
}

impl Held {
    pub(super) const NOTHING: Self = Self(None);

    /// A call that nothing was charged for yet.
    #[inline]
    pub(super) fn metered(guard: Option<Guard>) -> Self {
        let mut room = room();
        room.guard = guard;
        Self(Some(room))
    }

    /// Takes what is held to another place.
    #[inline]
    pub(super) const fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    pub(super) fn guard(&self) -> Option<&Guard> {
        self.0.as_ref()?.guard.as_ref()
    }

    /// The place of the charge under the caller's own rules.
    pub(super) fn limits(&mut self) -> &mut Option<Charge> {
        &mut self.0.get_or_insert_with(room).limits
    }

    /// The place of the charge under the gate's ceiling.
    pub(super) fn ceiling(&mut self) -> &mut Option<Box<Charge>> {
        &mut self.0.get_or_insert_with(room).ceiling
    }

    /// Code of the service begins to run.
    #[inline]
    pub(super) fn enter(&mut self) {
        if let Some(contents) = &mut self.0 {
            contents.enter();
        }
    }

    /// Code of the service has returned.
    #[inline]
    pub(super) fn leave(&mut self) {
        if let Some(contents) = &mut self.0 {
            contents.leave();
        }
    }

    /// The call is answered, by the service or in its place.
    #[inline]
    pub(super) fn answered<B: Body>(&mut self, response: &mut Response<B>) {
        if let Some(contents) = &mut self.0 {
            contents.answered(response);
        }
    }

    /// The service gave an error instead of an answer.
    pub(super) fn failed(&mut self) {
        if let Some(contents) = &mut self.0 {
            contents.failed();
        }
    }

    /// The response body is asked for a frame.
    #[inline]
    pub(super) fn before_frame(&mut self) {
        if let Some(contents) = &mut self.0 {
            contents.before_frame();
        }
    }

    /// The response body has answered.
    #[inline]
    pub(super) fn after_frame<E>(
        &mut self,
        polled: &Poll<Option<Result<Frame<Bytes>, E>>>,
        is_end: impl Fn() -> bool,
    ) {
        if let Some(contents) = &mut self.0 {
            contents.after_frame(polled, is_end);
        }
    }
}

impl Contents {
    #[inline]
    fn charges(&mut self) -> impl Iterator<Item = &mut Charge> {
        let Self {
            limits, ceiling, ..
        } = self;
        limits.iter_mut().chain(ceiling.as_deref_mut())
    }

    #[inline]
    fn enter(&mut self) {
        self.charges().for_each(Charge::enter);
        if let Some(guard) = &mut self.guard {
            guard.enter();
        }
    }

    #[inline]
    fn leave(&mut self) {
        self.charges().for_each(Charge::leave);
        if let Some(guard) = &mut self.guard {
            guard.leave();
        }
    }

    #[inline]
    fn answered<B: Body>(&mut self, response: &mut Response<B>) {
        self.charges().for_each(|charge| charge.answered(response));
        if let Some(guard) = &mut self.guard {
            guard.answered(response);
        }
    }

    fn failed(&mut self) {
        self.charges().for_each(Charge::service_failed);
        if let Some(guard) = &mut self.guard {
            guard.failed();
        }
    }

    #[inline]
    fn before_frame(&mut self) {
        self.charges().for_each(Charge::enter);
        if let Some(guard) = &mut self.guard {
            guard.before_frame();
        }
    }

    #[inline]
    fn after_frame<E>(
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
