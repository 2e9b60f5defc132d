//! Tokens that an identity provider signed (JSON web tokens, RFC 7519), from their text to their claims.
//!
//! What is checked, in this order; the first "no" ends it:
//!
//! 1. The form: at most 8 KiB, three parts of strict base64url, JSON objects without a member twice, no `crit`.
//! 2. `typ`: absent, `JWT` or `at+jwt` (RFC 9068); a token of another kind is not a credential.
//! 3. `iss` is an issuer that was named. It picks the keys: an issuer's keys vouch for it alone.
//! 4. `alg` is on the list, and the key is of it. The key decides, not the token: `none` does not exist, and a
//!    public key is never an HMAC secret.
//! 5. `kid` names a key of the issuer's [`Jwks`]. An unknown one has the keys fetched anew, seldom, see
//!    [`JwksRefresh`].
//! 6. The signature.
//! 7. `aud` names this service.
//! 8. `exp` is there and ahead, `nbf` and `iat` are not, each with leeway.
//!
//! What a token says of keys (`jwk`, `jku`, `x5c`, `x5u`) is never looked at. The rules are those of RFC 8725.
//! [`JwtAuthenticator`](crate::identity::JwtAuthenticator) sets all of it up and makes an identity of the claims.
//!
//! ```
//! use tollgate::auth::jwt::{Jwks, JwksError, StaticJwks};
//!
//! let document = r#"{"keys": [
//!     {"kty": "OKP", "crv": "Ed25519", "kid": "2026-01", "use": "sig",
//!      "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
//!     {"kty": "oct", "kid": "no public key", "k": "c2VjcmV0"}
//! ]}"#;
//! let keys = Jwks::from_json(document)?;
//! assert_eq!(keys.key_ids().collect::<Vec<_>>(), ["2026-01"]);
//! let source = StaticJwks::from(keys);
//!
//! assert!(matches!(Jwks::from_json(r#"{"keys": []}"#), Err(JwksError::NoKeys)));
//! # let _ = source;
//! # Ok::<(), JwksError>(())
//! ```

mod algorithm;
mod claims;
mod compact;
#[cfg(feature = "reqwest")]
mod http_source;
mod json;
mod key;
mod policy;
mod refresh;
mod ring;
mod secret;
mod set;
mod source;
mod verify;

#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
pub use self::http_source::HttpJwks;
pub use self::{
    algorithm::JwtAlgorithm,
    claims::Claims,
    refresh::JwksRefresh,
    secret::SharedSecret,
    set::Jwks,
    source::{JwksError, JwksSource, StaticJwks},
};
pub(crate) use self::{
    compact::looks_like_token,
    policy::{Audiences, TokenPolicy, Validity},
    ring::Ready,
    verify::{Fault, Issuer, Verified, verify},
};
