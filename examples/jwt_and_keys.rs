// cargo run --example jwt_and_keys
//! A service that takes API keys and access tokens. It prints one of each, and calls to make with them.
//!
//! An identity provider runs beside it, on a port of its own: it has one key pair, publishes the public half as a
//! JWKS document, and has signed the tokens that are printed. The service fetches that document when the first token comes.

use std::{
    env,
    error::Error,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use axum::{Json, Router, routing::get};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tollgate::{
    auth::jwt::HttpJwks,
    identity::{ClaimMapping, JwtAuthenticator},
    prelude::*,
};

const AUDIENCE: &str = "https://api.example/";
const ISSUER: &str = "https://idp.example/";

/// The provider: signs tokens, and publishes the key that verifies them.
struct Provider(Ed25519KeyPair);

impl Provider {
    fn jwks(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "2026-01", "use": "sig", "x": x}]})
    }

    /// A token of `acme` for somebody, with these scopes, that ends so many seconds from now.
    fn token(&self, audience: &str, scope: &str, seconds: i64) -> Result<String, Box<dyn Error>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let end = i64::try_from(now.as_secs())? + seconds;
        let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "2026-01"});
        let claims = json!({
            "iss": ISSUER, "aud": audience, "exp": end,
            "sub": "user-7", "client_id": "dashboard", "org_id": "acme", "scope": scope,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()));
        Ok(format!("{signed}.{signature}"))
    }
}

async fn hello(identity: Identity) -> String {
    let who = identity.key().map_or("nobody", |id| id.as_str());
    format!("hello {}, by {who}\n", identity.tenant().id())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let provider = Provider(Ed25519KeyPair::generate()?);
    let published = provider.jwks();
    let idp = TcpListener::bind("127.0.0.1:0").await?;
    let jwks_url = format!("http://{}/jwks", idp.local_addr()?);
    let document = Router::new().route("/jwks", get(async move || Json(published)));
    tokio::spawn(async move { axum::serve(idp, document).await });

    let tokens = JwtAuthenticator::builder()
        // Only https is fetched from anywhere but this machine.
        .issuer(ISSUER, HttpJwks::new(&jwks_url)?)
        .audience(AUDIENCE)
        .claims(ClaimMapping::new().tenant("org_id"));
    let gate = Tollgate::builder()
        .plans([Plan::new("free").rule(Rate::per_second(50))])
        .jwt(tokens)
        .build()?;
    // Tokens need their tenant to be there; issuing its first key creates it.
    let new = NewKey::for_tenant("acme").plan("free").scopes(["read"]);
    let issued = gate.keys().issue(new).await?;

    let app = Router::new()
        .route("/v1/hello", get(hello))
        .route(
            "/v1/report",
            get(hello).route_layer(RequireScope::new("report:read")),
        )
        .layer(gate.layer());

    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    let address = listener.local_addr()?;
    let token = provider.token(AUDIENCE, "read report:read", 3_600)?;
    println!(
        "listening on http://{address}\nkey: {}",
        issued.key.expose()
    );
    println!("key token: {token}");
    for (name, audience, seconds) in [
        ("expired", AUDIENCE, -3_600),
        ("elsewhere", "https://other.example/", 3_600),
    ] {
        let token = provider.token(audience, "read report:read", seconds)?;
        println!("key {name}: {token}");
    }
    println!("try: curl -i -H 'Authorization: Bearer {token}' http://{address}/v1/report");
    println!("     and with the key, which lacks the scope, or with one of the other tokens");
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, service)
        .with_graceful_shutdown(stop)
        .await?;
    println!("{:?}", gate.shutdown(Duration::from_secs(5)).await);
    Ok(())
}
