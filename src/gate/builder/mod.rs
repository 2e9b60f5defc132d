//! The settings of a gate, by what they are about.

mod assemble;
mod calls;
mod credentials;
mod limits;
mod metering;
mod plans;
mod restart;
mod tenants;

use std::{fmt, num::NonZeroU32, sync::Arc};

use http::StatusCode;

use super::{Document, stores::Stores};
#[cfg(feature = "jwt")]
use crate::identity::JwtAuthenticatorBuilder;
use crate::{
    auth::{Challenge, ClientAddr, Extractor, KeyFormat, KeyHasher, PeerAddr},
    clock::{Clock, SystemClock},
    error::{ConfigError, ProblemLayer, RenderError},
    id::Environment,
    identity::{AuthLayer, CacheSettings, TenantLayer},
    limit::{ByIdentity, LimitLayer, OnDamage, QuotaSnapshotBuilder, Rule},
    meter::{AbortPolicy, Durability, GeoResolver, MeterLayer, Recorder},
    plan::{Plan, PlanCatalog},
    request_id::{RequestIdLayer, TrustInbound},
    route::{MatchedRoute, RouteOf},
    sink::{LogSink, UsageSink},
};

/// Sets up a [`Tollgate`](super::Tollgate); every setting but the plans has a default, see
/// [`guide::defaults`](crate::guide::defaults).
#[must_use]
pub struct TollgateBuilder {
    abort_policy: AbortPolicy,
    api: Option<Arc<str>>,
    auth: Vec<Change<AuthLayer>>,
    cache: CacheSettings,
    ceiling: Vec<Rule>,
    challenge: Option<Challenge>,
    client_addr: Arc<dyn ClientAddr>,
    clock: Arc<dyn Clock>,
    countries: Option<Arc<dyn GeoResolver>>,
    document: Option<Document>,
    environment: Option<Environment>,
    extensions: bool,
    extractor: Extractor,
    /// What is wrong with settings that are checked where they are made; the first is told by `build`.
    faults: Vec<ConfigError>,
    formats: Vec<KeyFormat>,
    hasher: KeyHasher,
    #[cfg(feature = "jwt")]
    jwt: Vec<JwtAuthenticatorBuilder>,
    limits: Vec<Change<LimitLayer<ByIdentity>>>,
    meter: Vec<Change<GateMeter>>,
    plans: Plans,
    preflight_limit: Vec<Rule>,
    problems: ProblemLayer<dyn RenderError>,
    processes: NonZeroU32,
    public: Vec<String>,
    quantities: Option<Vec<Arc<str>>>,
    request_id: RequestIdLayer<dyn TrustInbound>,
    route_of: Arc<dyn RouteOf>,
    sandbox: Option<String>,
    scopes: Vec<Arc<str>>,
    snapshot: Option<QuotaSnapshotBuilder>,
    snapshot_damage: OnDamage,
    stores: Stores,
    tenant: Vec<Change<TenantLayer>>,
    trace: bool,
    usage: Usage,
    usage_durability: Option<Durability>,
}

/// A setting of one layer, applied when the layer is made.
type Change<L> = Box<dyn FnOnce(L) -> L + Send>;

type GateMeter = MeterLayer<Arc<dyn RouteOf>>;

enum Plans {
    List(Vec<Plan>),
    Catalog(PlanCatalog),
}

enum Usage {
    Sink(Arc<dyn UsageSink>),
    Recorder(Recorder),
}

impl TollgateBuilder {
    pub(super) fn new() -> Self {
        Self {
            abort_policy: AbortPolicy::default(),
            api: None,
            auth: Vec::new(),
            cache: CacheSettings::new(),
            ceiling: Vec::new(),
            challenge: None,
            client_addr: Arc::new(PeerAddr),
            clock: SystemClock::shared(),
            countries: None,
            document: None,
            environment: None,
            extensions: true,
            extractor: Extractor::default(),
            faults: Vec::new(),
            formats: Vec::new(),
            hasher: KeyHasher::default(),
            #[cfg(feature = "jwt")]
            jwt: Vec::new(),
            limits: Vec::new(),
            meter: Vec::new(),
            plans: Plans::List(Vec::new()),
            preflight_limit: Vec::new(),
            problems: ProblemLayer::shared(Arc::new(crate::error::ProblemJson::new())),
            processes: NonZeroU32::MIN,
            public: Vec::new(),
            quantities: None,
            request_id: RequestIdLayer::new()
                .trust_shared(Arc::new(crate::request_id::TrustNobody)),
            route_of: Arc::new(MatchedRoute),
            sandbox: None,
            scopes: Vec::new(),
            snapshot: None,
            snapshot_damage: OnDamage::default(),
            stores: Stores::in_memory(),
            tenant: Vec::new(),
            trace: false,
            usage: Usage::Sink(Arc::new(LogSink::new())),
            usage_durability: None,
        }
    }

    fn auth(mut self, change: impl FnOnce(AuthLayer) -> AuthLayer + Send + 'static) -> Self {
        self.auth.push(Box::new(change));
        self
    }

    fn meter(mut self, change: impl FnOnce(GateMeter) -> GateMeter + Send + 'static) -> Self {
        self.meter.push(Box::new(change));
        self
    }

    fn tenant(mut self, change: impl FnOnce(TenantLayer) -> TenantLayer + Send + 'static) -> Self {
        self.tenant.push(Box::new(change));
        self
    }

    fn limit(
        mut self,
        change: impl FnOnce(LimitLayer<ByIdentity>) -> LimitLayer<ByIdentity> + Send + 'static,
    ) -> Self {
        self.limits.push(Box::new(change));
        self
    }
}

/// A refusal must look like one.
fn no_refusal(setting: &str, status: StatusCode) -> Option<ConfigError> {
    (!status.is_client_error()).then(|| {
        let reason = format!("{status} does not say that the call was refused: write 400 to 499");
        ConfigError::new(setting, reason)
    })
}

impl fmt::Debug for TollgateBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TollgateBuilder")
            .field("api", &self.api)
            .field("keys", &self.stores.keys)
            .field("limits", &self.stores.limits)
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}
