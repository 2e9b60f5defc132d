//! The country that a call comes from: its address is looked at, and not kept.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use http::Request;

use super::{guard::Guard, meter::Meter};
use crate::{auth::ClientAddr, head::RequestHead};

/// A country: two letters, as ISO 3166-1 alpha-2 assigns them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

/// A text that is no country's two letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("a country is two letters, such as DE")]
pub struct NotACountry;

impl Country {
    /// The two letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Two ASCII letters are always text.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// A number above zero for each.
    pub(super) const fn to_bits(self) -> u16 {
        u16::from_be_bytes(self.0)
    }

    pub(super) const fn from_bits(bits: u16) -> Option<Self> {
        if bits == 0 {
            None
        } else {
            Some(Self(bits.to_be_bytes()))
        }
    }
}

impl FromStr for Country {
    type Err = NotACountry;

    /// Takes letters of either case.
    fn from_str(text: &str) -> Result<Self, NotACountry> {
        match text.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Ok(Self([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => Err(NotACountry),
        }
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Tells the country of an address, for example from a database of addresses in memory. A closure is one.
///
/// # Contract
///
/// It is asked once for each call, on the way of the request: it must not block.
pub trait GeoResolver: Send + Sync + 'static {
    /// The country of an address; `None` where it is not known.
    fn country(&self, address: IpAddr) -> Option<Country>;
}

impl<F> GeoResolver for F
where
    F: Fn(IpAddr) -> Option<Country> + Send + Sync + 'static,
{
    fn country(&self, address: IpAddr) -> Option<Country> {
        self(address)
    }
}

impl<T: GeoResolver + ?Sized> GeoResolver for Arc<T> {
    fn country(&self, address: IpAddr) -> Option<Country> {
        (**self).country(address)
    }
}

/// Whom to ask for a call's country.
#[derive(Clone)]
pub(super) struct Countries {
    pub(super) resolver: Arc<dyn GeoResolver>,
    pub(super) client_addr: Arc<dyn ClientAddr>,
}

impl fmt::Debug for Countries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Countries").finish_non_exhaustive()
    }
}

impl Meter {
    /// Says which country the call comes from; the last word before the end stands.
    ///
    /// For services that know it from elsewhere than the address, such as a field that a trusted proxy sets.
    pub fn set_country(&self, country: Country) {
        self.0.set_country(country);
    }
}

impl Guard {
    /// Asks for the country, where somebody is to be asked. The guard must have been [entered](Guard::enter): a hook
    /// may panic.
    pub(crate) fn find_country<B>(&self, request: &Request<B>) {
        let meter = self.meter();
        let Some(countries) = meter.0.site.as_ref().and_then(|it| it.countries.as_ref()) else {
            return;
        };
        let address = countries
            .client_addr
            .client_addr(&RequestHead::from(request));
        if let Some(country) = address.and_then(|it| countries.resolver.country(it)) {
            meter.set_country(country);
        }
    }
}
