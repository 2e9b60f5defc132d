//! No change of a token, however small, leaves it valid.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::{
    signer::{ED25519, P256, P384, RSA},
    stand::{Stand, stand},
};
use tollgate::{auth::AuthRefusal, identity::Attempt};

static STAND: LazyLock<(Stand, Vec<String>)> = LazyLock::new(|| {
    let stand = stand();
    let signers = [&*RSA, &P256, &P384, &ED25519];
    let tokens = signers.map(|signer| signer.token(&stand.claims()));
    for token in &tokens {
        assert!(stand.ask(token).is_ok());
    }
    (stand, tokens.to_vec())
});

/// Whether a text is anybody's token.
fn passes(text: &str) -> bool {
    let (stand, _) = &*STAND;
    // What no header field holds as one credential comes to no authenticator.
    let is_one = |byte: u8| byte.is_ascii_graphic() && byte != b',';
    if text.is_empty() || !text.bytes().all(is_one) {
        return false;
    }
    match stand.attempt(text) {
        Attempt::Done(result) => result.is_ok(),
        // A changed key id would be looked up, among keys that do not change.
        Attempt::Lookup(lookup) => {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let result = runtime.unwrap().block_on(lookup);
            assert!(!matches!(result, Err(AuthRefusal::StoreUnavailable)));
            result.is_ok()
        }
        Attempt::Refresh(_) => panic!("no such token has worked"),
        _ => false,
    }
}

const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ ,";

#[test]
fn every_byte_of_every_token_replaced_is_refused() {
    let (_, tokens) = &*STAND;
    let mut n_tried = 0;
    for token in tokens {
        for place in 0..token.len() {
            let old = token.as_bytes()[place];
            // The neighbours in the alphabet change the last bits alone: where they are stray bits, a lax
            // decoder takes the text for the same token.
            let at = ALPHABET.iter().position(|byte| *byte == old).unwrap();
            for step in [1, 2, 3, 63] {
                let new = ALPHABET[(at + step) % ALPHABET.len()];
                if new == old {
                    continue;
                }
                let mut bytes = token.clone().into_bytes();
                bytes[place] = new;
                let text = String::from_utf8(bytes).unwrap();
                assert!(!passes(&text), "byte {place} as {}", char::from(new));
                n_tried += 1;
            }
        }
    }
    assert!(n_tried > 4_000, "{n_tried}");
}

#[test]
fn what_stands_around_a_token_is_refused() {
    let (_, tokens) = &*STAND;
    for token in tokens {
        let parts: Vec<_> = token.split('.').collect();
        let (header, claims, signature) = (parts[0], parts[1], parts[2]);
        for text in [
            format!("{token}."),
            format!("{token}="),
            format!("{token}=="),
            format!("{token}A"),
            format!("{token}AA"),
            format!("{token}AAAA"),
            format!(".{token}"),
            format!("A{token}"),
            format!("{token}.{signature}"),
            format!("{header}..{claims}.{signature}"),
            format!("{header}=.{claims}.{signature}"),
            format!("{header}.{claims}==.{signature}"),
            format!("{claims}.{header}.{signature}"),
            format!("{header}.{claims}"),
            format!("{header}.{claims}."),
            format!("..{signature}"),
            "..".to_owned(),
            token.to_lowercase(),
            token.to_uppercase(),
        ] {
            assert!(!passes(&text), "{text}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_splice_is_refused(
        which in 0..4_usize,
        at in any::<prop::sample::Index>(),
        n_removed in 0..4_usize,
        inserted in "[A-Za-z0-9_.=-]{0,4}",
    ) {
        let token = &STAND.1[which];
        let at = at.index(token.len());
        let end = (at + n_removed).min(token.len());
        let text = format!("{}{inserted}{}", &token[..at], &token[end..]);
        prop_assume!(text != *token);
        prop_assert!(!passes(&text));
    }

    #[test]
    fn any_text_is_refused_without_a_panic(text in "[!-~]{1,300}") {
        prop_assert!(!passes(&text));
    }

    #[test]
    fn any_parts_are_refused_without_a_panic(
        header in prop::collection::vec(any::<u8>(), 0..60),
        claims in prop::collection::vec(any::<u8>(), 0..60),
        signature in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let parts = [header, claims, signature].map(|part| URL_SAFE_NO_PAD.encode(part));
        prop_assert!(!passes(&parts.join(".")));
    }
}
