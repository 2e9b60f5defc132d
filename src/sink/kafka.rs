use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _},
};

use super::{
    SinkError, UsageSink, Verdict, Verdicts,
    isolate::{is_final, unsettled},
};
use crate::{
    error::ConfigError,
    meter::{EventId, UsageEvent},
};

/// The header of each message that holds the event's id.
const ID_HEADER: &str = "tollgate-event-id";
/// Less than a recorder waits for a write, so that every message has its report by then.
const MESSAGE_TIMEOUT_MILLIS: &str = "20000";
/// How many messages may be on their way.
const MAX_IN_FLIGHT: usize = 65_536;
/// The shortest wait for a place among the messages on their way.
const FULL_FOR: Duration = Duration::from_millis(100);

/// What nobody can change without losing events or their order.
const FIXED: &[(&str, &str)] = &[("acks", "all"), ("enable.idempotence", "true")];

/// Where another setting would come in by another name.
const OTHER_NAMES: &[&str] = &["request.required.acks", "transactional.id", "dr_msg_cb"];

/// Writes usage to a Kafka topic: a message for each event, its JSON, under the tenant as key.
///
/// 1. An event is accepted when all in-sync replicas have it (`acks=all`), as the broker's report on each message tells.
/// 2. The producer is idempotent (`enable.idempotence`): a message that the client library sends again, because an
///    answer was lost, stands once in the log, and the messages of a tenant keep their order.
/// 3. An event that is offered again while its message is on its way is not produced again.
/// 4. A message that is larger than the topic takes is rejected, as is one that the broker calls an invalid record. With
///    everything else that goes wrong, the event is offered again.
///
/// A new producer, after a restart or an error that ends the old one, is somebody else to the broker. What had arrived
/// and was not reported by then is produced again, and stands twice. Each message has the event's id in its header
/// `tollgate-event-id`, and in its JSON: **whoever reads the topic counts each id once**. The tenant's key keeps both in
/// one partition, so that a reader can.
///
/// The client library polls in a thread of its own; nothing here blocks the executor.
///
/// ```no_run
/// use std::time::Duration;
///
/// use tollgate::sink::KafkaSink;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sink = KafkaSink::builder("kafka-1:9092,kafka-2:9092", "usage")
///     .set("security.protocol", "ssl")
///     .set("linger.ms", "20")
///     .build()?;
/// // The recorder first, then what is still on its way.
/// sink.flush(Duration::from_secs(5)).await?;
/// # Ok(())
/// # }
/// ```
pub struct KafkaSink {
    config: ClientConfig,
    topic: Box<str>,
    state: Mutex<State>,
}

type Producer = FutureProducer<Log>;

struct State {
    producer: Producer,
    /// What was produced in writes that were cut off.
    cut_off: HashMap<EventId, DeliveryFuture>,
}

/// Settings of a [`KafkaSink`]; made by [`KafkaSink::builder`].
#[must_use]
pub struct KafkaSinkBuilder {
    config: ClientConfig,
    topic: Box<str>,
}

impl fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The settings may hold a password.
        f.debug_struct("KafkaSink")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for KafkaSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSinkBuilder")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

/// Passes on what the client library has to say.
struct Log;

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => tracing::error!(facility, "kafka: {message}"),
            RDKafkaLogLevel::Warning => tracing::warn!(facility, "kafka: {message}"),
            _ => tracing::debug!(facility, "kafka: {message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(error = &error as &dyn std::error::Error, "kafka: {reason}");
    }
}

impl KafkaSinkBuilder {
    /// Sets a property of the client library, by the name that librdkafka's `CONFIGURATION.md` lists: security, batching,
    /// timeouts. `message.timeout.ms` is 20,000 unless set; keep it below the recorder's write timeout.
    ///
    /// Idempotence and `acks` are fixed, and [`build`](Self::build) refuses another value for them.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.set(name, value);
        self
    }

    /// Starts the producer. It connects by itself, and again whenever it has to: brokers that cannot be reached are no
    /// error here.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the client library does not know a property or its value, when one would make the producer
    /// lose events or their order, or when the topic has no name.
    pub fn build(mut self) -> Result<KafkaSink, ConfigError> {
        if self.topic.is_empty() {
            return Err(ConfigError::new("topic", "is empty: name the topic"));
        }
        for (name, needed) in FIXED {
            let is_other = |set: &str| set != *needed && !(*name == "acks" && set == "-1");
            if self.config.get(name).is_some_and(is_other) {
                let reason =
                    format!("is `{needed}`, or events would be lost or doubled: leave it out");
                return Err(ConfigError::new(*name, reason));
            }
            self.config.set(*name, *needed);
        }
        if let Some(name) = OTHER_NAMES.iter().find(|it| self.config.get(it).is_some()) {
            return Err(ConfigError::new(*name, "is the sink's own: leave it out"));
        }
        let producer = start(&self.config)?;
        Ok(KafkaSink {
            config: self.config,
            topic: self.topic,
            state: Mutex::new(State {
                producer,
                cut_off: HashMap::new(),
            }),
        })
    }
}

/// Starts a producer. Its errors may quote a password, and are not kept.
fn start(config: &ClientConfig) -> Result<Producer, ConfigError> {
    config
        .create_with_context(Log)
        .map_err(|error| match error {
            KafkaError::ClientConfig(_, reason, name, _) => ConfigError::new(name, reason),
            KafkaError::ClientCreation(reason) => ConfigError::new("kafka", reason),
            _ => ConfigError::new("kafka", "the client library cannot be started"),
        })
}

impl KafkaSink {
    /// A sink for a topic of the brokers with these addresses, comma-separated.
    pub fn builder(brokers: impl Into<String>, topic: impl Into<Box<str>>) -> KafkaSinkBuilder {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("client.id", "tollgate")
            .set("message.timeout.ms", MESSAGE_TIMEOUT_MILLIS)
            .set("queue.buffering.max.messages", MAX_IN_FLIGHT.to_string())
            .set("queue.buffering.max.kbytes", "65536")
            .set_log_level(RDKafkaLogLevel::Warning);
        KafkaSinkBuilder {
            config,
            topic: topic.into(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is on its way, at most so long. Nothing that was accepted is at stake: an event is not
    /// accepted before its message is reported. What is dropped with the sink is what was cut off.
    ///
    /// # Cancel safety
    ///
    /// A dropped future goes on in the background.
    ///
    /// # Errors
    ///
    /// [`SinkError`] when something still is on its way.
    pub async fn flush(&self, deadline: Duration) -> Result<(), SinkError> {
        let producer = self.state().producer.clone();
        // It blocks.
        let flushed = tokio::task::spawn_blocking(move || producer.flush(deadline)).await;
        flushed
            .map_err(SinkError::unavailable)?
            .map_err(SinkError::unavailable)
    }

    /// Takes another producer when the old one has ended, which an idempotent one does when the broker no longer knows
    /// what it has of it.
    fn replace_ended(&self) {
        let mut state = self.state();
        let Some((code, reason)) = state.producer.client().fatal_error() else {
            return;
        };
        tracing::error!(%code, reason, "the Kafka producer has ended: another takes its place, and events may stand twice");
        match start(&self.config) {
            Ok(producer) => {
                let ended = std::mem::replace(&mut state.producer, producer);
                drop(state);
                // It waits for its thread.
                tokio::task::spawn_blocking(move || drop(ended));
            }
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "no other Kafka producer can be started"
            ),
        }
    }
}

/// What is known of one event's message.
enum Message {
    /// Not produced, as there is no place.
    Unsent,
    Sent(EventId, DeliveryFuture),
    Reported(KafkaResult<()>),
}

/// The messages of one write. Cut off, those without a report are kept for the next one.
struct Write<'a> {
    sink: &'a KafkaSink,
    messages: Vec<Message>,
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        let sent = self.messages.drain(..).filter_map(|message| match message {
            Message::Sent(id, report) => Some((id, report)),
            _ => None,
        });
        let mut state = self.sink.state();
        state.cut_off.extend(sent);
        if state.cut_off.len() > MAX_IN_FLIGHT {
            // Of events that nobody offers again. Others that were forgotten would stand twice, and readers can tell.
            state.cut_off.clear();
        }
    }
}

impl<'a> Write<'a> {
    fn start(sink: &'a KafkaSink, batch: &[UsageEvent]) -> Result<Self, SinkError> {
        let producer = sink.state().producer.clone();
        let mut write = Self {
            sink,
            messages: Vec::with_capacity(batch.len()),
        };
        let mut is_full = false;
        for event in batch {
            let known = sink.state().cut_off.remove(&event.id);
            let message = match known {
                Some(report) => Message::Sent(event.id, report),
                None if is_full => Message::Unsent,
                None => produce(&producer, &sink.topic, event)?,
            };
            is_full = is_full || matches!(message, Message::Unsent);
            write.messages.push(message);
        }
        Ok(write)
    }

    /// Waits for every report.
    async fn reports(&mut self) {
        for message in &mut self.messages {
            if let Message::Sent(_, report) = message {
                let reported = match report.await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err((error, _))) => Err(error),
                    Err(_) => Err(KafkaError::Canceled),
                };
                *message = Message::Reported(reported);
            }
        }
    }
}

/// Hands a message to the client library, which sends it by itself.
fn produce(producer: &Producer, topic: &str, event: &UsageEvent) -> Result<Message, SinkError> {
    let payload = serde_json::to_vec(event).map_err(SinkError::unavailable)?;
    let id = event.id.to_string();
    let header = Header {
        key: ID_HEADER,
        value: Some(&id),
    };
    let record = FutureRecord::to(topic)
        .key(event.tenant.as_str())
        .payload(&payload)
        .headers(OwnedHeaders::new_with_capacity(1).insert(header));
    Ok(match producer.send_result(record) {
        Ok(report) => Message::Sent(event.id, report),
        Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Message::Unsent,
        Err((error, _)) => Message::Reported(Err(error)),
    })
}

/// Why an event can never be written; nothing where it can be tried again.
const fn fault_of_event(error: &KafkaError) -> Option<&'static str> {
    match error {
        KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge) => {
            Some("message_too_large")
        }
        KafkaError::MessageProduction(RDKafkaErrorCode::InvalidRecord) => Some("invalid_record"),
        _ => None,
    }
}

#[async_trait]
impl UsageSink for KafkaSink {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let mut write = Write::start(self, batch)?;
        write.reports().await;
        let mut verdicts = unsettled(batch.len());
        let mut failure = None;
        for (message, verdict) in write.messages.drain(..).zip(&mut verdicts) {
            match message {
                Message::Reported(Ok(())) => *verdict = Verdict::Accepted,
                Message::Reported(Err(error)) => match fault_of_event(&error) {
                    Some(reason) => *verdict = Verdict::Rejected { reason },
                    None => failure = Some(error),
                },
                Message::Unsent | Message::Sent(..) => {
                    *verdict = Verdict::Retry { after: FULL_FOR }
                }
            }
        }
        drop(write);
        if failure.is_some() {
            self.replace_ended();
        }
        match failure {
            Some(error) if !verdicts.iter().any(is_final) => Err(SinkError::unavailable(error)),
            Some(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "not every message reached Kafka: the others will be offered again"
                );
                Ok(Verdicts::Each(verdicts))
            }
            None if verdicts.iter().all(|it| *it == Verdict::Accepted) => Ok(Verdicts::AllAccepted),
            None => Ok(Verdicts::Each(verdicts)),
        }
    }
}
