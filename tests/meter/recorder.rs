//! From the queue to the sink: nothing is lost in silence, nothing is written by half.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tollgate::{
    error::{ErrorCode, Problem},
    meter::{EventId, MeterLayer, Recorder, UsageEvent},
    sink::{MemorySink, SinkError, UsageSink, Verdict, Verdicts},
};
use tower::{Layer as _, Service as _, service_fn};

use super::{identity, infallible, meter_of};

/// Makes one identified call that has ended when this returns.
async fn one_call(recorder: &Recorder) {
    drop(open_call(recorder).await);
}

/// Makes one identified call that ends when what this returns is dropped.
async fn open_call(recorder: &Recorder) -> impl Sized + use<> {
    let mut service = MeterLayer::new(recorder.clone()).layer(service_fn(|request: Request<()>| {
        meter_of(&request).identify(&identity());
        async { infallible(Response::new(Full::<Bytes>::default())) }
    }));
    service.call(Request::new(())).await.expect("infallible")
}

/// What a scripted sink does with one batch.
enum Act {
    Fail,
    Hang,
    Panic,
    /// Says these verdicts; a batch may be longer.
    Say(Vec<Verdict>),
}

/// A sink that follows a script and then accepts everything. Notes each batch that it was offered.
#[derive(Clone, Default)]
struct Scripted {
    script: Arc<Mutex<VecDeque<Act>>>,
    offered: Arc<Mutex<Vec<Vec<EventId>>>>,
    accepted: MemorySink,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    fn new(script: impl IntoIterator<Item = Act>) -> Self {
        Self {
            script: Arc::new(Mutex::new(script.into_iter().collect())),
            ..Self::default()
        }
    }

    fn offered(&self) -> Vec<Vec<EventId>> {
        self.offered.lock().unwrap().clone()
    }
}

#[async_trait]
impl UsageSink for Scripted {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let ids = batch.iter().map(|event| event.id).collect();
        self.offered.lock().unwrap().push(ids);
        let act = self.script.lock().unwrap().pop_front();
        match act {
            None => self.accepted.write(batch).await,
            Some(Act::Fail) => Err(SinkError::unavailable("out of order")),
            Some(Act::Hang) => std::future::pending().await,
            Some(Act::Panic) => panic!("the sink panicked on purpose"),
            Some(Act::Say(verdicts)) => {
                for (event, verdict) in batch.iter().zip(&verdicts) {
                    if *verdict == Verdict::Accepted {
                        let _ = self.accepted.write(std::slice::from_ref(event)).await;
                    }
                }
                Ok(Verdicts::Each(verdicts))
            }
        }
    }
}

const RETRY: Verdict = Verdict::Retry {
    after: Duration::ZERO,
};
const REJECTED: Verdict = Verdict::Rejected { reason: "too_old" };

#[tokio::test(start_paused = true)]
async fn an_event_is_written_by_the_next_tick() {
    let sink = MemorySink::new();
    let recorder = Recorder::new(sink.clone()).expect("a recorder");
    tokio::time::sleep(Duration::from_millis(250)).await;
    one_call(&recorder).await;
    tokio::time::sleep(Duration::from_millis(49)).await;
    assert!(sink.is_empty());
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(sink.len(), 1);
    assert_eq!(recorder.counters().acked, 1);
}

#[tokio::test(start_paused = true)]
async fn batches_have_a_greatest_size_and_keep_the_order() {
    let sink = Scripted::default();
    let recorder = Recorder::builder(sink.clone())
        .max_batch(10)
        .build()
        .expect("a recorder");
    for _ in 0..25 {
        one_call(&recorder).await;
    }
    recorder.flush().await;
    let offered = sink.offered();
    assert_eq!(
        offered.iter().map(Vec::len).collect::<Vec<_>>(),
        [10, 10, 5]
    );
    assert!(offered.concat().is_sorted());
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_a_verdict_is_offered_again_as_it_was() {
    let sink = Scripted::new([Act::Fail, Act::Hang, Act::Panic, Act::Fail]);
    let recorder = Recorder::builder(sink.clone())
        .max_batch(2)
        .build()
        .expect("a recorder");
    for _ in 0..4 {
        one_call(&recorder).await;
    }
    recorder.flush().await;
    let offered = sink.offered();
    assert_eq!(offered.len(), 6);
    // The second batch waits until the first one is through.
    assert!(offered[..5].iter().all(|batch| *batch == offered[0]));
    assert_ne!(offered[5], offered[0]);
    assert_eq!((sink.accepted.len(), sink.accepted.duplicates()), (4, 0));
    let counters = recorder.counters();
    assert_eq!((counters.acked, counters.retries), (4, 4));
    assert!(counters.is_balanced());
}

#[tokio::test(start_paused = true)]
async fn each_event_has_its_own_verdict() {
    // The last event gets no verdict, which counts as a retry.
    let first = vec![Verdict::Accepted, RETRY, REJECTED, Verdict::Duplicate];
    let sink = Scripted::new([Act::Say(first), Act::Say(vec![REJECTED])]);
    let recorder = Recorder::new(sink.clone()).expect("a recorder");
    for _ in 0..5 {
        one_call(&recorder).await;
    }
    recorder.flush().await;
    let offered = sink.offered();
    let [a, b, c] = &offered[..] else {
        panic!("{offered:?}")
    };
    assert_eq!(*b, [a[1], a[4]]);
    assert_eq!(*c, [a[4]]);
    let counters = recorder.counters();
    assert_eq!((counters.acked, counters.dead_lettered), (3, 2));
    assert!(counters.is_balanced());
    let letters = recorder.dead_letters();
    assert_eq!(
        letters
            .iter()
            .map(|letter| letter.event.id)
            .collect::<Vec<_>>(),
        [a[2], a[1]]
    );
    assert_eq!(letters[0].reason, "too_old");
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_as_long_as_the_sink_asked_and_others_pass() {
    let hour = Duration::from_secs(1800);
    let sink = Scripted::new([Act::Say(vec![Verdict::Retry { after: hour }])]);
    let recorder = Recorder::new(sink.clone()).expect("a recorder");
    one_call(&recorder).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    one_call(&recorder).await;
    tokio::time::sleep(Duration::from_secs(1700)).await;
    assert_eq!((sink.offered().len(), sink.accepted.len()), (2, 1));
    tokio::time::sleep(Duration::from_secs(101)).await;
    assert_eq!((sink.offered().len(), sink.accepted.len()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn only_the_latest_dead_letters_are_kept() {
    let sink = Scripted::new([Act::Say(vec![REJECTED; 5])]);
    let recorder = Recorder::builder(sink.clone())
        .dead_letters(2)
        .build()
        .expect("a recorder");
    for _ in 0..5 {
        one_call(&recorder).await;
    }
    recorder.flush().await;
    let counters = recorder.counters();
    assert_eq!(
        (counters.dead_lettered, counters.dropped_dead_letters_full),
        (2, 3)
    );
    assert!(counters.is_balanced() && counters.dropped() == 3);
    let losses = recorder.losses();
    assert_eq!(losses[0].reason.as_str(), "dead_letters_full");
    assert_eq!((losses.len(), losses[0].events), (1, 3));
    let kept: Vec<_> = recorder
        .dead_letters()
        .iter()
        .map(|letter| letter.event.id)
        .collect();
    assert_eq!(kept, sink.offered()[0][3..]);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_drops_the_newest_and_counts_it() {
    let sink = MemorySink::new();
    let recorder = Recorder::builder(sink.clone())
        .queue_capacity(8)
        .build()
        .expect("a recorder");
    // The test does not yield here, so that the task cannot take anything from the queue.
    for _ in 0..20 {
        one_call(&recorder).await;
    }
    let counters = recorder.counters();
    assert_eq!(
        (
            counters.settled,
            counters.queued,
            counters.dropped_queue_full
        ),
        (20, 8, 12)
    );
    assert!(counters.is_balanced());
    recorder.flush().await;
    let kept: Vec<_> = sink
        .events()
        .iter()
        .map(|event| event.id.as_u128() as u64)
        .collect();
    assert_eq!(kept, (0..8).collect::<Vec<_>>());
    one_call(&recorder).await;
    recorder.flush().await;
    let counters = recorder.counters();
    assert_eq!((counters.acked, counters.dropped()), (9, 12));
    assert!(counters.is_balanced());
}

#[tokio::test(start_paused = true)]
async fn ids_are_unique_among_recorders_and_calls() {
    let sink = MemorySink::new();
    for _ in 0..2 {
        let recorder = Recorder::new(sink.clone()).expect("a recorder");
        for _ in 0..3 {
            one_call(&recorder).await;
        }
        recorder.flush().await;
    }
    assert_eq!((sink.len(), sink.duplicates()), (6, 0));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_open_calls_and_writes_everything() {
    let sink = Scripted::new([Act::Fail, Act::Fail]);
    let recorder = Recorder::new(sink.clone()).expect("a recorder");
    one_call(&recorder).await;
    let open = open_call(&recorder).await;
    let closing = {
        let recorder = recorder.clone();
        tokio::spawn(async move { recorder.shutdown(Duration::from_secs(60)).await })
    };
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!closing.is_finished());
    assert_eq!(sink.accepted.len(), 1);
    drop(open);
    let report = closing.await.expect("a report");
    assert_eq!((report.acked, report.dropped, report.still_open), (2, 0, 0));
    let counters = recorder.counters();
    assert_eq!((counters.open, counters.acked), (0, 2));
    assert!(counters.is_balanced());
    // Nothing is left for a second one.
    assert_eq!(recorder.shutdown(Duration::from_secs(60)).await.acked, 0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_at_its_deadline_and_counts_what_is_left() {
    let sink = Scripted::new([Act::Say(vec![Verdict::Accepted, RETRY]), Act::Hang]);
    let recorder = Recorder::new(sink.clone()).expect("a recorder");
    for _ in 0..3 {
        one_call(&recorder).await;
    }
    let open = open_call(&recorder).await;
    let begun = tokio::time::Instant::now();
    let report = recorder.shutdown(Duration::from_secs(10)).await;
    assert!(begun.elapsed() < Duration::from_secs(12));
    assert_eq!((report.acked, report.dropped, report.still_open), (1, 2, 1));
    assert!(recorder.counters().is_balanced());
    // A call that ends after the recorder is lost, but not in silence.
    drop(open);
    one_call(&recorder).await;
    let counters = recorder.counters();
    assert_eq!(
        (counters.settled, counters.dropped_shutdown, counters.queued),
        (5, 4, 0)
    );
    assert!(counters.is_balanced());
    assert!(!recorder.start());
    // Would wait for ever if it waited for the task.
    recorder.flush().await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_is_given_up_leaves_the_recorder_running() {
    let sink = MemorySink::new();
    let recorder = Recorder::new(sink.clone()).expect("a recorder");
    let open = open_call(&recorder).await;
    let shutdown = recorder.shutdown(Duration::from_secs(3600));
    assert!(
        tokio::time::timeout(Duration::from_secs(1), shutdown)
            .await
            .is_err()
    );
    drop(open);
    one_call(&recorder).await;
    recorder.flush().await;
    assert_eq!(sink.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_may_go_and_what_was_recorded_is_still_offered() {
    let sink = MemorySink::new();
    let recorder = Recorder::new(sink.clone()).expect("a recorder");
    one_call(&recorder).await;
    drop(recorder);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(sink.len(), 1);
}

#[test]
fn a_recorder_made_without_a_runtime_starts_with_the_first_call() {
    let sink = MemorySink::new();
    let recorder = Recorder::new(sink.clone()).expect("a recorder");
    assert!(!recorder.start());
    for n in 1..=2 {
        // The second runtime shows that the end of the first one stops nothing for good.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            one_call(&recorder).await;
            recorder.flush().await;
        });
        assert_eq!(sink.len(), n);
    }
}

#[test]
fn a_runtime_that_ends_in_the_middle_of_a_write_loses_nothing() {
    let sink = Scripted::new([Act::Hang]);
    let recorder = Recorder::new(sink.clone()).expect("a recorder");
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
    };
    runtime().block_on(async {
        one_call(&recorder).await;
        while sink.offered().is_empty() {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(recorder.counters().in_flight, 1);
    runtime().block_on(async {
        recorder.start();
        recorder.flush().await;
    });
    assert_eq!(sink.accepted.len(), 1);
    assert_eq!(sink.offered()[0], sink.offered()[1]);
    assert!(recorder.counters().is_balanced());
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let builder = || Recorder::builder(MemorySink::new());
    let zero = Duration::ZERO;
    for (builder, path) in [
        (builder().queue_capacity(0), "queue_capacity"),
        (builder().queue_capacity(usize::MAX), "queue_capacity"),
        (builder().max_batch(0), "max_batch"),
        (builder().tick(zero), "tick"),
        (builder().write_timeout(zero), "write_timeout"),
        (builder().backoff(zero, zero), "backoff"),
        (
            builder().backoff(Duration::from_secs(2), Duration::from_secs(1)),
            "backoff",
        ),
    ] {
        assert_eq!(builder.build().expect_err(path).path(), path);
    }
}

/// A sink that lets through as many batches as it has permits.
#[derive(Clone, Debug)]
struct Gated(Arc<Semaphore>, MemorySink);

#[async_trait]
impl UsageSink for Gated {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let permit = self.0.acquire().await.map_err(SinkError::unavailable)?;
        permit.forget();
        self.1.write(batch).await
    }
}

/// Four threads record while the queue overflows now and then and a fifth reads the counters.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_law_holds_in_every_snapshot_under_load() {
    const N_TASKS: u64 = 4;
    const N_CALLS: u64 = 5_000;
    let sink = Gated(Arc::new(Semaphore::new(0)), MemorySink::new());
    let recorder = Recorder::builder(sink.clone())
        .queue_capacity(256)
        .max_batch(50)
        .tick(Duration::from_millis(1))
        .build()
        .expect("a recorder");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..N_TASKS {
        let recorder = recorder.clone();
        let permits = Arc::clone(&sink.0);
        tasks.spawn(async move {
            for n in 0..N_CALLS {
                one_call(&recorder).await;
                if n % 16 == 0 {
                    permits.add_permits(1);
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    let watcher = {
        let recorder = recorder.clone();
        std::thread::spawn(move || {
            let mut n_snapshots = 0_u64;
            loop {
                let counters = recorder.counters();
                assert!(counters.is_balanced(), "{counters:?}");
                n_snapshots += 1;
                if counters.settled == N_TASKS * N_CALLS {
                    return n_snapshots;
                }
            }
        })
    };
    while let Some(done) = tasks.join_next().await {
        done.expect("a task");
    }
    assert!(watcher.join().expect("a watcher") > 0);
    sink.0.add_permits(10_000);
    recorder.flush().await;
    let counters = recorder.counters();
    assert!(counters.is_balanced());
    assert_eq!(
        (counters.open, counters.queued, counters.in_flight),
        (0, 0, 0)
    );
    assert_eq!(
        counters.acked + counters.dropped_queue_full,
        N_TASKS * N_CALLS
    );
    assert_eq!(sink.1.len() as u64, counters.acked);
    assert_eq!(sink.1.duplicates(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_counters_are_exported_as_metrics_with_bounded_labels() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    let metrics = DebuggingRecorder::new();
    let snapshots = metrics.snapshotter();
    let _local = metrics::set_default_local_recorder(&metrics);
    let sink = Scripted::new([Act::Fail, Act::Say(vec![REJECTED, Verdict::Accepted])]);
    let recorder = Recorder::builder(sink)
        .queue_capacity(2)
        .build()
        .expect("a recorder");
    for _ in 0..3 {
        one_call(&recorder).await;
    }
    let _open = open_call(&recorder).await;
    let mut public = MeterLayer::new(recorder.clone()).layer(service_fn(|request: Request<()>| {
        let problem = Problem::new(ErrorCode::MissingCredentials);
        let response = problem.into_response::<Full<Bytes>>(request.method());
        async { infallible(response) }
    }));
    drop(public.call(Request::new(())).await);
    recorder.flush().await;
    tokio::time::sleep(Duration::from_millis(150)).await;

    let mut exported: Vec<(String, u64)> = snapshots
        .snapshot()
        .into_vec()
        .into_iter()
        .filter(|(key, ..)| key.key().name().starts_with("tollgate_usage_"))
        .map(|(key, _, _, value)| {
            let key = key.key();
            let labels: Vec<_> = key
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            let value = match value {
                DebugValue::Counter(n) => n,
                DebugValue::Gauge(n) => n.into_inner() as u64,
                DebugValue::Histogram(_) => panic!("no histogram is exported"),
            };
            (format!("{}{{{}}}", key.name(), labels.join(",")), value)
        })
        .filter(|(_, value)| *value > 0)
        .collect();
    exported.sort();
    let expected = [
        ("tollgate_usage_acked_total{}", 1),
        ("tollgate_usage_dead_lettered_total{}", 1),
        ("tollgate_usage_dropped_total{reason=queue_full}", 1),
        ("tollgate_usage_opened_total{}", 4),
        ("tollgate_usage_open{}", 1),
        ("tollgate_usage_queue_capacity{}", 2),
        ("tollgate_usage_retries_total{}", 1),
        ("tollgate_usage_settled_total{}", 3),
        (
            "tollgate_usage_unidentified_total{status=4xx,reason=missing_credentials}",
            1,
        ),
    ];
    assert_eq!(
        exported,
        expected.map(|(name, value)| (name.to_owned(), value))
    );
}
