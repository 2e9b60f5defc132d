use std::{fmt, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header::UPGRADE};
use tower_layer::Layer;

use super::TenantAccess;
use crate::{
    auth::Challenge,
    clock::{Clock, Now, SystemClock},
    error::{ErrorCode, Problem},
    head::RequestHead,
    identity::Identity,
    tenant::{Access, AccessState},
};

/// Lets a tenant do what its payments and its plan allow.
///
/// Stands behind [`AuthLayer`](crate::identity::AuthLayer):
///
/// 1. Active and Grace pass; in grace the answer carries `Tollgate-Access: grace`.
/// 2. Read-only lets GET, HEAD and OPTIONS pass with `Tollgate-Access: read-only`; the rest is answered 402
///    `read_only` with the tenant's `pay_url`. A request to leave HTTP (an upgrade) is no read.
/// 3. Suspended is answered 402 `payment_required`, Closed 401 `account_closed`.
/// 4. A plan that does not include this [`api`](Self::api) is answered 403 `not_subscribed`.
///
/// A request with neither an identity nor the [`PublicPath`](crate::identity::PublicPath) mark is answered
/// 500: the layer that identifies callers is missing.
#[derive(Clone, Debug)]
#[must_use]
pub struct TenantLayer {
    pub(crate) rules: Arc<AccessRules>,
}

type ReadsHook = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

#[derive(Clone)]
pub(crate) struct AccessRules {
    api: Option<Arc<str>>,
    challenge: Challenge,
    clock: Arc<dyn Clock>,
    read_only_status: StatusCode,
    reads: Option<ReadsHook>,
    pub(crate) task_local: bool,
}

impl TenantLayer {
    /// Enforces the access state; every API is taken to be included, and nothing is task-local.
    pub fn new() -> Self {
        Self {
            rules: Arc::new(AccessRules {
                api: None,
                challenge: Challenge::default(),
                clock: SystemClock::shared(),
                read_only_status: ErrorCode::ReadOnly.status(),
                reads: None,
                task_local: false,
            }),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut AccessRules)) -> Self {
        change(Arc::make_mut(&mut self.rules));
        self
    }

    /// The name of this API in `Plan::api`. A plan that names no API includes all of them.
    pub fn api(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|rules| rules.api = Some(name.into()))
    }

    /// The `WWW-Authenticate` of the 401 for a closed account (RFC 9110 section 15.5.2); the default
    /// [`Challenge`] unless set.
    pub fn challenge(self, challenge: Challenge) -> Self {
        self.with(|rules| rules.challenge = challenge)
    }

    /// The time for requests that have passed no meter; the system's clock unless set.
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        self.with(|rules| rules.clock = clock)
    }

    /// The status of a refused change in read-only access: 402 unless set, 403 is the other common choice.
    pub fn read_only_status(self, status: StatusCode) -> Self {
        self.with(|rules| rules.read_only_status = status)
    }

    /// Decides what only reads, in place of the method: every gRPC call is a POST, for example.
    pub fn reads(self, reads: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|rules| rules.reads = Some(Arc::new(reads)))
    }

    /// Whether [`current_tenant`](crate::tenant::current_tenant) answers inside the service; off unless set.
    pub fn task_local(self, on: bool) -> Self {
        self.with(|rules| rules.task_local = on)
    }
}

impl Default for TenantLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for TenantLayer {
    type Service = TenantAccess<S>;

    fn layer(&self, inner: S) -> TenantAccess<S> {
        TenantAccess::new(inner, Arc::clone(&self.rules))
    }
}

/// The step after the call: tells the client of a state in which it still passes.
pub(crate) fn tell(mark: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(ACCESS, mark);
}

/// The header that tells a client of a state in which it still passes.
const ACCESS: http::HeaderName = http::HeaderName::from_static("tollgate-access");

const GRACE: HeaderValue = HeaderValue::from_static("grace");
const READ_ONLY: HeaderValue = HeaderValue::from_static("read-only");

impl AccessRules {
    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// The step before the call: passes it, with what [`ACCESS`] is to say, or refuses it.
    pub(crate) fn judge(
        &self,
        identity: &Identity,
        head: &RequestHead<'_>,
        now: Now,
    ) -> Result<Option<HeaderValue>, Box<Problem>> {
        let state = identity.tenant().access().at(now.wall());
        let method = match state {
            // What the call would do is asked only where it matters.
            AccessState::ReadOnly { .. } if self.only_reads(head) => &Method::GET,
            _ => &Method::POST,
        };
        let mark = match state.access(method, now.wall()) {
            Access::Full => None,
            Access::Grace => Some(GRACE),
            Access::ReadOnlyAllowed => Some(READ_ONLY),
            Access::ReadOnlyRefused => {
                let problem = Problem::new(ErrorCode::ReadOnly)
                    .status(self.read_only_status)
                    .detail("Access is read-only until an invoice is paid.")
                    .header(ACCESS, READ_ONLY);
                return Err(Box::new(with_pay_url(problem, identity)));
            }
            Access::Suspended => {
                let problem = Problem::new(ErrorCode::PaymentRequired)
                    .detail("Access is suspended until an invoice is paid.");
                return Err(Box::new(with_pay_url(problem, identity)));
            }
            Access::Closed => {
                return Err(Box::new(self.challenge.account_closed()));
            }
        };
        match &self.api {
            Some(api) if !identity.plan().entitlements().includes_api(api) => {
                let problem = Problem::new(ErrorCode::NotSubscribed)
                    .detail("The plan does not include this API.")
                    .with("api", &**api);
                Err(Box::new(with_upgrade_url(problem, identity)))
            }
            _ => Ok(mark),
        }
    }

    fn only_reads(&self, head: &RequestHead<'_>) -> bool {
        // CONNECT has no other use (RFC 9110 section 9.3.6, RFC 8441 section 4).
        if *head.method() == Method::CONNECT || leaves_http(head.headers()) {
            return false;
        }
        match &self.reads {
            Some(reads) => reads(head),
            None => matches!(*head.method(), Method::GET | Method::HEAD | Method::OPTIONS),
        }
    }
}

/// Whether the request asks for another protocol (RFC 9110 section 7.8), through which anything could be
/// written later. An offer of HTTP/2 in clear text stays HTTP.
fn leaves_http(headers: &HeaderMap) -> bool {
    headers
        .get_all(UPGRADE)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"h2c"))
}

fn with_pay_url(problem: Problem, identity: &Identity) -> Problem {
    match &identity.tenant().record().pay_url {
        Some(url) => problem.with("pay_url", &**url),
        None => problem,
    }
}

pub(in crate::identity) fn with_upgrade_url(problem: Problem, identity: &Identity) -> Problem {
    match identity.plan().upgrade_url() {
        Some(url) => problem.with("upgrade_url", url),
        None => problem,
    }
}

impl fmt::Debug for AccessRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessRules")
            .field("api", &self.api)
            .field("read_only_status", &self.read_only_status)
            .field("task_local", &self.task_local)
            .finish_non_exhaustive()
    }
}
