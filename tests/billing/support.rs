//! A service with billing, and what a payment provider sends it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tollgate::{
    auth::{KeySecret, MemoryKeyStore},
    billing::{
        AccountStore, BillingEvent, Delivered, MemoryLedger, Notice, NoticeKind, Notifier,
        NotifyError, Provisioner, ProvisionerBuilder,
    },
    clock::{Clock, ManualClock, Timestamp},
    id::TenantId,
    identity::{Keys, Tenants},
    plan::{Plan, PlanCatalog},
    tenant::{AccessState, MemoryTenantStore, Tenant, TenantStore},
};

/// 2026-01-15T12:00:00Z: the clock's own start.
pub(crate) const START: u64 = 1_768_478_400;
pub(crate) const DAY: u64 = 24 * 60 * 60;

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

/// Keeps what people are told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mail {
    pub(crate) letters: Arc<Mutex<Vec<Notice>>>,
    pub(crate) is_down: Arc<AtomicBool>,
}

impl Mail {
    pub(crate) fn kinds(&self) -> Vec<NoticeKind> {
        let letters = self.letters.lock().unwrap();
        letters.iter().map(|notice| notice.kind.clone()).collect()
    }
}

#[async_trait]
impl Notifier for Mail {
    async fn notify(&self, notice: &Notice) -> Result<(), NotifyError> {
        if self.is_down.load(Ordering::Relaxed) {
            return Err(NotifyError::new("no mail today"));
        }
        self.letters.lock().unwrap().push(notice.clone());
        Ok(())
    }
}

/// Three plans, and a provisioner that sells two of them.
pub(crate) struct World {
    pub(crate) clock: ManualClock,
    pub(crate) gate: Gate,
    pub(crate) mail: Mail,
    pub(crate) provisioner: Provisioner,
}

pub(crate) fn secret() -> KeySecret {
    KeySecret::new([7; 32]).unwrap()
}

/// The handles of a gate, without the gate, which is large.
pub(crate) struct Gate {
    keys: Keys,
    tenants: Tenants,
}

impl Gate {
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn tenants(&self) -> &Tenants {
        &self.tenants
    }
}

pub(crate) fn gate(clock: &ManualClock) -> Gate {
    let catalog = PlanCatalog::new(["free", "basic", "pro"].map(Plan::new)).unwrap();
    let tenants: Arc<dyn TenantStore> = Arc::new(MemoryTenantStore::new());
    let keys = Arc::new(MemoryKeyStore::new());
    let clock = Arc::new(clock.clone());
    Gate {
        keys: Keys::new(keys, Arc::clone(&tenants), catalog.clone(), clock),
        tenants: Tenants::new(tenants, catalog),
    }
}

pub(crate) fn seller(
    gate: &Gate,
    accounts: impl AccountStore,
    clock: &ManualClock,
) -> ProvisionerBuilder {
    Provisioner::builder(gate.keys(), gate.tenants(), accounts, secret())
        .price("price_basic", "basic")
        .price("price_pro", "pro")
        .clock(Arc::new(clock.clone()))
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|seller| seller)
    }

    pub(crate) fn with(set: impl FnOnce(ProvisionerBuilder) -> ProvisionerBuilder) -> Self {
        let clock = ManualClock::default();
        let gate = gate(&clock);
        let ledger = MemoryLedger::new();
        let mail = Mail::default();
        let seller = seller(&gate, ledger, &clock).notifier(mail.clone());
        let provisioner = set(seller).build().unwrap();
        Self {
            clock,
            gate,
            mail,
            provisioner,
        }
    }

    pub(crate) async fn tell(&self, body: &Value) {
        self.provisioner.provision(&event(body)).await.unwrap();
    }

    pub(crate) async fn tenant(&self, id: &str) -> Option<Tenant> {
        let id = TenantId::new(id).unwrap();
        self.gate.tenants().find(&id).await.unwrap()
    }

    /// What the customer's tenant may do now, and its plan.
    pub(crate) async fn stands(&self, id: &str) -> (AccessState, String) {
        let tenant = self.tenant(id).await.expect("a tenant");
        let access = tenant.access().at(self.clock.now().wall());
        (access, tenant.plan().to_string())
    }

    pub(crate) async fn n_keys(&self, id: &str) -> usize {
        let id = TenantId::new(id).unwrap();
        self.gate.keys().list(&id).await.unwrap().len()
    }
}

pub(crate) fn event(body: &Value) -> BillingEvent {
    match Delivered::from_stripe(body.to_string().as_bytes()).unwrap() {
        Delivered::Event(event) => event,
        other => panic!("not a thin event: {other:?}"),
    }
}

/// An event of Stripe's; its id follows from what it says.
pub(crate) fn stripe(name: &str, created: u64, object: Value) -> Value {
    let id = object["id"].as_str().unwrap_or("none");
    let mut event = json!({
        "id": format!("evt_{}_{created}_{id}", name.replace('.', "_")),
        "object": "event", "api_version": "2026-10-28.endive", "type": name, "created": created, "livemode": true,
        "pending_webhooks": 1, "request": {"id": null, "idempotency_key": null},
    });
    event["data"] = json!({});
    event["data"]["object"] = object;
    event
}

/// The same event with other contents of one field of its object.
pub(crate) fn but(mut event: Value, field: &str, value: Value) -> Value {
    event["data"]["object"][field] = value;
    event
}

pub(crate) fn subscription(what: &str, created: u64, status: &str, price: &str) -> Value {
    let object = json!({
        "id": "sub_1", "object": "subscription", "customer": "cus_1", "status": status, "currency": "usd",
        "cancel_at_period_end": false, "billing_cycle_anchor": START,
        "items": {"object": "list", "data": [{
            "price": {"id": price, "product": "prod_1"}, "quantity": 1, "current_period_end": START + 30 * DAY,
        }]},
    });
    stripe(&format!("customer.subscription.{what}"), created, object)
}

pub(crate) fn checkout(created: u64) -> Value {
    let object = json!({
        "id": "cs_1", "object": "checkout.session", "customer": "cus_1", "subscription": "sub_1", "mode": "subscription",
        "payment_status": "paid", "currency": "usd", "client_reference_id": "acme",
    });
    stripe("checkout.session.completed", created, object)
}

pub(crate) fn invoice(what: &str, created: u64) -> Value {
    let object = json!({
        "id": "in_1", "object": "invoice", "customer": "cus_1", "currency": "usd", "status": "open", "attempt_count": 1,
        "amount_due": 2900, "hosted_invoice_url": "https://pay.example/in_1",
        "parent": {"subscription_details": {"subscription": "sub_1"}},
    });
    stripe(&format!("invoice.{what}"), created, object)
}
