//! One id for each request, in its logs, its usage event, its errors and its answer.
//!
//! [`RequestIdLayer`] decides in this order:
//!
//! 1. An outer layer gave the request a [`RequestId`] already: it stays.
//! 2. The request carries one `x-request-id` field of 1 to 128 characters out of `A-Z a-z 0-9 . _ : -`, and
//!    its sender is trusted ([`TrustInbound`]; by default nobody is): it stays.
//! 3. Otherwise a new id is made.
//!
//! The id is then a [`RequestId`] extension and the `x-request-id` field of the request, and the same field of
//! the answer, unless the service set one of its own there.
//!
//! # Deployment
//!
//! An id from a stranger can repeat or imitate another's, so it confuses whoever reads the logs. Trust only
//! your own proxies, which set the field themselves ([`TrustPeers`]).
//!
//! ```
//! use http::{Request, Response};
//! use std::convert::Infallible;
//! use tollgate::{head::RequestHead, request_id::RequestIdLayer};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Infallible> {
//! let hello = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) });
//! let request = || Request::get("/").header("x-request-id", "edge-17").body(());
//!
//! let trusting = RequestIdLayer::new().trust(|_: &RequestHead<'_>| true).layer(hello);
//! let answer = trusting.oneshot(request().expect("a valid request")).await?;
//! assert_eq!(answer.headers()["x-request-id"], "edge-17");
//!
//! let cautious = RequestIdLayer::new().layer(hello);
//! let answer = cautious.oneshot(request().expect("a valid request")).await?;
//! assert_ne!(answer.headers()["x-request-id"], "edge-17");
//! # Ok(())
//! # }
//! ```

use std::{
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use ipnet::IpNet;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

pub use tower_http::request_id::RequestId;

use crate::head::RequestHead;

/// The header field of the id.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest inbound id that is kept, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 128;

/// Says whose inbound `x-request-id` is kept. A closure works.
pub trait TrustInbound: Send + Sync + 'static {
    /// Whether the sender of this request may name it. Asked only when the request carries a valid id.
    fn trusts(&self, head: &RequestHead<'_>) -> bool;
}

impl<F> TrustInbound for F
where
    F: Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
{
    fn trusts(&self, head: &RequestHead<'_>) -> bool {
        self(head)
    }
}

/// Trusts nobody: every request gets a new id. The default.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TrustNobody;

impl TrustInbound for TrustNobody {
    fn trusts(&self, _: &RequestHead<'_>) -> bool {
        false
    }
}

/// Trusts connections from these networks, such as those of a load balancer.
///
/// The address is that of the connection ([`RequestHead::peer`]). A request without one is not trusted. An IPv4
/// address mapped into IPv6 counts as IPv4.
#[derive(Clone, Debug)]
pub struct TrustPeers {
    networks: Box<[IpNet]>,
}

impl TrustPeers {
    /// Trusts connections from these networks; from none when there are none.
    #[must_use]
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            networks: networks.into_iter().collect(),
        }
    }
}

impl TrustInbound for TrustPeers {
    fn trusts(&self, head: &RequestHead<'_>) -> bool {
        head.peer().is_some_and(|address| {
            self.networks
                .iter()
                .any(|network| network.contains(&address))
        })
    }
}

/// Gives every request an id; see the [module's page](self).
#[must_use]
pub struct RequestIdLayer<T: ?Sized = TrustNobody> {
    make: MakeId,
    trust: Arc<T>,
}

impl RequestIdLayer {
    /// Makes a new id for every request.
    pub fn new() -> Self {
        Self {
            make: MakeId::new(),
            trust: Arc::new(TrustNobody),
        }
    }
}

impl Default for RequestIdLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: ?Sized> RequestIdLayer<T> {
    /// Keeps a valid id that was sent by whom `trust` names: [`TrustPeers`], or a closure such as
    /// `|head: &RequestHead<'_>| ..`.
    pub fn trust<U: TrustInbound>(self, trust: U) -> RequestIdLayer<U> {
        self.trust_shared(Arc::new(trust))
    }

    /// The same with a hook that is chosen at run time.
    pub fn trust_shared<U: TrustInbound + ?Sized>(self, trust: Arc<U>) -> RequestIdLayer<U> {
        RequestIdLayer {
            make: self.make,
            trust,
        }
    }
}

impl<T: ?Sized> Clone for RequestIdLayer<T> {
    fn clone(&self) -> Self {
        Self {
            make: self.make.clone(),
            trust: Arc::clone(&self.trust),
        }
    }
}

impl<T: ?Sized> fmt::Debug for RequestIdLayer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestIdLayer").finish_non_exhaustive()
    }
}

impl<S, T: ?Sized> Layer<S> for RequestIdLayer<T> {
    type Service = RequestIdService<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestIdService {
            inner,
            ids: self.clone(),
        }
    }
}

/// The service of [`RequestIdLayer`].
///
/// Does what `SetRequestId` and `PropagateRequestId` of tower-http do, with their type of id, but for an extension
/// of the answer that repeats its field: an id is one allocation and one more for its extension, where theirs
/// were nine in all.
pub struct RequestIdService<S, T: ?Sized = TrustNobody> {
    inner: S,
    ids: RequestIdLayer<T>,
}

impl<S: Clone, T: ?Sized> Clone for RequestIdService<S, T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            ids: self.ids.clone(),
        }
    }
}

impl<S, T: ?Sized> fmt::Debug for RequestIdService<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestIdService").finish_non_exhaustive()
    }
}

impl<S, T, Q, B> Service<Request<Q>> for RequestIdService<S, T>
where
    S: Service<Request<Q>, Response = Response<B>>,
    T: TrustInbound + ?Sized,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = RequestIdFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let (id, is_new) = self.ids.assign(&mut request);
        if is_new && let Some(id) = &id {
            request.extensions_mut().insert(RequestId::new(id.clone()));
        }
        RequestIdFuture {
            future: self.inner.call(request),
            id,
        }
    }
}

pin_project! {
    /// The future of [`RequestIdService`]: puts the id on the answer.
    pub struct RequestIdFuture<F> {
        #[pin]
        future: F,
        id: Option<HeaderValue>,
    }
}

impl<F, B, E> Future for RequestIdFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.future.poll(cx))?;
        if let Some(id) = this.id.take() {
            tell(id, response.headers_mut());
        }
        Poll::Ready(Ok(response))
    }
}

impl<F> fmt::Debug for RequestIdFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestIdFuture").finish_non_exhaustive()
    }
}

impl<T: TrustInbound + ?Sized> RequestIdLayer<T> {
    /// The step before the call: decides the id and writes it into the request's header. The second part is
    /// false where an outer layer had given the request its id, and an extension with it.
    pub(crate) fn assign<Q>(&self, request: &mut Request<Q>) -> (Option<HeaderValue>, bool) {
        if let Some(given) = request.extensions().get::<RequestId>() {
            let id = given.header_value().clone();
            request.headers_mut().insert(X_REQUEST_ID, id.clone());
            return (Some(id), false);
        }
        if let Some(kept) = kept(&RequestHead::from(&*request), &*self.trust) {
            return (Some(kept.clone()), true);
        }
        // Hexadecimal digits are a legal value: an id is always made.
        let made = self.make.header_value();
        if let Some(id) = &made {
            request.headers_mut().insert(X_REQUEST_ID, id.clone());
        }
        (made, true)
    }
}

/// The step after the call: the answer tells the id, unless the service set a field of its own.
pub(crate) fn tell(id: HeaderValue, headers: &mut HeaderMap) {
    headers.entry(X_REQUEST_ID).or_insert(id);
}

/// The id that the request carries, if it stays.
fn kept<'a, T: TrustInbound + ?Sized>(
    head: &RequestHead<'a>,
    trust: &T,
) -> Option<&'a HeaderValue> {
    let mut sent = head.headers().get_all(X_REQUEST_ID).iter();
    match (sent.next(), sent.next()) {
        (Some(id), None) if is_valid(id.as_bytes()) && trust.trusts(head) => Some(id),
        _ => None,
    }
}

fn is_valid(id: &[u8]) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
        && id
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(byte))
}

/// Makes ids of 32 hexadecimal digits.
///
/// The first half is random and fixed for the layer; the second is a counter under a one-to-one scramble. So
/// ids do not repeat within a layer and do not show how many requests there were. They are not secrets: who
/// has seen some may foresee others, and nothing should be granted to whoever knows one.
#[derive(Clone, Debug)]
struct MakeId {
    prefix: [u8; 16],
    next: Arc<AtomicU64>,
}

impl MakeId {
    fn new() -> Self {
        Self {
            prefix: digits(random()),
            next: Arc::new(AtomicU64::new(random())),
        }
    }

    fn next_id(&self) -> [u8; 32] {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let mut id = [0; 32];
        let (prefix, suffix) = id.split_at_mut(16);
        prefix.copy_from_slice(&self.prefix);
        suffix.copy_from_slice(&digits(scramble(count)));
        id
    }

    /// One allocation, of which request, extension and answer each hold a count: bytes that were copied would be
    /// shared by a second one.
    fn header_value(&self) -> Option<HeaderValue> {
        HeaderValue::from_maybe_shared(Bytes::from_owner(self.next_id())).ok()
    }
}

fn random() -> u64 {
    // Where the system gives no random numbers yet, the seed of a hash map will do: ids are no secrets.
    getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(0))
}

/// The output function of SplitMix64 (Steele, Lea and Flood 2014): one-to-one over 64 bits.
const fn scramble(mut z: u64) -> u64 {
    z = z.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn digits(n: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (digit, byte) in digits.as_chunks_mut().0.iter_mut().zip(n.to_be_bytes()) {
        *digit = hex(byte);
    }
    digits
}

const fn hex(byte: u8) -> [u8; 2] {
    const fn digit(nibble: u8) -> u8 {
        if nibble < 10 {
            b'0' + nibble
        } else {
            b'a' + (nibble - 10)
        }
    }
    [digit(byte >> 4), digit(byte & 15)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn an_inbound_id_is_short_and_plain() {
        assert!(is_valid(b"edge-17:A_b.c"));
        assert!(is_valid(&[b'x'; 128]));
        assert!(!is_valid(&[b'x'; 129]));
        for bad in [
            &b""[..],
            b"a b",
            b"a\tb",
            b"a\x1bb",
            b"a\"b",
            "ä".as_bytes(),
        ] {
            assert!(!is_valid(bad), "{bad:?}");
        }
    }

    #[test]
    fn made_ids_are_valid_and_do_not_repeat() {
        let make = MakeId::new();
        let ids: HashSet<_> = (0..10_000).map(|_| make.next_id()).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(ids.iter().all(|id| is_valid(id)));
    }

    #[test]
    fn digits_are_hexadecimal() {
        assert_eq!(&hex(0x0f), b"0f");
        assert_eq!(&hex(0xa9), b"a9");
    }
}
