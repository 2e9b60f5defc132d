//! The Kafka sink, on the mock cluster of the client library.
//!
//! There is no Apache Kafka here. The mock speaks the protocol and fails on command, which shows what becomes of each
//! event; it does not append what it fails, so it cannot show that a broker drops what an idempotent producer repeats.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use tollgate::{
    meter::UsageEvent,
    sink::{KafkaSink, KafkaSinkBuilder, UsageSink, Verdict, Verdicts},
};

use super::sample::{NOON, accept, each, event, events, left};

const TOPIC: &str = "usage";
const PARTITIONS: i32 = 3;
const ALL: i32 = -1;

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> Cluster {
    let cluster = MockCluster::new(3).expect("a mock cluster");
    cluster.create_topic(TOPIC, PARTITIONS, 3).expect("a topic");
    cluster
}

fn builder(cluster: &Cluster) -> KafkaSinkBuilder {
    KafkaSink::builder(cluster.bootstrap_servers(), TOPIC)
        .set("message.timeout.ms", "1500")
        .set("reconnect.backoff.max.ms", "100")
        .set("retry.backoff.ms", "20")
}

fn sink(cluster: &Cluster) -> KafkaSink {
    builder(cluster).build().expect("a producer")
}

/// One message of the topic.
#[derive(Debug)]
struct Read {
    partition: i32,
    key: String,
    id: String,
    event: UsageEvent,
}

/// Everything that is in the topic.
fn messages(cluster: &Cluster) -> Vec<Read> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", "reader")
        .create()
        .expect("a consumer");
    let patience = Duration::from_secs(10);
    let mut partitions = TopicPartitionList::new();
    let mut n = 0;
    for partition in 0..PARTITIONS {
        let (low, high) = consumer
            .fetch_watermarks(TOPIC, partition, patience)
            .expect("watermarks");
        n += high - low;
        partitions
            .add_partition_offset(TOPIC, partition, Offset::Beginning)
            .expect("a partition");
    }
    consumer.assign(&partitions).expect("an assignment");
    let (mut messages, deadline) = (Vec::new(), Instant::now() + patience);
    while (messages.len() as i64) < n {
        assert!(
            Instant::now() < deadline,
            "{} of {n} messages",
            messages.len()
        );
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let header = message.headers().expect("headers").get(0);
        assert_eq!(header.key, "tollgate-event-id");
        let text = |bytes: Option<&[u8]>| {
            String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("a text")
        };
        messages.push(Read {
            partition: message.partition(),
            key: text(message.key()),
            id: text(header.value),
            event: serde_json::from_slice(message.payload().expect("a payload")).expect("an event"),
        });
    }
    messages
}

#[tokio::test]
async fn an_event_is_one_message_under_its_tenant_with_its_id_in_a_header() {
    let cluster = cluster();
    let sink = sink(&cluster);
    let batch: Vec<_> = (0..300)
        .map(|n| event(n, &format!("tenant-{}", n % 7), NOON))
        .collect();
    accept(&sink, &batch).await;
    sink.flush(Duration::from_secs(5))
        .await
        .expect("nothing on its way");

    let messages = messages(&cluster);
    assert_eq!(messages.len(), 300);
    let mut by_key: BTreeMap<String, (i32, Vec<_>)> = BTreeMap::new();
    for message in messages {
        assert_eq!(message.id, message.event.id.to_string());
        assert_eq!(message.key, message.event.tenant.as_str());
        let (partition, ids) = by_key
            .entry(message.key)
            .or_insert((message.partition, Vec::new()));
        assert_eq!(
            *partition, message.partition,
            "a tenant is in one partition"
        );
        ids.push(message.event.id);
    }
    // And in its order.
    for (tenant, (_, ids)) in by_key {
        assert!(ids.is_sorted(), "{tenant}");
    }
}

#[tokio::test]
async fn brokers_that_are_down_are_no_verdict_and_nothing_is_lost() {
    let cluster = cluster();
    let sink = sink(&cluster);
    accept(&sink, &events(0..10, "acme")).await;
    cluster.broker_down(ALL).expect("down");
    let batch = events(10..40, "acme");
    sink.write(&batch).await.expect_err("no verdict");
    cluster.broker_up(ALL).expect("up");
    let deadline = Instant::now() + Duration::from_secs(10);
    while sink.write(&batch).await.is_err() {
        assert!(Instant::now() < deadline, "the brokers are up again");
    }
    let ids: BTreeSet<_> = messages(&cluster).into_iter().map(|it| it.id).collect();
    assert_eq!(ids.len(), 40);
}

#[tokio::test]
async fn errors_that_pass_are_tried_again_by_the_client_library() {
    let cluster = cluster();
    let sink = builder(&cluster)
        .set("message.timeout.ms", "10000")
        .build()
        .expect("a producer");
    cluster.request_errors(
        RDKafkaApiKey::Produce,
        &[
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        ],
    );
    let batch: Vec<_> = (0..30)
        .map(|n| event(n, &format!("tenant-{n}"), NOON))
        .collect();
    accept(&sink, &batch).await;
    assert_eq!(messages(&cluster).len(), 30);
}

#[tokio::test]
async fn errors_that_stay_are_no_verdict() {
    let cluster = cluster();
    let sink = sink(&cluster);
    let errors = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 1];
    cluster.request_errors(RDKafkaApiKey::Produce, &errors);
    let error = sink
        .write(&events(0..5, "acme"))
        .await
        .expect_err("no right to write");
    let cause = std::error::Error::source(&error).expect("a cause");
    assert!(cause.to_string().contains("authorization"), "{cause}");
    // The client library asks for the topic again before it believes that things have changed.
    let deadline = Instant::now() + Duration::from_secs(10);
    while sink.write(&events(0..5, "acme")).await.is_err() {
        assert!(Instant::now() < deadline, "the right was given");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(messages(&cluster).len(), 5);
}

#[tokio::test]
async fn a_message_that_is_too_large_is_rejected_alone() {
    let cluster = cluster();
    let sink = builder(&cluster)
        .set("message.max.bytes", "10000")
        .build()
        .expect("a producer");
    let mut batch = events(0..5, "acme");
    batch[2].request_id = Some("x".repeat(20_000).into());
    let verdicts = each(sink.write(&batch).await.expect("verdicts"), 5);
    let too_large = Verdict::Rejected {
        reason: "message_too_large",
    };
    for (n, verdict) in verdicts.into_iter().enumerate() {
        assert_eq!(verdict, if n == 2 { too_large } else { Verdict::Accepted });
    }
    // The broker's own bound.
    for (error, reason) in [
        (
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
            "message_too_large",
        ),
        (
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD,
            "invalid_record",
        ),
    ] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
        let verdicts = sink.write(&events(9..10, "acme")).await.expect("verdicts");
        assert_eq!(verdicts, Verdicts::Each(vec![Verdict::Rejected { reason }]));
    }
    assert_eq!(messages(&cluster).len(), 4);
}

#[tokio::test]
async fn a_write_that_was_cut_off_is_not_produced_again() {
    let cluster = cluster();
    let sink = builder(&cluster)
        .set("message.timeout.ms", "10000")
        .build()
        .expect("a producer");
    accept(&sink, &events(0..1, "acme")).await;
    cluster
        .broker_round_trip_time(ALL, Duration::from_millis(500))
        .expect("slow");
    let batch = events(1..50, "acme");
    for _ in 0..3 {
        let cut = tokio::time::timeout(Duration::from_millis(30), sink.write(&batch)).await;
        cut.expect_err("no answer yet");
    }
    sink.flush(Duration::from_millis(1))
        .await
        .expect_err("something is on its way");
    accept(&sink, &batch).await;
    cluster
        .broker_round_trip_time(ALL, Duration::ZERO)
        .expect("fast");
    assert_eq!(messages(&cluster).len(), 50);
}

#[tokio::test]
async fn what_finds_no_place_is_offered_again() {
    let cluster = cluster();
    let sink = builder(&cluster)
        .set("queue.buffering.max.messages", "10")
        .build()
        .expect("a producer");
    let (mut batch, mut n_writes) = (events(0..45, "acme"), 0);
    while !batch.is_empty() {
        let verdicts = each(sink.write(&batch).await.expect("verdicts"), batch.len());
        batch = left(batch, &verdicts);
        n_writes += 1;
        assert!(n_writes <= 45, "each write takes some");
    }
    assert!(n_writes >= 2, "a queue of ten is full at some time");
    assert_eq!(messages(&cluster).len(), 45);
}

#[tokio::test]
async fn a_producer_that_has_ended_is_replaced() {
    let cluster = cluster();
    let sink = sink(&cluster);
    accept(&sink, &events(0..5, "acme")).await;
    // The broker does not know what it has of this producer: to the client library the end of it.
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    let batch = events(5..10, "acme");
    let deadline = Instant::now() + Duration::from_secs(10);
    while sink.write(&batch).await.is_err() {
        assert!(
            Instant::now() < deadline,
            "another producer takes its place"
        );
    }
    let ids: BTreeSet<_> = messages(&cluster).into_iter().map(|it| it.id).collect();
    assert_eq!(ids.len(), 10);
}

#[test]
fn settings_that_lose_or_double_are_refused_and_no_password_shows() {
    let builder = || KafkaSink::builder("127.0.0.1:9", TOPIC);
    for (name, value) in [
        ("acks", "1"),
        ("enable.idempotence", "false"),
        ("request.required.acks", "0"),
        ("transactional.id", "x"),
        ("no.such.property", "1"),
        ("linger.ms", "soon"),
    ] {
        let error = builder().set(name, value).build().expect_err(name);
        assert_eq!(error.path(), name);
    }
    assert_eq!(
        KafkaSink::builder("127.0.0.1:9", "")
            .build()
            .expect_err("no topic")
            .path(),
        "topic"
    );
    let with_password = builder()
        .set("sasl.password", "hunter2")
        .set("sasl.mechanism", "NONE");
    assert!(!format!("{with_password:?}").contains("hunter2"));
    if let Err(error) = with_password.build() {
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    builder()
        .set("acks", "-1")
        .build()
        .expect("the same as all");
}
