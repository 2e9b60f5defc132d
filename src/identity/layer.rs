use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{
    Request,
    header::{AUTHORIZATION, Entry},
};
use metrics::Counter;
use smallvec::{SmallVec, smallvec};
use tower_layer::Layer;

use super::{
    Attempt, Auth, Authenticate, Identity, IdentityLookup, PathSet, PublicPath, own_headers,
    preflight::Preflights, span::tell_span, twice::Twice,
};
use crate::{
    auth::{
        AuthEvent, AuthEventSink, AuthRefusal, Challenge, ClientAddr, CredentialSource, Extractor,
        FailureLimit, KeySource, LogAuthEvents, PeerAddr, ShownKey,
    },
    clock::{Clock, Now, SystemClock},
    error::Problem,
    head::RequestHead,
    meter::Meter,
};

/// Lets only requests with a valid credential reach the service, and says who calls.
///
/// 1. A public path or a CORS preflight passes without a credential, marked by [`PublicPath`].
/// 2. The credential is found ([`Extractor`]) and judged ([`Authenticate`]); the key's own allow list of
///    networks is compared with the client's address.
/// 3. From an address with too many failed attempts, a credential that does not work, and one of which nothing
///    is known without asking a store, is answered 429. One that is known to work passes: whoever shares an
///    address with an attacker is locked out of nothing that already works.
/// 4. A refusal is a problem document: 400 `ambiguous_credentials` or `mode_mismatch`, 401
///    `missing_credentials` or `invalid_credentials` (one answer for unknown, revoked, expired and malformed),
///    403 `ip_not_allowed`, 429 `too_many_failed_attempts`, 503 `auth_unavailable`. It is reported to the
///    [`AuthEventSink`]; the service is not called.
/// 5. Else the credential's header and every header that speaks of an identity are removed, and the
///    [`Identity`] goes into the request's extensions and to the
///    [`Meter`] where there is one.
///
/// The fields `tenant`, `plan` and `key_id`, alone or behind `tollgate.`, are recorded on the current tracing span,
/// where the span declares them.
///
/// # Deployment
///
/// Behind a proxy, set [`client_addr`](Self::client_addr) to
/// [`TrustedProxies`](crate::auth::TrustedProxies); else all clients share the proxy's address and with it the
/// count of failed attempts. Without a known address they share one count too: serve axum with
/// `into_make_service_with_connect_info`. Whoever shares the count of somebody who guesses keys is answered 429
/// for a key that this process has not seen work yet, where the key store is behind a trip.
#[derive(Clone, Debug)]
#[must_use]
pub struct AuthLayer {
    pub(crate) settings: Arc<Settings>,
}

#[derive(Clone)]
pub(crate) struct Settings {
    accepted: Counter,
    authenticators: SmallVec<[Arc<dyn Authenticate>; 1]>,
    challenge: Challenge,
    client_addr: Arc<dyn ClientAddr>,
    clock: Arc<dyn Clock>,
    events: Arc<dyn AuthEventSink>,
    extractor: Extractor,
    failures: Option<FailureLimit>,
    forward_headers: bool,
    inserted: bool,
    keep_credential: bool,
    optional: bool,
    preflights: Preflights,
    public: PathSet,
    told_of_no_address: Arc<AtomicBool>,
    twice: Arc<Twice>,
}

impl AuthLayer {
    /// Asks this authenticator, with everything else at its default: the default [`Extractor`],
    /// [`Challenge`] and [`FailureLimit`], refusals into the log ([`LogAuthEvents`]), no public path.
    pub fn new(authenticator: impl Authenticate) -> Self {
        Self {
            settings: Arc::new(Settings {
                accepted: metrics::counter!("tollgate_auth_success_total"),
                authenticators: smallvec![Arc::new(authenticator) as Arc<dyn Authenticate>],
                challenge: Challenge::default(),
                client_addr: Arc::new(PeerAddr),
                clock: SystemClock::shared(),
                events: Arc::new(LogAuthEvents::default()),
                extractor: Extractor::default(),
                failures: Some(FailureLimit::default()),
                forward_headers: false,
                inserted: false,
                keep_credential: false,
                optional: false,
                preflights: Preflights::None,
                public: PathSet::default(),
                told_of_no_address: Arc::default(),
                twice: Arc::default(),
            }),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }

    /// Asks another authenticator after those named before; the first that knows the credential's form
    /// decides.
    pub fn or(self, authenticator: impl Authenticate) -> Self {
        self.with(|settings| settings.authenticators.push(Arc::new(authenticator)))
    }

    /// Where a credential may stand in a request.
    pub fn extractor(self, extractor: Extractor) -> Self {
        self.with(|settings| settings.extractor = extractor)
    }

    /// What a caller without a valid credential is told.
    pub fn challenge(self, challenge: Challenge) -> Self {
        self.with(|settings| settings.challenge = challenge)
    }

    /// How the client's address is told; [`PeerAddr`] unless set.
    pub fn client_addr(self, client_addr: impl ClientAddr) -> Self {
        self.with(|settings| settings.client_addr = Arc::new(client_addr))
    }

    /// The time for requests that have passed no meter; the system's clock unless set.
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        self.with(|settings| settings.clock = clock)
    }

    /// Who hears of refused attempts; the log unless set.
    pub fn events(self, sink: Arc<dyn AuthEventSink>) -> Self {
        self.with(|settings| settings.events = sink)
    }

    /// How many failed attempts an address may have; `None` turns the limit off.
    pub fn failure_limit(self, limit: impl Into<Option<FailureLimit>>) -> Self {
        let limit = limit.into();
        self.with(|settings| settings.failures = limit)
    }

    /// Whether `X-Tenant-ID`, `X-Plan` and `X-Consumer-ID` (the key's id) are set on the request, for a proxy
    /// behind; off unless set. What a client sends under these names is removed either way.
    pub fn forward_headers(self, on: bool) -> Self {
        self.with(|settings| settings.forward_headers = on)
    }

    /// Whether an [`Identity`] that an outer layer of yours has put into the request's extensions is taken as it
    /// is, without a credential; off unless set. For authentication of your own in front of this layer.
    pub fn inserted_identity(self, on: bool) -> Self {
        self.with(|settings| settings.inserted = on)
    }

    /// Whether the header or parameter that held the credential stays in the request; off unless set.
    pub fn keep_credential(self, on: bool) -> Self {
        self.with(|settings| settings.keep_credential = on)
    }

    /// Whether a request without any credential passes, marked by [`PublicPath::Anonymous`]; off unless set.
    /// A credential that is sent must be valid all the same.
    pub fn optional(self, on: bool) -> Self {
        self.with(|settings| settings.optional = on)
    }

    /// Whether a CORS preflight passes without a credential, which browsers never send with one; off unless set.
    /// Not needed where a CORS layer outside of this one answers it.
    ///
    /// A preflight is OPTIONS with one `Origin` and one `Access-Control-Request-Method`, both well formed; any
    /// other OPTIONS needs a credential. It is nobody's call: a credential or an [`Identity`] that comes with it
    /// is left aside. Whoever calls can send one, so count it: see
    /// [`LimitLayer::preflights`](crate::LimitLayer::preflights).
    pub fn pass_preflight(self, on: bool) -> Self {
        let which = if on {
            Preflights::All
        } else {
            Preflights::None
        };
        self.with(|settings| settings.preflights = which)
    }

    /// Lets preflights pass on these paths alone; in place of [`pass_preflight`](Self::pass_preflight).
    pub fn pass_preflight_on(self, paths: PathSet) -> Self {
        self.with(|settings| settings.preflights = Preflights::On(paths))
    }

    /// Paths that pass without a credential. A credential that is sent there is neither judged nor removed, as
    /// the service may have a use of its own for `Authorization`; a field that may hold one is marked as
    /// sensitive, so that `Debug` does not show it.
    pub fn public(self, paths: PathSet) -> Self {
        self.with(|settings| settings.public = paths)
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth::new(inner, Arc::clone(&self.settings))
    }
}

/// What happens to a request, as far as it can be told at once.
pub(crate) enum Verdict {
    /// Passes as this caller.
    Known(Identity, Option<CredentialSource>),
    /// A trip tells.
    Lookup(IdentityLookup, Caller),
    /// Passes without an identity.
    Public(PublicPath),
    /// Is answered by this layer.
    Refused(Box<Problem>),
}

/// What must be known of a request when its trip has ended.
pub(crate) struct Caller {
    address: Option<IpAddr>,
    now: Now,
    shown: Option<ShownKey>,
    pub(crate) source: Option<CredentialSource>,
}

impl Settings {
    /// When the call came in, where no meter tells.
    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// The step before the call: finds out who calls.
    pub(crate) fn judge(&self, head: &RequestHead<'_>, now: Now) -> Verdict {
        if self.public.contains(head.uri().path()) {
            return Verdict::Public(PublicPath::Path);
        }
        if self.preflights.let_pass(head) {
            return Verdict::Public(PublicPath::Preflight);
        }
        if self.inserted
            && let Some(identity) = head.extensions().get::<Identity>()
        {
            return Verdict::Known(identity.clone(), None);
        }
        let mut caller = Caller {
            address: self.client_addr.client_addr(head),
            now,
            shown: None,
            source: None,
        };
        let credential = match self.extractor.extract(head) {
            Ok(credential) => credential,
            Err(refusal) => return Verdict::Refused(self.refuse(refusal, &caller)),
        };
        caller.source = credential.map(|credential| credential.source);
        let attempt = self
            .authenticators
            .iter()
            .map(|one| one.authenticate(credential.as_ref(), head, caller.now))
            .find(|attempt| !matches!(attempt, Attempt::NotMine));
        let result = match attempt {
            Some(Attempt::Done(Ok(identity))) => Ok(identity),
            Some(Attempt::Done(Err(refusal))) => Err(refusal),
            Some(Attempt::Refresh(lookup)) => {
                caller.shown = credential.map(|credential| ShownKey::of(credential.value));
                return Verdict::Lookup(lookup, caller);
            }
            Some(Attempt::Lookup(lookup)) => {
                caller.shown = credential.map(|credential| ShownKey::of(credential.value));
                return match self.check_failures(&caller) {
                    Ok(()) => Verdict::Lookup(lookup, caller),
                    Err(refusal) => Verdict::Refused(self.report(&refusal, &caller)),
                };
            }
            Some(Attempt::NotMine) | None if credential.is_some() => Err(AuthRefusal::Malformed),
            Some(Attempt::NotMine) | None if self.optional => {
                return Verdict::Public(PublicPath::Anonymous);
            }
            Some(Attempt::NotMine) | None => {
                self.twice.look_at(head);
                Err(AuthRefusal::Missing)
            }
        };
        if result.is_err() {
            caller.shown = credential.map(|credential| ShownKey::of(credential.value));
        }
        match self.conclude(result, &caller) {
            Ok(identity) => Verdict::Known(identity, caller.source),
            Err(problem) => Verdict::Refused(problem),
        }
    }

    /// Compares the address with the credential's allow list; counts and reports a refusal.
    pub(crate) fn conclude(
        &self,
        result: Result<Identity, AuthRefusal>,
        caller: &Caller,
    ) -> Result<Identity, Box<Problem>> {
        match result {
            Ok(identity) if identity.allows_address(caller.address) => {
                self.accepted.increment(1);
                Ok(identity)
            }
            Ok(_) => Err(self.refuse(AuthRefusal::AddressNotAllowed, caller)),
            Err(refusal) => Err(self.refuse(refusal, caller)),
        }
    }

    /// Whether the caller's address has failures left.
    fn check_failures(&self, caller: &Caller) -> Result<(), AuthRefusal> {
        let Some(failures) = &self.failures else {
            return Ok(());
        };
        failures
            .check(caller.address, caller.now)
            .map_err(|retry_after| AuthRefusal::TooManyFailures { retry_after })
    }

    /// Counts a refusal of the credential and reports it, as one too many where the address has had its share.
    fn refuse(&self, refusal: AuthRefusal, caller: &Caller) -> Box<Problem> {
        if !refusal.counts_as_failure() {
            return self.report(&refusal, caller);
        }
        if let Err(too_many) = self.check_failures(caller) {
            return self.report(&too_many, caller);
        }
        if let Some(failures) = &self.failures {
            if caller.address.is_none() && !self.told_of_no_address.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    target: "tollgate::auth",
                    "the clients' addresses are not known: all of them share one count of failed attempts"
                );
            }
            failures.record(caller.address, caller.now);
        }
        self.report(&refusal, caller)
    }

    fn report(&self, refusal: &AuthRefusal, caller: &Caller) -> Box<Problem> {
        let mut event = AuthEvent::new(*refusal, caller.now).address(caller.address);
        event.credential = caller.shown;
        event.emit(&*self.events);
        Box::new(self.challenge.problem(refusal))
    }

    /// Makes the request one that passes without an identity.
    pub(crate) fn admit_public<B>(&self, request: &mut Request<B>, mark: PublicPath) {
        self.veil(request);
        own_headers::strip(request.headers_mut());
        if mark == PublicPath::Preflight {
            // Nobody's, whoever an outer layer takes the connection for: no tenant is to pay for it.
            request.extensions_mut().remove::<Identity>();
        }
        request.extensions_mut().insert(mark);
    }

    /// Makes the request one of a known caller, but for its extension.
    pub(crate) fn admit<B>(
        &self,
        request: &mut Request<B>,
        identity: &Identity,
        source: Option<CredentialSource>,
        meter: Option<&Meter>,
    ) {
        if let Some(source) = source {
            self.hide(request, &source);
        }
        own_headers::strip(request.headers_mut());
        if self.forward_headers {
            own_headers::forward(request.headers_mut(), identity);
        }
        if let Some(meter) = meter {
            meter.identify(identity);
        }
        tell_span(identity);
    }

    /// Removes the credential, or at least keeps it out of everybody's `Debug`.
    fn hide<B>(&self, request: &mut Request<B>, source: &CredentialSource) {
        if self.keep_credential {
            self.veil(request);
        } else {
            self.extractor.strip(source, request);
        }
    }

    /// Keeps the header fields that may hold a credential out of everybody's `Debug`.
    fn veil<B>(&self, request: &mut Request<B>) {
        for place in self.extractor.sources() {
            let name = match place {
                KeySource::Header(name) => name,
                KeySource::Bearer => &AUTHORIZATION,
                _ => continue,
            };
            if let Entry::Occupied(mut entry) = request.headers_mut().entry(name) {
                entry.iter_mut().for_each(|value| value.set_sensitive(true));
            }
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("authenticators", &self.authenticators)
            .field("extractor", &self.extractor)
            .field("failures", &self.failures)
            .field("optional", &self.optional)
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}
