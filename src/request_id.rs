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
//! the answer, unless the service set one of its own there. A whole gate leaves the extension out, which would be an
//! allocation for each call: the field says it all.
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

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use ipnet::IpNet;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

pub use tower_http::request_id::RequestId;

use crate::{
    field,
    head::{Fields, RequestHead},
};

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
        let fields = Fields::read(request.headers());
        let decided = self.ids.decide(&RequestHead::from(&request), &fields);
        let is_given = matches!(decided, Decided::Given(_));
        let id = decided.write(request.headers_mut());
        if !is_given && let Some(id) = &id {
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
    /// The step before the call: decides the id.
    pub(crate) fn decide(&self, head: &RequestHead<'_>, fields: &Fields<'_>) -> Decided {
        if let Some(given) = head.extensions().get::<RequestId>() {
            let id = given.header_value().clone();
            return Decided::Given(id);
        }
        match fields.only_request_id() {
            Some(id) if is_valid(id.as_bytes()) && self.trust.trusts(head) => {
                Decided::Kept(id.clone())
            }
            // Hexadecimal digits are a legal value: an id is always made.
            _ => self
                .make
                .header_value()
                .map_or(Decided::None, Decided::Made),
        }
    }
}

/// Where a call's id comes from.
pub(crate) enum Decided {
    /// An outer layer put it into the request's extensions.
    Given(HeaderValue),
    /// It stands in the request's header already.
    Kept(HeaderValue),
    Made(HeaderValue),
    None,
}

impl Decided {
    pub(crate) const fn id(&self) -> Option<&HeaderValue> {
        match self {
            Self::Given(id) | Self::Kept(id) | Self::Made(id) => Some(id),
            Self::None => None,
        }
    }

    /// Writes the id into the request's header, where it does not stand there, and gives it back.
    pub(crate) fn write(self, headers: &mut HeaderMap) -> Option<HeaderValue> {
        match self {
            Self::Given(id) | Self::Made(id) => {
                headers.insert(X_REQUEST_ID, id.clone());
                Some(id)
            }
            Self::Kept(id) => Some(id),
            Self::None => None,
        }
    }
}

/// The step after the call: the answer tells the id, unless the service set a field of its own.
pub(crate) fn tell(id: HeaderValue, headers: &mut HeaderMap) {
    headers.entry(X_REQUEST_ID).or_insert(id);
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

    /// Request, extension and answer each hold a count on one text.
    fn header_value(&self) -> Option<HeaderValue> {
        let id = self.next_id();
        field::value(|text| text.extend_from_slice(&id))
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

/// Hexadecimal digits, all sixteen at once: each in a byte of its own.
const fn digits(n: u64) -> [u8; 16] {
    const fn bytes(byte: u8) -> u128 {
        u128::from_ne_bytes([byte; 16])
    }
    let mut spread = n as u128;
    spread = (spread | spread << 32) & ((u64::MAX as u128 >> 32) * ((1 << 64) + 1));
    spread = (spread | spread << 16) & (0xffff * (u128::MAX / u32::MAX as u128));
    spread = (spread | spread << 8) & (0xff * (u128::MAX / u16::MAX as u128));
    spread = (spread | spread << 4) & bytes(0x0f);
    // A digit above 9 becomes 16 or more by adding 6, and is a letter then.
    let letters = ((spread + bytes(6)) >> 4) & bytes(1);
    (spread + bytes(b'0') + letters * (b'a' - b'9' - 1) as u128).to_be_bytes()
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
        for n in [
            0,
            9,
            10,
            0x0123_4567_89ab_cdef,
            0xfedc_ba98_7654_3210,
            u64::MAX,
        ] {
            assert_eq!(digits(n), *format!("{n:016x}").as_bytes());
        }
    }
}
