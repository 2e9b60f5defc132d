//! Inputs that nobody meant, for everything that reads what a stranger sends to the billing endpoint.
//!
//! `cargo bench --bench fuzz_billing -- [SECONDS]` changes real headers and events at random, for so long at each of its
//! targets (10 unless said), and prints how many it tried and how many of them made a panic. It ends with 1 if one did, or
//! if a delivery was accepted that differs from what was signed; the seed it prints runs the same again as `SEED=n`.
//!
//! 1. `headers`: the three signature schemes, with the header or the body changed.
//! 2. `events`: the readers of the three providers' events, and the digest of what they say.
//! 3. `provisioner`: what is read as an event, given to a provisioner.

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use tollgate::{
    Tollgate,
    auth::KeySecret,
    billing::{
        Delivered, MemoryLedger, PaddleSignature, Provisioner, StandardWebhooksSignature,
        StripeSignature,
    },
    clock::Timestamp,
    plan::Plan,
};

const NOW: Timestamp = Timestamp::from_unix_seconds(1_763_769_600);

const EVENTS: &[&str] = &[
    r#"{"id":"evt_1","object":"event","api_version":"2026-10-28.endive","created":1763769590,"livemode":true,"pending_webhooks":1,"type":"customer.subscription.updated","data":{"object":{"id":"sub_1","customer":"cus_1","status":"active","currency":"usd","cancel_at_period_end":true,"billing_cycle_anchor":1763769590,"items":{"data":[{"price":{"id":"price_pro","product":"prod_1","lookup_key":"pro"},"quantity":2,"current_period_end":1766361590}]},"metadata":{"a":"b"}},"previous_attributes":{"status":"past_due"}}}"#,
    r#"{"id":"evt_2","created":1763769591,"livemode":true,"type":"checkout.session.completed","data":{"object":{"id":"cs_1","customer":{"id":"cus_1"},"subscription":"sub_1","mode":"subscription","payment_status":"paid","client_reference_id":"acme"}}}"#,
    r#"{"id":"evt_3","created":1763769592,"livemode":true,"type":"invoice.payment_failed","data":{"object":{"id":"in_1","customer":"cus_1","parent":{"subscription_details":{"subscription":"sub_1"}},"attempt_count":1,"next_payment_attempt":1763869592,"amount_due":2900,"lines":{"data":[{"pricing":{"price_details":{"price":"price_pro"}}}]},"hosted_invoice_url":"https://pay.example/1"}}}"#,
    r#"{"id":"evt_4","created":1763769593,"livemode":true,"type":"entitlements.active_entitlement_summary.updated","data":{"object":{"customer":"cus_1","entitlements":{"data":[{"lookup_key":"pro"}],"has_more":false}}}}"#,
    r#"{"id":"evt_5","object":"v2.core.event","created":"2026-01-15T12:00:00.000Z","livemode":false,"type":"v1.billing.meter.no_meter_found","related_object":{"id":"m","type":"billing.meter","url":"/v1"}}"#,
    r#"{"event_id":"evt_6","event_type":"subscription.canceled","occurred_at":"2026-01-15T12:00:00.5Z","data":{"id":"sub_1","customer_id":"cus_1","status":"canceled","items":[{"price":{"id":"price_pro","product_id":"p"}}],"current_billing_period":{"ends_at":"2026-02-15T12:00:00Z"},"scheduled_change":{"action":"cancel","effective_at":"2026-02-15T12:00:00Z"}}}"#,
    r#"{"event_id":"evt_7","event_type":"transaction.completed","occurred_at":"2026-01-15T12:00:00Z","data":{"id":"txn_1","origin":"web","customer_id":"cus_1","subscription_id":"sub_1","details":{"totals":{"grand_total":"2900"}}}}"#,
    r#"{"type":"invoice.paid","timestamp":"2025-11-21T23:59:50.000000Z","data":{"customer":"cus_1","id":"in_1"}}"#,
];

/// What is put in at random.
const PIECES: &[&str] = &[
    "null",
    "true",
    "-1",
    "1e999",
    "18446744073709551616",
    "253402300800",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\"",
    "[[[[[[[[",
    "{\"a\":",
    "\"id\":\"x\",",
    "\"customer\":null,",
    "t=1,",
    "v1=",
    "v1,",
    "ts=",
    "h1=",
    ";",
    "=",
    " ",
    "\u{e9}",
    "\"9999-12-31T23:59:59Z\"",
    "\"-009999-01-02T00:00:00Z\"",
    "price_basic",
    "canceled",
    "unpaid",
    "past_due",
    "deleted",
    "created",
    "paid",
    "cus_2",
    "sub_2",
    "cs_2",
];

/// A generator of numbers that are random enough (xorshift64*), and the same again for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % n.max(1)
    }

    /// Changes bytes here and there, one time in eight nothing.
    fn change(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..self.below(8) {
            let at = self.below(bytes.len() + 1);
            let end = (at + self.below(24)).min(bytes.len());
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let copy = bytes[at..end].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, copy);
                }
                3 => {
                    let piece = PIECES[self.below(PIECES.len())];
                    bytes.splice(at..end, piece.bytes());
                }
                4 => {
                    let piece = PIECES[self.below(PIECES.len())];
                    bytes.splice(at..at, piece.bytes());
                }
                _ if at < bytes.len() => bytes[at] = u8::try_from(self.below(256)).expect("a byte"),
                _ => {}
            }
        }
        bytes
    }

    fn event(&mut self) -> Vec<u8> {
        let event = EVENTS[self.below(EVENTS.len())];
        self.change(event.as_bytes())
    }
}

struct Schemes {
    stripe: StripeSignature,
    standard: StandardWebhooksSignature,
    paddle: PaddleSignature,
}

impl Schemes {
    fn new() -> Self {
        let secret = "whsec_dG9sbGdhdGUtdGVzdC1zZWNyZXQtb25l";
        Self {
            stripe: StripeSignature::new([secret]).expect("a secret"),
            standard: StandardWebhooksSignature::new([secret])
                .expect("a secret")
                .svix_names(true),
            paddle: PaddleSignature::new([secret]).expect("a secret"),
        }
    }

    /// Whether a delivery whose header or body was changed is accepted although it is another one.
    fn forged(&self, random: &mut Random) -> bool {
        let body = EVENTS[random.below(EVENTS.len())].as_bytes();
        let scheme = random.below(3);
        let signed = match scheme {
            0 => one("stripe-signature", self.stripe.sign(body, NOW).as_bytes()),
            1 => Some(self.standard.sign("msg_1", body, NOW)),
            _ => one("paddle-signature", self.paddle.sign(body, NOW).as_bytes()),
        };
        let Some(mut headers) = signed else {
            return false;
        };
        let mut other = body.to_vec();
        if random.below(2) == 0 {
            other = random.change(body);
        } else {
            for value in headers.values_mut() {
                if let Ok(changed) = HeaderValue::from_bytes(&random.change(value.as_bytes())) {
                    *value = changed;
                }
            }
        }
        let accepted = match scheme {
            0 => self.stripe.verify(&headers, &other, NOW).is_ok(),
            1 => self.standard.verify(&headers, &other, NOW).is_ok(),
            _ => self.paddle.verify(&headers, &other, NOW).is_ok(),
        };
        // A header may gain what is ignored; a body may not change at all.
        accepted && other != body
    }
}

fn one(name: &'static str, value: &[u8]) -> Option<HeaderMap> {
    let value = HeaderValue::from_bytes(value).ok()?;
    Some(HeaderMap::from_iter([(
        HeaderName::from_static(name),
        value,
    )]))
}

fn read(body: &[u8]) -> [Option<Delivered>; 3] {
    [
        Delivered::from_stripe(body).ok(),
        Delivered::from_paddle(body).ok(),
        Delivered::from_standard_webhooks("msg_1", NOW, body).ok(),
    ]
}

struct Service {
    provisioner: Provisioner,
    runtime: tokio::runtime::Runtime,
}

impl Service {
    fn new() -> Self {
        let gate = Tollgate::builder()
            .plans([Plan::new("basic"), Plan::new("pro")])
            .build();
        let gate = gate.expect("a gate");
        let secret = KeySecret::new([7; 32]).expect("a secret");
        let accounts = Arc::new(MemoryLedger::new());
        let provisioner = Provisioner::builder(gate.keys(), gate.tenants(), accounts, secret)
            .price("price_basic", "basic")
            .price("price_pro", "pro")
            .build();
        Self {
            provisioner: provisioner.expect("a provisioner"),
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime"),
        }
    }

    fn provision(&self, body: &[u8]) {
        for delivered in read(body).into_iter().flatten() {
            if let Delivered::Event(event) = delivered {
                let _ = self.runtime.block_on(self.provisioner.provision(&event));
            }
        }
    }
}

/// Tries for so long; answers how many cases there were, how many made a panic, and how many forgeries were accepted.
fn run(time: Duration, random: &mut Random, mut case: impl FnMut(&mut Random) -> bool) -> [u64; 3] {
    let end = Instant::now() + time;
    let mut counts = [0; 3];
    while Instant::now() < end {
        for _ in 0..64 {
            counts[0] += 1;
            match catch_unwind(AssertUnwindSafe(|| case(random))) {
                Ok(accepted) => counts[2] += u64::from(accepted),
                Err(_) => counts[1] += 1,
            }
        }
    }
    counts
}

fn main() -> ExitCode {
    let seconds = env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(10));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let micros = now.map_or(1, |since| since.as_micros());
    let seed = env::var("SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed
        .unwrap_or_else(|| u64::try_from(micros).unwrap_or(1))
        .max(1);
    let mut random = Random(seed);
    let (schemes, service) = (Schemes::new(), Service::new());
    println!("seed={seed}");
    println!("| target | cases | crashes | forgeries accepted |");
    println!("| --- | ---: | ---: | ---: |");
    let mut sum = [0; 3];
    let mut print = |name: &str, counts: [u64; 3]| {
        println!("| {name} | {} | {} | {} |", counts[0], counts[1], counts[2]);
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum += count;
        }
    };
    print(
        "headers",
        run(time, &mut random, |random| schemes.forged(random)),
    );
    print(
        "events",
        run(time, &mut random, |random| {
            let body = random.event();
            read(&body).iter().flatten().for_each(|delivered| {
                std::hint::black_box(delivered.fingerprint());
            });
            false
        }),
    );
    print(
        "provisioner",
        run(time, &mut random, |random| {
            service.provision(&random.event());
            false
        }),
    );
    println!(
        "fuzz cases={} crashes={} forged_accepted={}",
        sum[0], sum[1], sum[2]
    );
    if sum[1] == 0 && sum[2] == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
