//! How a server is reached: sockets, users, TLS, pools, and servers that cannot be used.

use std::{convert::Infallible, process::Command, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tollgate::{
    identity::NewKey,
    limit::{LimitLayer, Quota, Rate, RedisLimits},
    plan::Plan,
    redis_support::{RedisConnector, RedisStartError},
};
use tower::{Layer, ServiceExt, service_fn};

use super::{call, limits, patient, set_of};
use crate::common::redis::{RedisServer, TempDir, free_port};

async fn decides(limits: &RedisLimits) {
    let set = set_of("acme", [Quota::monthly(1)]);
    assert!(call(limits, &set).await.unwrap().is_admitted());
    assert!(!call(limits, &set).await.unwrap().is_admitted());
}

async fn start_error(connector: RedisConnector) -> RedisStartError {
    let connector = connector.connect_timeout(Duration::from_secs(5));
    RedisLimits::builder(connector)
        .connect()
        .await
        .expect_err("a server that cannot be used")
}

/// The error and all its causes, as a log shows them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    text
}

#[tokio::test]
async fn a_unix_socket_is_reached() {
    let server = RedisServer::with(&["--unixsocket", "DIR/redis.sock"]);
    let url = format!("unix://{}/redis.sock", server.dir().display());
    decides(&patient(RedisConnector::single(url).unwrap()).await).await;
}

#[tokio::test]
async fn a_pool_and_a_manager_of_the_service_are_used() {
    let server = RedisServer::start();
    let pool = deadpool_redis::Config::from_url(server.url())
        .create_pool(Some(deadpool_redis::Runtime::Tokio1))
        .unwrap();
    decides(&patient(RedisConnector::pool(pool.clone())).await).await;
    assert!(pool.status().size >= 1);
}

#[tokio::test]
async fn namespaces_are_apart_and_a_set_serves_several_stores() {
    let server = RedisServer::start();
    let set = set_of("acme", [Quota::monthly(1)]);
    for name in ["one", "two"] {
        let connector = RedisConnector::single(server.url())
            .unwrap()
            .connect_timeout(Duration::from_secs(5))
            .response_timeout(Duration::from_secs(5));
        let limits = RedisLimits::builder(connector)
            .namespace(name)
            .unwrap()
            .connect()
            .await
            .unwrap();
        assert!(call(&limits, &set).await.unwrap().is_admitted());
        assert!(!call(&limits, &set).await.unwrap().is_admitted());
        assert_eq!(
            server.query::<i64>(&[
                "EXISTS",
                &format!("tg:1:{name}:{{l.acme}}:t"),
                &format!("tg:1:{name}:epoch")
            ]),
            2
        );
    }
}

#[tokio::test]
async fn a_user_with_few_rights_over_tls_is_enough_and_no_password_is_shown() {
    let dir = TempDir::new();
    let folder = dir.path().to_str().unwrap().to_owned();
    let openssl = |arguments: &str| {
        let arguments = arguments.replace("DIR", &folder);
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .output()
            .expect("openssl");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout DIR/ca.key -out DIR/ca.crt -subj /CN=test-ca",
    );
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout DIR/redis.key -out DIR/redis.csr -subj /CN=localhost",
    );
    std::fs::write(
        dir.path().join("san"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
    )
    .unwrap();
    openssl(
        "x509 -req -in DIR/redis.csr -CA DIR/ca.crt -CAkey DIR/ca.key -CAcreateserial -days 2 -out DIR/redis.crt -extfile DIR/san",
    );
    std::fs::write(
        dir.path().join("users.acl"),
        "user default off\nuser limiter on >s3cr3t-word ~tg:1:* -@all +eval +evalsha +hmget +hset +hdel +del +pexpire +time +set +get +info +config|get\nuser poor on >poor-word ~tg:1:* -@all +eval +evalsha +hmget +hset +hdel +del +pexpire +time +set\n",
    )
    .unwrap();
    let ca = std::fs::read(dir.path().join("ca.crt")).unwrap();
    let tls_port = free_port();
    let tls: Vec<String> = [
        "--tls-port",
        &tls_port.to_string(),
        "--tls-cert-file",
        &format!("{folder}/redis.crt"),
        "--tls-key-file",
        &format!("{folder}/redis.key"),
        "--tls-ca-cert-file",
        &format!("{folder}/ca.crt"),
        "--tls-auth-clients",
        "no",
        "--aclfile",
        &format!("{folder}/users.acl"),
    ]
    .map(str::to_owned)
    .to_vec();
    let _server = RedisServer::with(&tls.iter().map(String::as_str).collect::<Vec<_>>());
    let connector = |user: &str, ca: &[u8]| {
        RedisConnector::single(format!("rediss://{user}@localhost:{tls_port}"))
            .unwrap()
            .root_certificate(ca)
            .unwrap()
    };
    let limits = patient(connector("limiter:s3cr3t-word", &ca)).await;
    decides(&limits).await;
    assert!(!format!("{limits:?}").contains("s3cr3t"));
    let poor = patient(connector("poor:poor-word", &ca)).await;
    let set = set_of("poor", [Rate::per_hour(1)]);
    assert!(call(&poor, &set).await.unwrap().is_admitted());
    let refused = start_error(connector("limiter:wr0ng-word", &ca)).await;
    let text = chain(&refused);
    assert!(
        text.contains("authentication failed") && !text.contains("wr0ng"),
        "{text}"
    );
    // An authority that nobody has told us of.
    let unknown =
        RedisConnector::single(format!("rediss://limiter:s3cr3t-word@localhost:{tls_port}"))
            .unwrap();
    let text = chain(&start_error(unknown).await);
    assert!(!text.contains("s3cr3t"), "{text}");
}

#[test]
fn a_url_that_cannot_be_read_is_not_repeated() {
    for url in [
        "redis://user:s3cr3t@",
        "http://user:s3cr3t@host",
        "s3cr3t",
        "redis://:s3cr3t@host:99999",
        "redis://u:s3cr3t@host/db",
    ] {
        let error = RedisConnector::single(url).unwrap_err();
        assert!(!chain(&error).contains("s3cr3t"), "{url}: {error:?}");
        assert_eq!(error.path(), "url");
    }
    let none: [&str; 0] = [];
    assert!(RedisConnector::cluster(none).is_err());
    assert!(RedisConnector::sentinel(none, "service", "redis://localhost").is_err());
}

#[tokio::test]
async fn a_replica_is_refused_and_so_is_a_node_of_a_cluster() {
    let server = RedisServer::start();
    let () = server.query(&["REPLICAOF", "127.0.0.1", "1"]);
    let error = start_error(RedisConnector::single(server.url()).unwrap()).await;
    assert!(matches!(error, RedisStartError::IsReplica), "{error:?}");
    let node = RedisServer::with(&["--cluster-enabled", "yes"]);
    let error = start_error(RedisConnector::single(node.url()).unwrap()).await;
    assert!(matches!(error, RedisStartError::IsClusterNode), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_by_its_version() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = client.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                    for command in text.split('*').skip(1) {
                        let answer = if command.contains("\r\nINFO\r\n") {
                            let info = "redis_version:6.0.16\r\nrole:master\r\n";
                            format!("${}\r\n{info}\r\n", info.len())
                        } else {
                            "+OK\r\n".to_owned()
                        };
                        if client.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    let error =
        start_error(RedisConnector::single(format!("redis://127.0.0.1:{port}")).unwrap()).await;
    assert_eq!(
        error.to_string(),
        "Redis 6.0.16 is too old: 6.2 is the oldest version that works"
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_fails_the_start_within_the_deadline() {
    let connector = RedisConnector::single(format!("redis://127.0.0.1:{}", free_port())).unwrap();
    let error = start_error(connector).await;
    assert!(matches!(error, RedisStartError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn a_layer_and_a_gate_take_the_store_as_it_is() {
    let server = RedisServer::start();
    let limits = limits(&server).await;
    let _layer = LimitLayer::new(limits.clone(), [Rate::per_second(5)]).unwrap();
    let gate = tollgate::Tollgate::builder()
        .plans([Plan::new("free").rule(Quota::monthly(1))])
        .limits(limits)
        .build()
        .unwrap();
    let key = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await
        .unwrap()
        .key;
    let gated = gate
        .layer()
        .layer(service_fn(async |_: Request<Full<Bytes>>| {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello")))
        }));
    for status in [200, 429] {
        let request = Request::builder()
            .header("x-api-key", key.expose())
            .body(Full::from(""))
            .unwrap();
        let response = gated.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), status);
    }
}
