//! Clients that leave at random points of their streams: what was charged, settled and told of it.
//!
//! `cargo bench --bench aborts -- STREAMS [SEED]` sends that many streams over HTTP/1.1 and as many over HTTP/2
//! and prints one line for each; it fails when a call was not charged once, settled once and told once, or when a
//! slot, a task or an open call is left. 10,000 unless said.

#[path = "common/aborts.rs"]
mod aborts;

use std::process::ExitCode;

use aborts::Protocol;

#[tokio::main]
async fn main() -> ExitCode {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse::<u64>().ok());
    let n = numbers.next().unwrap_or(10_000);
    let seed = numbers.next().unwrap_or(1);
    let mut sound = true;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let figures = aborts::run(protocol, n, seed).await;
        println!("{figures}");
        sound &= figures.check().is_ok();
    }
    if sound {
        ExitCode::SUCCESS
    } else {
        println!("not sound");
        ExitCode::FAILURE
    }
}
