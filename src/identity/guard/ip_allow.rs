use std::{fmt, sync::Arc};

use ipnet::IpNet;
use tower_layer::Layer;

use super::service::{Guard, Guarded, sealed::Sealed};
use crate::{
    auth::{ClientAddr, PeerAddr},
    error::{ConfigError, ErrorCode, Problem},
    head::RequestHead,
};

/// Lets only some networks reach a route; the others, and requests whose address is not known, are answered
/// 403 `ip_not_allowed`.
///
/// Needs no identity. Behind a proxy, set [`client_addr`](Self::client_addr) to
/// [`TrustedProxies`](crate::auth::TrustedProxies): else the proxy's own address is compared.
#[derive(Clone)]
#[must_use]
pub struct IpAllowLayer {
    networks: Arc<[IpNet]>,
    client_addr: Arc<dyn ClientAddr>,
}

impl IpAllowLayer {
    /// Lets these networks pass; none at all when there are none.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            networks: networks.into_iter().map(canonical).collect(),
            client_addr: Arc::new(PeerAddr),
        }
    }

    /// Lets these networks (`10.0.0.0/8`, `2001:db8::/32`) and addresses (`192.0.2.7`) pass.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the entry that is neither, such as `allowed_networks[2]`.
    pub fn parse<S: AsRef<str>>(
        networks: impl IntoIterator<Item = S>,
    ) -> Result<Self, ConfigError> {
        let networks: Vec<IpNet> = networks
            .into_iter()
            .enumerate()
            .map(|(place, text)| parse_network(text.as_ref(), place))
            .collect::<Result<_, _>>()?;
        Ok(Self::new(networks))
    }

    /// How the client's address is told; [`PeerAddr`] unless set.
    pub fn client_addr(mut self, client_addr: impl ClientAddr) -> Self {
        self.client_addr = Arc::new(client_addr);
        self
    }
}

pub(in crate::identity) fn parse_network(text: &str, place: usize) -> Result<IpNet, ConfigError> {
    let text = text.trim();
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map(canonical)
        .map_err(|source| {
            let reason = format!("`{text}` is neither a network such as 10.0.0.0/8 nor an address");
            ConfigError::new(format!("allowed_networks[{place}]"), reason).caused_by(source)
        })
}

/// An IPv4 network mapped into IPv6 becomes IPv4: addresses are compared in that form.
fn canonical(network: IpNet) -> IpNet {
    match (network, network.addr().to_canonical()) {
        (IpNet::V6(mapped), std::net::IpAddr::V4(address)) => mapped
            .prefix_len()
            .checked_sub(96)
            .and_then(|bits| IpNet::new(address.into(), bits).ok())
            .unwrap_or(network),
        _ => network,
    }
}

impl Sealed for IpAllowLayer {}

impl Guard for IpAllowLayer {
    fn check(&self, head: &RequestHead<'_>) -> Result<(), Box<Problem>> {
        let address = self.client_addr.client_addr(head);
        let allowed = address.is_some_and(|address| {
            let address = address.to_canonical();
            self.networks
                .iter()
                .any(|network| network.contains(&address))
        });
        if allowed {
            return Ok(());
        }
        let problem = Problem::new(ErrorCode::IpNotAllowed);
        Err(Box::new(
            problem.detail("This route may not be called from this address."),
        ))
    }
}

impl<S> Layer<S> for IpAllowLayer {
    type Service = Guarded<S, Self>;

    fn layer(&self, inner: S) -> Guarded<S, Self> {
        Guarded::new(inner, self.clone())
    }
}

impl fmt::Debug for IpAllowLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IpAllowLayer")
            .field("networks", &self.networks)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_networks_and_addresses_of_both_kinds() {
        let parsed = |text: &str| parse_network(text, 0).map(|network| network.to_string());
        assert_eq!(parsed("10.0.0.0/8").unwrap(), "10.0.0.0/8");
        assert_eq!(parsed(" 192.0.2.7 ").unwrap(), "192.0.2.7/32");
        assert_eq!(parsed("2001:db8::1").unwrap(), "2001:db8::1/128");
        assert_eq!(parsed("::ffff:10.0.0.0/104").unwrap(), "10.0.0.0/8");
        let error = parse_network("10.0.0.0/33", 2).unwrap_err();
        assert_eq!(error.path(), "allowed_networks[2]");
    }
}
