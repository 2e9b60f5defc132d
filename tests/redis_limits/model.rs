//! The store agrees with the plain model step by step.

use std::{sync::Arc, time::Duration};

use tollgate::{
    clock::{Clock, ManualClock, Now, Timestamp},
    conformance::{self, LimitClock},
    limit::RedisLimits,
    redis_support::RedisConnector,
};

use crate::common::redis::RedisServer;

/// A clock that a wall step takes ahead but not back: Redis has one clock, and a state that was never charged is
/// not kept, so it does not remember a period that has not come yet.
#[derive(Debug, Default)]
struct Ahead(ManualClock);

#[async_trait::async_trait]
impl LimitClock for Ahead {
    fn now(&self) -> Now {
        Clock::now(&self.0)
    }

    async fn advance(&self, by: Duration) {
        self.0.advance(by);
    }

    fn step_wall(&self, to: Timestamp) -> bool {
        let is_ahead = to > Clock::now(&self.0).wall();
        if is_ahead {
            self.0.set_wall(to);
        }
        is_ahead
    }
}

async fn store(server: &RedisServer) -> Arc<RedisLimits> {
    let patience = Duration::from_secs(10);
    let connector = RedisConnector::single(server.url())
        .unwrap()
        .connect_timeout(patience)
        .response_timeout(patience);
    let limits = RedisLimits::builder(connector)
        .dangerous_time_of_calls()
        .margin(Duration::from_secs(3_600));
    Arc::new(limits.connect().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_passes_the_conformance_suite() {
    let server = RedisServer::start();
    conformance::limit_store(store(&server).await, &Ahead::default()).await;
}

#[tokio::test]
async fn redis_agrees_with_the_model_on_long_histories() {
    let server = RedisServer::start();
    let (store, clock) = (store(&server).await, Ahead::default());
    for seed in 10_000..10_120 {
        conformance::limit_store_follows_the_model(
            Arc::<RedisLimits>::clone(&store),
            &clock,
            seed,
            150,
        )
        .await;
    }
}
