//! Where usage goes.
//!
//! A [`UsageSink`] takes a batch of events and says of each what became of it. The recorder offers an event
//! until the sink has accepted or rejected it, so a sink must write an event that it gets twice once: the event
//! id tells. Sinks compose: [`FanOut`] writes to several, [`Filter`] to one that wants some of the events only.
//!
//! Sinks on servers are each behind their feature: Redis Streams and counters, PostgreSQL with totals, ClickHouse, Kafka,
//! CloudEvents over HTTP and Stripe's meters; the guide's page on [sinks](crate::guide::sinks) says what each promises
//! and for how long.
//!
//! ```
//! use tollgate::{
//!     clock::Timestamp,
//!     id::{Environment, PlanName, TenantId},
//!     meter::{EventId, UsageEvent},
//!     sink::{FanOut, Filter, LogSink, MemorySink, UsageSink, Verdict, Verdicts},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let billed = MemorySink::new();
//! let live_only = |event: &UsageEvent| event.environment == Environment::Live;
//! let sink = FanOut::new().with(LogSink::new()).with(Filter::new(billed.clone(), live_only));
//!
//! let time = Timestamp::from_unix_seconds(1_768_478_400);
//! let live = UsageEvent::new(EventId::new(1, 1), time, TenantId::new("acme")?, PlanName::new("pro")?);
//! let mut test = UsageEvent::new(EventId::new(1, 2), time, TenantId::new("acme")?, PlanName::new("pro")?);
//! test.environment = Environment::Test;
//!
//! let verdicts = sink.write(&[live, test]).await?;
//! assert_eq!(verdicts, Verdicts::Each(vec![Verdict::Accepted, Verdict::Accepted]));
//! assert_eq!(billed.len(), 1);
//! # Ok(())
//! # }
//! ```

mod address;
mod answer;
mod batch_id;
#[cfg(feature = "clickhouse")]
mod click_house;
mod cloud_events;
mod cloud_events_http;
mod fan_out;
mod filter;
mod isolate;
#[cfg(feature = "kafka")]
mod kafka;
mod log;
mod memory;
mod offer;
#[cfg(all(feature = "postgres", feature = "usage"))]
mod postgres;
#[cfg(feature = "redis")]
mod redis_counter;
#[cfg(feature = "redis")]
mod redis_stream;
#[cfg(feature = "stripe")]
mod stripe_meter;
mod usage_sink;

#[cfg(feature = "clickhouse")]
#[cfg_attr(docsrs, doc(cfg(feature = "clickhouse")))]
pub use self::click_house::{ClickHouseSink, ClickHouseSinkBuilder, ClickHouseStartError};
#[cfg(feature = "kafka")]
#[cfg_attr(docsrs, doc(cfg(feature = "kafka")))]
pub use self::kafka::{KafkaSink, KafkaSinkBuilder};
pub(crate) use self::offer::offer;
#[cfg(all(feature = "postgres", feature = "redis", feature = "usage"))]
pub(crate) use self::postgres::Position;
#[cfg(all(feature = "postgres", feature = "usage"))]
pub(crate) use self::postgres::{CLOSING_LOCK, COUNTS, SUMS, unavailable};
#[cfg(all(feature = "postgres", feature = "usage"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "postgres", feature = "usage"))))]
pub use self::postgres::{PostgresSink, PostgresSinkBuilder};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis_counter::{DayCounters, RedisCounterSink, RedisCounters, RedisCountersError};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis_stream::{RedisStreamError, RedisStreamSink, RedisStreamSinkBuilder};
#[cfg(feature = "stripe")]
#[cfg_attr(docsrs, doc(cfg(feature = "stripe")))]
pub use self::stripe_meter::{
    Correction, StripeCustomers, StripeMeter, StripeMeterSink, StripeMeterSinkBuilder,
};
pub use self::{
    batch_id::{BatchId, batch_id},
    cloud_events::{CloudEvent, CloudEventBatch, CloudEvents},
    cloud_events_http::CloudEventsHttpSink,
    fan_out::{FanOut, SinkCounters},
    filter::Filter,
    log::LogSink,
    memory::MemorySink,
    usage_sink::{DeliveryOrder, SinkError, UsageSink, Verdict, Verdicts},
};
