//! Signatures: every vector of the providers' own libraries, and nothing that was forged.

use std::time::Duration;

use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::Value;
use tollgate::{
    billing::{
        Delivered, PaddleSignature, SignatureError, StandardWebhooksSignature, StripeSignature,
    },
    clock::Timestamp,
};

use super::support::at;

const STRIPE: &str = include_str!("../vectors/stripe.json");
const STANDARD: &str = include_str!("../vectors/standard-webhooks.json");
const NOW: u64 = 1_763_769_600;
const BODY: &[u8] = br#"{"id":"evt_1","object":"event"}"#;

fn vectors(text: &str) -> Vec<Value> {
    let mut document: Value = serde_json::from_str(text).unwrap();
    match document["vectors"].take() {
        Value::Array(vectors) => vectors,
        other => panic!("vectors: {other}"),
    }
}

fn body(vector: &Value) -> Vec<u8> {
    match vector["payload"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => {
            let text = vector["payload_base64"].as_str().unwrap();
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .unwrap()
        }
    }
}

fn secrets(vector: &Value) -> Vec<&str> {
    let secrets = vector["secrets"].as_array().unwrap().iter();
    secrets.map(|secret| secret.as_str().unwrap()).collect()
}

fn now(vector: &Value) -> Timestamp {
    at(vector["now"].as_u64().unwrap())
}

fn stripe_header(value: &str) -> HeaderMap {
    let value = HeaderValue::from_str(value).unwrap();
    HeaderMap::from_iter([(HeaderName::from_static("stripe-signature"), value)])
}

/// What tollgate says of a vector of Stripe's, in the words of the file.
fn stripe_verdict(vector: &Value) -> (&'static str, Option<String>) {
    let Ok(mut signature) = StripeSignature::new(secrets(vector)) else {
        return ("reject", Some("misconfigured_secret".to_owned()));
    };
    signature = match vector["tolerance"].as_u64() {
        Some(seconds) => signature.tolerance(Duration::from_secs(seconds)).unwrap(),
        None => signature.dangerous_any_age(),
    };
    let headers = stripe_header(vector["header"].as_str().unwrap());
    let body = body(vector);
    if let Err(error) = signature.verify(&headers, &body, now(vector)) {
        return ("reject", Some(error.as_str().to_owned()));
    }
    match Delivered::from_stripe(&body) {
        Err(_) => (
            "accept_signature_reject_payload",
            Some("invalid_json".to_owned()),
        ),
        Ok(delivered) => {
            let expected = &vector["event"];
            assert_eq!(delivered.id(), expected["id"], "{}", vector["id"]);
            assert_eq!(delivered.name(), expected["type"]);
            assert_eq!(delivered.created().as_unix_seconds(), expected["created"]);
            assert_eq!(delivered.livemode(), expected["livemode"].as_bool());
            ("accept", None)
        }
    }
}

fn standard_verdict(vector: &Value) -> (&'static str, Option<String>) {
    let signature = StandardWebhooksSignature::new(secrets(vector)).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in vector["headers"].as_object().unwrap() {
        let name: HeaderName = name.parse().unwrap();
        headers.insert(name, value.as_str().unwrap().parse().unwrap());
    }
    match signature.verify(&headers, &body(vector), now(vector)) {
        Ok(()) => ("accept", None),
        Err(error) => ("reject", Some(error.as_str().to_owned())),
    }
}

fn passed(vectors: &[Value], verdict: impl Fn(&Value) -> (&'static str, Option<String>)) -> usize {
    let as_expected = |vector: &&Value| {
        let (given, reason) = verdict(vector);
        let is_right =
            given == vector["expected"] && reason.as_deref() == vector["reason"].as_str();
        if !is_right {
            eprintln!("{}: {given} {reason:?}", vector["id"]);
        }
        is_right
    };
    vectors.iter().filter(as_expected).count()
}

#[test]
fn every_vector_of_the_providers_libraries_gets_its_verdict() {
    for (name, text, verdict) in [
        ("stripe", STRIPE, stripe_verdict as fn(&Value) -> _),
        ("standard-webhooks", STANDARD, standard_verdict),
    ] {
        let vectors = vectors(text);
        let passed = passed(&vectors, verdict);
        println!("{name}: {passed} of {} vectors passed", vectors.len());
        assert!(vectors.len() >= 15, "the vectors are there");
        assert_eq!(passed, vectors.len(), "{name}");
    }
}

#[test]
fn standard_webhooks_are_taken_under_svix_names_only_where_that_is_on() {
    let secret = ["whsec_dG9sbGdhdGUtdGVzdC1zZWNyZXQtb25l"];
    let signature = StandardWebhooksSignature::new(secret).unwrap();
    let mut svix = HeaderMap::new();
    for (name, value) in signature.sign("msg_1", BODY, at(NOW)).iter() {
        let name = name.as_str().replace("webhook-", "svix-");
        svix.insert(name.parse::<HeaderName>().unwrap(), value.clone());
    }
    let off = signature.verify(&svix, BODY, at(NOW));
    assert_eq!(off, Err(SignatureError::MissingHeader("webhook-id")));
    let on = signature.svix_names(true);
    assert_eq!(on.verify(&svix, BODY, at(NOW)), Ok(()));
    assert_eq!(on.id(&svix), Ok("msg_1"));
    // One field of each kind is neither.
    svix.insert("webhook-id", HeaderValue::from_static("msg_1"));
    assert!(on.verify(&svix, BODY, at(NOW)).is_err());
}

#[test]
fn paddle_signs_with_a_colon_and_semicolons() {
    // HMAC-SHA256 of `1763769600:{"event_id":"evt_1"}` under `pdl_ntfset_secret`, by Python's hmac.
    let body = br#"{"event_id":"evt_1"}"#;
    let known = "ts=1763769600;h1=faa38250869a99ef318e152f2d7339d164d4d0f25a09b19da8c9e3430d12ab19";
    let signature = PaddleSignature::new(["pdl_ntfset_other", "pdl_ntfset_secret"]).unwrap();
    let verify = |header: &str, seconds: u64| {
        let value = HeaderValue::from_str(header).unwrap();
        let headers = HeaderMap::from_iter([(HeaderName::from_static("paddle-signature"), value)]);
        signature.verify(&headers, body, at(seconds))
    };
    assert_eq!(verify(known, NOW), Ok(()));
    assert_eq!(verify(known, NOW + 300), Ok(()));
    assert_eq!(
        verify(known, NOW + 301),
        Err(SignatureError::TimestampTooOld)
    );
    assert_eq!(
        verify(known, NOW - 301),
        Err(SignatureError::TimestampInFuture)
    );
    let malformed = Err(SignatureError::MalformedHeader("paddle-signature"));
    for header in [
        "h1=00",
        "ts=1;ts=1;h1=00",
        "ts=+1;h1=00",
        "ts",
        "ts=1,h1=00",
        " ts=1;h1=00",
    ] {
        assert_eq!(verify(header, NOW), malformed, "{header}");
    }
    assert_eq!(verify("ts=1", NOW), Err(SignatureError::NoKnownSignature));
    assert_eq!(verify("ts=1;h1=00", NOW), Err(SignatureError::Mismatch));
}

#[test]
fn an_empty_secret_cannot_be_set() {
    for secrets in [&[""][..], &[" "], &["good", ""], &["good", "\n"], &[]] {
        let error = StripeSignature::new(secrets).unwrap_err();
        let path = match secrets.len() {
            0 => "secrets".to_owned(),
            n => format!("secrets[{}]", n - 1),
        };
        assert_eq!(error.path(), path);
        assert!(PaddleSignature::new(secrets).is_err());
    }
    for secret in ["", "whsec_", "whsec_ ", "not base64!"] {
        let error = StandardWebhooksSignature::new([secret]).unwrap_err();
        assert_eq!(error.path(), "secrets[0]");
        assert!(!secret.contains("64") || !error.to_string().contains(secret));
    }
    assert!(
        StripeSignature::new(["x"])
            .unwrap()
            .tolerance(Duration::ZERO)
            .is_err()
    );
}

#[test]
fn a_secret_shows_nowhere() {
    let stripe = StripeSignature::new(["whsec_c4n4ry"]).unwrap();
    let standard = StandardWebhooksSignature::new(["whsec_YzRuNHJ5"]).unwrap();
    let paddle = PaddleSignature::new(["c4n4ry"]).unwrap();
    let shown = format!("{stripe:?} {standard:?} {paddle:?}");
    assert!(
        !shown.contains("c4n4ry") && !shown.contains("YzRuNHJ5"),
        "{shown}"
    );
}

#[test]
fn the_tolerance_is_kept_on_both_sides() {
    let signature = StripeSignature::new(["secret"]).unwrap();
    let headers = stripe_header(&signature.sign(BODY, at(NOW)));
    for (now, expected) in [
        (NOW - 301, Err(SignatureError::TimestampInFuture)),
        (NOW - 300, Ok(())),
        (NOW, Ok(())),
        (NOW + 300, Ok(())),
        (NOW + 301, Err(SignatureError::TimestampTooOld)),
        (NOW + 30 * 86_400, Err(SignatureError::TimestampTooOld)),
    ] {
        assert_eq!(signature.verify(&headers, BODY, at(now)), expected, "{now}");
    }
}

#[test]
fn of_a_header_only_the_first_eight_signatures_are_looked_at() {
    let signature = StripeSignature::new(["secret"]).unwrap();
    let good = signature.sign(BODY, at(NOW));
    let (time, good) = good.split_once(',').unwrap();
    let zeros = format!("v1={}", "0".repeat(64));
    for (n_before, expected) in [(7, Ok(())), (8, Err(SignatureError::Mismatch))] {
        let header = format!("{time},{},{good}", vec![zeros.as_str(); n_before].join(","));
        let verified = signature.verify(&stripe_header(&header), BODY, at(NOW));
        assert_eq!(verified, expected, "{n_before}");
    }
}

#[test]
fn a_header_in_any_looser_form_is_refused() {
    let signature = StripeSignature::new(["secret"]).unwrap();
    let good = signature.sign(BODY, at(NOW));
    let (time, mac) = good.split_once(',').unwrap();
    let verify = |header: &str| signature.verify(&stripe_header(header), BODY, at(NOW));
    assert_eq!(
        verify(&format!("{mac},{time}")),
        Ok(()),
        "the order is free"
    );
    assert_eq!(
        verify(&format!("{good},future=1")),
        Ok(()),
        "an unknown key"
    );
    for header in [
        format!("{time},{time},{mac}"),
        format!("{time}, {mac}"),
        format!("t=+{NOW},{mac}"),
        format!("t=0x{NOW:x},{mac}"),
        format!("t={NOW}.0,{mac}"),
        format!("{time},{}", mac.to_uppercase()),
        format!("{time};{mac}"),
        format!("{time},,{mac}"),
        format!("T={NOW},{mac}"),
    ] {
        assert!(verify(&header).is_err(), "{header}");
    }
    let mut twice = stripe_header(&good);
    twice.append("stripe-signature", HeaderValue::from_str(&good).unwrap());
    let malformed = Err(SignatureError::MalformedHeader("stripe-signature"));
    assert_eq!(signature.verify(&twice, BODY, at(NOW)), malformed);
}

#[test]
fn no_bit_of_body_or_header_can_be_flipped() {
    let signature = StripeSignature::new(["whsec_tollgate_test_secret_one"]).unwrap();
    let header = signature.sign(BODY, at(NOW));
    let mut n_tried = 0;
    for bit in 0..BODY.len() * 8 {
        let mut body = BODY.to_vec();
        body[bit / 8] ^= 1 << (bit % 8);
        let verified = signature.verify(&stripe_header(&header), &body, at(NOW));
        assert_eq!(verified, Err(SignatureError::Mismatch), "bit {bit}");
        n_tried += 1;
    }
    for bit in 0..header.len() * 8 {
        let mut bytes = header.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok(value) = HeaderValue::from_bytes(&bytes) else {
            continue;
        };
        let headers = HeaderMap::from_iter([(HeaderName::from_static("stripe-signature"), value)]);
        assert!(
            signature.verify(&headers, BODY, at(NOW)).is_err(),
            "bit {bit}"
        );
        n_tried += 1;
    }
    assert!(n_tried > 700, "{n_tried}");
}

proptest! {
    #[test]
    fn what_was_signed_is_accepted_and_what_was_changed_is_not(
        body in proptest::collection::vec(any::<u8>(), 0..200),
        other in proptest::collection::vec(any::<u8>(), 0..200),
        secret in "[a-z]{1,80}",
        wrong in "[A-Z]{1,80}",
        time in 0..4_000_000_000_u64,
    ) {
        let stripe = StripeSignature::new([&wrong, &secret]).unwrap();
        let by_other = StripeSignature::new([&wrong]).unwrap();
        let signed = StripeSignature::new([&secret]).unwrap().sign(&body, at(time));
        let headers = stripe_header(&signed);
        prop_assert_eq!(stripe.verify(&headers, &body, at(time)), Ok(()));
        prop_assert_eq!(by_other.verify(&headers, &body, at(time)), Err(SignatureError::Mismatch));
        if other != body {
            prop_assert_eq!(stripe.verify(&headers, &other, at(time)), Err(SignatureError::Mismatch));
        }
    }

    #[test]
    fn no_header_makes_it_panic_or_pass(header in "[tv10=,;.a-f ]{0,80}", body in any::<Vec<u8>>()) {
        let stripe = StripeSignature::new(["secret"]).unwrap();
        prop_assert!(stripe.verify(&stripe_header(&header), &body, at(NOW)).is_err());
    }
}
