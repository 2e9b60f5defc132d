//! What stands in the server: names that are bounded, no key, and nothing that goes by itself.

use tollgate::{
    Tollgate,
    auth::RedisKeyStore,
    id::{MAX_ID_BYTES, TenantId},
    identity::NewKey,
    plan::{Plan, PlanCatalog, PlanDocument, RedisPlans},
    sink::RedisCounterSink,
    tenant::{RedisTenantStore, TenantStore as _},
};

use super::{owner, redis};
use crate::common::redis::RedisServer;

/// Every value of every kind, as text.
fn everything(server: &RedisServer) -> Vec<(String, String)> {
    let names: Vec<String> = server.query(&["KEYS", "*"]);
    let dump = |name: &String| {
        let kind: String = server.query(&["TYPE", name]);
        let value: redis::Value = match &*kind {
            "hash" => server.query(&["HGETALL", name]),
            "list" => server.query(&["LRANGE", name, "0", "-1"]),
            "string" => server.query(&["GET", name]),
            other => panic!("{name} is a {other}"),
        };
        (name.clone(), format!("{value:?}"))
    };
    names.iter().map(dump).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_stands_anywhere_in_the_server() {
    let server = RedisServer::start();
    let redis = redis(&server).await;
    let gate = Tollgate::builder()
        .plans([Plan::new("free")])
        .keys(RedisKeyStore::new(&redis))
        .tenants(RedisTenantStore::new(&redis))
        .usage(RedisCounterSink::new(&redis))
        .build()
        .unwrap();
    let mut secrets = Vec::new();
    for n in 0..20 {
        let new = NewKey::for_tenant(format!("tenant-{n}")).plan("free");
        let issued = gate.keys().issue(new).await.unwrap();
        let rotated = gate
            .keys()
            .rotate(&issued.record.id, std::time::Duration::from_secs(60))
            .await
            .unwrap();
        gate.keys().revoke(&rotated.record.id).await.unwrap();
        secrets.extend([
            issued.key.expose().to_owned(),
            rotated.key.expose().to_owned(),
        ]);
    }
    let kept = everything(&server);
    assert_eq!(kept.len(), 20 * (2 + 2 + 1 + 1) + 1, "{kept:?}");
    for (name, value) in &kept {
        for secret in &secrets {
            // The random part begins behind the last underscore.
            let random = secret.rsplit('_').next().unwrap();
            let random = &random[..random.len() - 6];
            assert!(
                !name.contains(random) && !value.contains(random),
                "a key stands in {name}"
            );
        }
        let ttl: i64 = server.query(&["TTL", name]);
        assert_eq!(ttl, -1, "{name} goes by itself");
    }
}

#[tokio::test]
async fn names_are_bounded_and_tenants_apart_whatever_they_are_called() {
    let server = RedisServer::start();
    let redis = redis(&server).await;
    let tenants = RedisTenantStore::new(&redis);
    for refused in ["a\nb", "a\0b", "", &"x".repeat(4_096)] {
        assert!(TenantId::new(refused).is_err(), "{refused:?}");
    }
    let longest = "{".repeat(MAX_ID_BYTES);
    let names = [
        "acme",
        "{acme}",
        "acme}:t:other",
        "a:b",
        "a b",
        "%61cme",
        "a%3ab",
        "ünïcode",
        "}{",
        &longest,
        &longest[1..],
    ];
    for (n, name) in names.iter().enumerate() {
        let mut record = owner(name);
        record.pay_url = Some(format!("https://pay.example/{n}").into());
        tenants.create(record).await.unwrap();
    }
    for (n, name) in names.iter().enumerate() {
        let found = tenants.find(&super::tenant(name)).await.unwrap().unwrap();
        assert_eq!(found.id.as_str(), *name);
        assert!(
            found
                .pay_url
                .as_deref()
                .unwrap()
                .ends_with(&format!("/{n}"))
        );
    }
    let kept = everything(&server);
    assert_eq!(kept.len(), names.len() + 1);
    for (name, _) in kept {
        assert!(name.len() <= 128 && name.is_ascii(), "{name}");
        assert_eq!(name.matches(['{', '}']).count(), 2, "{name}");
    }
}

#[tokio::test]
async fn plans_that_were_published_can_be_read_by_hand() {
    let server = RedisServer::start();
    let plans = RedisPlans::new(&redis(&server).await);
    let document: PlanDocument = [Plan::new("free"), Plan::new("pro")].into_iter().collect();
    plans.publish(&document, None).await.unwrap();
    let text: String = server.query(&["HGET", "tg:1:{accounts}:p", "r"]);
    let read = PlanDocument::from_json(&text).unwrap();
    assert_eq!(read, document);
    assert_eq!(
        PlanCatalog::from_document(&read).unwrap().snapshot().len(),
        2
    );
}
