//! The cost of a call beside the field's crates, in one interleaved run: `cargo bench --bench ratios`, or `-- WORD..`
//! for the rows whose name holds one of the words.
//!
//! A round runs a slice of some tenths of a millisecond of every contestant, ours and then theirs, row by row,
//! each after a pass that warms the caches, so that a machine that slows down slows both, and most slices pass undisturbed by other programs. A row shows the
//! median of the rounds' ratios, the span of their middle half, and the median time of a call on each side. The
//! tables are what the README shows.
//!
//! Rows named "added" are a service behind layers less the same service without them; requests are made
//! before the time is taken. Before anything is measured, each contestant must refuse the call after a small
//! limit, so that nobody is measured doing nothing.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "what the other benches call")]
mod common;
mod layers;
mod limiters;
mod parts;
mod rounds;

use std::env;

use rounds::Rounds;

/// Once a block of this size was freed, glibc's allocator keeps as much for later. Else it gives memory back to
/// the system after each flush, and what is measured is the system making it again.
const KEPT_BY_THE_ALLOCATOR: usize = 16 << 20;

fn main() {
    drop(std::hint::black_box(vec![1_u8; KEPT_BY_THE_ALLOCATOR]));
    limiters::all_refuse();
    layers::all_refuse();
    let runtime: &'static _ = Box::leak(Box::new(common::runtime()));
    // Recorders are made inside of it; their tasks run only where a slice flushes them.
    let _inside = runtime.enter();
    let mut rounds = Rounds::default();
    limiters::rows(&mut rounds);
    parts::rows(&mut rounds, runtime);
    layers::rows(&mut rounds, runtime);
    // Cargo adds `--bench`.
    let words: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    rounds.run(&words);
    rounds.print();
}
