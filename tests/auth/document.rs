use std::sync::Arc;

use tollgate::{
    auth::{KeyDigest, KeyDocument, KeyHasher, KeyRecord, KeyStore, MemoryKeyStore},
    clock::{Clock, ManualClock},
    error::ConfigError,
    id::{Environment, KeyId, TenantId},
};

const KEY: &str = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH";
const DIGEST: &str = "03ba3280d3163edc18a9e4ed19cf57a4ba49c1f822c84e7191cbe9cd6048223a";
const OTHER: &str = "e599a4b4f822729e4c9d2a841735f60038f8e683585b4818132bcb5fd72f8189";

fn load(json: &str) -> Result<MemoryKeyStore, ConfigError> {
    MemoryKeyStore::from_document(KeyDocument::from_json(json)?)
}

fn find(store: &MemoryKeyStore, digest: &str) -> Arc<KeyRecord> {
    let digest = KeyDigest::from_hex(digest).unwrap();
    store.find_now(&digest).unwrap().unwrap()
}

#[test]
fn a_document_gives_keys_that_are_found_by_their_digest() {
    let json = format!(
        r#"{{"keys": [
            {{"digest": "{DIGEST}", "tenant": "acme"}},
            {{"digest": "{OTHER}", "id": "k2", "tenant": "acme", "environment": "test", "plan": "pro",
              "shown": "tg_test_…abcd", "scopes": ["chat:write"], "allowed_networks": ["10.0.0.0/8"],
              "created_at": "2026-01-01T00:00:00Z", "expires_at": "2027-01-01T00:00:00Z", "version": 7}}
        ]}}"#
    );
    let store = load(&json).unwrap();
    let hashed = KeyHasher::sha256().digest(KEY);
    let first = store.find_now(&hashed).unwrap().unwrap();
    assert_eq!(first.tenant.as_str(), "acme");
    assert_eq!(first.environment, Environment::Live);
    assert_eq!(first.version, 1);
    assert_eq!(first.id.as_str(), format!("key_{}", &DIGEST[..32]));
    let second = find(&store, OTHER);
    assert_eq!(second.id.as_str(), "k2");
    assert_eq!(second.environment, Environment::Test);
    assert_eq!(second.plan.as_ref().unwrap().as_str(), "pro");
    assert!(second.scopes.contains("chat:write"));
    assert_eq!(second.allowed_networks.len(), 1);
    assert_eq!(
        second.expires_at.unwrap().to_string(),
        "2027-01-01T00:00:00Z"
    );
    assert_eq!(second.version, 7);
}

#[tokio::test]
async fn what_was_issued_comes_back_after_a_restart() {
    let store = MemoryKeyStore::new();
    let now = ManualClock::default().now().wall();
    for (name, tenant) in [("b", "zeta"), ("a", "acme"), ("c", "acme")] {
        let tenant = TenantId::new(tenant).unwrap();
        let id = KeyId::new(name).unwrap();
        let record = KeyRecord::new(id, tenant, Arc::from("…"), now);
        store
            .create(KeyHasher::sha256().digest(name), record)
            .await
            .unwrap();
    }
    store.revoke(&KeyId::new("c").unwrap(), now).await.unwrap();
    let saved = serde_json::to_string(&store.to_document()).unwrap();
    let loaded = load(&saved).unwrap();
    for name in ["a", "b", "c"] {
        let digest = KeyHasher::sha256().digest(name);
        assert_eq!(loaded.find_now(&digest), store.find_now(&digest));
    }
    assert_eq!(serde_json::to_string(&loaded.to_document()).unwrap(), saved);
}

#[test]
fn toml_is_read_too() {
    let text = format!("[[keys]]\ndigest = \"{DIGEST}\"\ntenant = \"acme\"\nscopes = [\"read\"]\n");
    let deserializer = toml::Deserializer::parse(&text).unwrap();
    let document = KeyDocument::from_deserializer(deserializer).unwrap();
    let store = MemoryKeyStore::from_document(document).unwrap();
    assert!(find(&store, DIGEST).scopes.contains("read"));
}

#[test]
fn an_error_names_the_entry_and_the_field() {
    let good = format!(r#"{{"digest": "{DIGEST}", "tenant": "acme", "id": "k"}}"#);
    let with = |entry: &str| format!(r#"{{"keys": [{good}, {entry}]}}"#);
    let entry = |fields: &str| with(&format!("{{{fields}}}"));
    for (json, path) in [
        (
            entry(r#""digest": "abc", "tenant": "acme""#),
            "keys[1].digest",
        ),
        (
            entry(&format!(r#""digest": "{}g", "tenant": "a""#, &OTHER[1..])),
            "keys[1].digest",
        ),
        (
            entry(&format!(r#""digest": "{OTHER}", "tenant": """#)),
            "keys[1].tenant",
        ),
        (
            entry(&format!(
                r#""digest": "{OTHER}", "tenant": "a", "plan": """#
            )),
            "keys[1].plan",
        ),
        (
            entry(&format!(
                r#""digest": "{OTHER}", "tenant": "a", "scope": []"#
            )),
            "keys[1].scope",
        ),
        (
            entry(&format!(
                r#""digest": "{OTHER}", "tenant": "a", "allowed_networks": ["x"]"#
            )),
            "keys[1].allowed_networks[0]",
        ),
        (
            entry(&format!(
                r#""digest": "{OTHER}", "tenant": "a", "environment": "prod""#
            )),
            "keys[1].environment",
        ),
        (entry(&format!(r#""digest": "{OTHER}""#)), "keys[1]"),
        (with(&good), "keys[1].digest"),
        (with(&good.replace(DIGEST, OTHER)), "keys[1].id"),
        (
            with(&good.replace(DIGEST, &DIGEST.to_uppercase())),
            "keys[1].digest",
        ),
        (r#"{"keys": [], "more": 1}"#.to_owned(), "more"),
        (r#"{}"#.to_owned(), ""),
        (r#"{"keys": []} trailing"#.to_owned(), ""),
    ] {
        let error = load(&json).unwrap_err();
        assert_eq!(error.path(), path, "{error}\n{json}");
        assert!(error.to_string().len() > path.len() + 2, "{error}");
    }
}

#[test]
fn a_raw_key_in_place_of_a_digest_is_not_repeated() {
    let quiet = |error: ConfigError| {
        let mut text = format!("{error} {error:?}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(&format!(" {cause} {cause:?}"));
            source = cause.source();
        }
        assert!(!text.contains("0123456789ABC"), "{text}");
    };
    quiet(
        load(&format!(
            r#"{{"keys": [{{"digest": "{KEY}", "tenant": "acme"}}]}}"#
        ))
        .unwrap_err(),
    );
    quiet(
        load(&format!(
            r#"{{"keys": [{{"key": "{KEY}", "tenant": "acme"}}]}}"#
        ))
        .unwrap_err(),
    );
    quiet(KeyDocument::from_compact(&format!("{KEY}:acme")).unwrap_err());
    for field in ["digest", "key"] {
        // This format quotes the faulty line in its errors.
        let text = format!("[[keys]]\ntenant = \"acme\"\n{field} = \"{KEY}\"\n");
        let deserializer = toml::Deserializer::parse(&text).unwrap();
        let error = KeyDocument::from_deserializer(deserializer).unwrap_err();
        assert_eq!(error.path(), format!("keys[0].{field}"));
        quiet(error);
    }
}

#[test]
fn the_compact_form_says_tenant_plan_and_scopes() {
    let text = format!(" {DIGEST}:acme , {OTHER}:acme:pro:chat:read+chat:write,");
    let store = MemoryKeyStore::from_document(KeyDocument::from_compact(&text).unwrap()).unwrap();
    let (first, second) = (find(&store, DIGEST), find(&store, OTHER));
    assert!(first.plan.is_none() && first.scopes.is_empty());
    assert_eq!(second.plan.as_ref().unwrap().as_str(), "pro");
    let scopes: Vec<_> = second.scopes.iter().map(|scope| &**scope).collect();
    assert_eq!(scopes, ["chat:read", "chat:write"]);
    let without_plan = KeyDocument::from_compact(&format!("{DIGEST}:acme::read")).unwrap();
    let store = MemoryKeyStore::from_document(without_plan).unwrap();
    assert!(find(&store, DIGEST).plan.is_none());
    assert!(find(&store, DIGEST).scopes.contains("read"));
    assert!(KeyDocument::from_compact("").unwrap().is_empty());
}

#[test]
fn an_error_of_the_compact_form_names_the_entry_and_the_field() {
    for (text, path) in [
        ("junk".to_owned(), "keys[0].digest"),
        (format!("{DIGEST}:acme,,{OTHER}"), "keys[1].tenant"),
        (format!("{DIGEST}:a,{OTHER}: "), "keys[1].tenant"),
        (format!("{DIGEST}:a:p\u{7}"), "keys[0].plan"),
    ] {
        let error = KeyDocument::from_compact(&text).unwrap_err();
        assert_eq!(error.path(), path, "{text}");
    }
}

#[test]
fn the_environment_is_read_by_name() {
    // `PATH` is set wherever a test runs and is not a list of keys.
    let error = MemoryKeyStore::from_env("PATH").unwrap_err();
    assert_eq!(error.path(), "PATH.keys[0].digest");
    let error = MemoryKeyStore::from_env("TOLLGATE_TEST_NOT_SET").unwrap_err();
    assert_eq!(error.path(), "TOLLGATE_TEST_NOT_SET");
}
