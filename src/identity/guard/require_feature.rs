use std::sync::Arc;

use tower_layer::Layer;

use super::service::{Guard, Guarded, identity, sealed::Sealed};
use crate::{
    error::{ErrorCode, Problem},
    head::RequestHead,
    identity::access::with_upgrade_url,
};

/// Lets only plans with a feature reach a route; the others are answered 403 `feature_not_in_plan` with the
/// plan's `upgrade_url`.
#[derive(Clone, Debug)]
#[must_use]
pub struct RequireFeature {
    feature: Arc<str>,
}

impl RequireFeature {
    /// Asks for a feature, as `Plan::feature` grants it.
    pub fn new(feature: impl Into<Arc<str>>) -> Self {
        Self {
            feature: feature.into(),
        }
    }

    /// The feature asked for.
    #[must_use]
    pub fn feature(&self) -> &str {
        &self.feature
    }
}

impl Sealed for RequireFeature {}

impl Guard for RequireFeature {
    fn check(&self, head: &RequestHead<'_>) -> Result<(), Box<Problem>> {
        let identity = identity(head, "RequireFeature")?;
        if identity.plan().entitlements().has_feature(&self.feature) {
            return Ok(());
        }
        let problem = Problem::new(ErrorCode::FeatureNotInPlan)
            .detail("The plan lacks a feature that this route asks for.")
            .with("feature", &*self.feature);
        Err(Box::new(with_upgrade_url(problem, identity)))
    }
}

impl<S> Layer<S> for RequireFeature {
    type Service = Guarded<S, Self>;

    fn layer(&self, inner: S) -> Guarded<S, Self> {
        Guarded::new(inner, self.clone())
    }
}
