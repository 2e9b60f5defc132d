use std::collections::HashSet;

use proptest::prelude::*;
use tollgate::{
    auth::{KeyFormat, MAX_KEY_BYTES, Malformed},
    id::Environment,
};

const BODY: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const LIVE: &str = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH";
const TEST: &str = "tg_test_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ2ZspdU";
const BODY_CHECKED: &str = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0TyBiU";

fn formats() -> [KeyFormat; 3] {
    [
        KeyFormat::default(),
        KeyFormat::new("acme2").unwrap(),
        KeyFormat::github_checksum("acme").unwrap(),
    ]
}

#[test]
fn the_published_keys_are_made_and_recognised() {
    let format = KeyFormat::new("tg").unwrap();
    let made = |environment| format.assemble(environment, BODY).unwrap();
    assert_eq!(made(Environment::Live).expose(), LIVE);
    assert_eq!(made(Environment::Test).expose(), TEST);
    assert_eq!(format.check(LIVE), Ok(Some(Environment::Live)));
    assert_eq!(format.check(TEST), Ok(Some(Environment::Test)));
    assert_eq!(format.check(BODY_CHECKED), Err(Malformed));
}

#[test]
fn a_checksum_over_the_body_alone_is_its_own_format() {
    let format = KeyFormat::github_checksum("tg").unwrap();
    let made = format.assemble(Environment::Live, BODY).unwrap();
    assert_eq!(made.expose(), BODY_CHECKED);
    assert_eq!(format.check(BODY_CHECKED), Ok(Some(Environment::Live)));
    assert_eq!(format.check(LIVE), Err(Malformed));
    // Without an environment, as the tokens that migrate have it.
    let without = BODY_CHECKED.replace("_live", "");
    assert_eq!(format.check(&without), Ok(None));
    assert_eq!(KeyFormat::default().check(&without), Err(Malformed));
}

#[test]
fn a_body_of_thirty_characters_migrates() {
    // zlib gives the body the CRC-32 0xf0c344af, which is 4PMbyp in base 62.
    let format = KeyFormat::github_checksum("acme").unwrap();
    let key = "acme_0123456789ABCDEFGHIJKLMNOPQRST4PMbyp";
    assert_eq!(format.check(key), Ok(None));
    assert!(format.check(&key.replace("T4P", "4P")).is_err());
}

#[test]
fn a_body_that_migrates_has_thirty_to_sixty_four_characters() {
    let format = KeyFormat::github_checksum("acme").unwrap();
    // A run of `a` and its CRC-32 by zlib, in base 62.
    for (length, check, expected) in [
        (29, "32N7nL", Err(Malformed)),
        (30, "1yLcDB", Ok(None)),
        (64, "2WLmpZ", Ok(None)),
        (65, "4SBcBp", Err(Malformed)),
    ] {
        let key = format!("acme_{}{check}", "a".repeat(length));
        assert_eq!(format.check(&key), expected, "{length}");
    }
}

#[test]
fn refuses_a_prefix_that_would_not_parse() {
    for prefix in [
        "",
        "a",
        "Acme",
        "2fast",
        "a_b",
        "ac-me",
        "abcdefghijklmnopq",
        "é1",
    ] {
        let error = KeyFormat::new(prefix).unwrap_err();
        assert_eq!(error.path(), "prefix", "{prefix}");
        assert!(KeyFormat::github_checksum(prefix).is_err());
    }
    for prefix in ["tg", "a1", "abcdefghijklmnop"] {
        let format = KeyFormat::new(prefix).unwrap();
        let key = format.generate(Environment::Live).unwrap();
        assert_eq!(format.check(key.expose()), Ok(Some(Environment::Live)));
    }
}

#[test]
fn refuses_what_only_looks_like_a_key() {
    let format = KeyFormat::default();
    let candidates = [
        String::new(),
        "_".to_owned(),
        "______".to_owned(),
        "tg_live_".to_owned(),
        LIVE.to_uppercase(),
        LIVE.to_lowercase(),
        format!(" {LIVE}"),
        format!("{LIVE} "),
        format!("{LIVE}\0"),
        format!("x{LIVE}"),
        format!("tg_{LIVE}"),
        LIVE.replace("live", "prod"),
        LIVE.replace("tg_", "tg__"),
        LIVE.replace("tg_live_", "tg_live"),
        LIVE.replace("tg_live_", "_live_"),
        LIVE.replace("tg_live_", "live_"),
        LIVE.replace('Z', "é"),
        LIVE.replace("fH", "é"),
        LIVE.replace('A', "-"),
        "a".repeat(MAX_KEY_BYTES + 1),
        "é".repeat(40),
    ];
    for candidate in candidates {
        assert_eq!(format.check(&candidate), Err(Malformed), "{candidate:?}");
    }
}

#[test]
fn an_opaque_key_is_held_to_length_and_alphabet() {
    let format = KeyFormat::opaque();
    assert_eq!(format.check(&"a".repeat(16)), Ok(None));
    assert_eq!(format.check(&"_-9Z".repeat(32)), Ok(None));
    assert!(format.check(&"a".repeat(15)).is_err());
    assert!(format.check(&"a".repeat(129)).is_err());
    assert!(format.check("aaaaaaaa.aaaaaaaa").is_err());
    assert!(format.check("aaaaaaaa aaaaaaaa").is_err());
    assert!(format.check("aaaaaaaaéaaaaaaaa").is_err());
    let key = format.generate(Environment::Live).unwrap();
    assert_eq!(format.check(key.expose()), Ok(None));
}

#[test]
fn a_body_of_another_shape_is_not_assembled() {
    let format = KeyFormat::default();
    for body in [
        "",
        "abc",
        &BODY[1..],
        &format!("{BODY}0"),
        &BODY.replace('A', "_"),
    ] {
        assert!(format.assemble(Environment::Live, body).is_err(), "{body}");
    }
}

#[test]
fn generated_keys_are_all_different() {
    let format = KeyFormat::default();
    let keys: HashSet<_> = (0..10_000)
        .map(|_| {
            format
                .generate(Environment::Live)
                .unwrap()
                .expose()
                .to_owned()
        })
        .collect();
    assert_eq!(keys.len(), 10_000);
}

proptest! {
    #[test]
    fn a_generated_key_is_recognised_by_its_own_format_alone(
        index in 0..3_usize,
        live in any::<bool>(),
    ) {
        let environment = if live { Environment::Live } else { Environment::Test };
        let formats = formats();
        let key = formats[index].generate(environment).unwrap();
        for (other, format) in formats.iter().enumerate() {
            let expected = if other == index { Ok(Some(environment)) } else { Err(Malformed) };
            prop_assert_eq!(format.check(key.expose()), expected);
        }
    }

    #[test]
    fn any_change_of_one_character_is_noticed(
        index in 0..3_usize,
        position in any::<prop::sample::Index>(),
        other in any::<char>(),
    ) {
        let format = &formats()[index];
        let key = format.generate(Environment::Live).unwrap();
        let mut characters: Vec<char> = key.expose().chars().collect();
        let position = position.index(characters.len());
        prop_assume!(characters[position] != other);
        characters[position] = other;
        let changed: String = characters.into_iter().collect();
        prop_assert_eq!(format.check(&changed), Err(Malformed));
    }

    #[test]
    fn two_neighbours_swapped_are_noticed(position in 8..49_usize) {
        let format = KeyFormat::default();
        let key = format.generate(Environment::Live).unwrap();
        let mut bytes = key.expose().as_bytes().to_vec();
        prop_assume!(bytes[position] != bytes[position + 1]);
        bytes.swap(position, position + 1);
        let swapped = String::from_utf8(bytes).unwrap();
        prop_assert_eq!(format.check(&swapped), Err(Malformed));
    }

    #[test]
    fn different_bodies_make_different_keys(a in "[0-9A-Za-z]{36}", b in "[0-9A-Za-z]{36}") {
        for format in formats() {
            let key = |environment, body: &str| {
                format.assemble(environment, body).unwrap().expose().to_owned()
            };
            prop_assert_eq!(a == b, key(Environment::Live, &a) == key(Environment::Live, &b));
            prop_assert_ne!(key(Environment::Live, &a), key(Environment::Test, &b));
        }
    }

    #[test]
    fn no_text_makes_the_check_panic(text in ".{0,140}", near in "[a-z]{0,3}_?[a-z]{0,5}_[0-9A-Za-zé]{30,50}") {
        for format in formats() {
            prop_assert!(format.check(&text).is_err());
            let _ = format.check(&near);
        }
        let _ = KeyFormat::opaque().check(&text);
    }
}
