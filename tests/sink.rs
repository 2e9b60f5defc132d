//! Where usage goes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tollgate::{
    clock::Timestamp,
    id::{Environment, PlanName, TenantId},
    meter::{EventId, UsageEvent},
    sink::{FanOut, Filter, LogSink, MemorySink, SinkError, UsageSink, Verdict, Verdicts},
};

fn event(tenant: &str, number: u64) -> UsageEvent {
    UsageEvent::new(
        EventId::new(1, number),
        Timestamp::from_unix_seconds(1_768_478_400),
        TenantId::new(tenant).expect("an id"),
        PlanName::new("free").expect("a name"),
    )
}

fn batch(numbers: impl IntoIterator<Item = u64>) -> Vec<UsageEvent> {
    numbers
        .into_iter()
        .map(|number| event("acme", number))
        .collect()
}

fn numbers(sink: &MemorySink) -> Vec<u64> {
    sink.events()
        .iter()
        .map(|event| event.id.as_u128() as u64)
        .collect()
}

async fn write(sink: &impl UsageSink, batch: &[UsageEvent]) -> Vec<Verdict> {
    match sink.write(batch).await.expect("verdicts") {
        Verdicts::Each(verdicts) => {
            assert_eq!(verdicts.len(), batch.len());
            verdicts
        }
        _ => vec![Verdict::Accepted; batch.len()],
    }
}

/// A sink that follows a script, then writes to memory.
#[derive(Debug, Clone, Default)]
struct Scripted {
    script: Arc<Mutex<VecDeque<Act>>>,
    memory: MemorySink,
}

#[derive(Debug, Clone, PartialEq)]
enum Act {
    Fail,
    Hang,
    Panic,
    Say(Vec<Verdict>),
}

impl Scripted {
    fn new(script: impl IntoIterator<Item = Act>) -> Self {
        Self {
            script: Arc::new(Mutex::new(script.into_iter().collect())),
            memory: MemorySink::new(),
        }
    }
}

#[async_trait]
impl UsageSink for Scripted {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let act = self.script.lock().unwrap().pop_front();
        match act {
            None => self.memory.write(batch).await,
            Some(Act::Fail) => Err(SinkError::unavailable("out of order")),
            Some(Act::Hang) => std::future::pending().await,
            Some(Act::Panic) => panic!("the sink panicked on purpose"),
            Some(Act::Say(verdicts)) => Ok(Verdicts::Each(verdicts)),
        }
    }
}

const REJECTED: Verdict = Verdict::Rejected { reason: "too_old" };

fn is_retry(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Retry { .. })
}

#[tokio::test]
async fn memory_keeps_each_event_once() {
    let sink = MemorySink::new();
    assert_eq!(
        write(&sink, &batch([1, 2, 1])).await,
        [Verdict::Accepted, Verdict::Accepted, Verdict::Duplicate]
    );
    assert_eq!(
        write(&sink, &batch([2, 3])).await,
        [Verdict::Duplicate, Verdict::Accepted]
    );
    assert_eq!(numbers(&sink), [1, 2, 3]);
    assert_eq!(sink.duplicates(), 2);
}

#[tokio::test]
async fn memory_sums_the_quantities_of_a_tenant() {
    let sink = MemorySink::new();
    let mut events = [event("acme", 1), event("acme", 2), event("other", 3)];
    for (event, n) in events.iter_mut().zip([3, 4, 5]) {
        event.quantities.insert(Arc::from("tokens"), n);
    }
    write(&sink, &events).await;
    let acme = TenantId::new("acme").expect("an id");
    assert_eq!(sink.total(&acme, "tokens"), 7);
    assert_eq!(sink.total(&acme, "images"), 0);
    assert_eq!(sink.of_tenant(&acme), events[..2]);
    events[0].id = EventId::new(1, 4);
    events[0].quantities.insert(Arc::from("tokens"), u64::MAX);
    write(&sink, &events[..1]).await;
    assert_eq!(sink.total(&acme, "tokens"), u64::MAX);
}

#[tokio::test]
async fn bounded_memory_keeps_the_latest() {
    let sink = MemorySink::keeping(2);
    write(&sink, &batch(1..=5)).await;
    assert_eq!(numbers(&sink), [4, 5]);
    assert_eq!(
        write(&sink, &batch([5, 1])).await,
        [Verdict::Duplicate, Verdict::Accepted]
    );
    assert_eq!(numbers(&sink), [5, 1]);
}

#[tokio::test]
async fn the_log_has_one_line_of_json_for_each_event() {
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_writer(lines.clone())
        .finish();
    let events = [event("acme", 1), event("a \"quoted\" tenant", 2)];
    let guard = tracing::subscriber::set_default(subscriber);
    write(&LogSink::new(), &events).await;
    drop(guard);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).expect("a text");
    let read: Vec<UsageEvent> = text
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("json");
            assert_eq!(
                (&line["target"], &line["level"]),
                (&"tollgate::usage".into(), &"INFO".into())
            );
            let message = line["fields"]["message"].as_str().expect("a message");
            serde_json::from_str(message).expect("an event")
        })
        .collect();
    assert_eq!(read, events);
}

#[tokio::test]
async fn a_filter_lets_through_what_its_predicate_chooses() {
    let memory = MemorySink::new();
    let live = Filter::new(memory.clone(), |event: &UsageEvent| {
        event.environment == Environment::Live
    });
    let mut events = batch(1..=4);
    events[1].environment = Environment::Test;
    events[3].environment = Environment::Test;
    assert_eq!(write(&live, &events).await, [Verdict::Accepted; 4]);
    assert_eq!(numbers(&memory), [1, 3]);
    assert_eq!(write(&live, &events[1..2]).await, [Verdict::Accepted]);
    assert_eq!(memory.len(), 2);
}

#[tokio::test]
async fn a_filter_hands_each_verdict_to_its_own_event() {
    let retry = Verdict::Retry {
        after: Duration::from_secs(3),
    };
    // One verdict for two events: the other one is to be offered again.
    let inner = Scripted::new([Act::Say(vec![REJECTED, retry]), Act::Say(vec![REJECTED])]);
    let odd = Filter::new(inner, |event: &UsageEvent| event.id.as_u128() % 2 == 1);
    assert_eq!(
        write(&odd, &batch(1..=4)).await,
        [REJECTED, Verdict::Accepted, retry, Verdict::Accepted]
    );
    let verdicts = write(&odd, &batch(1..=4)).await;
    assert_eq!((verdicts[0], is_retry(&verdicts[2])), (REJECTED, true));
}

#[tokio::test]
async fn a_boxed_or_shared_sink_is_a_sink() {
    let memory = MemorySink::new();
    let boxed: Box<dyn UsageSink> = Box::new(memory.clone());
    let shared: Arc<dyn UsageSink> = Arc::new(memory.clone());
    write(&boxed, &batch([1])).await;
    assert_eq!(write(&shared, &batch([1])).await, [Verdict::Duplicate]);
    assert_eq!(memory.len(), 1);
}

#[tokio::test]
async fn a_fan_out_writes_to_every_sink() {
    let (a, b) = (MemorySink::new(), MemorySink::new());
    let fan_out = FanOut::new().with(a.clone()).with(b.clone());
    assert_eq!(write(&fan_out, &batch(1..=3)).await, [Verdict::Accepted; 3]);
    assert_eq!((numbers(&a), numbers(&b)), (vec![1, 2, 3], vec![1, 2, 3]));
    assert_eq!(write(&fan_out, &batch([3])).await, [Verdict::Duplicate]);
    assert_eq!(
        write(&FanOut::new(), &batch([3])).await,
        [Verdict::Accepted]
    );
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_hangs_or_panics_does_not_stop_the_other() {
    for act in [Act::Fail, Act::Hang, Act::Panic] {
        let good = MemorySink::new();
        let bad = Scripted::new([act.clone(), act.clone()]);
        let fan_out = Arc::new(FanOut::new().with(good.clone()).with(bad.clone()));
        assert!(write(&fan_out, &batch([1, 2])).await.iter().all(is_retry));
        // The bad one rests, so that the next batch does not wait for it.
        let begun = tokio::time::Instant::now();
        assert!(write(&fan_out, &batch([3])).await.iter().all(is_retry));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(numbers(&good), [1, 2, 3], "{act:?}");

        // Offered again while it rests, nobody gets it twice.
        write(&fan_out, &batch([1, 2])).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(write(&fan_out, &batch([1, 2])).await.iter().all(is_retry));
        assert_eq!(fan_out.counters()[1].behind, 3);
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(
            write(&fan_out, &batch([1, 2])).await,
            [Verdict::Accepted; 2]
        );
        assert_eq!(write(&fan_out, &batch([3])).await, [Verdict::Accepted]);
        assert_eq!(numbers(&bad.memory), [1, 2, 3], "{act:?}");
        assert_eq!((good.duplicates(), bad.memory.duplicates()), (0, 0));
        for counters in fan_out.counters() {
            assert_eq!(
                (counters.accepted, counters.behind, counters.dropped),
                (3, 0, 0)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_sink_of_a_fan_out_has_its_own_verdicts() {
    let a = Scripted::new([Act::Say(vec![
        Verdict::Accepted,
        Verdict::Retry {
            after: Duration::from_secs(7),
        },
        REJECTED,
        Verdict::Duplicate,
    ])]);
    let b = Scripted::new([Act::Say(vec![
        Verdict::Duplicate,
        Verdict::Accepted,
        Verdict::Accepted,
        Verdict::Duplicate,
    ])]);
    let fan_out = FanOut::new().with(a.clone()).with(b.clone());
    let verdicts = write(&fan_out, &batch(1..=4)).await;
    assert_eq!(
        verdicts,
        [
            Verdict::Accepted,
            Verdict::Retry {
                after: Duration::from_secs(7)
            },
            REJECTED,
            Verdict::Duplicate,
        ]
    );
    assert_eq!(write(&fan_out, &batch([2])).await, [Verdict::Accepted]);
    assert_eq!(numbers(&a.memory), [2]);
    assert!(b.memory.is_empty());
    let [a, b] = fan_out.counters()[..] else {
        panic!("two sinks")
    };
    assert_eq!((a.accepted, a.rejected, a.behind), (3, 1, 0));
    assert_eq!((b.accepted, b.rejected, b.behind), (4, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_fan_out_without_any_verdict_is_an_error() {
    let fan_out = FanOut::new()
        .with(Scripted::new([Act::Fail]))
        .with(Scripted::new([Act::Hang]));
    assert!(fan_out.write(&batch([1])).await.is_err());
    // While both rest.
    assert!(fan_out.write(&batch([1])).await.is_err());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(write(&fan_out, &batch([1])).await, [Verdict::Accepted]);
}

#[tokio::test(start_paused = true)]
async fn a_sink_too_far_behind_is_given_up_for_new_events_only() {
    let good = MemorySink::new();
    let bad = Scripted::new([Act::Fail]);
    let fan_out = FanOut::new()
        .with(good.clone())
        .with(bad.clone())
        .max_behind(2);
    let verdicts = write(&fan_out, &batch(1..=4)).await;
    assert!(verdicts[..2].iter().all(is_retry));
    assert_eq!(verdicts[2..], [Verdict::Accepted; 2]);
    assert_eq!(numbers(&good), [1, 2, 3, 4]);
    let counters = fan_out.counters()[1];
    assert_eq!((counters.behind, counters.dropped), (2, 2));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(write(&fan_out, &batch(1..=2)).await, [Verdict::Accepted; 2]);
    assert_eq!(numbers(&bad.memory), [1, 2]);
    let counters = fan_out.counters()[1];
    assert_eq!(
        (counters.accepted, counters.behind, counters.dropped),
        (2, 0, 2)
    );
}

mod under_a_recorder {
    use super::*;
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use tollgate::{
        identity::{Grant, Identity},
        meter::{Meter, MeterLayer, Recorder},
        plan::Plan,
        tenant::{Tenant, TenantRecord},
    };
    use tower::{Layer as _, Service as _, service_fn};

    async fn one_call(recorder: &Recorder) {
        let plan = Arc::new(Plan::new("free").compile().expect("a plan"));
        let id = TenantId::new("acme").expect("an id");
        let record = TenantRecord::new(id, plan.name().clone());
        let identity = Identity::new(Tenant::new(Arc::new(record)), plan, Grant::default())
            .expect("an identity");
        let mut service =
            MeterLayer::new(recorder.clone()).layer(service_fn(move |request: Request<()>| {
                let meter = request.extensions().get::<Meter>().expect("a meter");
                meter.identify(&identity);
                async { Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default())) }
            }));
        drop(service.call(Request::new(())).await);
    }

    /// One sink is out of order for a minute; the other one sees every event by the next tick, and in the end
    /// both have each event once.
    #[tokio::test(start_paused = true)]
    async fn one_sink_being_down_delays_no_event_of_the_other() {
        let good = MemorySink::new();
        let bad = Scripted::new(std::iter::repeat_n(Act::Fail, 6));
        let fan_out = Arc::new(FanOut::new().with(good.clone()).with(bad.clone()));
        let recorder = Recorder::new(Arc::clone(&fan_out)).expect("a recorder");
        for n in 1..=300 {
            one_call(&recorder).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(good.len(), n);
        }
        recorder.flush().await;
        assert_eq!((good.len(), bad.memory.len()), (300, 300));
        assert_eq!((good.duplicates(), bad.memory.duplicates()), (0, 0));
        assert_eq!(recorder.counters().acked, 300);
        assert!(recorder.counters().is_balanced());
    }
}
