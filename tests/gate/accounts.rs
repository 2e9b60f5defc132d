//! Payment states, plans and environments.

use std::time::Duration;

use tollgate::{
    clock::Clock,
    id::{Environment, TenantId},
    plan::PlanDocument,
    prelude::*,
};

use super::{acme, stand};

#[tokio::test]
async fn a_payment_state_lets_through_what_it_should() {
    let stand = stand(|builder| builder).await;
    let key = stand.issue(acme()).await.key;
    let (id, now) = (TenantId::new("acme").unwrap(), stand.clock.now().wall());
    let in_a_day = now.saturating_add(Duration::from_secs(86_400));
    let tenants = stand.gate.tenants();
    let pay = "https://pay.example/acme";
    tenants
        .update(&id, |record| record.pay_url = Some(pay.into()))
        .await
        .unwrap();
    let status = async |method| {
        stand
            .call(method, "/v1/hello", key.expose())
            .await
            .status
            .as_u16()
    };

    let suspend_at = Some(in_a_day.saturating_add(Duration::from_secs(86_400)));
    let grace = AccessState::Grace {
        until: in_a_day,
        suspend_at,
    };
    tenants.set_access(&id, grace).await.unwrap();
    assert_eq!((status("GET").await, status("POST").await), (200, 200));
    let answer = stand.call("GET", "/v1/hello", key.expose()).await;
    assert_eq!(answer.header("tollgate-access"), "grace");

    stand.clock.advance(Duration::from_secs(86_400));
    assert_eq!(
        (
            status("GET").await,
            status("HEAD").await,
            status("POST").await
        ),
        (200, 200, 402)
    );
    let refused = stand.call("POST", "/v1/hello", key.expose()).await;
    assert_eq!(
        (&refused.json()["code"], &refused.json()["pay_url"]),
        (&"read_only".into(), &pay.into())
    );

    stand.clock.advance(Duration::from_secs(86_400));
    assert_eq!((status("GET").await, status("POST").await), (402, 402));
    tenants.set_access(&id, AccessState::Closed).await.unwrap();
    assert_eq!(status("GET").await, 401);
    tenants.set_access(&id, AccessState::Active).await.unwrap();
    assert_eq!((status("GET").await, status("POST").await), (200, 200));
    assert!(
        stand
            .events()
            .await
            .iter()
            .any(|event| event.refused.as_deref() == Some("read_only"))
    );
}

#[tokio::test]
async fn a_plan_edited_while_traffic_flows_takes_effect_on_the_next_call() {
    let stand = stand(|builder| builder.plans([Plan::new("free").rule(Quota::daily(2))])).await;
    let key = stand.issue(acme()).await.key;
    let status = async || {
        stand
            .call("GET", "/v1/hello", key.expose())
            .await
            .status
            .as_u16()
    };
    assert_eq!(
        [status().await, status().await, status().await],
        [200, 200, 429]
    );
    let document = PlanDocument::from_json(
        r#"{"plans": [{"name": "free", "rules": [{"kind": "quota", "limit": 3, "period": "day"}]}]}"#,
    );
    stand
        .gate
        .plans()
        .replace_from_document(&document.unwrap())
        .unwrap();
    assert_eq!(
        [status().await, status().await],
        [200, 429],
        "three of which two were used"
    );
    let wrong = stand
        .gate
        .plans()
        .replace([Plan::new("free").rule(Rate::per(1, Duration::ZERO))]);
    assert!(
        wrong
            .unwrap_err()
            .to_string()
            .contains("plans[free].rules[0]")
    );
    assert_eq!(status().await, 429, "what does not compile changes nothing");
    let unknown = Plan::new("free").rule(Rate::per_minute(9).scope(Scope::Custom("model".into())));
    let error = stand.gate.plans().replace([unknown]).unwrap_err();
    assert_eq!(
        error.path(),
        "plans[free].rules[0].scope",
        "no hook gives its values"
    );
}

#[tokio::test]
async fn a_test_key_counts_apart_under_the_sandbox_plan_and_is_marked_in_its_event() {
    let stand = stand(|builder| {
        let plans = [
            Plan::new("free").rule(Quota::daily(1)),
            Plan::new("sandbox").rule(Quota::daily(2)),
        ];
        builder.plans(plans).sandbox("sandbox")
    })
    .await;
    let live = stand.issue(acme()).await.key;
    let test = stand.issue(acme().environment(Environment::Test)).await.key;
    let status = async |key: &str| stand.call("GET", "/v1/hello", key).await.status.as_u16();
    assert_eq!(
        [status(live.expose()).await, status(live.expose()).await],
        [200, 429]
    );
    let of_test = [
        status(test.expose()).await,
        status(test.expose()).await,
        status(test.expose()).await,
    ];
    assert_eq!(of_test, [200, 200, 429]);
    let events = stand.events().await;
    let sandboxed = events
        .iter()
        .filter(|event| event.environment == Environment::Test);
    assert_eq!(
        sandboxed
            .map(|event| event.plan.as_str())
            .collect::<Vec<_>>(),
        ["sandbox"; 3]
    );
}

#[tokio::test]
async fn a_quota_that_is_used_up_names_the_plan_and_where_to_buy_more() {
    let url = "https://shop.example/upgrade";
    let stand = stand(|builder| {
        builder.plans([Plan::new("free").rule(Quota::monthly(1)).upgrade_url(url)])
    })
    .await;
    let key = stand.issue(acme()).await.key;
    stand.call("GET", "/v1/hello", key.expose()).await;
    let mut problem = stand.call("GET", "/v1/hello", key.expose()).await.json();
    problem["instance"].take();
    let expected = serde_json::json!({
        "type": "https://docs.rs/tollgate/latest/tollgate/guide/errors/index.html#quota_exceeded",
        "title": "Quota exceeded",
        "status": 429,
        "code": "quota_exceeded",
        "detail": "The plan's quota is used up. Upgrade to continue",
        "instance": null,
        "limit": 1,
        "plan": "free",
        "remaining": 0,
        "upgrade_url": url,
        "violated-policies": ["quota"],
    });
    assert_eq!(problem, expected);
}
