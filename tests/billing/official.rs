//! Events that the provider's own library signs.

use std::{path::Path, process::Command};

use http::HeaderMap;
use tollgate::{
    billing::{SignatureError, StripeSignature},
    clock::Timestamp,
};

const INSTALL: &str = "install it with scripts/install-test-servers";

#[test]
fn what_the_official_package_signs_is_accepted_and_the_other_way_round() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let secret = "whsec_tollgate_test_secret_one";
    let signature = StripeSignature::new(["whsec_another", secret]).unwrap();
    let now = Timestamp::from(jiff::Timestamp::now());
    let ours = StripeSignature::new([secret])
        .unwrap()
        .sign(br#"{"id":"evt_ours"}"#, now);
    let output = Command::new(root.join("target/test-servers/bin/python"))
        .arg(root.join("tests/billing/official_signer.py"))
        .args([secret, &ours])
        .output()
        .unwrap_or_else(|error| panic!("the Stripe package is missing: {error}; {INSTALL}"));
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("accepts ours"), "{text}");
    let mut n_accepted = 0;
    while let (Some(header), Some(body)) = (lines.next(), lines.next()) {
        let mut headers = HeaderMap::new();
        headers.insert("stripe-signature", header.parse().unwrap());
        let now = Timestamp::from(jiff::Timestamp::now());
        assert_eq!(
            signature.verify(&headers, body.as_bytes(), now),
            Ok(()),
            "{body}"
        );
        let other = format!("{body} ");
        let refused = signature.verify(&headers, other.as_bytes(), now);
        assert_eq!(refused, Err(SignatureError::Mismatch));
        n_accepted += 1;
    }
    assert_eq!(n_accepted, 3);
}
