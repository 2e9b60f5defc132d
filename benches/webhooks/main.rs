//! A payment provider's deliveries, twice each, out of order, some of them forged, to processes that are killed.
//!
//! `cargo bench --bench webhooks -- [DELIVERIES]` (20,000 unless said) lets customers live five events each and delivers
//! every event twice, shuffled within a window, to two processes that share one Redis of the bench's own. Every few hundred
//! deliveries one of the processes is killed (SIGKILL) in the middle of its work; what it had not answered is delivered
//! again, as a provider does. At the end it compares all tenants and keys with what the events say, and prints:
//!
//! - `keys_per_checkout`: the fewest and most keys that a checkout has;
//! - `wrong`: tenants that are not as their events say;
//! - `handled`: the fewest and most times that a handler of one's own has seen an event;
//! - `forged`: forgeries that were sent and accepted.

#[allow(dead_code, unused_imports, reason = "shared with the tests")]
#[path = "../../tests/common/mod.rs"]
mod common;
mod stores;

use std::{
    collections::{BTreeMap, VecDeque},
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader as AsyncReader};
use tollgate::{
    auth::{KeyRecord, KeySecret, KeyStore},
    billing::{Provisioner, RedisLedger, StripeSignature, WebhookService},
    clock::{ManualClock, SystemClock, Timestamp},
    id::TenantId,
    identity::{Keys, Tenants},
    plan::{Plan, PlanCatalog},
    redis_support::RedisConnector,
    tenant::{AccessState, TenantRecord, TenantStore},
};
use tower::ServiceExt as _;

use common::redis::RedisServer;
use stores::Far;

const SECRET: &str = "whsec_tollgate_test_secret_one";
const START: u64 = 1_768_478_400;
const EVENTS_OF_A_LIFE: u64 = 5;
const WINDOW: usize = 400;
const IN_FLIGHT: usize = 32;
const DELIVERIES_BETWEEN_KILLS: usize = 500;
const PATIENCE: Duration = Duration::from_secs(5);

async fn service(url: &str) -> WebhookService {
    let connector = RedisConnector::single(url).expect("a URL");
    let connector = connector
        .connect_timeout(PATIENCE)
        .response_timeout(PATIENCE);
    let ledger = Arc::new(RedisLedger::connect(connector).await.expect("a ledger"));
    let client = redis::Client::open(url).expect("a URL");
    let far = Far(client
        .get_multiplexed_async_connection()
        .await
        .expect("a connection"));
    let catalog = PlanCatalog::new([Plan::new("basic"), Plan::new("pro")]).expect("plans");
    let (keys, tenants): (Arc<dyn KeyStore>, Arc<dyn TenantStore>) =
        (Arc::new(far.clone()), Arc::new(far.clone()));
    let keys = Keys::new(
        keys,
        Arc::clone(&tenants),
        catalog.clone(),
        SystemClock::shared(),
    );
    let tenants = Tenants::new(tenants, catalog);
    let secret = KeySecret::new([7; 32]).expect("a secret");
    let clock = ManualClock::default();
    let provisioner = Provisioner::builder(&keys, &tenants, Arc::clone(&ledger), secret)
        .price("price_basic", "basic")
        .price("price_pro", "pro")
        .clock(Arc::new(clock.clone()))
        .build()
        .expect("a provisioner");
    WebhookService::builder(StripeSignature::new([SECRET]).expect("a secret"))
        .ledger(ledger)
        .handler(provisioner)
        .handler(far)
        .clock(Arc::new(clock))
        .handler_deadline(Duration::from_millis(1_500))
        .lease(Duration::from_secs(2))
        .max_attempts(1_000)
        .build()
        .expect("a service")
}

/// One of the processes: a number, a header and a body in each line, and a number and a status for each answer.
#[tokio::main(flavor = "current_thread")]
async fn work(url: &str) {
    let service = service(url).await;
    let mut lines = AsyncReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut parts = line.splitn(3, '\t').map(str::to_owned);
        let (Some(number), Some(header), Some(body)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let service = service.clone();
        tokio::spawn(async move {
            let request = http::Request::post("/")
                .header("stripe-signature", header)
                .body(body);
            let answer = service.oneshot(request.expect("a request")).await;
            let status = answer.map_or(0, |answer| answer.status().as_u16());
            println!("{number} {status}");
        });
    }
}

struct Worker {
    child: Child,
    input: ChildStdin,
    /// What it has not answered.
    open: BTreeMap<usize, usize>,
}

impl Worker {
    fn start(url: &str, number: usize, answers: &mpsc::Sender<(usize, usize, u16)>) -> Self {
        let mut child = Command::new(env::current_exe().expect("a program"))
            .env("TOLLGATE_BENCH_WORKER", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let answers = answers.clone();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let mut words = line.split(' ');
                let read = words.next().and_then(|word| word.parse().ok());
                let status = words.next().and_then(|word| word.parse().ok());
                if let (Some(delivery), Some(status)) = (read, status) {
                    let _ = answers.send((number, delivery, status));
                }
            }
        });
        Self {
            child,
            input,
            open: BTreeMap::new(),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn life(customer: u64) -> Vec<Value> {
    let (sub, cus) = (format!("sub_{customer}"), format!("cus_{customer}"));
    let event = |n: u64, name: &str, object: Value| json!({"id": format!("evt_{customer}_{n}"), "type": name, "created": START + n, "livemode": true, "data": {"object": object}});
    let subscription = |price: &str| json!({"id": sub, "customer": cus, "status": "active", "items": {"data": [{"price": {"id": price}}]}});
    let invoice = json!({"id": "in", "customer": cus, "subscription": sub});
    let checkout = json!({"id": format!("cs_{customer}"), "customer": cus, "subscription": sub, "mode": "subscription"});
    let mut life = vec![
        event(
            0,
            "customer.subscription.created",
            subscription("price_basic"),
        ),
        event(1, "checkout.session.completed", checkout),
        event(
            2,
            "customer.subscription.updated",
            subscription("price_pro"),
        ),
        event(3, "invoice.payment_failed", invoice.clone()),
    ];
    // Every other one pays in the end.
    if customer.is_multiple_of(2) {
        life.push(event(4, "invoice.paid", invoice));
    } else {
        life.push(event(4, "invoice.finalized", invoice));
    }
    life
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % n.max(1)
    }
}

/// Every event twice, shuffled within a window.
fn deliveries(n_customers: u64, random: &mut Random) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for customer in 0..n_customers {
        for event in life(customer) {
            all.extend([event.to_string(), event.to_string()]);
        }
    }
    for place in 0..all.len() {
        let other = (place + random.below(WINDOW)).min(all.len() - 1);
        all.swap(place, other);
    }
    all
}

struct Outcome {
    n_kills: usize,
    n_sent: usize,
    n_forged: usize,
    n_forged_accepted: usize,
}

fn drive(url: &str, bodies: &[String], random: &mut Random) -> Outcome {
    let signature = StripeSignature::new([SECRET]).expect("a secret");
    let headers: Vec<_> = bodies
        .iter()
        .map(|body| signature.sign(body.as_bytes(), Timestamp::from_unix_seconds(START)))
        .collect();
    let (sender, answers) = mpsc::channel();
    let mut workers = [0, 1].map(|number| Worker::start(url, number, &sender));
    let mut waiting: VecDeque<usize> = (0..bodies.len()).collect();
    let mut outcome = Outcome {
        n_kills: 0,
        n_sent: 0,
        n_forged: 0,
        n_forged_accepted: 0,
    };
    // A forged delivery has a number beyond all others.
    let mut left = bodies.len();
    let mut until_kill = DELIVERIES_BETWEEN_KILLS;
    while left > 0 {
        for worker in &mut workers {
            while worker.open.len() < IN_FLIGHT
                && let Some(delivery) = waiting.pop_front()
            {
                let (header, body) = (&headers[delivery], &bodies[delivery]);
                let _ = writeln!(worker.input, "{delivery}\t{header}\t{body}");
                worker.open.insert(delivery, delivery);
                outcome.n_sent += 1;
                if outcome.n_sent.is_multiple_of(100) {
                    let forged = body
                        .replacen("price_basic", "price_pro", 1)
                        .replacen("\"cus_", "\"cus_x", 1);
                    let _ = writeln!(
                        worker.input,
                        "{}\t{header}\t{forged}",
                        delivery + bodies.len()
                    );
                    outcome.n_forged += 1;
                }
                until_kill = until_kill.saturating_sub(1);
            }
        }
        if until_kill == 0 {
            until_kill = DELIVERIES_BETWEEN_KILLS + random.below(DELIVERIES_BETWEEN_KILLS);
            let number = random.below(2);
            let killed =
                std::mem::replace(&mut workers[number], Worker::start(url, number, &sender));
            waiting.extend(killed.open.keys().copied());
            outcome.n_kills += 1;
            continue;
        }
        let Ok((number, delivery, status)) = answers.recv_timeout(Duration::from_secs(30)) else {
            panic!("no answer within 30 seconds");
        };
        if delivery >= bodies.len() {
            outcome.n_forged_accepted += usize::from(status == 200);
        } else if workers[number].open.remove(&delivery).is_some() {
            // An answer that a killed process gave at last is none: its delivery is sent again.
            if status == 200 {
                left -= 1;
            } else {
                waiting.push_back(delivery);
            }
        }
    }
    outcome
}

fn main() -> ExitCode {
    if let Ok(url) = env::var("TOLLGATE_BENCH_WORKER") {
        work(&url);
        return ExitCode::SUCCESS;
    }
    let n: u64 = env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(20_000);
    let n_customers = (n / (2 * EVENTS_OF_A_LIFE)).max(1);
    let server = RedisServer::start();
    let mut random = Random(n);
    let bodies = deliveries(n_customers, &mut random);
    let start = Instant::now();
    let outcome = drive(&server.url(), &bodies, &mut random);
    let seconds = start.elapsed().as_secs_f64();

    let tenants: BTreeMap<String, String> = server.query(&["HGETALL", "tenants"]);
    let keys: BTreeMap<String, String> = server.query(&["HGETALL", "keys"]);
    let seen: BTreeMap<String, u64> = server.query(&["HGETALL", "seen"]);
    let mut by_tenant: BTreeMap<TenantId, u64> = BTreeMap::new();
    for text in keys.values() {
        let record: KeyRecord = serde_json::from_str(text).expect("a key");
        *by_tenant.entry(record.tenant).or_default() += 1;
    }
    let mut wrong = tenants
        .len()
        .abs_diff(usize::try_from(n_customers).expect("a small number"));
    for text in tenants.values() {
        let record: TenantRecord = serde_json::from_str(text).expect("a tenant");
        let customer: u64 = record
            .id
            .as_str()
            .trim_start_matches("cus_")
            .parse()
            .unwrap_or(u64::MAX);
        let pays = customer.is_multiple_of(2);
        let access = match record.access {
            AccessState::Active => pays,
            AccessState::Grace { until, .. } => {
                !pays && until.as_unix_seconds() == START + 3 + 7 * 86_400
            }
            _ => false,
        };
        wrong += usize::from(!access || record.plan.as_str() != "pro");
    }
    let of_checkouts = (0..n_customers).map(|customer| {
        let id = TenantId::new(format!("cus_{customer}")).expect("an id");
        by_tenant.get(&id).copied().unwrap_or(0)
    });
    let (fewest, most) =
        of_checkouts.fold((u64::MAX, 0), |(low, high), n| (low.min(n), high.max(n)));
    let n_events = usize::try_from(n_customers * EVENTS_OF_A_LIFE).expect("a small number");
    let least_seen = if seen.len() == n_events {
        seen.values().copied().min().unwrap_or(0)
    } else {
        0
    };
    println!(
        "webhooks deliveries={} sent={} kills={} checkouts={n_customers} keys_per_checkout={fewest}..{most} wrong={wrong} \
         handled={least_seen}..{} forged={} forged_accepted={} seconds={seconds:.0}",
        bodies.len(),
        outcome.n_sent,
        outcome.n_kills,
        seen.values().copied().max().unwrap_or(0),
        outcome.n_forged,
        outcome.n_forged_accepted,
    );
    let is_right =
        (fewest, most, wrong, outcome.n_forged_accepted) == (1, 1, 0, 0) && least_seen >= 1;
    if is_right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
