//! Limits in a real Redis.

mod cluster;
mod faults;
mod leased;
mod leased_bounds;
mod model;
mod numbers;
mod races;
mod servers;
mod state;

use std::sync::Arc;

use tollgate::{
    clock::{Clock, SystemClock, Timestamp},
    id::TenantId,
    limit::{
        Cost, Decision, LimitCall, LimitSet, LimitStore, LimitStoreError, Owner, RedisLimits, Rule,
        RuleSet, ScopeValues,
    },
    redis_support::RedisConnector,
};

use crate::common::redis::RedisServer;

/// A store on a server, which must have answered within a time that a busy machine needs.
async fn limits(server: &RedisServer) -> RedisLimits {
    patient(RedisConnector::single(server.url()).expect("a URL")).await
}

async fn patient(connector: RedisConnector) -> RedisLimits {
    let patience = std::time::Duration::from_secs(5);
    let connector = connector
        .connect_timeout(patience)
        .response_timeout(patience);
    RedisLimits::builder(connector)
        .connect()
        .await
        .expect("a server that can be used")
}

fn set_of<R: Into<Rule>>(tenant: &str, rules: impl IntoIterator<Item = R>) -> Arc<LimitSet> {
    let owner = Owner::tenant(TenantId::new(tenant).expect("an identifier"))
        .billing_anchor(Timestamp::from_unix_seconds(1_738_319_400));
    Arc::new(LimitSet::new(
        owner,
        RuleSet::compile(rules).expect("rules"),
    ))
}

async fn ask(
    limits: &RedisLimits,
    set: &Arc<LimitSet>,
    scopes: &ScopeValues,
    cost: &Cost,
) -> Result<Decision, LimitStoreError> {
    let call = LimitCall::new(set, scopes, cost, SystemClock::new().now());
    match limits.try_decide(&call) {
        Some(answer) => answer,
        None => Arc::new(limits.clone()).decide(call.to_owned()).await,
    }
}

/// One request without scopes.
async fn call(limits: &RedisLimits, set: &Arc<LimitSet>) -> Result<Decision, LimitStoreError> {
    ask(limits, set, &ScopeValues::default(), &Cost::default()).await
}
