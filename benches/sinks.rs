//! Usage into its destinations, beside the plainest way to the same place: `cargo bench --bench sinks`, or `-- WORD..`
//! for the rows whose name holds one of the words.
//!
//! Both sides write the same events to the same server in turns, in batches of 1,000 as a recorder offers them, and
//! the plain side has its bytes encoded before the time is taken. A row shows the median of the rounds' rates and of
//! their ratios. The servers are those of the tests: ClickHouse's engine behind a small HTTP face, the mock cluster of
//! the Kafka client, servers of this process for HTTP and for Stripe. So the ratios say what a sink adds, and the rates
//! nothing of a real server.

#[path = "../tests/common/mod.rs"]
#[allow(dead_code, unused_imports, reason = "what the tests use")]
mod common;

use std::{
    collections::HashMap, convert::Infallible, env, future::Future, sync::Arc, time::Instant,
};

use axum::body::Body;
use bytes::Bytes;
use common::{
    clickhouse::{ClickHouseServer, run},
    serve,
    stripe::{SECRET, StripeServer},
};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rdkafka::{
    ClientConfig,
    mocking::MockCluster,
    producer::{DefaultProducerContext, FutureProducer, FutureRecord},
};
use tollgate::{
    clock::{Clock, SystemClock},
    http_send::{HttpSend, ReqwestSend},
    id::{PlanName, TenantId},
    meter::{EventId, UsageEvent},
    sink::{
        ClickHouseSink, CloudEvents, CloudEventsHttpSink, KafkaSink, StripeMeter, StripeMeterSink,
        UsageSink, Verdicts,
    },
};
use tower::service_fn;

const BATCH: u64 = 1_000;
/// Odd, so that there is one median.
const ROUNDS: usize = 15;

/// A batch that was never written before.
fn batch() -> Vec<UsageEvent> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let from = NEXT.fetch_add(BATCH, std::sync::atomic::Ordering::Relaxed);
    let now = SystemClock::new().now().wall();
    let event = |n: u64| {
        let tenant = TenantId::new(format!("tenant-{}", n % 20)).expect("a valid id");
        let mut event = UsageEvent::new(
            EventId::new(1, n),
            now,
            tenant,
            PlanName::new("pro").expect("a valid name"),
        );
        event.route = Arc::from(format!("/v1/route-{}", n % 50));
        event.latency_micros = 1_000 + n % 5_000;
        event.request_id = Some(Arc::from(format!("{n:032x}")));
        event.quantities.insert(Arc::from("tokens"), n % 1_000);
        event
    };
    (from..from + BATCH).map(event).collect()
}

/// Events a second.
async fn rate(writing: impl Future<Output = ()>) -> f64 {
    let started = Instant::now();
    writing.await;
    BATCH as f64 / started.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn accept(sink: &dyn UsageSink, batch: &[UsageEvent]) {
    assert_eq!(
        sink.write(batch).await.expect("verdicts"),
        Verdicts::AllAccepted
    );
}

/// Measures both sides in turns and prints the row.
async fn row(
    (what, against): (&str, &str),
    sink: &dyn UsageSink,
    encode: impl Fn(&[UsageEvent]) -> Vec<Bytes>,
    plain: impl AsyncFn(Vec<Bytes>),
) {
    let wanted: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    if !wanted.is_empty() && !wanted.iter().any(|word| what.contains(word.as_str())) {
        return;
    }
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (own, other) = (batch(), batch());
        let encoded = encode(&other);
        let own = rate(accept(sink, &own)).await;
        let other = rate(plain(encoded)).await;
        // The first round warms up.
        if round > 0 {
            ours.push(own);
            theirs.push(other);
            ratios.push(own / other);
        }
    }
    let (ours, theirs, ratio) = (median(ours), median(theirs), median(ratios));
    println!("| {what} | {against} | {ours:.0} | {theirs:.0} | {ratio:.2} |");
}

/// The columns that have no default of their own, as `JSONEachRow`.
fn json_rows(events: &[UsageEvent]) -> Vec<Bytes> {
    let mut lines = Vec::new();
    for event in events {
        let mut line = serde_json::to_value(event).expect("JSON");
        line["time"] = serde_json::json!(event.time.as_unix_micros().to_string());
        serde_json::to_writer(&mut lines, &line).expect("JSON");
        lines.push(b'\n');
    }
    vec![Bytes::from(lines)]
}

async fn clickhouse_rows() {
    let server = ClickHouseServer::start();
    let builder = ClickHouseSink::builder(&server.url()).expect("a URL");
    let sink = builder
        .database("metering")
        .migrate()
        .connect()
        .await
        .expect("a schema");
    let client = server.client("metering");
    run(&client, "CREATE TABLE plain AS usage_events").await;
    for (what, table) in [
        ("ClickHouse, no aggregates on the plain side", "plain"),
        ("ClickHouse, the same table", "usage_events"),
    ] {
        let statement = format!("INSERT INTO {table} FORMAT JSONEachRow");
        let plain = async |encoded: Vec<Bytes>| {
            let mut insert = client
                .insert_formatted_with(statement.clone())
                .with_setting("input_format_skip_unknown_fields", "1");
            for bytes in encoded {
                insert.send(bytes).await.expect("sent");
            }
            insert.end().await.expect("inserted");
        };
        row(
            (what, "`INSERT .. FORMAT JSONEachRow`, encoded before"),
            &sink,
            json_rows,
            plain,
        )
        .await;
    }
}

async fn kafka_row() {
    let cluster: MockCluster<'_, DefaultProducerContext> =
        MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("usage", 3, 1).expect("a topic");
    let sink = KafkaSink::builder(cluster.bootstrap_servers(), "usage")
        .build()
        .expect("a producer");
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer");
    let encode = |events: &[UsageEvent]| {
        let encoded = events
            .iter()
            .map(|event| serde_json::to_vec(event).expect("JSON").into());
        encoded.collect()
    };
    let plain = async |encoded: Vec<Bytes>| {
        let reports: Vec<_> = encoded
            .iter()
            .map(|payload| {
                let record = FutureRecord::<[u8], [u8]>::to("usage")
                    .payload(payload)
                    .key(&payload[..40]);
                producer
                    .send_result(record)
                    .map_err(|(error, _)| error)
                    .expect("a place")
            })
            .collect();
        for report in reports {
            report.await.expect("a report").expect("delivered");
        }
    };
    row(
        ("Kafka (mock)", "the same producer, encoded before"),
        &sink,
        encode,
        plain,
    )
    .await;
}

/// Takes whatever comes.
async fn take(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let _ = request.into_body().collect().await;
    Ok(Response::new(Body::empty()))
}

async fn cloud_events_row() {
    let server = serve(service_fn(take)).await;
    let url = format!("http://{}/api/v1/events", server.addr);
    let client = ReqwestSend::new().expect("a client");
    let sink = CloudEventsHttpSink::new(client.clone(), &url).expect("a URL");
    let encode = |events: &[UsageEvent]| {
        let body = serde_json::to_vec(&CloudEvents::new().batch(events)).expect("JSON");
        vec![Bytes::from(body)]
    };
    let plain = async |encoded: Vec<Bytes>| {
        for body in encoded {
            let request = Request::post(&url).body(body).expect("a request");
            assert!(
                client
                    .send(request)
                    .await
                    .expect("an answer")
                    .status()
                    .is_success()
            );
        }
    };
    row(
        (
            "CloudEvents over HTTP",
            "one POST by the same client, encoded before",
        ),
        &sink,
        encode,
        plain,
    )
    .await;
}

async fn stripe_row() {
    let stripe = StripeServer::start(SystemClock::shared()).await;
    let client = ReqwestSend::new().expect("a client");
    let tenants = (0..20).map(|n| TenantId::new(format!("tenant-{n}")).expect("a valid id"));
    let customers: HashMap<TenantId, Arc<str>> = tenants
        .map(|tenant| (tenant.clone(), Arc::from(format!("cus_{tenant}"))))
        .collect();
    let sink = StripeMeterSink::builder(client.clone(), SECRET, customers)
        .base_url(stripe.url())
        .meter(StripeMeter::quantity("tokens", "tokens").expect("a name"))
        .build()
        .expect("a sink");
    let encode = |events: &[UsageEvent]| {
        let form = |event: &UsageEvent| {
            let (tenant, id) = (&event.tenant, event.id);
            Bytes::from(format!(
                "event_name=tokens&payload[stripe_customer_id]=cus_{tenant}&payload[value]=1&identifier={id}"
            ))
        };
        events.iter().map(form).collect()
    };
    let url = format!("{}/v1/billing/meter_events", stripe.url());
    let plain = async |encoded: Vec<Bytes>| {
        for form in encoded {
            let request = Request::post(&url).header("authorization", format!("Bearer {SECRET}"));
            let answer = client
                .send(request.body(form).expect("a request"))
                .await
                .expect("an answer");
            assert!(answer.status().is_success(), "{:?}", answer.body());
        }
    };
    row(
        (
            "Stripe (emulator), added up by minute",
            "a call for each event",
        ),
        &sink,
        encode,
        plain,
    )
    .await;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    println!("| sink | beside | events/s | theirs | ratio |\n| --- | --- | --- | --- | --- |");
    clickhouse_rows().await;
    kafka_row().await;
    cloud_events_row().await;
    stripe_row().await;
}
