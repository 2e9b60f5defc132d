use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use tower_layer::Layer;

use super::{
    cost::CostOf,
    fallback::{Breaker, Fallback},
    headers::HeaderStyle,
    hook::{Hook, LimitKey, LogThresholds, ThresholdSink},
    rule::Rule,
    service::Limit,
    set::RuleSet,
    store::LimitStore,
    subject::{ByIdentity, ByKey, EveryCall, owner_name},
    text::is_nearly,
};
use crate::{
    auth::{ClientAddr, PeerAddr},
    clock::{Clock, SystemClock},
    error::ConfigError,
    head::RequestHead,
    id::TenantId,
    meter::Meter,
    route::{MatchedRoute, RouteOf},
};

/// Decides whether a call may pass, before the service sees it.
///
/// 1. The rules of the call are found: those given here, or those of the request's `Identity`.
/// 2. All of them are decided in one atomic step: all pass and all are charged, or none is.
/// 3. A refused call is answered 429 with `Retry-After` and a problem document; the service is not called.
/// 4. An admitted call reaches the service; its answer carries the state of the limits.
/// 5. When the response body ends or is dropped, the charge is settled: a 5xx answer gives back to quotas, a
///    custom quantity that the handler named replaces what was held for it.
///
/// By default one count serves every call that passes the layer; [`by`](Self::by) counts by anything.
#[derive(Clone)]
#[must_use]
pub struct LimitLayer<F = EveryCall> {
    pub(crate) settings: Arc<Settings>,
    pub(crate) find: F,
}

/// Everything that a layer and its services share.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(super) store: Arc<dyn LimitStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) cost: Option<Hook<dyn CostOf>>,
    pub(super) headers: HeaderStyle,
    pub(super) client_addr: Hook<dyn ClientAddr>,
    pub(super) route_of: Hook<dyn RouteOf>,
    pub(super) scopes: Arc<[CustomScope]>,
    pub(super) thresholds: Arc<dyn ThresholdSink>,
    pub(super) deadline: Duration,
    pub(super) quota_status: StatusCode,
    pub(super) fallback: Arc<Fallback>,
    pub(super) breaker: Arc<Breaker>,
    pub(super) metrics: LimitMetrics,
    pub(super) told: Arc<Told>,
}

/// What the log has been told once.
#[derive(Debug, Default)]
pub(super) struct Told {
    no_address: AtomicBool,
    no_hook: AtomicBool,
    misspelt: AtomicBool,
}

impl Told {
    pub(super) fn no_address(&self) {
        if !self.no_address.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "tollgate::limit",
                "the client's address is not known: all such calls share one count of each rule by address"
            );
        }
    }

    /// A call named quantities, but not `unit`, which a rule counts.
    pub(super) fn not_named(&self, unit: &str, meter: &Meter) {
        if self.misspelt.load(Ordering::Relaxed) {
            return;
        }
        let Some(added) = meter.find_quantity(|name| is_nearly(name, unit)) else {
            return;
        };
        if !self.misspelt.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "tollgate::limit",
                rule_counts = unit,
                handler_adds = &*added,
                "a handler adds a quantity that is spelt almost as the one that a rule counts: the rule counts nothing"
            );
        }
    }

    pub(super) fn no_hook(&self, scope: &str) {
        if !self.no_hook.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "tollgate::limit",
                scope,
                "no hook gives values for this scope: its rules do not apply"
            );
        }
    }
}

/// A custom scope's name and the hook that gives its values.
pub(super) type CustomScope = (Arc<str>, Hook<dyn LimitKey>);

/// Counters, made once.
#[derive(Clone)]
pub(super) struct LimitMetrics {
    pub(super) admitted: metrics::Counter,
    pub(super) overage: metrics::Counter,
    pub(super) refused: metrics::Counter,
    pub(super) not_limited: metrics::Counter,
    pub(super) degraded: metrics::Counter,
    pub(super) unavailable: metrics::Counter,
    pub(super) indeterminate: metrics::Counter,
    pub(super) corrupt: metrics::Counter,
}

impl LimitMetrics {
    fn new() -> Self {
        let decision =
            |kind| metrics::counter!("tollgate_limit_decisions_total", "decision" => kind);
        let failure =
            |kind| metrics::counter!("tollgate_limit_store_failures_total", "kind" => kind);
        Self {
            admitted: decision("admitted"),
            overage: decision("overage"),
            refused: decision("refused"),
            not_limited: decision("not_limited"),
            degraded: metrics::counter!("tollgate_limit_degraded_total"),
            unavailable: failure("unavailable"),
            indeterminate: failure("indeterminate"),
            corrupt: failure("corrupt"),
        }
    }
}

const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);

impl Settings {
    fn new(store: Arc<dyn LimitStore>) -> Self {
        Self {
            store,
            clock: SystemClock::shared(),
            cost: None,
            headers: HeaderStyle::default(),
            client_addr: Hook(Arc::new(PeerAddr)),
            route_of: Hook(Arc::new(MatchedRoute)),
            scopes: Arc::from([]),
            thresholds: Arc::new(LogThresholds),
            deadline: DEFAULT_DEADLINE,
            quota_status: StatusCode::TOO_MANY_REQUESTS,
            fallback: Arc::new(Fallback::new(NonZeroU32::MIN)),
            breaker: Arc::default(),
            metrics: LimitMetrics::new(),
            told: Arc::default(),
        }
    }
}

impl LimitLayer {
    /// One count of `rules` for every call that passes the layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the rule and the field, such as `rules[0].burst`.
    pub fn new<R: Into<Rule>>(
        store: impl LimitStore,
        rules: impl IntoIterator<Item = R>,
    ) -> Result<Self, ConfigError> {
        let find = EveryCall::new(
            RuleSet::compile(rules)?.of_origin("every"),
            TenantId::from_checked("every-call"),
        );
        Ok(Self {
            settings: Arc::new(Settings::new(Arc::new(store))),
            find,
        })
    }

    /// Names the count, so that two layers on one store do not share it. `every-call` unless set.
    pub fn named(self, name: impl AsRef<str>) -> Self {
        Self {
            find: self.find.named(owner_name(name.as_ref())),
            settings: self.settings,
        }
    }

    /// Counts CORS preflights that [`AuthLayer`](crate::AuthLayer) let pass under these rules, in place of the
    /// layer's own: who may send one need not be known, so a rule by address suits them. Without this they are
    /// counted like every call.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the rule and the field, such as `rules[0].burst`.
    pub fn preflights<R: Into<Rule>>(
        self,
        rules: impl IntoIterator<Item = R>,
    ) -> Result<Self, ConfigError> {
        let rules = RuleSet::compile(rules)?.of_origin("preflight");
        Ok(Self {
            find: self.find.preflights(rules),
            settings: self.settings,
        })
    }

    /// Counts each value of `key` apart; a call for which it gives `None` is not counted.
    ///
    /// ```
    /// use tollgate::limit::{LimitLayer, MemoryLimits, Rate};
    ///
    /// let layer = LimitLayer::new(MemoryLimits::new(), [Rate::per_minute(60)])?
    ///     .by(|head| head.headers().get("x-team")?.to_str().ok().map(str::to_owned));
    /// # let _ = layer;
    /// # Ok::<(), tollgate::error::ConfigError>(())
    /// ```
    pub fn by<K, T>(self, key: K) -> LimitLayer<ByKey<K>>
    where
        K: Fn(&RequestHead<'_>) -> Option<T> + Send + Sync + 'static,
        T: Into<Arc<str>>,
    {
        self.by_hook(key)
    }

    /// The same by a hook with a type of its own.
    pub fn by_hook<K: LimitKey>(self, hook: K) -> LimitLayer<ByKey<K>> {
        LimitLayer {
            find: ByKey::new(self.find.rules().of_origin("by"), hook),
            settings: self.settings,
        }
    }
}

impl LimitLayer<ByIdentity> {
    /// The rules of each caller's own plan, from the request's `Identity`.
    pub fn by_identity(store: impl LimitStore) -> Self {
        Self {
            settings: Arc::new(Settings::new(Arc::new(store))),
            find: ByIdentity,
        }
    }
}

impl<F> LimitLayer<F> {
    /// A layer of the same settings with one count of `rules` for every call.
    pub(crate) fn every_call<R: Into<Rule>>(
        &self,
        rules: impl IntoIterator<Item = R>,
    ) -> Result<LimitLayer, ConfigError> {
        let layer = LimitLayer::new(Arc::clone(&self.settings.store), rules)?;
        Ok(LimitLayer {
            settings: Arc::clone(&self.settings),
            find: layer.find,
        })
    }

    /// Says what a call takes; one request and its `Content-Length` in bytes unless set.
    pub fn cost(mut self, hook: impl CostOf) -> Self {
        Arc::make_mut(&mut self.settings).cost = Some(Hook(Arc::new(hook)));
        self
    }

    /// The form of the header fields; [`HeaderStyle::Draft11`] unless set.
    pub fn headers(mut self, style: HeaderStyle) -> Self {
        Arc::make_mut(&mut self.settings).headers = style;
        self
    }

    /// How the client's address is found, for rules by address; the connection's peer unless set.
    pub fn client_addr(mut self, hook: impl ClientAddr) -> Self {
        Arc::make_mut(&mut self.settings).client_addr = Hook(Arc::new(hook));
        self
    }

    /// How the route template is found, for rules by route; axum's `MatchedPath` unless set.
    pub fn route_of(mut self, hook: impl RouteOf) -> Self {
        Arc::make_mut(&mut self.settings).route_of = Hook(Arc::new(hook));
        self
    }

    /// Gives the values of a custom scope, for rules of `Scope::Custom(name)`.
    pub fn scope(mut self, name: impl Into<Arc<str>>, hook: impl LimitKey) -> Self {
        let hook: Hook<dyn LimitKey> = Hook(Arc::new(hook));
        Arc::make_mut(&mut self.settings).scopes = self
            .settings
            .scopes
            .iter()
            .cloned()
            .chain([(name.into(), hook)])
            .collect();
        self
    }

    /// Who hears of thresholds; the log unless set.
    pub fn thresholds(mut self, sink: Arc<dyn ThresholdSink>) -> Self {
        Arc::make_mut(&mut self.settings).thresholds = sink;
        self
    }

    /// How long a decision may take before the rules' failure policy decides; 50 ms unless set.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        Arc::make_mut(&mut self.settings).deadline = deadline;
        self
    }

    /// How many processes share the limits: a rule of `OnStoreFailure::Local` then allows its share of the
    /// limit. One unless set.
    pub fn processes(mut self, processes: NonZeroU32) -> Self {
        Arc::make_mut(&mut self.settings).fallback = Arc::new(Fallback::new(processes));
        self
    }

    /// The status of an exceeded quota: 429 unless set, 402 where a plan change is the only way out.
    pub fn quota_status(mut self, status: StatusCode) -> Self {
        Arc::make_mut(&mut self.settings).quota_status = status;
        self
    }

    /// The source of time; the operating system's unless set.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        Arc::make_mut(&mut self.settings).clock = clock;
        self
    }
}

impl<S, F: Clone> Layer<S> for LimitLayer<F> {
    type Service = Limit<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        Limit::new(inner, Arc::clone(&self.settings), self.find.clone())
    }
}

impl<F: fmt::Debug> fmt::Debug for LimitLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitLayer")
            .field("find", &self.find)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("store", &self.store)
            .field("headers", &self.headers)
            .field("deadline", &self.deadline)
            .field("quota_status", &self.quota_status)
            .finish_non_exhaustive()
    }
}
