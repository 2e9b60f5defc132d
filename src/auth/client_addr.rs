use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::HeaderName;
use ipnet::IpNet;

use crate::{error::ConfigError, head::RequestHead};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Tells the client's address from a request.
///
/// A closure is one. `None` means that the address is not known: allow lists then refuse, and failed
/// attempts without an address share one count.
///
/// # Contract
///
/// The answer must not depend on what the client alone controls, such as a header that no trusted proxy has
/// overwritten: whoever can choose the address escapes limits and can exhaust another's.
pub trait ClientAddr: Send + Sync + 'static {
    /// The client's address.
    fn client_addr(&self, head: &RequestHead<'_>) -> Option<IpAddr>;
}

impl<F> ClientAddr for F
where
    F: Fn(&RequestHead<'_>) -> Option<IpAddr> + Send + Sync + 'static,
{
    fn client_addr(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        self(head)
    }
}

impl<T: ClientAddr + ?Sized> ClientAddr for Arc<T> {
    fn client_addr(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        (**self).client_addr(head)
    }
}

/// The address of the connection's other end, from a [`PeerAddress`](crate::head::PeerAddress) extension or, with the `axum` feature,
/// from `axum::extract::ConnectInfo<SocketAddr>` (`into_make_service_with_connect_info`).
///
/// Right when clients connect directly; behind a proxy every client has the proxy's address, see
/// [`TrustedProxies`].
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a unit that callers name")]
pub struct PeerAddr;

impl ClientAddr for PeerAddr {
    fn client_addr(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        head.peer()
    }
}

/// The client's address as trusted proxies tell it in `X-Forwarded-For`.
///
/// 1. Unless the connection comes from a trusted network, its own address counts and the header is ignored.
/// 2. Else the list is read from right to left, as each proxy appends whom it heard from; several header
///    lines are one list. The first address that is not trusted is the client.
/// 3. When all are trusted, the leftmost is; when one met on the way cannot be read, the connection's own
///    address counts.
///
/// The leftmost entry is never believed for its place: the client wrote it.
#[derive(Clone)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
}

impl TrustedProxies {
    /// Trusts these networks (`10.0.0.0/8`) and addresses (`192.0.2.7`). Name the proxies alone: whoever
    /// sits in a trusted network can choose an address.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the entry that is neither a network nor an address.
    pub fn new<S: AsRef<str>>(networks: impl IntoIterator<Item = S>) -> Result<Self, ConfigError> {
        let networks = networks
            .into_iter()
            .enumerate()
            .map(|(index, text)| {
                parse_network(text.as_ref()).ok_or_else(|| {
                    ConfigError::new(
                        format!("trusted_proxies[{index}]"),
                        "neither a network such as 10.0.0.0/8 nor an address",
                    )
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { networks })
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }
}

impl ClientAddr for TrustedProxies {
    fn client_addr(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        let peer = head.peer()?;
        let mut client = peer;
        let lines = head.headers().get_all(X_FORWARDED_FOR);
        let mut hops = lines
            .iter()
            .rev()
            .flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b','));
        while self.trusts(client) {
            let Some(hop) = hops.next() else { break };
            let Some(address) = parse_hop(hop) else {
                return Some(peer);
            };
            client = address;
        }
        Some(client)
    }
}

impl fmt::Debug for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TrustedProxies")
            .field(&self.networks)
            .finish()
    }
}

/// A network, or an address as the network of itself; a v4 one mapped into v6 becomes v4, since addresses are
/// compared in that form.
fn parse_network(text: &str) -> Option<IpNet> {
    let text = text.trim();
    let network = match text.parse::<IpNet>() {
        Ok(network) => network,
        Err(_) => IpNet::from(text.parse::<IpAddr>().ok()?.to_canonical()),
    };
    match (network.addr().to_canonical(), network.prefix_len()) {
        (IpAddr::V4(address), bits) if network.addr().is_ipv6() => {
            IpNet::new(address.into(), bits.checked_sub(96)?).ok()
        }
        _ => Some(network),
    }
}

/// An entry of the list: an address, with a port or in brackets as some proxies write it.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop.trim_ascii()).ok()?;
    let address = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .ok()
        .or_else(|| {
            let inner = text.strip_prefix('[')?.strip_suffix(']')?;
            inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        })?;
    Some(address.to_canonical())
}

/// The network that stands for a client where addresses are counted: an IPv4 address itself, an IPv6 address
/// by its /64, since one client has all of those.
#[must_use]
pub fn network_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !0 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_forms_that_proxies_write() {
        let parsed = |text: &str| parse_hop(text.as_bytes()).map(|address| address.to_string());
        assert_eq!(parsed(" 192.0.2.1 ").as_deref(), Some("192.0.2.1"));
        assert_eq!(parsed("192.0.2.1:443").as_deref(), Some("192.0.2.1"));
        assert_eq!(parsed("[2001:db8::1]:443").as_deref(), Some("2001:db8::1"));
        assert_eq!(parsed("[2001:db8::1]").as_deref(), Some("2001:db8::1"));
        assert_eq!(parsed("::ffff:192.0.2.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(parsed("unknown"), None);
        assert_eq!(parsed("192.0.2.256"), None);
        assert_eq!(parsed(""), None);
    }

    #[test]
    fn an_ipv6_client_is_counted_by_its_network() {
        let key = |text: &str| network_key(text.parse().unwrap()).to_string();
        assert_eq!(key("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(key("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(key("192.0.2.1"), "192.0.2.1");
    }
}
