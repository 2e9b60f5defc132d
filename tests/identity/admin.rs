use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tollgate::{
    auth::AuthRefusal,
    clock::Timestamp,
    id::KeyId,
    identity::{Keys, KeysError, NewKey, Tenants, TenantsError},
    limit::{Cost, LimitCall, LimitStore, MemoryLimits, Quota, Rate, Scope, ScopeValues},
    tenant::{AccessState, TenantRecord, TenantStore, TenantStoreError},
};

use super::fake::{far, plan, tenant};

#[tokio::test]
async fn the_first_key_of_a_tenant_creates_it_on_the_plan_given() {
    let far = far();
    let new = NewKey::for_tenant("acme");
    let error = far.admin.issue(new.clone()).await.unwrap_err();
    assert!(matches!(&error, KeysError::NoPlan { tenant } if tenant.as_str() == "acme"));
    let issued = far.admin.issue(new.clone().plan("free")).await.unwrap();
    let record = far.tenants.find(&tenant("acme")).await.unwrap().unwrap();
    assert_eq!(
        (record.plan.as_str(), record.access),
        ("free", AccessState::Active)
    );
    far.ask(issued.key.expose()).await.unwrap();
    far.admin.issue(new.clone()).await.unwrap();
    far.admin.issue(new.plan("free")).await.unwrap();
    let keys = far.admin.list(&tenant("acme")).await.unwrap();
    assert_eq!(keys.len(), 3);
}

#[tokio::test]
async fn a_tenant_on_another_plan_is_not_moved_by_a_new_key() {
    let far = far();
    far.issue().await;
    let new = NewKey::for_tenant("acme");
    let error = far.admin.issue(new.clone().plan("pro")).await.unwrap_err();
    assert!(matches!(error, KeysError::OtherPlan { .. }));
    assert!(error.to_string().contains("plan_override"), "{error}");
    let issued = far.admin.issue(new.plan_override("pro")).await.unwrap();
    let identity = far.ask(issued.key.expose()).await.unwrap();
    assert_eq!(identity.plan().name().as_str(), "pro");
    assert_eq!(identity.tenant().plan().as_str(), "free");
}

#[tokio::test]
async fn an_unknown_plan_is_named_and_nothing_is_written() {
    let far = far();
    let new = NewKey::for_tenant("acme");
    for new in [
        new.clone().plan("gold"),
        new.plan("free").plan_override("gold"),
    ] {
        let error = far.admin.issue(new).await.unwrap_err();
        assert_eq!(error.to_string(), "the catalog has no plan `gold`");
    }
    assert!(far.tenants.find(&tenant("acme")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_field_that_is_not_valid_is_named_and_nothing_is_written() {
    let far = far();
    let new = NewKey::for_tenant("acme").plan("free");
    let past = Timestamp::from_unix_seconds(1);
    for (new, path) in [
        (NewKey::for_tenant("").plan("free"), "tenant"),
        (NewKey::for_tenant("acme").plan("a\nb"), "plan"),
        (
            new.clone().allow_networks(["10.0.0.0/8", "everywhere"]),
            "allowed_networks[1]",
        ),
        (new.clone().expires_in(Duration::ZERO), "expires_at"),
        (new.clone().expires_at(past), "expires_at"),
    ] {
        match far.admin.issue(new).await.unwrap_err() {
            KeysError::Invalid(error) => assert_eq!(error.path(), path),
            other => panic!("{path}: {other}"),
        }
    }
    assert!(far.tenants.find(&tenant("acme")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_key_has_what_it_was_issued_with() {
    let far = far();
    let new = NewKey::for_tenant("acme")
        .plan("free")
        .scopes(["chat:read", "chat:write"])
        .expires_in(Duration::from_secs(60))
        .limits([Rate::per_second(2)])
        .limits([Quota::daily(5)]);
    let issued = far.admin.issue(new).await.unwrap();
    let identity = far.ask(issued.key.expose()).await.unwrap();
    let scopes: Vec<_> = identity.scopes().iter().map(|scope| &**scope).collect();
    assert_eq!(scopes, ["chat:read", "chat:write"]);
    assert_eq!(identity.expires_at(), issued.record.expires_at);
    let rules = identity.limits().rules().iter();
    let names: Vec<_> = rules.map(|rule| rule.rule().name().to_owned()).collect();
    assert_eq!(names, ["rate", "quota"]);
    assert_eq!(identity.key(), Some(&issued.record.id));
}

#[tokio::test]
async fn ids_are_all_different_and_tell_nothing_of_the_key() {
    let far = far();
    let mut ids = BTreeSet::new();
    for _ in 0..100 {
        let issued = far
            .admin
            .issue(NewKey::for_tenant("acme").plan("free"))
            .await
            .unwrap();
        let id = issued.record.id.as_str().to_owned();
        let secret = &issued.key.expose()[8..];
        let tells = secret
            .as_bytes()
            .windows(8)
            .any(|part| id.contains(std::str::from_utf8(part).unwrap()));
        assert!(id.starts_with("key_") && id.len() == 36 && !tells, "{id}");
        assert!(ids.insert(id));
        let shown = format!("{issued:?}");
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[tokio::test]
async fn a_rotated_key_and_its_successor_overlap() {
    let far = far();
    let new = NewKey::for_tenant("acme")
        .plan("free")
        .scopes(["chat:read"]);
    let old = far
        .admin
        .issue(new.expires_in(Duration::from_secs(1_000)))
        .await
        .unwrap();
    far.advance(100);
    let new = far
        .admin
        .rotate(&old.record.id, Duration::from_secs(60))
        .await
        .unwrap();
    assert_ne!(new.record.id, old.record.id);
    assert_eq!(new.record.scopes, old.record.scopes);
    let life = |record: &tollgate::auth::KeyRecord| {
        record
            .expires_at
            .unwrap()
            .saturating_since(record.created_at)
    };
    assert_eq!(life(&new.record), life(&old.record), "the same whole life");
    for key in [&old.key, &new.key] {
        far.ask(key.expose()).await.unwrap();
    }
    far.advance(60);
    assert_eq!(
        far.ask(old.key.expose()).await.unwrap_err(),
        AuthRefusal::Expired
    );
    far.ask(new.key.expose()).await.unwrap();
}

#[tokio::test]
async fn a_rotation_doubles_no_quota_of_the_key() {
    let far = far();
    let quota = Quota::daily(3).scope(Scope::Key);
    let new = NewKey::for_tenant("acme").plan("free").limits([quota]);
    let first = far.admin.issue(new.clone()).await.unwrap();
    let other = far.admin.issue(new).await.unwrap();
    let overlap = Duration::from_secs(60);
    let second = far.admin.rotate(&first.record.id, overlap).await.unwrap();
    let third = far.admin.rotate(&second.record.id, overlap).await.unwrap();
    let limits = MemoryLimits::default();
    let mut passed = Vec::new();
    for issued in [&first, &second, &third, &first, &second, &other] {
        let identity = far.ask(issued.key.expose()).await.unwrap();
        let (scopes, cost) = (ScopeValues::default(), Cost::default());
        let call = LimitCall::new(identity.limits(), &scopes, &cost, far.now());
        let decision = limits.try_decide(&call).unwrap().unwrap();
        passed.push(decision.is_admitted());
    }
    assert_eq!(passed, [true, true, true, false, false, true]);
}

#[tokio::test]
async fn rotation_never_puts_an_expiry_off_and_revives_nothing() {
    let far = far();
    let new = NewKey::for_tenant("acme").plan("free");
    let key = far
        .admin
        .issue(new.clone().expires_in(Duration::from_secs(10)))
        .await
        .unwrap();
    far.admin
        .rotate(&key.record.id, Duration::from_secs(3_600))
        .await
        .unwrap();
    far.advance(10);
    assert_eq!(
        far.ask(key.key.expose()).await.unwrap_err(),
        AuthRefusal::Expired
    );
    let revoked = far.admin.issue(new).await.unwrap();
    far.admin.revoke(&revoked.record.id).await.unwrap();
    for id in [&key.record.id, &revoked.record.id] {
        let error = far.admin.rotate(id, Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, KeysError::NotUsable { .. }), "{error}");
    }
    let nobody = KeyId::new("key_nobody").unwrap();
    let error = far.admin.rotate(&nobody, Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, KeysError::NotFound { .. }));
    let error = far.admin.revoke(&nobody).await.unwrap_err();
    assert!(matches!(error, KeysError::NotFound { .. }));
}

#[tokio::test]
async fn changes_of_one_tenant_at_the_same_time_are_all_made() {
    let far = far();
    far.issue().await;
    let tenants = Tenants::new(Arc::clone(&far.tenants) as _, far.catalog.clone());
    let acme = tenant("acme");
    let before = tenants.find(&acme).await.unwrap().unwrap().record().version;
    let access = tenants.set_access(&acme, AccessState::Suspended);
    let moved = plan("pro");
    let moved = tenants.set_plan(&acme, &moved);
    let (access, moved) = tokio::join!(access, moved);
    access.unwrap();
    moved.unwrap();
    let found = tenants.find(&acme).await.unwrap().unwrap();
    let record = found.record();
    assert_eq!(
        (record.plan.as_str(), record.access),
        ("pro", AccessState::Suspended)
    );
    assert_eq!(record.version, before + 2);
    tenants
        .set_access(&acme, AccessState::Suspended)
        .await
        .unwrap();
    let again = tenants.find(&acme).await.unwrap().unwrap().record().version;
    assert_eq!(again, record.version, "nothing to change");
}

#[tokio::test]
async fn a_tenant_is_not_moved_to_a_plan_that_nobody_sells() {
    let far = far();
    far.issue().await;
    let tenants = Tenants::new(Arc::clone(&far.tenants) as _, far.catalog.clone());
    let error = tenants
        .set_plan(&tenant("acme"), &plan("gold"))
        .await
        .unwrap_err();
    assert!(matches!(error, TenantsError::UnknownPlan { .. }));
    let error = tenants
        .set_plan(&tenant("nobody"), &plan("free"))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        TenantsError::Store(TenantStoreError::NotFound)
    ));
    assert!(tenants.find(&tenant("nobody")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_change_cannot_rename_a_tenant_or_set_its_version() {
    let far = far();
    far.issue().await;
    let tenants = Tenants::new(Arc::clone(&far.tenants) as _, far.catalog.clone());
    let changed = tenants
        .update(&tenant("acme"), |record: &mut TenantRecord| {
            record.id = tenant("victim");
            record.version = 77;
            record.pay_url = Some("https://example.com/pay".into());
        })
        .await
        .unwrap();
    assert_eq!(changed.id().as_str(), "acme");
    assert_eq!(changed.record().version, 2);
}

#[tokio::test]
async fn two_first_keys_at_once_make_one_tenant() {
    let far = far();
    let keys: &Keys = &far.admin;
    let new = NewKey::for_tenant("acme").plan("free");
    far.tenants
        .behaviour
        .becomes(super::fake::Mood::WaitAfterReading);
    let (one, other) = (keys.issue(new.clone()), keys.issue(new));
    let release = async {
        far.tenants.behaviour.asked(2).await;
        far.tenants.behaviour.permits.add_permits(10);
    };
    let (one, other, ()) = tokio::join!(one, other, release);
    assert_eq!(one.unwrap().record.tenant, other.unwrap().record.tenant);
}
