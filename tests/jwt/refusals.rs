//! What is no valid token, each in its own way.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tollgate::auth::{
    AuthRefusal,
    jwt::{JwtAlgorithm, SharedSecret, StaticJwks},
};

use super::{
    signer::{ED25519, P256, P384, RSA, Signer, document, hmac_token, unsigned},
    stand::{AUDIENCE, ISSUER, made, stand, stand_of, stand_with, with},
};

#[test]
fn every_algorithm_is_verified_by_its_own_key() {
    let stand = stand();
    for (signer, algorithms) in [
        (
            &*RSA,
            &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"][..],
        ),
        (&*P256, &["ES256"]),
        (&*P384, &["ES384"]),
        (&*ED25519, &["EdDSA", "Ed25519"]),
    ] {
        for algorithm in algorithms {
            let header = json!({"alg": algorithm, "kid": signer.id});
            let token = signer.token_with(&header, &stand.claims());
            let identity = stand.ask(&token).expect(algorithm);
            assert_eq!(identity.tenant().id().as_str(), "acme");
        }
    }
}

#[test]
fn an_algorithm_that_was_not_allowed_is_refused() {
    let stand = stand_with(|builder| builder.algorithms([JwtAlgorithm::ES256]));
    assert!(stand.ask(&P256.token(&stand.claims())).is_ok());
    for signer in [&*RSA, &P384, &ED25519] {
        assert_eq!(
            stand.refusal(&signer.token(&stand.claims())),
            AuthRefusal::Malformed
        );
    }
}

#[test]
fn a_token_counts_from_its_begin_to_its_end_with_leeway() {
    let stand = stand();
    let now = stand.now().wall().as_unix_seconds();
    let ask = |name: &str, seconds: u64| {
        let token = P256.token(&with(stand.claims(), name, seconds.into()));
        stand.ask(&token).map(drop)
    };
    assert_eq!(ask("exp", now - 59), Ok(()));
    assert_eq!(ask("exp", now - 60), Err(AuthRefusal::Expired));
    assert_eq!(ask("exp", 0), Err(AuthRefusal::Expired));
    assert_eq!(ask("exp", u64::MAX), Ok(()));
    assert_eq!(ask("nbf", now + 60), Ok(()));
    assert_eq!(ask("nbf", now + 61), Err(AuthRefusal::NotYetValid));
    assert_eq!(ask("iat", now + 60), Ok(()));
    assert_eq!(ask("iat", now + 61), Err(AuthRefusal::NotYetValid));
    assert_eq!(ask("nbf", u64::MAX), Err(AuthRefusal::NotYetValid));
}

#[test]
fn a_token_without_an_end_is_refused() {
    let stand = stand();
    for end in [
        json!(null),
        json!("9999999999"),
        json!(true),
        json!(-1),
        json!([1]),
    ] {
        let token = P256.token(&with(stand.claims(), "exp", end.clone()));
        assert_eq!(stand.refusal(&token), AuthRefusal::Malformed, "{end}");
    }
    for name in ["nbf", "iat"] {
        let token = P256.token(&with(stand.claims(), name, json!("soon")));
        assert_eq!(stand.refusal(&token), AuthRefusal::Malformed, "{name}");
    }
}

#[test]
fn a_token_for_another_service_is_refused() {
    let stand = stand();
    let ask = |audience: Value| {
        let token = P256.token(&with(stand.claims(), "aud", audience));
        stand.ask(&token).map(drop)
    };
    assert_eq!(ask(json!(["https://other.example/", AUDIENCE])), Ok(()));
    for audience in [
        json!("https://other.example/"),
        json!(AUDIENCE.trim_end_matches('/')),
        json!(AUDIENCE.to_uppercase()),
        json!(format!("{AUDIENCE} ")),
        json!([]),
        json!([["https://api.example/"]]),
        json!({"https://api.example/": 1}),
        json!(1),
        json!(null),
        json!(""),
    ] {
        let told = audience.to_string();
        assert_eq!(ask(audience), Err(AuthRefusal::WrongAudience), "{told}");
    }
    let any = stand_with(|builder| builder.any_audience());
    let token = P256.token(&with(any.claims(), "aud", json!(null)));
    assert!(any.ask(&token).is_ok());
}

#[test]
fn a_token_of_another_issuer_is_refused() {
    let stand = stand();
    for issuer in [
        json!("https://evil.example/"),
        json!(ISSUER.trim_end_matches('/')),
        json!(""),
        json!([ISSUER]),
        json!(null),
    ] {
        let token = P256.token(&with(stand.claims(), "iss", issuer.clone()));
        assert_eq!(stand.refusal(&token), AuthRefusal::WrongIssuer, "{issuer}");
    }
}

#[test]
fn the_keys_of_one_issuer_do_not_vouch_for_another() {
    let theirs = Signer::p256("p256");
    let stand = stand_with(|builder| {
        let keys = StaticJwks::from_json(document([theirs.jwk()])).unwrap();
        builder.issuer("https://other.example/", keys)
    });
    let own = with(stand.claims(), "iss", json!("https://other.example/"));
    assert!(stand.ask(&theirs.token(&own)).is_ok());
    assert!(stand.ask(&P256.token(&stand.claims())).is_ok());
    for forged in [theirs.token(&stand.claims()), P256.token(&own)] {
        assert_eq!(stand.refusal(&forged), AuthRefusal::BadSignature);
    }
}

#[test]
fn an_oversized_token_is_refused_before_it_is_read() {
    let stand = stand_with(|builder| builder.max_bytes(1_000));
    let sized = |n_bytes: usize| {
        let pad = |n: usize| P256.token(&with(stand.claims(), "pad", "x".repeat(n).into()));
        let mut token = pad(0);
        for n in 0..n_bytes {
            if token.len() >= n_bytes {
                break;
            }
            token = pad(n);
        }
        token
    };
    let fits = sized(999);
    assert!((999..=1_000).contains(&fits.len()));
    assert!(stand.ask(&fits).is_ok());
    let large = sized(1_001);
    assert_eq!(stand.refusal(&large), AuthRefusal::Malformed);
    assert!(stand_with(|builder| builder).ask(&large).is_ok());
}

#[test]
fn an_unsigned_token_is_refused_however_none_is_spelled() {
    let stand = stand();
    for spelling in ["none", "None", "NONE", "nOnE", "", "null"] {
        for id in [json!(RSA.id), json!(null)] {
            let header = with(json!({"alg": spelling}), "kid", id);
            let signed = unsigned(&header.to_string(), &stand.claims().to_string());
            let borrowed = RSA.token(&stand.claims());
            let signature = borrowed.rsplit('.').next().unwrap();
            for token in [
                format!("{signed}."),
                format!("{signed}.AA"),
                format!("{signed}.{signature}"),
            ] {
                assert_eq!(stand.refusal(&token), AuthRefusal::Malformed, "{header}");
            }
        }
    }
    for alg in ["RS256", "ES256", "EdDSA"] {
        let signed = unsigned(
            &json!({"alg": alg}).to_string(),
            &stand.claims().to_string(),
        );
        assert_eq!(stand.refusal(&format!("{signed}.")), AuthRefusal::Malformed);
    }
}

#[test]
fn a_public_key_is_never_taken_for_a_shared_secret() {
    let secret = SharedSecret::hs256([7; 32]).unwrap();
    let alone = stand();
    // Also beside an issuer whose tokens are HMAC.
    let beside =
        stand_with(|builder| builder.issuer_with_secret("https://old.example/", secret.clone()));
    let mut n_forged = 0;
    for stand in [&alone, &beside] {
        for signer in [&*RSA, &P256, &P384, &ED25519] {
            for form in signer.public_forms() {
                for algorithm in ["HS256", "HS384", "HS512"] {
                    for id in [json!(signer.id), json!(null)] {
                        let header = with(json!({"alg": algorithm}), "kid", id);
                        let token = hmac_token(&form, &header, &stand.claims());
                        assert_eq!(stand.refusal(&token), AuthRefusal::Malformed, "{header}");
                        n_forged += 1;
                    }
                }
            }
        }
    }
    assert!(n_forged > 100, "{n_forged}");
}

#[test]
fn a_symmetric_key_in_a_published_set_is_no_key() {
    let secret = [9; 32];
    let oct =
        json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(secret), "kid": "oct", "alg": "HS256"});
    let keys = StaticJwks::from_json(document([oct, P256.jwk()])).unwrap();
    let stand = stand_of(keys, |builder| builder);
    for id in [json!("oct"), json!(null)] {
        let header = with(json!({"alg": "HS256"}), "kid", id);
        let token = hmac_token(&secret, &header, &stand.claims());
        assert_eq!(stand.refusal(&token), AuthRefusal::Malformed);
    }
}

#[test]
fn a_shared_secret_has_one_algorithm() {
    let bytes = [3; 64];
    for (secret, own) in [
        (SharedSecret::hs256(bytes), "HS256"),
        (SharedSecret::hs384(bytes), "HS384"),
        (SharedSecret::hs512(bytes), "HS512"),
    ] {
        let builder = tollgate::identity::JwtAuthenticator::builder();
        let stand = made(
            builder
                .issuer_with_secret(ISSUER, secret.unwrap())
                .audience(AUDIENCE),
        );
        for algorithm in ["HS256", "HS384", "HS512"] {
            for header in [
                json!({"alg": algorithm}),
                json!({"alg": algorithm, "kid": "any"}),
            ] {
                let token = hmac_token(&bytes, &header, &stand.claims());
                assert_eq!(stand.ask(&token).is_ok(), algorithm == own, "{header}");
            }
        }
        let wrong = hmac_token(&[4; 64], &json!({"alg": own}), &stand.claims());
        assert_eq!(stand.refusal(&wrong), AuthRefusal::BadSignature);
        assert_eq!(
            stand.refusal(&RSA.token(&stand.claims())),
            AuthRefusal::Malformed
        );
    }
}

#[test]
fn a_key_verifies_its_own_algorithm_alone() {
    let stand = stand();
    // Signed by P-256, said to be of the RSA key, under either name.
    for algorithm in ["ES256", "RS256", "PS256", "ES384", "EdDSA"] {
        let header = json!({"alg": algorithm, "kid": RSA.id});
        let refusal = stand.refusal(&P256.token_with(&header, &stand.claims()));
        let expected = if matches!(algorithm, "RS256" | "PS256") {
            AuthRefusal::BadSignature
        } else {
            AuthRefusal::Malformed
        };
        assert_eq!(refusal, expected, "{algorithm}");
    }
    let pinned = StaticJwks::from_json(document([with(RSA.jwk(), "alg", json!("PS256"))])).unwrap();
    let pinned = stand_of(pinned, |builder| builder);
    let ask = |algorithm: &str| {
        let header = json!({"alg": algorithm, "kid": RSA.id});
        pinned
            .ask(&RSA.token_with(&header, &pinned.claims()))
            .map(drop)
    };
    assert_eq!(ask("PS256"), Ok(()));
    assert_eq!(ask("RS256"), Err(AuthRefusal::Malformed));
}

#[test]
fn a_key_for_encryption_verifies_nothing() {
    let keys = [
        with(RSA.jwk(), "use", json!("enc")),
        with(
            with(P256.jwk(), "use", json!(null)),
            "key_ops",
            json!(["deriveKey"]),
        ),
        ED25519.jwk(),
    ];
    let stand = stand_of(StaticJwks::from_json(document(keys)).unwrap(), |builder| {
        builder
    });
    for signer in [&*RSA, &P256] {
        // Unknown, as for any key that is not in the set; a static set is not asked again at once.
        let attempt = stand.attempt(&signer.token(&stand.claims()));
        assert!(
            !matches!(attempt, tollgate::identity::Attempt::Done(Ok(_))),
            "{attempt:?}"
        );
    }
    assert!(stand.ask(&ED25519.token(&stand.claims())).is_ok());
}

#[tokio::test]
async fn a_token_without_a_key_id_is_judged_where_one_key_could_have_signed_it() {
    let nameless = |signer: &Signer| with(signer.jwk(), "kid", json!(null));
    let token = |signer: &Signer, stand: &super::stand::Stand| {
        signer.token_with(&json!({"alg": signer.algorithm()}), &stand.claims())
    };
    let of = |keys: Vec<Value>| {
        let keys = StaticJwks::from_json(document(keys)).unwrap();
        stand_of(keys, |builder| builder)
    };
    // One key, with or without a name; and one key of the algorithm among several.
    for keys in [
        vec![P256.jwk()],
        vec![nameless(&P256)],
        vec![P256.jwk(), RSA.jwk()],
    ] {
        let stand = of(keys);
        assert!(stand.ask(&token(&P256, &stand)).is_ok());
    }
    let second = Signer::p256("second");
    let stand = of(vec![P256.jwk(), second.jwk()]);
    for signer in [&*P256, &second] {
        assert_eq!(
            stand.refusal(&token(signer, &stand)),
            AuthRefusal::Malformed
        );
    }
    // A key without a name is not the one that a token names.
    let stand = of(vec![nameless(&P256)]);
    let named = stand.ask_far(&P256.token(&stand.claims())).await;
    assert_eq!(named.unwrap_err(), AuthRefusal::Unknown);
}

#[test]
fn of_two_keys_with_one_id_the_one_that_signed_counts() {
    let twin = Signer::p256("p256");
    let other_kind = Signer::ed25519("p256");
    let keys = [twin.jwk(), P256.jwk(), other_kind.jwk()];
    let keys = StaticJwks::from_json(document(keys)).unwrap();
    let stand = stand_of(keys, |builder| builder);
    for signer in [&twin, &P256, &other_kind] {
        assert!(stand.ask(&signer.token(&stand.claims())).is_ok());
    }
    let stranger = Signer::p256("p256");
    let forged = stranger.token(&stand.claims());
    assert_eq!(stand.refusal(&forged), AuthRefusal::BadSignature);
}

#[test]
fn a_token_that_brings_its_own_key_is_judged_by_ours() {
    let stand = stand();
    let attacker = Signer::p256("p256");
    for (name, value) in [
        ("jwk", attacker.jwk()),
        ("jku", json!("https://evil.example/jwks")),
        ("x5u", json!("https://evil.example/cert")),
        ("x5c", json!(["MIIB"])),
    ] {
        let header = json!({"alg": "ES256", "kid": "p256", name: value});
        let forged = attacker.token_with(&header, &stand.claims());
        assert_eq!(stand.refusal(&forged), AuthRefusal::BadSignature, "{name}");
        let own = P256.token_with(&header, &stand.claims());
        assert!(stand.ask(&own).is_ok(), "{name} is ignored");
    }
}

#[test]
fn a_header_that_asks_for_what_is_not_understood_is_refused() {
    let stand = stand();
    let ask = |header: Value| {
        stand
            .ask(&P256.token_with(&header, &stand.claims()))
            .map(drop)
    };
    for crit in [
        json!(["exp"]),
        json!(["b64"]),
        json!([]),
        json!("b64"),
        json!({}),
    ] {
        let header = json!({"alg": "ES256", "kid": "p256", "crit": crit, "b64": false});
        assert_eq!(ask(header), Err(AuthRefusal::Malformed));
    }
    for kid in [json!(1), json!(["p256"]), json!({"p256": 1})] {
        assert_eq!(
            ask(json!({"alg": "ES256", "kid": kid})),
            Err(AuthRefusal::Malformed)
        );
    }
}

#[test]
fn a_token_of_another_kind_is_refused() {
    let stand = stand();
    let strict = stand_with(|builder| builder.access_tokens_only(true));
    for (media_type, fits, fits_strict) in [
        (json!("at+jwt"), true, true),
        (json!("AT+JWT"), true, true),
        (json!("application/at+jwt"), true, true),
        (json!("Application/AT+jwt"), true, true),
        (json!("JWT"), true, false),
        (json!("jwt"), true, false),
        (json!(null), true, false),
        (json!("logout+jwt"), false, false),
        (json!("dpop+jwt"), false, false),
        (json!("secevent+jwt"), false, false),
        (json!("text/at+jwt"), false, false),
        (json!(""), false, false),
        (json!(7), false, false),
    ] {
        let header = with(json!({"alg": "ES256", "kid": "p256"}), "typ", media_type);
        let token = P256.token_with(&header, &stand.claims());
        assert_eq!(stand.ask(&token).is_ok(), fits, "{header}");
        assert_eq!(strict.ask(&token).is_ok(), fits_strict, "{header}");
    }
}

#[test]
fn a_member_twice_is_refused_though_it_is_signed() {
    let stand = stand();
    let claims = stand.claims().to_string();
    let header = r#"{"alg":"ES256","kid":"p256"}"#;
    assert!(stand.ask(&P256.token_of(header, &claims)).is_ok());
    let twice = claims.replacen('{', r#"{"tenant":"globex","#, 1);
    let nested = claims.replacen('{', r#"{"a":[{"b":1,"b":1}],"#, 1);
    let escaped = claims.replacen('{', r#"{"t\u0065nant":"globex","#, 1);
    for (header, claims) in [
        (header, &*twice),
        (header, &nested),
        (header, &escaped),
        (r#"{"alg":"ES256","kid":"p256","kid":"p256"}"#, &claims),
        (r#"{"alg":"ES256","alg":"ES256","kid":"p256"}"#, &claims),
    ] {
        let token = P256.token_of(header, claims);
        assert_eq!(stand.refusal(&token), AuthRefusal::Malformed, "{header}");
    }
}

#[test]
fn what_is_signed_but_no_object_is_refused() {
    let stand = stand();
    let header = r#"{"alg":"ES256","kid":"p256"}"#;
    let deep = format!("{}{}", "[".repeat(3_000), "]".repeat(3_000));
    for claims in [
        "",
        "null",
        "[]",
        "\"text\"",
        "{",
        "{}{}",
        "\u{feff}{}",
        &deep,
    ] {
        let token = P256.token_of(header, claims);
        assert_eq!(stand.refusal(&token), AuthRefusal::Malformed, "{claims}");
    }
}

#[test]
fn the_signature_of_one_token_does_not_fit_another() {
    let stand = stand();
    let good = P256.token(&stand.claims());
    let other = P256.token(&with(stand.claims(), "tenant", json!("globex")));
    let (signed, _) = other.rsplit_once('.').unwrap();
    let (_, signature) = good.rsplit_once('.').unwrap();
    let spliced = format!("{signed}.{signature}");
    assert_eq!(stand.refusal(&spliced), AuthRefusal::BadSignature);
    // Empty, short, long, and all zeros, which some libraries once took for ECDSA.
    for bytes in [
        vec![0; 1],
        vec![0; 63],
        vec![0; 64],
        vec![0; 65],
        vec![0xff; 64],
    ] {
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(stand.refusal(&token), AuthRefusal::BadSignature);
    }
}
