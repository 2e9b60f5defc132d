//! The part of a request that hooks may look at.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Uri};

/// The request extension that tells the address of the connection's other end, for servers other than axum's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a newtype that servers construct"
)]
pub struct PeerAddress(pub SocketAddr);

/// A borrowed view of a request without its body, so that hooks need not be generic over the body.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> RequestHead<'a> {
    /// The request's method.
    #[must_use]
    pub const fn method(&self) -> &'a Method {
        self.method
    }

    /// The request's target.
    #[must_use]
    pub const fn uri(&self) -> &'a Uri {
        self.uri
    }

    /// The request's header fields.
    #[must_use]
    pub const fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// The address of the connection's other end: from a [`PeerAddress`] extension or, with the `axum` feature,
    /// from `axum::extract::ConnectInfo<SocketAddr>`. `None` when the server attached neither. An IPv4 address
    /// mapped into IPv6 is given as IPv4.
    #[must_use]
    pub fn peer(&self) -> Option<IpAddr> {
        let own = self.extensions.get::<PeerAddress>().map(|peer| peer.0);
        #[cfg(feature = "axum")]
        let own = own.or_else(|| {
            let info = self
                .extensions
                .get::<axum::extract::ConnectInfo<SocketAddr>>();
            info.map(|info| info.0)
        });
        own.map(|address| address.ip().to_canonical())
    }

    /// What outer layers attached to the request.
    #[must_use]
    pub const fn extensions(&self) -> &'a Extensions {
        self.extensions
    }
}

impl<'a, B> From<&'a Request<B>> for RequestHead<'a> {
    fn from(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }
}

impl fmt::Debug for RequestHead<'_> {
    /// Shows method and path; header values and the query may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", self.method)
            .field("path", &self.uri.path())
            .finish_non_exhaustive()
    }
}

/// The fields of a request that the steps before a call ask for, found in one walk over its header: six look-ups
/// cost more.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fields<'a> {
    /// The first value where there are several, as with all that follow.
    pub(crate) accept: Option<&'a HeaderValue>,
    pub(crate) content_length: Option<&'a HeaderValue>,
    pub(crate) content_type: Option<&'a HeaderValue>,
    pub(crate) request_id: Option<&'a HeaderValue>,
    n_request_ids: usize,
    traceparent: Option<&'a HeaderValue>,
    n_traceparents: usize,
}

impl<'a> Fields<'a> {
    pub(crate) fn read(headers: &'a HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in headers {
            let place = match name.as_str() {
                "accept" => &mut fields.accept,
                "content-length" => &mut fields.content_length,
                "content-type" => &mut fields.content_type,
                "traceparent" => {
                    fields.n_traceparents += 1;
                    &mut fields.traceparent
                }
                "x-request-id" => {
                    fields.n_request_ids += 1;
                    &mut fields.request_id
                }
                _ => continue,
            };
            place.get_or_insert(value);
        }
        fields
    }

    /// The bytes of `traceparent`, if it was sent once.
    pub(crate) fn only_traceparent(&self) -> Option<&'a [u8]> {
        self.traceparent
            .filter(|_| self.n_traceparents == 1)
            .map(HeaderValue::as_bytes)
    }

    /// The request's id as it was sent, if it was sent once.
    pub(crate) fn only_request_id(&self) -> Option<&'a HeaderValue> {
        self.request_id.filter(|_| self.n_request_ids == 1)
    }
}
