//! Tokens beside API keys, over real connections.

use std::{sync::Arc, time::Duration};

use axum::{Router, routing::get};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tollgate::{
    Tollgate,
    auth::{
        FailureLimit,
        jwt::{JwksSource, StaticJwks},
    },
    clock::{Clock as _, ManualClock},
    id::{PlanName, TenantId},
    identity::{Identity, JwtAuthenticator, NewKey, RequireScope},
    limit::Rate,
    meter::UsageEvent,
    plan::Plan,
    sink::MemorySink,
    tenant::{AccessState, MemoryTenantStore, TenantRecord},
};

use super::{
    signer::{P256, Signer},
    stand::{AUDIENCE, ISSUER, all_keys, claims, with},
};
use crate::common::{Answer, Server, request, serve};

struct Api {
    clock: ManualClock,
    gate: Tollgate,
    key: String,
    server: Server,
    usage: Arc<MemorySink>,
}

async fn hello(identity: Identity, headers: HeaderMap) -> String {
    assert!(!headers.contains_key("authorization") && !headers.contains_key("x-api-key"));
    format!("{} {:?}", identity.tenant().id(), identity.key())
}

async fn api() -> Api {
    api_with(all_keys(), FailureLimit::default()).await
}

async fn api_with(keys: impl JwksSource, failures: FailureLimit) -> Api {
    let clock = ManualClock::default();
    let plan = PlanName::new("free").unwrap();
    let records = ["acme", "globex"]
        .map(|name| TenantRecord::new(TenantId::new(name).unwrap(), plan.clone()));
    let usage = Arc::new(MemorySink::new());
    let gate = Tollgate::builder()
        .plans([Plan::new("free").rule(Rate::per_minute(1_000))])
        .tenants(MemoryTenantStore::from_records(records).unwrap())
        .clock(Arc::new(clock.clone()))
        .usage(Arc::clone(&usage))
        .failure_limit(failures)
        .jwt(
            JwtAuthenticator::builder()
                .issuer(ISSUER, keys)
                .audience(AUDIENCE),
        )
        .build()
        .unwrap();
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("globex").scopes(["read"]))
        .await
        .unwrap();
    let admin = get(hello).route_layer(RequireScope::new("admin write"));
    let routes = Router::new().route("/", get(hello)).route("/admin", admin);
    let server = serve(routes.layer(gate.layer())).await;
    let key = issued.key.expose().to_owned();
    Api {
        clock,
        gate,
        key,
        server,
        usage,
    }
}

impl Api {
    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = request("GET", path);
        for (name, value) in headers {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        self.server.send(request).await
    }

    async fn bearer(&self, credential: &str) -> Answer {
        self.get("/", &[("authorization", &format!("Bearer {credential}"))])
            .await
    }

    fn claims(&self) -> Value {
        claims(self.clock.now())
    }

    fn token(&self) -> String {
        P256.token(&self.claims())
    }

    async fn events(&self) -> Vec<UsageEvent> {
        self.gate.usage().flush().await;
        self.usage.events()
    }
}

fn challenges(answer: &Answer) -> Vec<&str> {
    let values = answer.headers.get_all("www-authenticate").iter();
    values.map(|value| value.to_str().unwrap()).collect()
}

fn code(answer: &Answer) -> (u16, String) {
    let code = answer.json()["code"].as_str().unwrap().to_owned();
    (answer.status.as_u16(), code)
}

#[tokio::test]
async fn each_credential_goes_to_whoever_knows_its_form() {
    let api = api().await;
    let (key, token) = (api.key.clone(), api.token());
    for credential in [&key, &token] {
        let by_header = api.get("/", &[("x-api-key", credential)]).await;
        let by_bearer = api.bearer(credential).await;
        assert_eq!(by_header.text(), by_bearer.text());
        let tenant = if *credential == key { "globex" } else { "acme" };
        assert!(by_bearer.text().starts_with(tenant), "{}", by_bearer.text());
    }
    assert_eq!(api.bearer(&token).await.text(), "acme Some(\"app-1\")");
    // Both at once are two callers, whatever each is worth.
    let both = [
        ("x-api-key", &*key),
        ("authorization", &*format!("Bearer {token}")),
    ];
    let answer = api.get("/", &both).await;
    assert_eq!(code(&answer), (400, "ambiguous_credentials".to_owned()));
    assert_eq!(
        challenges(&answer),
        [
            "Bearer realm=\"api\", error=\"invalid_request\", error_description=\"Send one credential, once.\""
        ]
    );
    // The same in both is one.
    let twice = [
        ("x-api-key", &*token),
        ("authorization", &*format!("Bearer {token}")),
    ];
    assert_eq!(api.get("/", &twice).await.status, StatusCode::OK);
}

#[tokio::test]
async fn usage_names_the_tenant_and_the_client_of_a_token() {
    let api = api().await;
    assert_eq!(api.bearer(&api.token()).await.status, StatusCode::OK);
    let events = api.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].tenant.as_str(), "acme");
    assert_eq!(events[0].key.as_ref().unwrap().as_str(), "app-1");
}

/// RFC 6750 section 3.1 and RFC 9110 sections 11.6.1 and 15.5.2.
#[tokio::test]
async fn challenges_are_as_the_standards_have_them() {
    let api = api().await;
    let expired = with(api.claims(), "exp", json!(1));
    let invalid = [
        "ApiKey realm=\"api\"",
        "Bearer realm=\"api\", error=\"invalid_token\", error_description=\"The credential is not valid.\"",
    ];
    // Nothing sent: no error code.
    let answer = api.get("/", &[]).await;
    assert_eq!(code(&answer), (401, "missing_credentials".to_owned()));
    assert_eq!(
        challenges(&answer),
        ["ApiKey realm=\"api\"", "Bearer realm=\"api\""]
    );
    assert_eq!(
        answer.json()["detail"],
        "Send an API key as `x-api-key: <key>` or `Authorization: Bearer <key>`, or an access token in its place."
    );
    // Another scheme is nothing sent.
    let basic = api
        .get("/", &[("authorization", "Basic dXNlcjpwYXNz")])
        .await;
    assert_eq!(challenges(&basic), challenges(&answer));
    let mut bodies = Vec::new();
    for credential in [
        P256.token(&expired),
        P256.token(&with(api.claims(), "aud", json!("x"))),
        P256.token(&with(api.claims(), "iss", json!("x"))),
        P256.token(&with(api.claims(), "tenant", json!("nobody"))),
        Signer::p256("p256").token(&api.claims()),
        "a.b.c".to_owned(),
        "a.b.c.d.e".to_owned(),
        "tg_live_invented".to_owned(),
    ] {
        let answer = api.bearer(&credential).await;
        assert_eq!(code(&answer), (401, "invalid_credentials".to_owned()));
        assert_eq!(challenges(&answer), invalid, "{credential}");
        let mut body = answer.json();
        body["instance"].take();
        bodies.push(body);
    }
    assert!(
        bodies.iter().all(|body| *body == bodies[0]),
        "one answer for all"
    );
    // Valid, and not enough: 403 with the scope that is asked for.
    let bearer = format!("Bearer {}", api.token());
    let answer = api.get("/admin", &[("authorization", &bearer)]).await;
    assert_eq!(code(&answer), (403, "insufficient_scope".to_owned()));
    assert_eq!(
        challenges(&answer),
        ["Bearer error=\"insufficient_scope\", scope=\"admin write\""]
    );
    let admin = P256.token(&with(api.claims(), "scope", json!("write admin")));
    let bearer = format!("Bearer {admin}");
    let answer = api.get("/admin", &[("authorization", &bearer)]).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn an_unavailable_provider_is_503_and_no_challenge() {
    #[derive(Debug)]
    struct Down;
    #[async_trait::async_trait]
    impl JwksSource for Down {
        async fn fetch(&self) -> Result<tollgate::auth::jwt::Jwks, tollgate::auth::jwt::JwksError> {
            Err(tollgate::auth::jwt::JwksError::Status(500))
        }
    }
    let api = api_with(Down, FailureLimit::default()).await;
    for _ in 0..3 {
        let answer = api.bearer(&api.token()).await;
        assert_eq!(code(&answer), (503, "auth_unavailable".to_owned()));
        assert_eq!(answer.header("retry-after"), "1");
        assert!(challenges(&answer).is_empty());
    }
    // Keys are judged without it.
    assert_eq!(api.bearer(&api.key).await.status, StatusCode::OK);
}

#[tokio::test]
async fn bad_tokens_count_against_their_address_and_lock_out_no_good_one() {
    let keys = StaticJwks::from_json(super::signer::document([P256.jwk()])).unwrap();
    let api = api_with(keys, FailureLimit::new(1, 5).unwrap()).await;
    let stranger = Signer::p256("p256");
    for n in 0..5 {
        let forged = stranger.token(&with(api.claims(), "jti", n.into()));
        assert_eq!(api.bearer(&forged).await.status, StatusCode::UNAUTHORIZED);
    }
    let forged = stranger.token(&api.claims());
    let answer = api.bearer(&forged).await;
    assert_eq!(code(&answer), (429, "too_many_failed_attempts".to_owned()));
    // Verified in memory: neither a known token nor a new one is held back.
    assert_eq!(api.bearer(&api.token()).await.status, StatusCode::OK);
    api.clock.advance(Duration::from_secs(60));
    let answer = api.bearer(&forged).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_suspended_tenant_pays_first_whatever_its_credential() {
    let api = api().await;
    let token = api.token();
    assert_eq!(api.bearer(&token).await.status, StatusCode::OK);
    let acme = TenantId::new("acme").unwrap();
    let tenants = api.gate.tenants();
    tenants
        .set_access(&acme, AccessState::Suspended)
        .await
        .unwrap();
    assert_eq!(
        code(&api.bearer(&token).await),
        (402, "payment_required".to_owned())
    );
    tenants
        .set_access(&acme, AccessState::Active)
        .await
        .unwrap();
    assert_eq!(api.bearer(&token).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_expired_token_is_refused_on_a_connection_that_stays_open() {
    let api = api().await;
    let token = api.token();
    let send = async || {
        let mut request = request("GET", "/");
        let value = format!("Bearer {token}").parse().unwrap();
        request.headers_mut().insert("authorization", value);
        api.server.send_http2(request).await.status
    };
    assert_eq!(send().await, StatusCode::OK);
    api.clock.advance(Duration::from_secs(361));
    assert_eq!(send().await, StatusCode::UNAUTHORIZED);
}
