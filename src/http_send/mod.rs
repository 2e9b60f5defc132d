//! HTTP requests of this crate's own: usage and invoices on their way to somebody else's service.
//!
//! No HTTP client is forced on anyone: [`HttpSend`] is one method. With the feature `reqwest`, `ReqwestSend` is one
//! that is ready.
//!
//! ```
//! use async_trait::async_trait;
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use tollgate::http_send::{HttpSend, HttpSendError};
//!
//! /// Says yes to everything.
//! #[derive(Debug)]
//! struct Agreeable;
//!
//! #[async_trait]
//! impl HttpSend for Agreeable {
//!     async fn send(&self, _: Request<Bytes>) -> Result<Response<Bytes>, HttpSendError> {
//!         Ok(Response::new(Bytes::from_static(b"yes")))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), HttpSendError> {
//! let answer = Agreeable.send(Request::new(Bytes::new())).await?;
//! assert_eq!(answer.body(), "yes");
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "reqwest")]
mod reqwest_send;

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};

#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
pub use self::reqwest_send::ReqwestSend;
#[cfg(all(feature = "jwt", feature = "reqwest"))]
pub(crate) use self::reqwest_send::is_loopback;

/// No answer came to a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpSendError {
    /// Nothing was sent: no connection could be made.
    #[error("the request was not sent")]
    NotSent(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request may have arrived and been acted upon.
    #[error("the request got no answer")]
    Unanswered(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is longer than the client reads. The request was acted upon.
    #[error("the answer is too long")]
    TooLong,
}

/// Sends one request and reads its whole answer.
///
/// # Contract
///
/// - Any status is an answer; redirects are not followed, as a request may carry a secret.
/// - Sent once: repeating is the caller's decision.
/// - The time it may take is bounded, and so is what is read of the answer.
/// - Neither an error nor a log shows header fields or the body.
#[async_trait]
pub trait HttpSend: Debug + Send + Sync + 'static {
    /// Sends the request.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have sent the request.
    ///
    /// # Errors
    ///
    /// [`HttpSendError`] when there is no whole answer.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpSendError>;
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: HttpSend + ?Sized> HttpSend for Arc<T> {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpSendError> {
        (**self).send(request).await
    }
}
