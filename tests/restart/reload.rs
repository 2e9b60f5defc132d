//! A document that changes while traffic flows.

use tollgate::{
    Tollgate,
    gate::{Changes, Document},
    id::{Environment, PlanName, TenantId},
    identity::NewKey,
    tenant::AccessState,
};

use super::{DIGEST, KEY, OTHER, call, status};

struct Text {
    limit: u64,
    plans: Vec<&'static str>,
    tenants: Vec<(&'static str, &'static str)>,
    keys: Vec<(&'static str, &'static str)>,
}

fn text() -> Text {
    Text {
        limit: 10,
        plans: vec!["free", "pro"],
        tenants: vec![("acme", "free")],
        keys: vec![(DIGEST, "acme")],
    }
}

impl Text {
    fn document(&self) -> Document {
        let mut text = String::new();
        for plan in &self.plans {
            let limit = self.limit;
            text += &format!(
                "[[plans]]\nname = '{plan}'\nrules = [{{ kind = 'quota', limit = {limit}, period = 'month' }}]\n"
            );
        }
        for (id, plan) in &self.tenants {
            text += &format!("[[tenants]]\nid = '{id}'\nplan = '{plan}'\n");
        }
        for (digest, tenant) in &self.keys {
            text += &format!("[[keys]]\ndigest = '{digest}'\ntenant = '{tenant}'\n");
        }
        Document::from_toml(&text).unwrap()
    }
}

fn gate() -> Tollgate {
    Tollgate::builder()
        .document(text().document())
        .build()
        .unwrap()
}

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

#[tokio::test]
async fn quotas_keep_what_was_used() {
    let gate = gate();
    for left in [9, 8, 7] {
        assert_eq!(call(&gate, KEY).await, (200, Some(left)));
    }
    let report = gate
        .reload(
            Text {
                limit: 20,
                ..text()
            }
            .document(),
        )
        .unwrap();
    assert_eq!(
        report.to_string(),
        "plans +0 ~2 -0; tenants +0 ~0 -0; keys +0 ~0 -0"
    );
    assert_eq!(call(&gate, KEY).await, (200, Some(16)));
    gate.reload(Text { limit: 2, ..text() }.document()).unwrap();
    assert_eq!(call(&gate, KEY).await.0, 429);
    gate.reload(text().document()).unwrap();
    assert_eq!(call(&gate, KEY).await, (200, Some(5)));
}

#[tokio::test]
async fn the_same_document_again_changes_nothing() {
    let gate = gate();
    let report = gate.reload(text().document()).unwrap();
    assert_eq!(
        (report.tenants, report.keys),
        (Changes::default(), Changes::default())
    );
    assert_eq!(report.plans, Changes::default());
    // Nor does what the gate itself has saved.
    gate.keys()
        .issue(NewKey::for_tenant("other").plan("pro"))
        .await
        .unwrap();
    let report = gate.reload(gate.document()).unwrap();
    assert_eq!(report, tollgate::gate::ReloadReport::default());
}

#[tokio::test]
async fn lines_that_come_and_go_take_effect_on_the_next_call() {
    let gate = gate();
    assert_eq!(status(&gate, KEY).await, 200);
    let without_key = Text {
        keys: vec![],
        ..text()
    };
    assert_eq!(gate.reload(without_key.document()).unwrap().keys.removed, 1);
    assert_eq!(status(&gate, KEY).await, 401);
    assert_eq!(gate.reload(text().document()).unwrap().keys.added, 1);
    assert_eq!(
        call(&gate, KEY).await,
        (200, Some(8)),
        "and it goes on from what it had used"
    );
    let without_tenant = Text {
        tenants: vec![],
        keys: vec![],
        ..text()
    };
    let issued = gate.keys().issue(NewKey::for_tenant("acme")).await.unwrap();
    let report = gate.reload(without_tenant.document()).unwrap();
    assert_eq!((report.tenants.removed, report.keys.removed), (1, 1));
    assert_eq!(
        status(&gate, issued.key.expose()).await,
        401,
        "a closed account"
    );
    gate.reload(text().document()).unwrap();
    assert_eq!(status(&gate, KEY).await, 200);
    assert_eq!(status(&gate, issued.key.expose()).await, 200);
}

#[tokio::test]
async fn a_tenant_is_moved_off_a_plan_in_the_same_step_in_which_the_plan_goes() {
    let gate = gate();
    assert_eq!(status(&gate, KEY).await, 200);
    let moved = Text {
        plans: vec!["pro"],
        tenants: vec![("acme", "pro")],
        ..text()
    };
    let report = gate.reload(moved.document()).unwrap();
    assert_eq!((report.plans.removed, report.tenants.changed), (1, 1));
    assert_eq!(call(&gate, KEY).await, (200, Some(8)));
}

#[tokio::test]
async fn a_document_with_a_fault_changes_nothing() {
    let gate = gate();
    assert_eq!(call(&gate, KEY).await, (200, Some(9)));
    gate.tenants()
        .set_plan(&acme(), &PlanName::new("pro").unwrap())
        .await
        .unwrap();
    let before = gate.document().to_json().unwrap();
    let faulty = [
        // The tenant was put on `pro` at run time, which goes.
        (
            Text {
                plans: vec!["free"],
                limit: 99,
                keys: vec![],
                ..text()
            },
            "plans",
        ),
        (
            Text {
                tenants: vec![("acme", "gold")],
                limit: 99,
                keys: vec![],
                ..text()
            },
            "tenants[0].plan",
        ),
        (
            Text {
                keys: vec![(OTHER, "nobody")],
                limit: 99,
                ..text()
            },
            "keys[0].tenant",
        ),
        (
            Text {
                keys: vec![(OTHER, "acme"), (OTHER, "acme")],
                limit: 99,
                ..text()
            },
            "keys[1].digest",
        ),
        (
            Text {
                plans: vec![],
                tenants: vec![],
                keys: vec![],
                limit: 99,
            },
            "plans",
        ),
        (
            Text {
                limit: u64::MAX >> 1,
                ..text()
            },
            "plans[0].rules[0].limit",
        ),
    ];
    for (text, path) in faulty {
        let error = gate.reload(text.document()).unwrap_err();
        assert_eq!(error.path(), path, "{error}");
        assert_eq!(gate.document().to_json().unwrap(), before, "{error}");
    }
    assert_eq!(call(&gate, KEY).await, (200, Some(8)));
}

#[tokio::test]
async fn what_happened_at_run_time_outlives_a_reload_that_does_not_speak_of_it() {
    let gate = gate();
    let read_only = AccessState::ReadOnly { suspend_at: None };
    gate.tenants().set_access(&acme(), read_only).await.unwrap();
    let issued = gate.keys().issue(NewKey::for_tenant("acme")).await.unwrap();
    let keys = gate.keys().list(&acme()).await.unwrap();
    let of_document = keys.iter().find(|key| key.id != issued.record.id).unwrap();
    gate.keys().revoke(&of_document.id).await.unwrap();
    let moved = Text {
        tenants: vec![("acme", "pro"), ("new", "free")],
        ..text()
    };
    gate.reload(moved.document()).unwrap();
    let acme = gate.tenants().find(&acme()).await.unwrap().unwrap();
    assert_eq!(acme.record().access, read_only);
    assert_eq!(acme.record().plan.as_str(), "pro");
    assert_eq!(status(&gate, issued.key.expose()).await, 200);
    assert_eq!(status(&gate, KEY).await, 401, "revoked is revoked");
}

#[tokio::test]
async fn a_key_in_the_document_may_change_its_tenant_and_its_digest() {
    let gate = Tollgate::builder()
        .document(text().document())
        .build()
        .unwrap();
    assert_eq!(status(&gate, KEY).await, 200);
    let other = Text {
        tenants: vec![("acme", "free"), ("zeta", "pro")],
        keys: vec![(DIGEST, "zeta")],
        ..text()
    };
    gate.reload(other.document()).unwrap();
    assert_eq!(
        call(&gate, KEY).await,
        (200, Some(9)),
        "counted for the other tenant"
    );
    assert!(gate.keys().list(&acme()).await.unwrap().is_empty());
    let named = |digest: &str| {
        let text = format!(
            "[[plans]]\nname = 'free'\n[[plans]]\nname = 'pro'\n[[tenants]]\nid = 'acme'\nplan = 'free'\n\
             [[keys]]\nid = 'k1'\ndigest = '{digest}'\ntenant = 'acme'"
        );
        Document::from_toml(&text).unwrap()
    };
    gate.reload(named(OTHER)).unwrap();
    assert_eq!(status(&gate, KEY).await, 401);
    gate.reload(named(DIGEST)).unwrap();
    assert_eq!(
        status(&gate, KEY).await,
        200,
        "the id went over to the new digest"
    );
}

#[test]
fn the_sandbox_keeps_its_plan() {
    let gate = Tollgate::builder()
        .document(text().document())
        .sandbox("pro")
        .only(Environment::Live)
        .build()
        .unwrap();
    let error = gate
        .reload(
            Text {
                plans: vec!["free"],
                ..text()
            }
            .document(),
        )
        .unwrap_err();
    assert_eq!(error.path(), "plans");
    assert!(error.to_string().contains("`pro`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_refused_while_documents_are_swapped() {
    let gate = Tollgate::builder()
        .document(
            Text {
                limit: 1_000_000,
                ..text()
            }
            .document(),
        )
        .build()
        .unwrap();
    let calls = tokio::spawn({
        let gate = gate.clone();
        async move {
            for n in 0..2_000 {
                assert_eq!(call(&gate, KEY).await.0, 200, "call {n}");
            }
        }
    });
    let mut n = 0;
    while !calls.is_finished() {
        n += 1;
        let swapped = if n % 2 == 0 {
            Text {
                limit: 1_000_000,
                ..text()
            }
        } else {
            Text {
                limit: 2_000_000,
                plans: vec!["pro"],
                tenants: vec![("acme", "pro"), ("new", "pro")],
                keys: vec![(DIGEST, "acme"), (OTHER, "new")],
            }
        };
        gate.reload(swapped.document()).unwrap();
        tokio::task::yield_now().await;
    }
    calls.await.unwrap();
    assert!(n > 10, "{n}");
}
