//! Headers by which a client says of itself who it is.

use axum::{Router, extract::Request, routing::any};
use tollgate::identity::Identity;

use super::stand;
use crate::common::{request, serve};

/// Spellings of our fields, those that a server of variables (CGI, WSGI) cannot tell from ours among them.
const SPELLINGS: [&str; 18] = [
    "X-Tenant-ID",
    "X_Tenant_ID",
    "x-tenant_id",
    "X_TENANT-ID",
    "x.tenant.id",
    "X-Plan",
    "x_plan",
    "X.Plan",
    "X-Consumer-ID",
    "X_Consumer_ID",
    "x-consumer_id",
    "X-Consumer-Username",
    "X_Consumer_Username",
    "x-consumer-custom-id",
    "X-Consumer-Groups",
    "X-Credential-Identifier",
    "x_credential_id",
    "x-consumer-",
];

/// The tenant it was called for, and each header with its value.
async fn echo(request: Request) -> String {
    let tenant = request.extensions().get::<Identity>();
    let tenant = tenant.map_or("nobody", |identity| identity.tenant().id().as_str());
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    format!("{tenant} {}", headers.join(" "))
}

#[tokio::test]
async fn nothing_that_a_client_says_of_itself_reaches_the_service_on_any_path() {
    for forward in [false, true] {
        let stand = stand(|builder| {
            builder
                .forward_headers(forward)
                .pass_preflight(true)
                .public(["/open", "/docs/*"])
        });
        let key = stand.issue("acme").await;
        let routes = Router::new()
            .route("/v1/hello", any(echo))
            .route("/open", any(echo))
            .route("/docs/page", any(echo))
            .layer(stand.gate.layer());
        let server = serve(routes).await;
        let paths = [
            ("GET", "/v1/hello", "acme "),
            ("GET", "/open", "nobody "),
            ("POST", "/docs/page", "nobody "),
            ("OPTIONS", "/v1/hello", "nobody "),
        ];
        for spelling in SPELLINGS {
            for (method, path, tenant) in paths {
                let mut request = request(method, path);
                let headers = request.headers_mut();
                let name = http::HeaderName::from_bytes(spelling.as_bytes()).expect("a name");
                for value in ["victim", "victim", "enterprise"] {
                    headers.append(name.clone(), value.parse().expect("a value"));
                }
                if method == "OPTIONS" {
                    headers.insert("origin", "https://example.com".parse().expect("a value"));
                    headers.insert(
                        "access-control-request-method",
                        "POST".parse().expect("a value"),
                    );
                } else {
                    headers.insert("x-api-key", key.parse().expect("a value"));
                }
                for answer in [
                    server.send(request.clone()).await,
                    server.send_http2(request).await,
                ] {
                    let seen = answer.text();
                    let place = format!("{spelling} {method} {path} forward={forward}: {seen}");
                    assert!(seen.starts_with(tenant), "{place}");
                    assert!(
                        !seen.contains("victim") && !seen.contains("enterprise"),
                        "{place}"
                    );
                    let ours = seen.contains("x-tenant-id=acme") && seen.contains("x-plan=free");
                    assert_eq!(ours, forward && tenant == "acme ", "{place}");
                    assert_eq!(seen.contains(&key), path != "/v1/hello", "{place}");
                }
            }
        }
    }
}

#[tokio::test]
async fn no_hop_by_hop_trick_takes_our_fields_away() {
    let stand = stand(|builder| builder.forward_headers(true));
    let key = stand.issue("acme").await;
    let app = Router::new()
        .route("/v1/hello", any(echo))
        .layer(stand.gate.layer());
    let server = serve(app).await;
    for connection in [
        "X-Tenant-ID, close",
        "close,x_tenant_id",
        "close, X-PLAN ,x-consumer-id",
    ] {
        let raw = format!(
            "GET /v1/hello HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\nconnection: {connection}\r\n\r\n"
        );
        let seen = server.raw(raw.as_bytes()).await;
        assert!(seen.contains("x-tenant-id=acme"), "{seen}");
        assert!(seen.contains(" connection=close"), "{seen}");
        assert!(!seen.to_lowercase().contains("connection=x"), "{seen}");
    }
}
