//! Tenants in memory.

use std::sync::{Arc, Mutex, Weak};

use tollgate::{
    error::ConfigError,
    id::{PlanName, TenantId},
    tenant::{
        AccessState, MemoryTenantStore, TenantDocument, TenantListener, TenantRecord, TenantStore,
        TenantStoreError,
    },
};

fn id(text: &str) -> TenantId {
    TenantId::new(text).unwrap()
}

fn tenant(name: &str) -> TenantRecord {
    TenantRecord::new(id(name), PlanName::new("free").unwrap())
}

async fn found(store: &MemoryTenantStore, name: &str) -> Option<Arc<TenantRecord>> {
    store.find(&id(name)).await.unwrap()
}

#[tokio::test]
async fn creates_a_tenant_once() {
    let store = MemoryTenantStore::new();
    assert!(found(&store, "acme").await.is_none());
    let mut record = tenant("acme");
    record.version = 9;
    assert_eq!(store.create(record).await.unwrap().version, 1);
    let again = store.create(tenant("acme")).await;
    assert!(matches!(again, Err(TenantStoreError::AlreadyExists)));
    assert_eq!(found(&store, "acme").await.unwrap().version, 1);
}

#[tokio::test]
async fn replaces_only_the_version_that_was_read() {
    let store = MemoryTenantStore::from_records([tenant("acme")]).unwrap();
    let mut stale = TenantRecord::clone(&*found(&store, "acme").await.unwrap());
    assert_eq!(stale.version, 1);
    let mut fresh = stale.clone();
    fresh.access = AccessState::Suspended;
    let replaced = store.replace(fresh).await.unwrap();
    assert_eq!(
        (replaced.version, replaced.access),
        (2, AccessState::Suspended)
    );
    stale.access = AccessState::Closed;
    let refused = store.replace(stale).await;
    assert!(matches!(refused, Err(TenantStoreError::Conflict)));
    assert_eq!(
        found(&store, "acme").await.unwrap().access,
        AccessState::Suspended
    );
    let unknown = store.replace(tenant("other")).await;
    assert!(matches!(unknown, Err(TenantStoreError::NotFound)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_concurrent_replacements_of_one_version_exactly_one_succeeds() {
    for round in 0..50 {
        let store = Arc::new(MemoryTenantStore::from_records([tenant("acme")]).unwrap());
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let mut record = tenant("acme");
                    record.version = 1;
                    record.route_hint = Some(Arc::from(format!("shard-{n}")));
                    store.replace(record).await
                })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok(record) => winners.push(record),
                Err(TenantStoreError::Conflict) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(found(&store, "acme").await.as_ref(), winners.first());
    }
}

/// Asks the store in the middle of a notification: no lock may be held then.
struct Witness {
    store: Weak<MemoryTenantStore>,
    heard: Mutex<Vec<String>>,
}

impl TenantListener for Witness {
    fn tenant_changed(&self, id: &TenantId) {
        let store = self.store.upgrade().unwrap();
        let document = serde_json::to_string(&store.to_document()).unwrap();
        assert!(document.contains(id.as_str()));
        self.heard.lock().unwrap().push(id.to_string());
    }

    fn tenants_lost(&self) {}
}

#[tokio::test]
async fn listeners_hear_of_a_change_before_it_returns() {
    let store = Arc::new(MemoryTenantStore::new());
    let witness = Arc::new(Witness {
        store: Arc::downgrade(&store),
        heard: Mutex::default(),
    });
    let weak: Weak<Witness> = Arc::downgrade(&witness);
    store.subscribe(weak);
    let heard = || std::mem::take(&mut *witness.heard.lock().unwrap());
    let record = store.create(tenant("acme")).await.unwrap();
    assert_eq!(heard(), ["acme"]);
    store.replace(TenantRecord::clone(&record)).await.unwrap();
    assert_eq!(heard(), ["acme"]);
    let conflict = store.replace(TenantRecord::clone(&record)).await;
    assert!(conflict.is_err());
    assert!(heard().is_empty());
}

fn load(json: &str) -> Result<MemoryTenantStore, ConfigError> {
    MemoryTenantStore::from_document(TenantDocument::from_json(json)?)
}

#[tokio::test]
async fn a_document_survives_a_restart() {
    let store = load(
        r#"{"tenants": [
            {"id": "zeta", "plan": "free"},
            {"id": "acme", "plan": "pro", "access": {"state": "grace", "until": "2026-02-01T00:00:00Z"},
             "billing_anchor": "2025-12-31T00:00:00Z", "pay_url": "https://pay.example/acme",
             "route_hint": "eu", "version": 4}
        ]}"#,
    )
    .unwrap();
    let acme = found(&store, "acme").await.unwrap();
    assert_eq!((acme.plan.as_str(), acme.version), ("pro", 4));
    assert_eq!(acme.access.as_str(), "grace");
    assert_eq!(found(&store, "zeta").await.unwrap().version, 1);
    let saved = serde_json::to_string(&store.to_document()).unwrap();
    let loaded = load(&saved).unwrap();
    assert_eq!(found(&loaded, "acme").await, Some(acme));
    assert_eq!(serde_json::to_string(&loaded.to_document()).unwrap(), saved);
    let toml = toml::Deserializer::parse("[[tenants]]\nid = \"a\"\nplan = \"free\"\n").unwrap();
    let document = TenantDocument::from_deserializer(toml).unwrap();
    assert_eq!(document.into_records().count(), 1);
}

#[test]
fn an_error_names_the_entry_and_the_field() {
    for (json, path) in [
        (
            r#"{"tenants": [{"id": "a", "plan": ""}]}"#,
            "tenants[0].plan",
        ),
        (
            r#"{"tenants": [{"id": "a\n", "plan": "free"}]}"#,
            "tenants[0].id",
        ),
        (
            r#"{"tenants": [{"id": "a", "plan": "free", "pay": ""}]}"#,
            "tenants[0].pay",
        ),
        (r#"{"tenants": [{"id": "a"}]}"#, "tenants[0]"),
        (
            r#"{"tenants": [{"id": "a", "plan": "x"}, {"id": "a", "plan": "y"}]}"#,
            "tenants[1].id",
        ),
        (r#"{"tenants": [], "plans": []}"#, "plans"),
    ] {
        let error = load(json).unwrap_err();
        assert_eq!(error.path(), path, "{error}");
    }
}
