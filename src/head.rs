//! The part of a request that hooks may look at.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use http::{Extensions, HeaderMap, Method, Request, Uri};

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
