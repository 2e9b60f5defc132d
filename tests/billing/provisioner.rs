//! From events to tenants, plans, keys and access.

use std::time::Duration;

use serde_json::json;
use tollgate::{
    billing::{Downgrade, Handled, LifecyclePolicy, NoticeKind, ProvisionError, lifecycle::OnEnd},
    id::{Environment, PlanName, TenantId},
    tenant::AccessState,
};

use super::support::{DAY, START, World, at, but, checkout, event, invoice, stripe, subscription};

pub(crate) fn active(plan: &str) -> (AccessState, String) {
    (AccessState::Active, plan.to_owned())
}

pub(crate) fn plan(name: &str) -> PlanName {
    PlanName::new(name).unwrap()
}

/// A customer who has bought the plan of this price.
pub(crate) async fn bought(world: &World, price: &str) {
    world
        .tell(&subscription("created", START, "active", price))
        .await;
    world.tell(&checkout(START + 1)).await;
}

#[tokio::test]
async fn a_checkout_makes_a_tenant_on_its_plan_with_one_key() {
    let world = World::new();
    world
        .tell(&subscription("created", START, "active", "price_pro"))
        .await;
    assert!(
        world.tenant("cus_1").await.is_none(),
        "nobody has bought yet"
    );
    let handled = world
        .provisioner
        .provision(&event(&checkout(START + 1)))
        .await;
    assert_eq!(handled.unwrap(), Handled::Applied);
    assert_eq!(world.stands("cus_1").await, active("pro"));
    assert_eq!(world.n_keys("cus_1").await, 1);
    let tenant = world.tenant("cus_1").await.unwrap();
    assert_eq!(tenant.record().billing_anchor, Some(at(START)));
    let issued = world
        .provisioner
        .key_of_checkout(Environment::Live, "cs_1")
        .await
        .unwrap();
    let issued = issued.expect("a key");
    assert!(issued.key.expose().starts_with("tg_live_"));
    assert_eq!(issued.record.tenant.as_str(), "cus_1");
    assert!(matches!(
        world.mail.kinds()[..],
        [NoticeKind::KeyIssued { .. }]
    ));
    // The same again is the same.
    for _ in 0..3 {
        bought(&world, "price_pro").await;
    }
    assert_eq!(world.n_keys("cus_1").await, 1);
    let again = world
        .provisioner
        .key_of_checkout(Environment::Live, "cs_1")
        .await
        .unwrap();
    assert_eq!(again.unwrap().key.expose(), issued.key.expose());
    assert_eq!(world.mail.kinds().len(), 1);
}

#[tokio::test]
async fn a_second_checkout_of_a_customer_has_a_key_of_its_own() {
    let world = World::new();
    bought(&world, "price_basic").await;
    world
        .tell(&but(checkout(START + 5), "id", "cs_2".into()))
        .await;
    assert_eq!(world.n_keys("cus_1").await, 2);
    let account = world.provisioner.account("cus_1").await.unwrap().unwrap();
    let checkouts: Vec<_> = account
        .keys()
        .map(|(checkout, _)| checkout.to_owned())
        .collect();
    assert_eq!(checkouts, ["cs_1", "cs_2"]);
}

#[tokio::test]
async fn a_checkout_that_is_not_paid_yet_makes_nothing() {
    let world = World::new();
    world
        .tell(&subscription("created", START, "active", "price_pro"))
        .await;
    let unpaid = but(checkout(START + 1), "payment_status", "unpaid".into());
    let handled = world.provisioner.provision(&event(&unpaid)).await.unwrap();
    assert_eq!(handled, Handled::Ignored);
    let one_off = but(checkout(START + 1), "mode", "payment".into());
    let handled = world.provisioner.provision(&event(&one_off)).await.unwrap();
    assert_eq!(handled, Handled::Ignored);
    assert!(world.tenant("cus_1").await.is_none());
    let mut later = checkout(START + 2 * DAY);
    later["type"] = json!("checkout.session.async_payment_succeeded");
    world.tell(&later).await;
    assert_eq!(world.n_keys("cus_1").await, 1);
}

#[tokio::test]
async fn keys_of_the_test_mode_are_test_keys() {
    let world = World::new();
    for mut body in [
        subscription("created", START, "active", "price_pro"),
        checkout(START),
    ] {
        body["livemode"] = json!(false);
        world.tell(&body).await;
    }
    let issued = world
        .provisioner
        .key_of_checkout(Environment::Test, "cs_1")
        .await
        .unwrap();
    assert!(issued.expect("a key").key.expose().starts_with("tg_test_"));
    assert!(
        world
            .provisioner
            .key_of_checkout(Environment::Live, "cs_1")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_failed_payment_leads_through_grace_to_reading_and_a_payment_back() {
    let world = World::new();
    bought(&world, "price_pro").await;
    world.clock.advance(Duration::from_secs(DAY));
    let failed = START + DAY;
    world.tell(&invoice("payment_failed", failed)).await;
    world
        .tell(&subscription("updated", failed, "past_due", "price_pro"))
        .await;
    let until = at(failed + 7 * DAY);
    let suspend_at = Some(at(failed + 37 * DAY));
    let grace = AccessState::Grace { until, suspend_at };
    assert_eq!(world.stands("cus_1").await, (grace, "pro".to_owned()));
    let pay_url = world
        .tenant("cus_1")
        .await
        .unwrap()
        .record()
        .pay_url
        .clone();
    assert_eq!(pay_url.as_deref(), Some("https://pay.example/in_1"));
    // Each retry of the card fails too, and grace stays where it was.
    for day in [2, 4, 6] {
        world.clock.advance(Duration::from_secs(2 * DAY));
        world
            .tell(&invoice("payment_failed", START + day * DAY))
            .await;
        assert_eq!(world.stands("cus_1").await.0, grace);
    }
    world.clock.advance(Duration::from_secs(2 * DAY));
    let (access, _) = world.stands("cus_1").await;
    assert_eq!(access, AccessState::ReadOnly { suspend_at });
    world.clock.advance(Duration::from_secs(30 * DAY));
    assert_eq!(world.stands("cus_1").await.0, AccessState::Suspended);
    world.tell(&invoice("paid", START + 39 * DAY)).await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
    let kinds = world.mail.kinds();
    assert!(
        matches!(
            kinds[..],
            [
                NoticeKind::KeyIssued { .. },
                NoticeKind::GraceStarted { .. },
                NoticeKind::Restored
            ]
        ),
        "{kinds:?}"
    );
}

#[tokio::test]
async fn who_is_unpaid_or_paused_may_read() {
    let world = World::new();
    bought(&world, "price_pro").await;
    world
        .tell(&subscription("updated", START + 10, "unpaid", "price_pro"))
        .await;
    assert_eq!(world.stands("cus_1").await.0.as_str(), "read-only");
    world
        .tell(&subscription("updated", START + 20, "active", "price_pro"))
        .await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
    world
        .tell(&subscription("paused", START + 30, "paused", "price_pro"))
        .await;
    let paused = AccessState::ReadOnly { suspend_at: None };
    assert_eq!(world.stands("cus_1").await.0, paused);
    world
        .tell(&subscription("resumed", START + 40, "active", "price_pro"))
        .await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
    // Collection that is paused changes nothing by itself.
    let pause = json!({"behavior": "void"});
    let collecting = subscription("updated", START + 50, "active", "price_pro");
    world
        .tell(&but(collecting, "pause_collection", pause))
        .await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
}

#[tokio::test]
async fn an_upgrade_counts_at_once_and_a_downgrade_when_the_period_ends() {
    let world = World::new();
    bought(&world, "price_basic").await;
    world
        .tell(&subscription("updated", START + 10, "active", "price_pro"))
        .await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
    world
        .tell(&subscription(
            "updated",
            START + 20,
            "active",
            "price_basic",
        ))
        .await;
    assert_eq!(world.stands("cus_1").await, active("pro"), "it is paid for");
    // The renewal is the event that finds the period over.
    world.clock.advance(Duration::from_secs(30 * DAY));
    world.tell(&invoice("paid", START + 30 * DAY)).await;
    assert_eq!(world.stands("cus_1").await, active("basic"));
    let changes = world
        .mail
        .kinds()
        .into_iter()
        .filter(|kind| matches!(kind, NoticeKind::PlanChanged { .. }));
    assert_eq!(changes.count(), 2);

    let world = World::with(|seller| seller.downgrade(Downgrade::Immediately));
    bought(&world, "price_pro").await;
    world
        .tell(&subscription(
            "updated",
            START + 20,
            "active",
            "price_basic",
        ))
        .await;
    assert_eq!(world.stands("cus_1").await, active("basic"));
}

#[tokio::test]
async fn a_downgrade_waits_for_its_period_however_much_is_said_meanwhile() {
    let world = World::new();
    bought(&world, "price_pro").await;
    for n in 0..100 {
        let created = START + 10 + n;
        world
            .tell(&subscription("updated", created, "active", "price_basic"))
            .await;
    }
    assert_eq!(world.stands("cus_1").await, active("pro"));
}

#[tokio::test]
async fn a_downgrade_that_is_taken_back_never_happens() {
    let world = World::new();
    bought(&world, "price_pro").await;
    world
        .tell(&subscription(
            "updated",
            START + 10,
            "active",
            "price_basic",
        ))
        .await;
    world
        .tell(&subscription("updated", START + 20, "active", "price_pro"))
        .await;
    world.clock.advance(Duration::from_secs(31 * DAY));
    world.tell(&invoice("paid", START + 31 * DAY)).await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
}

#[tokio::test]
async fn an_end_is_announced_taken_back_and_at_last_comes() {
    let free = LifecyclePolicy::new().on_end(OnEnd::Downgrade(plan("free")));
    let world = World::with(|seller| seller.policy(free));
    bought(&world, "price_pro").await;
    let ending = subscription("updated", START + 10, "active", "price_pro");
    world
        .tell(&but(ending, "cancel_at_period_end", true.into()))
        .await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
    world
        .tell(&subscription("updated", START + 20, "active", "price_pro"))
        .await;
    world
        .tell(&subscription(
            "deleted",
            START + 30,
            "canceled",
            "price_pro",
        ))
        .await;
    assert_eq!(world.stands("cus_1").await, active("free"));
    assert_eq!(world.n_keys("cus_1").await, 1, "nothing is deleted");
    let at_end = at(START + 30 * DAY);
    assert!(
        world
            .mail
            .kinds()
            .contains(&NoticeKind::WillEnd { at: at_end })
    );
    assert!(world.mail.kinds().contains(&NoticeKind::Resumed));
    // Whoever comes back has a new subscription.
    let again = but(
        subscription("created", START + 40, "active", "price_basic"),
        "id",
        "sub_2".into(),
    );
    world.tell(&again).await;
    assert_eq!(world.stands("cus_1").await, active("basic"));
    // What has ended stays so, whatever is said of it.
    world
        .tell(&subscription("updated", START + 50, "active", "price_pro"))
        .await;
    assert_eq!(world.stands("cus_1").await, active("basic"));
}

#[tokio::test]
async fn the_end_is_as_the_policy_of_all_the_plan_or_the_tenant_says() {
    let policy = |on_end| LifecyclePolicy::new().on_end(on_end);
    for (set, expected) in [
        (policy(OnEnd::ReadOnly), "read-only"),
        (policy(OnEnd::Suspend), "suspended"),
        (policy(OnEnd::Downgrade(plan("free"))), "active"),
    ] {
        for level in 0..3 {
            let set = set.clone();
            let world = World::with(|seller| match level {
                0 => seller.policy(set),
                1 => seller
                    .policy(policy(OnEnd::Suspend))
                    .plan_policy("pro", set),
                _ => seller
                    .plan_policy("pro", policy(OnEnd::Suspend))
                    .tenant_policy("cus_1", set),
            });
            bought(&world, "price_pro").await;
            world
                .tell(&subscription(
                    "deleted",
                    START + 30,
                    "canceled",
                    "price_pro",
                ))
                .await;
            assert_eq!(
                world.stands("cus_1").await.0.as_str(),
                expected,
                "level {level}"
            );
        }
    }
}

#[tokio::test]
async fn who_owed_when_the_subscription_ended_is_suspended_in_time() {
    let world = World::new();
    bought(&world, "price_pro").await;
    world.tell(&invoice("payment_failed", START + 10)).await;
    world
        .tell(&subscription(
            "deleted",
            START + 20,
            "canceled",
            "price_pro",
        ))
        .await;
    let suspend_at = Some(at(START + 10 + 37 * DAY));
    assert_eq!(
        world.stands("cus_1").await.0,
        AccessState::ReadOnly { suspend_at }
    );
    let world = World::new();
    bought(&world, "price_pro").await;
    world
        .tell(&subscription(
            "deleted",
            START + 20,
            "canceled",
            "price_pro",
        ))
        .await;
    let forever = AccessState::ReadOnly { suspend_at: None };
    assert_eq!(world.stands("cus_1").await.0, forever);
}

#[tokio::test]
async fn a_customer_that_is_deleted_has_ended() {
    let world = World::new();
    bought(&world, "price_pro").await;
    world
        .tell(&stripe(
            "customer.deleted",
            START + 20,
            json!({"id": "cus_1"}),
        ))
        .await;
    assert_eq!(world.stands("cus_1").await.0.as_str(), "read-only");
    let nobody = stripe("customer.deleted", START + 20, json!({"id": "cus_9"}));
    let handled = world.provisioner.provision(&event(&nobody)).await.unwrap();
    assert_eq!(handled, Handled::Ignored);
}

#[tokio::test]
async fn a_tenant_that_people_have_closed_stays_closed() {
    let world = World::new();
    bought(&world, "price_pro").await;
    let tenant = TenantId::new("cus_1").unwrap();
    world
        .gate
        .tenants()
        .set_access(&tenant, AccessState::Closed)
        .await
        .unwrap();
    world.tell(&invoice("paid", START + 50)).await;
    assert_eq!(world.stands("cus_1").await.0, AccessState::Closed);
}

#[tokio::test]
async fn entitlements_decide_where_no_price_does() {
    let world = World::with(|seller| seller.entitlement("pro-access", "pro"));
    bought(&world, "price_of_a_bundle").await;
    assert!(
        world.tenant("cus_1").await.is_none(),
        "no price leads to a plan"
    );
    let summary = |created, keys: &[&str]| {
        let entitlements: Vec<_> = keys.iter().map(|key| json!({"lookup_key": key})).collect();
        let object =
            json!({"customer": "cus_1", "entitlements": {"data": entitlements, "has_more": false}});
        stripe(
            "entitlements.active_entitlement_summary.updated",
            created,
            object,
        )
    };
    world
        .tell(&summary(START + 10, &["pro-access", "extra"]))
        .await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
    let older = world
        .provisioner
        .provision(&event(&summary(START + 5, &[])))
        .await
        .unwrap();
    assert_eq!(older, Handled::Stale);
    let account = world.provisioner.account("cus_1").await.unwrap().unwrap();
    assert_eq!(
        account.entitlements().collect::<Vec<_>>(),
        ["extra", "pro-access"]
    );
    // Features go with a subscription, before or after it: the end is the same.
    let end = subscription("deleted", START + 21, "canceled", "price_of_a_bundle");
    let last = [summary(START + 20, &[]), end, summary(START + 22, &[])];
    let reading = (AccessState::ReadOnly { suspend_at: None }, "pro".to_owned());
    for (on_end, expected) in [
        (OnEnd::ReadOnly, reading),
        (OnEnd::Downgrade(plan("free")), active("free")),
    ] {
        for order in [[0, 1, 2], [1, 0, 2]] {
            let policy = LifecyclePolicy::new().on_end(on_end.clone());
            let world = World::with(|seller| {
                let seller = seller.entitlement("pro-access", "pro");
                seller.plan_policy("pro", policy)
            });
            bought(&world, "price_of_a_bundle").await;
            world.tell(&summary(START + 10, &["pro-access"])).await;
            for n in order {
                world.tell(&last[n]).await;
            }
            assert_eq!(world.stands("cus_1").await, expected, "{order:?}");
        }
    }
}

#[tokio::test]
async fn a_second_subscription_that_was_never_paid_decides_nothing() {
    let world = World::new();
    bought(&world, "price_pro").await;
    let second = subscription("created", START + 10, "incomplete", "price_basic");
    world.tell(&but(second, "id", "sub_2".into())).await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
}

#[tokio::test]
async fn a_first_payment_of_the_second_of_its_subscription_leaves_nothing_owed() {
    let begun = subscription("created", START, "incomplete", "price_pro");
    let paid = subscription("updated", START, "active", "price_pro");
    let failed = subscription("updated", START + 50, "past_due", "price_pro");
    for order in [
        [&begun, &paid, &failed],
        [&paid, &begun, &failed],
        [&failed, &paid, &begun],
    ] {
        let world = World::new();
        world.tell(&checkout(START)).await;
        for (n, body) in order.into_iter().enumerate() {
            world.tell(body).await;
            if n == 1 && order[2] == &failed {
                assert_eq!(world.stands("cus_1").await, active("pro"));
            }
        }
        let until = at(START + 50 + 7 * DAY);
        let (access, _) = world.stands("cus_1").await;
        assert!(matches!(access, AccessState::Grace { until: it, .. } if it == until));
    }
}

#[tokio::test]
async fn a_tenant_is_called_as_the_service_says() {
    let world = World::with(|seller| {
        seller.tenant_name(|checkout| checkout.client_reference_id.as_deref().map(str::to_owned))
    });
    bought(&world, "price_pro").await;
    assert_eq!(world.stands("acme").await, active("pro"));
    assert!(world.tenant("cus_1").await.is_none());
    // One customer is one tenant: no key of this one is made for a checkout of another.
    let other = but(checkout(START + 5), "client_reference_id", "globex".into());
    let other = event(&but(other, "id", "cs_2".into()));
    let error = world.provisioner.provision(&other).await.unwrap_err();
    assert_eq!(error.field(), Some("tenant_name"));
    assert!(matches!(error, ProvisionError::OtherTenant { .. }) && !error.is_temporary());
    assert_eq!(world.n_keys("acme").await, 1);
    assert!(world.tenant("globex").await.is_none());
}
