//! Thousands of clients that leave at random points; `cargo bench --bench aborts` sends a hundred thousand.

use super::aborted::{Protocol, run};

const N_STREAMS: u64 = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_http1_clients_that_leave_are_each_charged_settled_and_told_once() {
    let figures = run(Protocol::Http1, N_STREAMS, 1).await;
    figures.check().expect("sound figures");
    assert!(figures.seen > N_STREAMS / 2, "{figures}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_http2_streams_that_are_reset_are_each_charged_settled_and_told_once() {
    let figures = run(Protocol::Http2, N_STREAMS, 2).await;
    figures.check().expect("sound figures");
    assert!(figures.seen > N_STREAMS / 2, "{figures}");
}
