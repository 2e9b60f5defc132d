//! What a caller gets when the service panics.

use std::any::Any;

use http::{Method, Response};
use tower_http::catch_panic::{CatchPanicLayer, ResponseForPanic};

use super::{ErrorCode, Problem};
use crate::body::ResponseBody;

/// The longest panic message that is logged, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// A layer that answers a panic of the service with the problem `internal`.
///
/// Without it the caller sees a closed connection. The layer is tower-http's
/// [`CatchPanicLayer`]; it goes directly inside [`ProblemLayer`](super::ProblemLayer), which adds the request
/// id. It catches a panic up to the response's head; one in a streaming body still ends the connection. Needs
/// `panic = "unwind"`, the default of Cargo's profiles.
///
/// The panic's message never reaches the caller. It is logged at error level under the target
/// `tollgate::panic`, escaped and cut to 1024 bytes, without anything of the request.
#[must_use]
pub fn catch_panic() -> CatchPanicLayer<PanicResponse> {
    CatchPanicLayer::custom(PanicResponse(()))
}

/// Answers a panic with the problem `internal`; see [`catch_panic`].
#[derive(Clone, Copy, Debug)]
pub struct PanicResponse(());

impl ResponseForPanic for PanicResponse {
    type ResponseBody = ResponseBody<String>;

    fn response_for_panic(&mut self, payload: Box<dyn Any + Send>) -> Response<Self::ResponseBody> {
        tracing::error!(
            target: "tollgate::panic",
            // `Debug` of a string escapes what could forge a line of the log.
            panic = ?message(&*payload),
            "the service panicked"
        );
        // The method is gone with the request; a server sends no body in answer to HEAD anyway.
        Problem::new(ErrorCode::Internal).into_response(&Method::GET)
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("(not a text)");
    let end = (0..=MAX_MESSAGE_BYTES.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_two_characters() {
        let payload: Box<dyn Any + Send> = Box::new("x".to_owned() + &"é".repeat(2_000));
        let cut = message(&*payload);
        assert_eq!(cut.len(), 1023);
        assert!(cut.ends_with('é'));
        assert_eq!(message(&"short"), "short");
        assert_eq!(message(&7_u8), "(not a text)");
    }
}
