//! The limiter in memory against the plain model, over many random histories.
//!
//! `cargo bench --bench model -- [HISTORIES] [STEPS] [FIRST SEED]` plays 10,000 histories of 300 steps unless said:
//! decisions by all algorithms, settlements, passing time, stepped clocks and changed plans, every answer of
//! `MemoryLimits` compared with that of the conformance suite's model. It ends with a panic that shows the seed
//! and the last steps where they differ. `cargo test` plays some hundred shorter ones.

use std::{env, sync::Arc, time::Instant};

use tollgate::{
    clock::ManualClock,
    conformance::limit_store_follows_the_model,
    limit::{LimitStore, MemoryLimits},
};

/// So many histories share a store, each with tenants of its own.
const HISTORIES_OF_A_STORE: u64 = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo adds `--bench`.
    let numbers: Vec<u64> = env::args()
        .skip(1)
        .filter_map(|it| it.parse().ok())
        .collect();
    let number = |place: usize, default| numbers.get(place).copied().unwrap_or(default);
    let (n_histories, n_steps, first_seed) = (number(0, 10_000), number(1, 300), number(2, 0));
    let started = Instant::now();
    let clock = ManualClock::default();
    let mut store: Arc<dyn LimitStore> = Arc::new(MemoryLimits::new());
    for n in 0..n_histories {
        if n % HISTORIES_OF_A_STORE == 0 {
            store = Arc::new(MemoryLimits::new());
        }
        let steps = usize::try_from(n_steps).expect("a number of steps");
        limit_store_follows_the_model(Arc::clone(&store), &clock, first_seed + n, steps).await;
    }
    let elapsed = started.elapsed();
    println!(
        "{n_histories} histories of {n_steps} steps from seed {first_seed}: no difference in {elapsed:.1?}"
    );
}
