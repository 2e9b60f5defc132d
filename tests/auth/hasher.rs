use tollgate::auth::{KeyDigest, KeyHasher, Pepper};

const KEY: &str = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH";

fn pepper(n: u8) -> Pepper {
    Pepper::new([n; 32]).unwrap()
}

fn all(hasher: &KeyHasher) -> Vec<KeyDigest> {
    hasher.digests(KEY).collect()
}

#[test]
fn sha256_gives_the_published_digest() {
    let digest = KeyHasher::default().digest(KEY);
    assert_eq!(
        digest.to_string(),
        "03ba3280d3163edc18a9e4ed19cf57a4ba49c1f822c84e7191cbe9cd6048223a"
    );
    assert_eq!(KeyDigest::from_hex(&digest.to_string()), Some(digest));
}

#[test]
fn a_pepper_changes_every_digest() {
    let (first, second) = (KeyHasher::hmac(pepper(1)), KeyHasher::hmac(pepper(2)));
    assert_ne!(first.digest(KEY), second.digest(KEY));
    assert_ne!(first.digest(KEY), KeyHasher::sha256().digest(KEY));
    assert_eq!(first.digest(KEY), KeyHasher::hmac(pepper(1)).digest(KEY));
    assert_ne!(first.digest(KEY), first.digest("tg_live_other"));
}

#[test]
fn a_short_pepper_is_a_fault_of_the_configuration() {
    for secret in [&b""[..], b"short", b"fifteen-bytes-x"] {
        let error = Pepper::new(secret).unwrap_err();
        assert_eq!(error.path(), "pepper");
        assert!(!error.to_string().contains("fifteen"));
    }
    assert!(Pepper::new("sixteen-bytes-xx").is_ok());
}

#[test]
fn after_a_rotation_of_the_pepper_old_digests_are_tried_after_the_new_one() {
    let (old, older) = (KeyHasher::hmac(pepper(2)), KeyHasher::hmac(pepper(3)));
    let rotated = KeyHasher::hmac(pepper(1))
        .accept_old(pepper(2))
        .accept_old(pepper(3))
        .accept_unpeppered();
    let expected = [
        KeyHasher::hmac(pepper(1)).digest(KEY),
        old.digest(KEY),
        older.digest(KEY),
        KeyHasher::sha256().digest(KEY),
    ];
    assert_eq!(all(&rotated), expected);
    assert_eq!(rotated.n_digests(), 4);
    assert_eq!(rotated.digest(KEY), expected[0]);
    assert_eq!(all(&old), [old.digest(KEY)]);
}

#[test]
fn digests_are_equal_when_every_bit_is() {
    let digest = KeyHasher::sha256().digest(KEY);
    for bit in 0..256 {
        let mut bytes = *digest.as_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(KeyDigest::from_bytes(bytes), digest);
    }
    assert_eq!(KeyDigest::from_bytes(*digest.as_bytes()), digest);
}
