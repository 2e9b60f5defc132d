//! How the settings become a gate.

use std::{
    mem,
    sync::{Arc, Mutex},
};

use super::{Change, TollgateBuilder, restart};
use crate::{
    auth::Challenge,
    error::ConfigError,
    gate::{
        Tollgate, TollgateLayer,
        reload::{Loaded, Managed},
        steps::Steps,
        tollgate::Shared,
    },
    id::PlanName,
    identity::{
        AuthLayer, KeyAuthenticator, KeyAuthenticatorBuilder, Keys, PathSet, TenantLayer, Tenants,
    },
    limit::{HeaderStyle, LimitLayer},
    meter::{MeterLayer, Recorder},
    plan::{Names, PlanCatalog, check_scopes, check_units},
    series::describe_metrics,
    span::SpanLayer,
};

/// Checks and assembles.
impl TollgateBuilder {
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
        let plans = self.checked_plans()?;
        let recorder = self
            .usage
            .recorder(&self.clock, self.usage_durability.as_ref())?;
        let challenge = self.checked_challenge()?;
        let sandbox = self.checked_sandbox(&plans)?;
        #[cfg(feature = "jwt")]
        self.accept_tokens(&plans, sandbox.as_ref())?;
        let managed = self.managed(&plans, sandbox.clone())?;
        let public = PathSet::new(&self.public).map_err(|error| error.renamed("public"))?;
        let known = self.known_keys(&plans, sandbox).build()?;
        recorder.each_tick(known.watch());
        recorder.each_tick(known.write_uses_by_tick());
        let snapshot = restart::open_snapshot(
            self.snapshot.take(),
            self.snapshot_damage,
            self.stores.limits.memory.as_ref(),
            &self.clock,
        )?;

        let keys = self.key_handle(&plans);
        let tenants = Tenants::new(Arc::clone(&self.stores.tenants.store), plans.clone());
        let auth = self
            .auth_layer(known.clone(), challenge.clone())
            .public(public);
        let steps = self.steps(auth, challenge, recorder.clone())?;
        recorder.start();
        let shared = Shared {
            layer: TollgateLayer::new(steps),
            keys,
            known,
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

    /// The plans on sale, and that the rules beside them count what there is.
    fn checked_plans(&mut self) -> Result<PlanCatalog, ConfigError> {
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
            scopes: mem::take(&mut self.scopes),
            quantities: self.quantities.take(),
        })?;
        Ok(plans)
    }

    fn checked_challenge(&mut self) -> Result<Challenge, ConfigError> {
        if let Some(challenge) = self.challenge.take() {
            return Ok(challenge);
        }
        let challenge = Challenge::for_extractor("api", &self.extractor)?;
        #[cfg(feature = "jwt")]
        if !self.jwt.is_empty() {
            return Ok(challenge.or_access_tokens());
        }
        Ok(challenge)
    }

    fn checked_sandbox(&self, plans: &PlanCatalog) -> Result<Option<PlanName>, ConfigError> {
        let Some(name) = &self.sandbox else {
            return Ok(None);
        };
        let wrong = |reason: String| ConfigError::new("sandbox", reason);
        let name = PlanName::new(name.as_str())
            .map_err(|source| wrong(source.to_string()).caused_by(source))?;
        if plans.find(&name).is_none() {
            let reason = format!("there is no plan `{name}`: add it or name another");
            return Err(wrong(reason));
        }
        Ok(Some(name))
    }

    /// Lets the layer ask for tokens before other credentials of the user's own.
    #[cfg(feature = "jwt")]
    fn accept_tokens(
        &mut self,
        plans: &PlanCatalog,
        sandbox: Option<&PlanName>,
    ) -> Result<(), ConfigError> {
        let mut changes = Vec::<Change<AuthLayer>>::new();
        for tokens in mem::take(&mut self.jwt) {
            let tokens = tokens
                .within(self.cache, self.environment, sandbox.cloned())
                .build(Arc::clone(&self.stores.tenants.store), plans.clone())
                .map_err(|error| error.under("jwt"))?;
            changes.push(Box::new(|layer| layer.or(tokens)));
        }
        self.auth.splice(..0, changes);
        Ok(())
    }

    /// What a document looks after, with the document of the start applied.
    fn managed(
        &mut self,
        plans: &PlanCatalog,
        sandbox: Option<PlanName>,
    ) -> Result<Managed, ConfigError> {
        let managed = Managed {
            catalog: plans.clone(),
            formats: self.formats.clone(),
            keys: self.stores.keys.memory.take(),
            tenants: self.stores.tenants.memory.take(),
            sandbox,
            loaded: Mutex::new(Loaded::default()),
        };
        if let Some(document) = self.document.take() {
            managed.apply(document)?;
        }
        Ok(managed)
    }

    fn known_keys(
        &self,
        plans: &PlanCatalog,
        sandbox: Option<PlanName>,
    ) -> KeyAuthenticatorBuilder {
        let mut known = KeyAuthenticator::builder(
            Arc::clone(&self.stores.keys.store),
            Arc::clone(&self.stores.tenants.store),
            plans.clone(),
        )
        .cache(self.cache)
        .hasher(self.hasher.clone());
        known = self
            .formats
            .iter()
            .cloned()
            .fold(known, KeyAuthenticatorBuilder::format);
        if let Some(environment) = self.environment {
            known = known.only(environment);
        }
        if let Some(name) = sandbox {
            known = known.sandbox_plan(name);
        }
        known
    }

    fn key_handle(&self, plans: &PlanCatalog) -> Keys {
        Keys::new(
            Arc::clone(&self.stores.keys.store),
            Arc::clone(&self.stores.tenants.store),
            plans.clone(),
            Arc::clone(&self.clock),
        )
        .format(self.formats.first().cloned().unwrap_or_default())
        .hasher(self.hasher.clone())
    }

    fn auth_layer(&mut self, known: KeyAuthenticator, challenge: Challenge) -> AuthLayer {
        let layer = AuthLayer::new(known)
            .clock(Arc::clone(&self.clock))
            .client_addr(Arc::clone(&self.client_addr))
            .extractor(mem::take(&mut self.extractor))
            .challenge(challenge);
        applied(mem::take(&mut self.auth), layer)
    }

    fn steps(
        self,
        auth: AuthLayer,
        challenge: Challenge,
        recorder: Recorder,
    ) -> Result<Steps, ConfigError> {
        let mut tenant = TenantLayer::new()
            .clock(Arc::clone(&self.clock))
            .challenge(challenge);
        let mut meter = MeterLayer::new(recorder)
            .abort_policy(self.abort_policy)
            .route_of(Arc::clone(&self.route_of));
        if let Some(api) = self.api {
            meter = meter.api(&api);
            tenant = tenant.api(api);
        }
        if let Some(countries) = self.countries {
            meter = meter.countries(countries, Arc::clone(&self.client_addr));
        }
        let span = SpanLayer::new().route_of(Arc::clone(&self.route_of));
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
        Ok(Steps {
            request_id: self.request_id,
            problems: self.problems,
            meter: applied(self.meter, meter),
            span: span.on(self.trace),
            auth,
            tenant: applied(self.tenant, tenant),
            ceiling: ceiling.headers(HeaderStyle::Off),
            limits,
            extensions: self.extensions,
        })
    }
}

fn applied<L>(changes: Vec<Change<L>>, layer: L) -> L {
    changes
        .into_iter()
        .fold(layer, |layer, change| change(layer))
}
