//! Reading events: old and new shapes, three providers, and what is no event.

use serde_json::{Value, json};
use tollgate::billing::{
    BillingEvent, BillingObject, Delivered, EventError, EventKind, SubscriptionStatus,
};

use super::support::{at, but, checkout, event, invoice, stripe, subscription};

fn read(body: &Value) -> Result<Delivered, EventError> {
    Delivered::from_stripe(body.to_string().as_bytes())
}

fn paddle(body: &Value) -> BillingEvent {
    match Delivered::from_paddle(body.to_string().as_bytes()).unwrap() {
        Delivered::Event(event) => event,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_period_of_a_subscription_is_found_where_each_version_has_it() {
    let period = |object: Value| {
        let event = event(&stripe("customer.subscription.updated", 1, object));
        match event.object() {
            BillingObject::Subscription(subscription) => subscription.period_end,
            other => panic!("{other:?}"),
        }
    };
    let items = |ends: &[u64]| {
        let items: Vec<_> = ends
            .iter()
            .map(|end| json!({"current_period_end": end}))
            .collect();
        json!({"data": items})
    };
    assert_eq!(period(json!({"items": items(&[50, 70, 60])})), Some(at(70)));
    assert_eq!(period(json!({"current_period_end": 40})), Some(at(40)));
    let both = json!({"current_period_end": 40, "items": items(&[50])});
    assert_eq!(period(both), Some(at(50)));
    assert_eq!(period(json!({})), None);
}

#[test]
fn the_subscription_and_prices_of_an_invoice_are_found_where_each_version_has_them() {
    let read = |object: Value| match event(&stripe("invoice.paid", 1, object)).object() {
        BillingObject::Invoice(invoice) => invoice.clone(),
        other => panic!("{other:?}"),
    };
    let new = read(json!({
        "parent": {"subscription_details": {"subscription": "sub_1"}}, "customer": {"id": "cus_1", "object": "customer"},
        "lines": {"data": [{"pricing": {"price_details": {"price": "price_1", "product": "prod_1"}}}]},
        "next_payment_attempt": 99, "attempt_count": 2, "amount_due": 2900, "currency": "USD",
    }));
    let old = read(json!({
        "subscription": "sub_1", "customer": "cus_1",
        "lines": {"data": [{"price": {"id": "price_1", "product": "prod_1"}, "plan": {"id": "plan_1"}}]},
        "next_payment_attempt": 99, "attempt_count": 2, "amount_due": 2900, "currency": "usd",
    }));
    assert_eq!(new, old);
    assert_eq!(new.subscription.as_deref(), Some("sub_1"));
    assert_eq!(new.customer.as_deref(), Some("cus_1"));
    assert_eq!(new.lines[0].price.as_deref(), Some("price_1"));
    assert_eq!(new.next_payment_attempt, Some(at(99)));
    let older = read(json!({"lines": {"data": [{"plan": {"id": "plan_1", "product": "prod_1"}}]}}));
    assert_eq!(older.lines[0].price.as_deref(), Some("plan_1"));
    assert_eq!(older.lines[0].product.as_deref(), Some("prod_1"));
}

#[test]
fn a_name_says_what_happened() {
    use EventKind as Kind;
    for (name, kind) in [
        ("customer.subscription.created", Kind::SubscriptionCreated),
        ("customer.subscription.updated", Kind::SubscriptionChanged),
        ("customer.subscription.paused", Kind::SubscriptionChanged),
        ("customer.subscription.resumed", Kind::SubscriptionChanged),
        (
            "customer.subscription.trial_will_end",
            Kind::SubscriptionChanged,
        ),
        (
            "customer.subscription.pending_update_applied",
            Kind::SubscriptionChanged,
        ),
        ("customer.subscription.deleted", Kind::SubscriptionEnded),
        ("invoice.created", Kind::InvoiceChanged),
        ("invoice.finalized", Kind::InvoiceChanged),
        ("invoice.upcoming", Kind::InvoiceChanged),
        ("invoice.paid", Kind::InvoicePaid),
        ("invoice.payment_succeeded", Kind::InvoicePaid),
        ("invoice.payment_failed", Kind::InvoicePaymentFailed),
        (
            "invoice.payment_action_required",
            Kind::InvoicePaymentFailed,
        ),
        ("invoice.overdue", Kind::InvoicePaymentFailed),
        ("invoice.marked_uncollectible", Kind::InvoicePaymentFailed),
        ("invoice.voided", Kind::InvoiceVoided),
        ("checkout.session.completed", Kind::CheckoutCompleted),
        (
            "checkout.session.async_payment_succeeded",
            Kind::CheckoutCompleted,
        ),
        (
            "checkout.session.async_payment_failed",
            Kind::CheckoutNotPaid,
        ),
        ("checkout.session.expired", Kind::CheckoutExpired),
        (
            "entitlements.active_entitlement_summary.updated",
            Kind::EntitlementsChanged,
        ),
        ("customer.updated", Kind::CustomerChanged),
        ("customer.deleted", Kind::CustomerDeleted),
        ("charge.dispute.created", Kind::DisputeChanged),
        ("charge.dispute.closed", Kind::DisputeChanged),
        ("price.updated", Kind::Other),
        ("something.of.next.year", Kind::Other),
    ] {
        let event = event(&stripe(name, 1, json!({"id": "x"})));
        assert_eq!(event.kind(), kind, "{name}");
        assert_eq!(
            event.object() == &BillingObject::Unknown,
            kind == Kind::Other,
            "{name}"
        );
        assert_eq!(event.raw()["type"], name);
    }
    let unpaid = but(checkout(1), "payment_status", "unpaid".into());
    assert_eq!(event(&unpaid).kind(), Kind::CheckoutNotPaid);
}

#[test]
fn each_status_is_known_and_another_is_told_apart() {
    for (text, status) in [
        ("trialing", SubscriptionStatus::Trialing),
        ("active", SubscriptionStatus::Active),
        ("incomplete", SubscriptionStatus::Incomplete),
        ("incomplete_expired", SubscriptionStatus::IncompleteExpired),
        ("past_due", SubscriptionStatus::PastDue),
        ("unpaid", SubscriptionStatus::Unpaid),
        ("paused", SubscriptionStatus::Paused),
        ("canceled", SubscriptionStatus::Canceled),
        ("frozen", SubscriptionStatus::Unknown),
    ] {
        let event = event(&subscription("updated", 1, text, "price_pro"));
        match event.object() {
            BillingObject::Subscription(subscription) => assert_eq!(subscription.status, status),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_event_without_what_every_event_has_names_the_field() {
    let good = invoice("paid", 1);
    assert!(read(&good).is_ok());
    for field in ["id", "type", "created", "livemode"] {
        let mut without = good.clone();
        without.as_object_mut().unwrap().remove(field);
        let error = read(&without).unwrap_err();
        assert!(
            matches!(error, EventError::MissingField { .. }),
            "{error:?}"
        );
        assert_eq!(error.field(), Some(field));
        for wrong in [
            json!(null),
            json!([]),
            json!(-1.5),
            json!(""),
            json!("a b\n"),
        ] {
            let mut wrongly = good.clone();
            wrongly[field] = wrong;
            let error = read(&wrongly).unwrap_err();
            assert_eq!(error.field(), Some(field), "{error:?}");
        }
    }
    let mut without = good.clone();
    without["data"] = json!({});
    assert_eq!(read(&without).unwrap_err().field(), Some("data.object"));
    let mut wrongly = good;
    wrongly["data"]["object"] = json!("in_1");
    assert_eq!(read(&wrongly).unwrap_err().field(), Some("data.object"));
    let error = Delivered::from_stripe(br#"{"id":"evt_1","data":{"object":{"x":1,"x":2}}}"#);
    assert_eq!(error.unwrap_err().field(), Some("x"));
}

#[test]
fn a_thin_event_says_what_to_look_up() {
    let body = json!({
        "id": "evt_thin", "object": "v2.core.event", "type": "v1.billing.meter.error_report_triggered",
        "created": "2026-01-15T12:00:00.000Z", "livemode": true,
        "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
    });
    let Delivered::Thin(thin) = read(&body).unwrap() else {
        panic!("a thin event")
    };
    assert_eq!(thin.id(), "evt_thin");
    assert_eq!(thin.created(), at(super::support::START));
    let related = thin.related().unwrap();
    assert_eq!((&*related.id, &*related.kind), ("mtr_1", "billing.meter"));
    assert!(thin.livemode());
}

#[test]
fn events_of_paddle_are_understood() {
    let body = json!({
        "event_id": "evt_01", "event_type": "subscription.updated", "occurred_at": "2026-01-15T12:00:00.5Z",
        "data": {
            "id": "sub_01", "customer_id": "ctm_01", "status": "past_due", "currency_code": "EUR",
            "items": [{"price": {"id": "pri_01", "product_id": "pro_01"}, "quantity": 3}],
            "current_billing_period": {"ends_at": "2026-02-15T12:00:00Z"},
            "scheduled_change": {"action": "cancel", "effective_at": "2026-02-15T12:00:00Z"},
            "custom_data": {"tenant": "acme"},
        },
    });
    let event = paddle(&body);
    assert_eq!(event.kind(), EventKind::SubscriptionChanged);
    assert_eq!(event.livemode(), None);
    let BillingObject::Subscription(subscription) = event.object() else {
        panic!("a subscription")
    };
    assert_eq!(subscription.customer.as_deref(), Some("ctm_01"));
    assert_eq!(subscription.status, SubscriptionStatus::PastDue);
    assert_eq!(subscription.items[0].price.as_deref(), Some("pri_01"));
    assert_eq!(subscription.currency.as_deref(), Some("eur"));
    assert_eq!(subscription.ends_at(), subscription.period_end);
    assert!(subscription.period_end.is_some() && subscription.cancel_at_period_end);

    let transaction = |name: &str, origin: &str| {
        paddle(&json!({
            "event_id": "evt_02", "event_type": name, "occurred_at": "2026-01-15T12:00:00Z",
            "data": {"id": "txn_01", "customer_id": "ctm_01", "subscription_id": "sub_01", "origin": origin,
                "details": {"totals": {"grand_total": "2900"}}, "currency_code": "USD"},
        }))
    };
    let bought = transaction("transaction.completed", "web");
    assert_eq!(bought.kind(), EventKind::CheckoutCompleted);
    let BillingObject::Checkout(checkout) = bought.object() else {
        panic!("a checkout")
    };
    assert_eq!(checkout.id.as_deref(), Some("txn_01"));
    let renewed = transaction("transaction.completed", "subscription_recurring");
    assert_eq!(renewed.kind(), EventKind::InvoicePaid);
    let BillingObject::Invoice(invoice) = renewed.object() else {
        panic!("an invoice")
    };
    assert_eq!(invoice.amount_due, Some(2900));
    assert_eq!(invoice.subscription.as_deref(), Some("sub_01"));
    let failed = transaction("transaction.payment_failed", "subscription_recurring");
    assert_eq!(failed.kind(), EventKind::InvoicePaymentFailed);
    let error = Delivered::from_paddle(br#"{"event_id":"e","event_type":"t","occurred_at":"now"}"#);
    assert_eq!(error.unwrap_err().field(), Some("occurred_at"));
}

#[test]
fn events_of_standard_webhooks_have_the_id_of_their_delivery() {
    let body = json!({
        "type": "subscription.canceled", "timestamp": "2026-01-15T12:00:00Z",
        "data": {"id": "sub_1", "customer_id": "cus_1", "status": "canceled"},
    });
    let body = body.to_string();
    let delivered = Delivered::from_standard_webhooks("msg_1", at(5), body.as_bytes()).unwrap();
    assert_eq!(delivered.id(), "msg_1");
    assert_eq!(delivered.created(), at(super::support::START));
    let Delivered::Event(event) = delivered else {
        panic!("not thin")
    };
    assert_eq!(event.kind(), EventKind::SubscriptionEnded);
    let untimed = br#"{"type":"customer.updated","data":{"id":"cus_1"}}"#;
    let delivered = Delivered::from_standard_webhooks("msg_2", at(5), untimed).unwrap();
    assert_eq!(delivered.created(), at(5));
    // A retry is signed anew, and would seem the newest state of what it is about.
    for name in [
        "checkout.completed",
        "entitlements.active_entitlement_summary.updated",
        "invoice.paid",
        "subscription.updated",
    ] {
        let untimed = json!({"type": name, "timestamp": null, "data": {"customer": "cus_1"}});
        let untimed = untimed.to_string();
        let error = Delivered::from_standard_webhooks("msg_3", at(5), untimed.as_bytes());
        assert_eq!(error.unwrap_err().field(), Some("timestamp"), "{name}");
    }
}

#[test]
fn what_stripe_counts_down_while_it_delivers_is_not_part_of_an_event() {
    let first = invoice("paid", 1);
    let mut again = first.clone();
    again["pending_webhooks"] = json!(0);
    let fingerprint = |body: &Value| read(body).unwrap().fingerprint();
    assert_eq!(fingerprint(&first), fingerprint(&again));
    again["data"]["object"]["amount_due"] = json!(2901);
    assert_ne!(fingerprint(&first), fingerprint(&again));
}

#[test]
fn a_replay_of_paddle_is_the_same_event() {
    let first = json!({
        "event_id": "evt_01", "notification_id": "ntf_01", "event_type": "transaction.paid",
        "occurred_at": "2026-01-15T12:00:00Z", "data": {"id": "txn_01", "notification_id": "a"},
    });
    let fingerprint = |body: &Value| {
        let delivered = Delivered::from_paddle(body.to_string().as_bytes());
        delivered.unwrap().fingerprint()
    };
    let mut again = first.clone();
    again["notification_id"] = json!("ntf_02");
    assert_eq!(fingerprint(&first), fingerprint(&again));
    again["data"]["notification_id"] = json!("b");
    assert_ne!(fingerprint(&first), fingerprint(&again));
}

#[test]
fn what_is_in_an_event_shows_in_no_debug_output() {
    let body = but(
        invoice("paid", 1),
        "customer_email",
        "c4n4ry@example.com".into(),
    );
    assert!(!format!("{:?}", read(&body).unwrap()).contains("c4n4ry"));
}
