//! Keys made for the tests, and tokens signed with them, good and bad.

use std::sync::LazyLock;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
        RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// A key pair of an identity provider.
pub(crate) struct Signer {
    pub(crate) id: &'static str,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

pub(crate) static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::rsa("rsa"));
pub(crate) static P256: LazyLock<Signer> = LazyLock::new(|| Signer::p256("p256"));
pub(crate) static P384: LazyLock<Signer> = LazyLock::new(|| {
    let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    Signer {
        id: "p384",
        pair: Pair::P384(pair),
    }
});
pub(crate) static ED25519: LazyLock<Signer> = LazyLock::new(|| Signer::ed25519("ed"));

impl Signer {
    pub(crate) fn rsa(id: &'static str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        Self {
            id,
            pair: Pair::Rsa(Box::new(pair)),
        }
    }

    pub(crate) fn p256(id: &'static str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self {
            id,
            pair: Pair::P256(pair),
        }
    }

    pub(crate) fn ed25519(id: &'static str) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        Self {
            id,
            pair: Pair::Ed25519(pair),
        }
    }

    /// The algorithm of this key's tokens unless another is asked for.
    pub(crate) fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
            Pair::P384(_) => "ES384",
            Pair::Ed25519(_) => "EdDSA",
        }
    }

    /// The public key, as a provider publishes it.
    pub(crate) fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let point = |curve: &str, pair: &EcdsaKeyPair| {
            let (x, y) = pair.public_key().as_ref()[1..]
                .split_at((pair.public_key().as_ref().len() - 1) / 2);
            json!({"kty": "EC", "crv": curve, "x": text(x), "y": text(y)})
        };
        let mut key = match &self.pair {
            Pair::Rsa(pair) => {
                let public = pair.public_key();
                let n = text(public.modulus().big_endian_without_leading_zero());
                let e = text(public.exponent().big_endian_without_leading_zero());
                json!({"kty": "RSA", "n": n, "e": e})
            }
            Pair::P256(pair) => point("P-256", pair),
            Pair::P384(pair) => point("P-384", pair),
            Pair::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref())})
            }
        };
        key["kid"] = self.id.into();
        key["use"] = "sig".into();
        key
    }

    /// Everything that an attacker could take this public key to be a secret as.
    pub(crate) fn public_forms(&self) -> Vec<Vec<u8>> {
        let jwk = self.jwk();
        let decode = |name: &str| {
            let text = jwk[name].as_str().unwrap_or_default();
            URL_SAFE_NO_PAD.decode(text).unwrap()
        };
        let mut forms = vec![
            jwk.to_string().into_bytes(),
            jwk["n"].as_str().unwrap_or_default().into(),
        ];
        forms.extend(["n", "x", "y"].map(decode));
        if let Pair::Rsa(pair) = &self.pair {
            let pkcs1 = pair.public_key().as_ref().to_vec();
            let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
            for (label, der) in [("RSA PUBLIC KEY", &*pkcs1), ("PUBLIC KEY", spki.as_ref())] {
                forms.extend([der.to_vec(), pem(label, der, "\n"), pem(label, der, "")]);
            }
        }
        forms.retain(|form| !form.is_empty());
        forms
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let encoding: &'static dyn RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut signature)
                    .unwrap();
                signature
            }
            Pair::P256(pair) | Pair::P384(pair) => {
                pair.sign(&random, message).unwrap().as_ref().to_vec()
            }
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with the usual header.
    pub(crate) fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm(), "typ": "at+jwt", "kid": self.id});
        self.token_with(&header, claims)
    }

    /// A token with any header, signed by the algorithm that it names, or else by the key's own.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.token_of(&header.to_string(), &claims.to_string())
    }

    /// A token of any texts.
    pub(crate) fn token_of(&self, header: &str, claims: &str) -> String {
        let named: Value = serde_json::from_str(header).unwrap_or_default();
        let algorithm = named["alg"].as_str().unwrap_or_default();
        let signed = unsigned(header, claims);
        let signature = self.sign(algorithm, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn pem(label: &str, der: &[u8], end: &str) -> Vec<u8> {
    use base64::engine::general_purpose::STANDARD;
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    let lines = lines.join("\n");
    format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----{end}").into_bytes()
}

/// The part of a token that is signed.
pub(crate) fn unsigned(header: &str, claims: &str) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}", encode(header), encode(claims))
}

/// A token under a shared secret.
pub(crate) fn hmac_token(secret: &[u8], header: &Value, claims: &Value) -> String {
    let algorithm = match header["alg"].as_str() {
        Some("HS384") => hmac::HMAC_SHA384,
        Some("HS512") => hmac::HMAC_SHA512,
        _ => hmac::HMAC_SHA256,
    };
    let signed = unsigned(&header.to_string(), &claims.to_string());
    let signature = hmac::sign(&hmac::Key::new(algorithm, secret), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A JWKS document.
pub(crate) fn document(keys: impl IntoIterator<Item = Value>) -> String {
    json!({"keys": keys.into_iter().collect::<Vec<_>>()}).to_string()
}
