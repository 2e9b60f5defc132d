//! The emulator of Stripe that other tests trust, asked by the official client.

use std::{path::Path, process::Command, sync::Arc};

use tollgate::clock::{Clock, SystemClock};

use crate::common::stripe::{SECRET, StripeServer};

const INSTALL: &str = "install it with scripts/install-test-servers";

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_understands_the_emulator() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let stripe = StripeServer::start(clock).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut script = Command::new(root.join("target/test-servers/bin/python"));
    script
        .arg(root.join("tests/common/stripe/official_client.py"))
        .args([&stripe.url(), SECRET]);
    let output = tokio::task::spawn_blocking(move || script.output())
        .await
        .expect("no panic");
    let output =
        output.unwrap_or_else(|error| panic!("the Stripe client is missing: {error}; {INSTALL}"));
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "created first 3",
            "replayed first 3",
            "InvalidRequestError duplicate_meter_event",
            "IdempotencyError None",
            "InvalidRequestError meter_event_value_too_many_digits",
            "InvalidRequestError timestamp_too_far_in_past",
            "AuthenticationError None",
        ]
    );
    assert_eq!(stripe.meter_total("cus_1", "api_calls"), 3);
}
