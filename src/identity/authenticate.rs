use std::{fmt, pin::Pin, sync::Arc};

use super::Identity;
use crate::{
    auth::{AuthRefusal, Credential},
    clock::Now,
    head::RequestHead,
};

/// Turns the credential of a request into an identity.
///
/// An [`AuthLayer`](super::AuthLayer) asks several one after the other; the first that does not answer
/// [`Attempt::NotMine`] decides.
///
/// # Contract
///
/// - Neither blocks nor waits: what is known already is answered as [`Attempt::Done`], without a future and
///   without an allocation; what needs a trip is answered as [`Attempt::Lookup`], or as [`Attempt::Refresh`] when the credential has
///   worked before. An attacker must not be able to bring about a `Refresh`: nothing bounds those.
/// - [`Attempt::NotMine`] only where the credential's form shows that another authenticator must judge it,
///   never where it was judged and found wanting.
/// - Expiry and revocation are checked on every call, also when the answer comes from a cache.
/// - A store that fails is [`AuthRefusal::StoreUnavailable`], never a verdict on the credential.
/// - Whoever needs no credential, such as one that reads a client certificate from the request's extensions,
///   is asked with `None`.
pub trait Authenticate: fmt::Debug + Send + Sync + 'static {
    /// Judges a credential at `now`.
    fn authenticate(
        &self,
        credential: Option<&Credential<'_>>,
        head: &RequestHead<'_>,
        now: Now,
    ) -> Attempt;
}

impl<T: Authenticate + ?Sized> Authenticate for Arc<T> {
    fn authenticate(
        &self,
        credential: Option<&Credential<'_>>,
        head: &RequestHead<'_>,
        now: Now,
    ) -> Attempt {
        (**self).authenticate(credential, head, now)
    }
}

/// The answer of an [`Authenticate`].
#[non_exhaustive]
pub enum Attempt {
    /// The credential is of a form that another authenticator may know, or there is none.
    NotMine,
    /// Decided at once.
    Done(Result<Identity, AuthRefusal>),
    /// Decided by a trip to a store. Dropping the future gives the request up, and nothing else.
    Lookup(IdentityLookup),
    /// As [`Lookup`](Self::Lookup), for a credential that worked when it was last looked up and must be looked
    /// up again: the failures of others at its address do not hold it back.
    Refresh(IdentityLookup),
}

/// The trip of [`Attempt::Lookup`] and [`Attempt::Refresh`].
pub type IdentityLookup = Pin<Box<dyn Future<Output = Result<Identity, AuthRefusal>> + Send>>;

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMine => f.write_str("NotMine"),
            Self::Done(result) => f.debug_tuple("Done").field(result).finish(),
            Self::Lookup(_) => f.write_str("Lookup(..)"),
            Self::Refresh(_) => f.write_str("Refresh(..)"),
        }
    }
}
