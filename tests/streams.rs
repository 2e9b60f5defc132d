//! Streams and long connections behind a whole gate, over real connections: each call is charged once, settled
//! once and told once, wherever it ends.

#[path = "../benches/common/aborts.rs"]
mod aborted;

mod aborts;
mod hold;
mod long_calls;
mod measure;
mod policies;
mod request_body;
mod settle_points;
mod stand;
