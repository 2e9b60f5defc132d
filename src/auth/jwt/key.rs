//! Keys that verify signatures, each bound to its algorithms.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, crypto::aws_lc::DEFAULT_PROVIDER};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use smallvec::{SmallVec, smallvec};

use super::algorithm;

/// Below this RSA is refused (RFC 7518 section 3.3); above the other it would be slow to verify.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

type Algorithms = SmallVec<[Algorithm; 6]>;

/// A key, and what it may verify. The key decides the algorithm: a token's `alg` only picks among what the key
/// has, so no token can have a public key taken for an HMAC secret.
#[derive(Clone)]
pub(super) struct VerifyingKey {
    pub(super) id: Option<Box<str>>,
    /// Tells the key from every other, with its id and algorithms.
    pub(super) fingerprint: [u8; 32],
    algorithms: Algorithms,
    key: DecodingKey,
}

/// A JSON web key (RFC 7517 section 4), as far as it says something of public keys that sign.
#[derive(Deserialize)]
struct Jwk {
    kty: Box<str>,
    #[serde(rename = "use")]
    usage: Option<Box<str>>,
    key_ops: Option<Vec<Box<str>>>,
    alg: Option<Box<str>>,
    kid: Option<Box<str>>,
    crv: Option<Box<str>>,
    n: Option<Box<str>>,
    e: Option<Box<str>>,
    x: Option<Box<str>>,
    y: Option<Box<str>>,
}

impl VerifyingKey {
    /// Reads a key of a set; `None` for one that cannot verify signatures: of another type or curve, for
    /// another use, too weak, or not as it should be. A symmetric key (`oct`) in a set that everybody may read
    /// is no key.
    pub(super) fn from_jwk(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        if let Some(operations) = &jwk.key_ops
            && !operations.iter().any(|operation| &**operation == "verify")
        {
            return None;
        }
        let (key, mut algorithms) = match &*jwk.kty {
            "RSA" => jwk.rsa()?,
            "EC" => jwk.elliptic_curve()?,
            "OKP" => jwk.edwards_curve()?,
            _ => return None,
        };
        if let Some(name) = &jwk.alg {
            let only = algorithm::parse(name)?;
            algorithms.retain(|one| *one == only);
        }
        if algorithms.is_empty() {
            return None;
        }
        Some(Self::new(jwk.kid, algorithms, key))
    }

    /// An HMAC key.
    pub(super) fn from_secret(algorithm: Algorithm, secret: &[u8]) -> Self {
        Self::new(None, smallvec![algorithm], DecodingKey::from_secret(secret))
    }

    fn new(id: Option<Box<str>>, algorithms: Algorithms, key: DecodingKey) -> Self {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(&[u8::from(id.is_some())]);
        part(id.as_deref().unwrap_or_default().as_bytes());
        for algorithm in &algorithms {
            part(&[*algorithm as u8]);
        }
        match key.kind() {
            jsonwebtoken::DecodingKeyKind::SecretOrDer(bytes) => part(bytes),
            jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, e } => {
                part(n);
                part(e);
            }
        }
        Self {
            id,
            fingerprint: hash.finalize().into(),
            algorithms,
            key,
        }
    }

    pub(super) fn can(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// Whether this key made the signature over `signed`.
    pub(super) fn verifies(
        &self,
        algorithm: Algorithm,
        signed: &[u8],
        signature: &Vec<u8>,
    ) -> bool {
        // The provider is named: the process's default is a setting of whoever else uses jsonwebtoken, and
        // panics where two are compiled in.
        self.can(algorithm)
            && (DEFAULT_PROVIDER.verifier_factory)(&algorithm, &self.key)
                .is_ok_and(|verifier| verifier.verify(signed, signature).is_ok())
    }
}

impl Jwk {
    fn rsa(&self) -> Option<(DecodingKey, Algorithms)> {
        let (n, e) = (decode(self.n.as_deref()?)?, decode(self.e.as_deref()?)?);
        let odd = |number: &[u8]| number.last().is_some_and(|byte| byte % 2 == 1);
        // An exponent of 1 would make every text its own signature.
        if !RSA_BITS.contains(&n_bits(&n)) || !odd(&n) || !odd(&e) || n_bits(&e) < 2 {
            return None;
        }
        let algorithms = smallvec![
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ];
        Some((DecodingKey::from_rsa_raw_components(&n, &e), algorithms))
    }

    fn elliptic_curve(&self) -> Option<(DecodingKey, Algorithms)> {
        let (algorithm, n_bytes) = match self.crv.as_deref()? {
            "P-256" => (Algorithm::ES256, 32),
            "P-384" => (Algorithm::ES384, 48),
            _ => return None,
        };
        let (x, y) = (decode(self.x.as_deref()?)?, decode(self.y.as_deref()?)?);
        // RFC 7518 section 6.2.1.2: as long as the curve has it, leading zeros included.
        if x.len() != n_bytes || y.len() != n_bytes {
            return None;
        }
        let point = [&[4], &*x, &*y].concat();
        Some((DecodingKey::from_ec_der(&point), smallvec![algorithm]))
    }

    fn edwards_curve(&self) -> Option<(DecodingKey, Algorithms)> {
        let x = decode(self.x.as_deref()?)?;
        if self.crv.as_deref() != Some("Ed25519") || x.len() != 32 {
            return None;
        }
        Some((DecodingKey::from_ed_der(&x), smallvec![Algorithm::EdDSA]))
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// The length of a number, without its leading zeros.
fn n_bits(number: &[u8]) -> usize {
    let mut rest = number.iter().skip_while(|byte| **byte == 0);
    let Some(first) = rest.next() else { return 0 };
    rest.count() * 8 + first.ilog2() as usize + 1
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rsa(n: &[u8], e: &[u8]) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty": "RSA", "n": encode(n), "e": encode(e)})
    }

    fn with(mut key: Value, name: &str, value: Value) -> Option<VerifyingKey> {
        key[name] = value;
        VerifyingKey::from_jwk(key)
    }

    #[test]
    fn a_weak_rsa_key_is_no_key() {
        let reads = |n: &[u8], e: &[u8]| VerifyingKey::from_jwk(rsa(n, e)).is_some();
        let modulus = |n_bytes: usize| vec![0x81; n_bytes];
        assert!(reads(&modulus(256), &[1, 0, 1]));
        assert!(reads(&[&[0][..], &modulus(256)].concat(), &[1, 0, 1]));
        assert!(!reads(&modulus(128), &[1, 0, 1]));
        assert!(!reads(&[&[0; 128][..], &modulus(128)].concat(), &[1, 0, 1]));
        assert!(!reads(&modulus(1_025), &[1, 0, 1]));
        assert!(!reads(&modulus(256), &[1]));
        assert!(!reads(&modulus(256), &[0]));
        assert!(!reads(&modulus(256), &[]));
        assert!(!reads(&modulus(256), &[1, 0, 0]));
        assert!(!reads(&[], &[1, 0, 1]));
        // 2,047 bits.
        assert!(!reads(&[&[0x41][..], &modulus(255)].concat(), &[1, 0, 1]));
    }

    #[test]
    fn use_operations_and_algorithm_are_respected() {
        let key = || rsa(&[0x81; 256], &[1, 0, 1]);
        let can = |key: Option<VerifyingKey>, algorithm| key.is_some_and(|key| key.can(algorithm));
        assert!(with(key(), "use", json!("sig")).is_some());
        assert!(with(key(), "use", json!("enc")).is_none());
        assert!(with(key(), "key_ops", json!(["verify"])).is_some());
        assert!(with(key(), "key_ops", json!(["encrypt"])).is_none());
        assert!(with(key(), "key_ops", json!([])).is_none());
        assert!(with(key(), "kid", json!(7)).is_none());
        assert!(can(with(key(), "kid", json!("a")), Algorithm::PS384));
        let narrowed = with(key(), "alg", json!("RS256"));
        assert!(can(narrowed.clone(), Algorithm::RS256));
        assert!(!can(narrowed, Algorithm::PS256));
        for alg in ["HS256", "ES256", "RSA-OAEP", "none", ""] {
            assert!(with(key(), "alg", json!(alg)).is_none(), "{alg}");
        }
    }

    #[test]
    fn what_is_no_signing_key_is_skipped() {
        let point = URL_SAFE_NO_PAD.encode([1; 32]);
        for (key, is_key) in [
            (
                json!({"kty": "EC", "crv": "P-256", "x": point, "y": point}),
                true,
            ),
            (
                json!({"kty": "EC", "crv": "P-384", "x": point, "y": point}),
                false,
            ),
            (
                json!({"kty": "EC", "crv": "P-521", "x": point, "y": point}),
                false,
            ),
            (json!({"kty": "EC", "crv": "P-256", "x": point}), false),
            (json!({"kty": "OKP", "crv": "Ed25519", "x": point}), true),
            (json!({"kty": "OKP", "crv": "X25519", "x": point}), false),
            (json!({"kty": "oct", "k": point, "alg": "HS256"}), false),
            (json!({"kty": "new"}), false),
            (json!({}), false),
            (json!("text"), false),
        ] {
            let read = VerifyingKey::from_jwk(key.clone());
            assert_eq!(read.is_some(), is_key, "{key}");
        }
    }
}
