use std::{
    fmt,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::StatusCode;

use super::{
    Document, Tollgate, TollgateLayer,
    reload::{Loaded, Managed},
    restart,
    steps::Steps,
    stores::{self, Kept, Stores},
    tollgate::Shared,
};
#[cfg(feature = "jwt")]
use crate::identity::{JwtAuthenticator, JwtAuthenticatorBuilder};
use crate::{
    auth::{
        AuthEventSink, Challenge, ClientAddr, Extractor, FailureLimit, KeyFormat, KeyHasher,
        KeyStore, PeerAddr,
    },
    clock::{Clock, SystemClock},
    error::{ConfigError, ProblemLayer, RenderError},
    head::RequestHead,
    id::{Environment, PlanName},
    identity::{
        AuthLayer, Authenticate, CacheSettings, KeyAuthenticator, KeyAuthenticatorBuilder, Keys,
        PathSet, TenantLayer, Tenants,
    },
    limit::{
        ByIdentity, CostOf, HeaderStyle, LimitKey, LimitLayer, LimitStore, OnDamage,
        QuotaSnapshotBuilder, Rule, ThresholdSink,
    },
    meter::{AbortPolicy, CostRates, MeterLayer, Recorder},
    plan::{Names, Plan, PlanCatalog, check_scopes, check_units},
    request_id::{RequestIdLayer, TrustInbound},
    route::{MatchedRoute, RouteOf},
    series::describe_metrics,
    sink::{LogSink, UsageSink},
    span::SpanLayer,
    tenant::TenantStore,
};

/// Sets up a [`Tollgate`]; every setting but the plans has a default, see
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
    pub(super) document: Option<Document>,
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
    pub(super) quantities: Option<Vec<Arc<str>>>,
    request_id: RequestIdLayer<dyn TrustInbound>,
    route_of: Arc<dyn RouteOf>,
    sandbox: Option<String>,
    scopes: Vec<Arc<str>>,
    pub(super) snapshot: Option<QuotaSnapshotBuilder>,
    pub(super) snapshot_damage: OnDamage,
    stores: Stores,
    tenant: Vec<Change<TenantLayer>>,
    trace: bool,
    usage: Usage,
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
        }
    }

    /// The plans on sale. At least one is needed.
    pub fn plans(mut self, plans: impl IntoIterator<Item = Plan>) -> Self {
        self.plans = Plans::List(plans.into_iter().collect());
        self
    }

    /// The plans on sale, from a catalog that somebody else keeps up to date; in place of
    /// [`plans`](Self::plans).
    pub fn catalog(mut self, catalog: PlanCatalog) -> Self {
        self.plans = Plans::Catalog(catalog);
        self
    }

    /// The plan of test keys that have none of their own; a test key is under its tenant's plan, counted
    /// apart, unless set.
    pub fn sandbox(mut self, plan: impl Into<String>) -> Self {
        self.sandbox = Some(plan.into());
        self
    }

    /// Serves keys of this environment alone; both unless set.
    pub const fn only(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Where keys are kept; in memory unless set.
    pub fn keys(mut self, store: impl KeyStore) -> Self {
        self.stores.keys = Kept::given(Arc::new(store));
        self
    }

    /// Where tenants are kept; in memory unless set.
    pub fn tenants(mut self, store: impl TenantStore) -> Self {
        self.stores.tenants = Kept::given(Arc::new(store));
        self
    }

    /// Where limits are counted; in memory unless set.
    pub fn limits(mut self, store: impl LimitStore) -> Self {
        self.stores.limits = stores::limits(store);
        self
    }

    /// Where usage goes; the log, at target `tollgate::usage`, unless set.
    pub fn usage(mut self, sink: impl UsageSink) -> Self {
        self.usage = Usage::Sink(Arc::new(sink));
        self
    }

    /// What a call pays whose client leaves before the end; what was delivered unless set.
    /// [`Meter::set_abort_policy`](crate::meter::Meter::set_abort_policy) changes it for one call.
    pub const fn abort_policy(mut self, policy: AbortPolicy) -> Self {
        self.abort_policy = policy;
        self
    }

    /// A recorder with settings of its own, in place of [`usage`](Self::usage). It keeps its own clock.
    pub fn recorder(mut self, recorder: Recorder) -> Self {
        self.usage = Usage::Recorder(recorder);
        self
    }

    /// The form of keys; the first is the one that new keys have. `tg_live_…` unless set.
    pub fn key_format(mut self, format: KeyFormat) -> Self {
        self.formats.push(format);
        self
    }

    /// How keys become digests; SHA-256 unless set. HMAC with a pepper kept outside the store makes a stolen
    /// store useless even for weak, imported keys.
    pub fn key_hasher(mut self, hasher: KeyHasher) -> Self {
        self.hasher = hasher;
        self
    }

    /// How long and how many identities are cached.
    pub const fn cache(mut self, settings: CacheSettings) -> Self {
        self.cache = settings;
        self
    }

    /// Accepts another kind of credential beside API keys; several calls accept several.
    pub fn authenticator(self, authenticator: impl Authenticate) -> Self {
        self.auth(|layer| layer.or(authenticator))
    }

    /// Accepts tokens of an identity provider beside API keys, for the tenants and plans of this gate. What is
    /// not set there of cache, environment and sandbox plan is as it is for keys.
    #[cfg(feature = "jwt")]
    #[cfg_attr(docsrs, doc(cfg(feature = "jwt")))]
    pub fn jwt(mut self, tokens: JwtAuthenticatorBuilder) -> Self {
        self.jwt.push(tokens);
        self
    }

    /// Where a credential may stand in a request; `X-API-Key`, then `Authorization: Bearer`, unless set.
    pub fn extractor(mut self, extractor: Extractor) -> Self {
        self.extractor = extractor;
        self
    }

    /// What a caller without a valid credential is told; the schemes of the extractor under the realm `api`
    /// unless set.
    pub fn challenge(mut self, challenge: Challenge) -> Self {
        self.challenge = Some(challenge);
        self
    }

    /// Who hears of refused attempts; the log, at target `tollgate::auth`, unless set.
    pub fn auth_events(self, sink: Arc<dyn AuthEventSink>) -> Self {
        self.auth(|layer| layer.events(sink))
    }

    /// How many failed attempts an address may have; `None` turns the limit off.
    pub fn failure_limit(self, limit: impl Into<Option<FailureLimit>>) -> Self {
        let limit = limit.into();
        self.auth(|layer| layer.failure_limit(limit))
    }

    /// Takes an `Identity` that an outer layer of yours has put into the request's extensions as it is, without
    /// a credential; off unless set. For authentication of your own in front of the gate.
    pub fn inserted_identity(self, on: bool) -> Self {
        self.auth(move |layer| layer.inserted_identity(on))
    }

    /// Whether the request carries its [`Identity`](crate::identity::Identity) and its
    /// [`Meter`](crate::meter::Meter) to the service, which costs two allocations; on unless set. Off, for a
    /// service that asks for neither: extractors and route layers, such as
    /// [`RequireScope`](crate::identity::RequireScope), then answer 500 as if the gate were missing.
    pub const fn extensions(mut self, on: bool) -> Self {
        self.extensions = on;
        self
    }

    /// Sets `X-Tenant-ID`, `X-Plan` and `X-Consumer-ID` on the request, for a proxy behind; off unless set.
    pub fn forward_headers(self, on: bool) -> Self {
        self.auth(move |layer| layer.forward_headers(on))
    }

    /// Lets every CORS preflight pass without a credential; off unless set. Not needed where a CORS layer outside
    /// the gate answers it. It is metered to no tenant and counted under [`ceiling`](Self::ceiling), or under
    /// [`preflight_limit`](Self::preflight_limit); see [`AuthLayer::pass_preflight`] for what is one.
    pub fn pass_preflight(self, on: bool) -> Self {
        self.auth(move |layer| layer.pass_preflight(on))
    }

    /// Lets CORS preflights pass on these paths alone, such as `/v1/*`; in place of
    /// [`pass_preflight`](Self::pass_preflight).
    pub fn pass_preflight_on<P: AsRef<str>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        match PathSet::new(paths) {
            Ok(paths) => self.auth(move |layer| layer.pass_preflight_on(paths)),
            Err(error) => {
                self.faults.push(error.renamed("pass_preflight_on"));
                self
            }
        }
    }

    /// A rule over all CORS preflights that pass, in place of the ceiling; several calls add up. Nobody is known
    /// who sends one, so count by address: `Rate::per_second(5).scope(Scope::Address)`.
    pub fn preflight_limit(mut self, rule: impl Into<Rule>) -> Self {
        self.preflight_limit.push(rule.into());
        self
    }

    /// Paths within the gate that need no key, such as `/health` or `/docs/*`; several calls add up.
    pub fn public<P: Into<String>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.public.extend(paths.into_iter().map(Into::into));
        self
    }

    /// How the client's address is told; the connection's peer unless set. Behind a proxy set
    /// [`TrustedProxies`](crate::auth::TrustedProxies).
    pub fn client_addr(mut self, hook: impl ClientAddr) -> Self {
        self.client_addr = Arc::new(hook);
        self
    }

    /// Whose `x-request-id` is kept; nobody's unless set.
    pub fn trust_request_ids(mut self, hook: impl TrustInbound) -> Self {
        self.request_id = RequestIdLayer::new().trust_shared(Arc::new(hook));
        self
    }

    /// The form of errors; `application/problem+json` unless set.
    pub fn render_errors(mut self, hook: impl RenderError) -> Self {
        self.problems = ProblemLayer::shared(Arc::new(hook));
        self
    }

    /// How the route template is found; axum's `MatchedPath` unless set.
    pub fn route_of(mut self, hook: impl RouteOf) -> Self {
        self.route_of = Arc::new(hook);
        self
    }

    /// The API's name, in usage events and in plans that include some APIs only; `default` unless set.
    pub fn api(mut self, name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        if name.is_empty() {
            let reason = "an API without a name could be in no plan: name it or leave it out";
            self.faults.push(ConfigError::new("api", reason));
        }
        self.api = Some(name);
        self
    }

    /// Puts each call into a tracing span by OpenTelemetry's conventions, see [`span`](crate::span); off unless
    /// set.
    pub const fn trace(mut self, on: bool) -> Self {
        self.trace = on;
        self
    }

    /// What resources cost you: each usage event then says what its call cost; nothing is priced unless set. See
    /// [`CostRates`].
    pub fn cost_rates(self, rates: CostRates) -> Self {
        self.meter(|layer| layer.cost_rates(rates))
    }

    /// Whether answers carry `X-Request-Latency`, in whole milliseconds; off unless set. See
    /// [`MeterLayer::latency_header`].
    pub fn latency_header(self, on: bool) -> Self {
        self.meter(move |layer| layer.latency_header(on))
    }

    /// Whether answers to known callers carry `X-Compute-Cost`, in whole billionths of the currency's unit; off
    /// unless set, as it tells callers what they cost you. See [`MeterLayer::cost_header`].
    pub fn cost_header(self, on: bool) -> Self {
        self.meter(move |layer| layer.cost_header(on))
    }

    /// Makes `tenant::current_tenant` answer inside the service; off unless set.
    pub fn task_local_tenant(self, on: bool) -> Self {
        self.tenant(move |layer| layer.task_local(on))
    }

    /// The status of a refused change in read-only access; 402 unless set, 400 to 499.
    pub fn read_only_status(mut self, status: StatusCode) -> Self {
        self.faults.extend(no_refusal("read_only_status", status));
        self.tenant(move |layer| layer.read_only_status(status))
    }

    /// Decides what only reads, in place of the method, for tenants in read-only access: every gRPC call is a
    /// POST, for example.
    pub fn reads(self, hook: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.tenant(move |layer| layer.reads(hook))
    }

    /// A rule over all tenants together, such as what the service can bear; decided before a tenant's own.
    pub fn ceiling(mut self, rule: impl Into<Rule>) -> Self {
        self.ceiling.push(rule.into());
        self
    }

    /// Says what a call takes; one request and its `Content-Length` in bytes unless set.
    pub fn cost(self, hook: impl CostOf) -> Self {
        self.limit(|layer| layer.cost(hook))
    }

    /// Gives the values of a custom scope, for rules of `Scope::Custom(name)`.
    pub fn scope(mut self, name: impl Into<Arc<str>>, hook: impl LimitKey) -> Self {
        let name = name.into();
        self.scopes.push(Arc::clone(&name));
        self.limit(|layer| layer.scope(name, hook))
    }

    /// The form of the header fields that tell of limits; `RateLimit` (IETF draft 11) unless set.
    pub fn headers(self, style: HeaderStyle) -> Self {
        self.limit(move |layer| layer.headers(style))
    }

    /// The status of an exceeded quota; 429 unless set, 400 to 499.
    pub fn quota_status(mut self, status: StatusCode) -> Self {
        self.faults.extend(no_refusal("quota_status", status));
        self.limit(move |layer| layer.quota_status(status))
    }

    /// Who hears that a tenant has reached a threshold; the log unless set.
    pub fn thresholds(self, sink: Arc<dyn ThresholdSink>) -> Self {
        self.limit(|layer| layer.thresholds(sink))
    }

    /// How long a decision may take before the rules' failure policy decides; 50 ms unless set.
    pub fn limit_deadline(mut self, deadline: Duration) -> Self {
        if deadline.is_zero() {
            let reason = "no decision could be made in no time: write 50 ms or so";
            self.faults.push(ConfigError::new("limit_deadline", reason));
        }
        self.limit(move |layer| layer.deadline(deadline))
    }

    /// How many processes share a limit store; while it is down each allows its share. One unless set.
    pub const fn processes(mut self, n: NonZeroU32) -> Self {
        self.processes = n;
        self
    }

    /// The source of time; the operating system's unless set.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
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

    /// Checks everything and makes the gate.
    ///
    /// Within a tokio runtime the task that writes usage starts here. Without one nothing is started, which the
    /// log says; it starts with [`Tollgate::warm_up`] or the first request.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting, such as `plans[pro].rules[0].burst`, says what is wrong and how to
    /// mend it.
    pub fn build(mut self) -> Result<Tollgate, ConfigError> {
        if !self.faults.is_empty() {
            return Err(self.faults.swap_remove(0));
        }
        describe_metrics();
        let plans = self.plans.catalog(self.document.as_ref())?;
        for (field, rules) in [
            ("ceiling", &self.ceiling),
            ("preflight_limit", &self.preflight_limit),
        ] {
            check_scopes(rules, &self.scopes)
                .and_then(|()| check_units(rules, self.quantities.as_deref()))
                .map_err(|error| error.under(field))?;
        }
        plans.know_names(Names {
            scopes: self.scopes,
            quantities: self.quantities,
        })?;
        let recorder = self.usage.recorder(&self.clock)?;
        let challenge = match self.challenge {
            Some(challenge) => challenge,
            #[cfg(feature = "jwt")]
            None if !self.jwt.is_empty() => {
                Challenge::for_extractor("api", &self.extractor)?.or_access_tokens()
            }
            None => Challenge::for_extractor("api", &self.extractor)?,
        };

        let keys = Keys::new(
            Arc::clone(&self.stores.keys.store),
            Arc::clone(&self.stores.tenants.store),
            plans.clone(),
            Arc::clone(&self.clock),
        )
        .format(self.formats.first().cloned().unwrap_or_default())
        .hasher(self.hasher.clone());
        let tenants = Tenants::new(Arc::clone(&self.stores.tenants.store), plans.clone());

        let sandbox = match self.sandbox {
            Some(name) => Some(sandbox(&name, &plans)?),
            None => None,
        };
        #[cfg(feature = "jwt")]
        let jwt = {
            let own = (self.cache, self.environment, sandbox.clone());
            tokens(self.jwt, own, &self.stores.tenants.store, &plans)?
        };
        let mut known = KeyAuthenticator::builder(
            self.stores.keys.store,
            self.stores.tenants.store,
            plans.clone(),
        )
        .cache(self.cache)
        .hasher(self.hasher);
        known = self
            .formats
            .iter()
            .cloned()
            .fold(known, KeyAuthenticatorBuilder::format);
        if let Some(environment) = self.environment {
            known = known.only(environment);
        }
        if let Some(name) = &sandbox {
            known = known.sandbox_plan(name.clone());
        }
        let managed = Managed {
            catalog: plans.clone(),
            formats: self.formats,
            keys: self.stores.keys.memory,
            tenants: self.stores.tenants.memory,
            sandbox,
            loaded: Mutex::new(Loaded::default()),
        };
        if let Some(document) = self.document {
            managed.apply(document)?;
        }
        let public = PathSet::new(&self.public).map_err(|error| error.renamed("public"))?;
        let known = known.build()?;
        recorder.each_tick(known.watch());
        let auth = AuthLayer::new(known)
            .clock(Arc::clone(&self.clock))
            .client_addr(Arc::clone(&self.client_addr))
            .extractor(self.extractor)
            .challenge(challenge.clone())
            .public(public);
        #[cfg(feature = "jwt")]
        let auth = jwt.into_iter().fold(auth, AuthLayer::or);
        let mut tenant = TenantLayer::new()
            .clock(Arc::clone(&self.clock))
            .challenge(challenge);
        let span_route = Arc::clone(&self.route_of);
        let mut meter = MeterLayer::new(recorder.clone())
            .abort_policy(self.abort_policy)
            .route_of(Arc::clone(&self.route_of));
        if let Some(api) = self.api {
            meter = meter.api(&api);
            tenant = tenant.api(api);
        }
        let snapshot = restart::open_snapshot(
            self.snapshot,
            self.snapshot_damage,
            self.stores.limits.memory.as_ref(),
            &self.clock,
        )?;
        let limits = LimitLayer::by_identity(self.stores.limits.store)
            .clock(self.clock)
            .client_addr(self.client_addr)
            .route_of(self.route_of)
            .processes(self.processes);
        let limits = applied(self.limits, limits);
        let mut ceiling = limits
            .every_call(self.ceiling)
            .map_err(|error| error.under("ceiling"))?;
        if !self.preflight_limit.is_empty() {
            ceiling = ceiling
                .preflights(self.preflight_limit)
                .map_err(|error| error.under("preflight_limit"))?;
        }
        let steps = Steps {
            request_id: self.request_id,
            problems: self.problems,
            meter: applied(self.meter, meter),
            span: SpanLayer::new().route_of(span_route).on(self.trace),
            auth: applied(self.auth, auth),
            tenant: applied(self.tenant, tenant),
            ceiling: ceiling.headers(HeaderStyle::Off),
            limits,
            extensions: self.extensions,
        };
        recorder.start();
        let shared = Shared {
            layer: TollgateLayer::new(steps),
            keys,
            tenants,
            plans,
            recorder,
            managed,
            snapshot,
        };
        Ok(Tollgate {
            shared: Arc::new(shared),
        })
    }
}

impl Plans {
    fn catalog(self, document: Option<&Document>) -> Result<PlanCatalog, ConfigError> {
        let in_document = document.filter(|document| document.has_plans());
        match (self, in_document) {
            (Self::List(plans), Some(document)) if plans.is_empty() => {
                let (plans, ..) = document.clone().into_parts();
                PlanCatalog::from_document(&plans)
            }
            (_, Some(_)) => {
                let reason = "the document names plans and the code does: leave one of them out";
                Err(ConfigError::new("plans", reason))
            }
            (Self::Catalog(catalog), None) => Ok(catalog),
            (Self::List(plans), None) if plans.is_empty() => {
                let reason = "a gate needs at least one plan: add `.plans([Plan::new(\"free\")])`, or a document \
                              with `plans`";
                Err(ConfigError::new("plans", reason))
            }
            (Self::List(plans), None) => PlanCatalog::new(plans),
        }
    }
}

impl Usage {
    fn recorder(self, clock: &Arc<dyn Clock>) -> Result<Recorder, ConfigError> {
        match self {
            Self::Recorder(recorder) => Ok(recorder),
            Self::Sink(sink) => Recorder::builder(sink)
                .clock(Arc::clone(clock))
                .build()
                .map_err(|error| error.under("usage")),
        }
    }
}

fn applied<L>(changes: Vec<Change<L>>, layer: L) -> L {
    changes
        .into_iter()
        .fold(layer, |layer, change| change(layer))
}

#[cfg(feature = "jwt")]
fn tokens(
    jwt: Vec<JwtAuthenticatorBuilder>,
    (cache, only, sandbox): (CacheSettings, Option<Environment>, Option<PlanName>),
    tenants: &Arc<dyn TenantStore>,
    plans: &PlanCatalog,
) -> Result<Vec<JwtAuthenticator>, ConfigError> {
    let build = |tokens: JwtAuthenticatorBuilder| {
        tokens
            .within(cache, only, sandbox.clone())
            .build(Arc::clone(tenants), plans.clone())
            .map_err(|error| error.under("jwt"))
    };
    jwt.into_iter().map(build).collect()
}

/// A refusal must look like one.
fn no_refusal(setting: &str, status: StatusCode) -> Option<ConfigError> {
    (!status.is_client_error()).then(|| {
        let reason = format!("{status} does not say that the call was refused: write 400 to 499");
        ConfigError::new(setting, reason)
    })
}

fn sandbox(name: &str, plans: &PlanCatalog) -> Result<PlanName, ConfigError> {
    let wrong = |reason: String| ConfigError::new("sandbox", reason);
    let name = PlanName::new(name).map_err(|source| wrong(source.to_string()).caused_by(source))?;
    if plans.find(&name).is_none() {
        return Err(wrong(format!(
            "there is no plan `{name}`: add it or name another"
        )));
    }
    Ok(name)
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
