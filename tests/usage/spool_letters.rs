//! Dead letters on the disk: what a replay, a kill and their bounds cost.

use std::{fs, time::Duration};

use http::StatusCode;
use tollgate::{
    clock::{Clock as _, SystemClock},
    meter::{CallMeter, LossReason, Recorder, SpoolDir},
    sink::MemorySink,
};

use super::{
    common::temp::TempDir,
    spool::find,
    stand::{Calls, Switched, identity, numbers, spooled, with_spool},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn dead_letters_survive_a_restart_and_are_replayed() {
    let directory = TempDir::new();
    let sink = Switched::rejecting();
    let recorder = spooled(sink, directory.path()).build().unwrap();
    let calls = Calls::of(&recorder);
    calls.calls("acme", 0..3);
    recorder.flush().await;
    assert_eq!(recorder.dead_letters().len(), 3);
    let report = recorder.shutdown(SECOND).await;
    assert_eq!((report.spooled, report.dropped), (0, 0));

    let (recorder, sink) = find(directory.path()).await;
    let letters = recorder.dead_letters();
    assert_eq!(letters.len(), 3);
    assert_eq!((&*letters[0].reason, sink.len()), ("too_old", 0));
    assert_eq!(recorder.counters().dead_lettered, 3);
    assert_eq!(recorder.replay_dead_letters(), 3);
    recorder.flush().await;
    assert_eq!(numbers(&sink.events()), [0, 1, 2]);
    let counters = recorder.counters();
    assert_eq!((counters.replayed, counters.acked), (3, 3));
    assert!(counters.is_balanced(), "{counters:?}");
    let _ = recorder.shutdown(SECOND).await;
    let (recorder, sink) = find(directory.path()).await;
    assert!(recorder.dead_letters().is_empty() && sink.is_empty());
}

/// Three dead letters of a sink that rejects.
async fn three_letters(directory: SpoolDir) -> (Switched, Recorder) {
    let sink = Switched::rejecting();
    let recorder = with_spool(sink.clone(), directory).build().unwrap();
    Calls::of(&recorder).calls("acme", 0..3);
    recorder.flush().await;
    assert_eq!(recorder.dead_letters().len(), 3);
    (sink, recorder)
}

#[tokio::test]
async fn a_shutdown_before_a_replay_is_offered_leaves_it_in_the_spool() {
    let directory = TempDir::new();
    let (sink, recorder) = three_letters(SpoolDir::new(directory.path())).await;
    sink.hang();
    Calls::of(&recorder).calls("acme", [3]);
    let n_before = sink.offered().len();
    while sink.offered().len() == n_before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(recorder.replay_dead_letters(), 3);
    let report = recorder.shutdown(Duration::ZERO).await;
    assert_eq!((report.spooled, report.dropped), (4, 0));
    let counters = recorder.counters();
    assert!(counters.is_balanced() && counters.in_flight == 0);
    let (recorder, sink) = find(directory.path()).await;
    let mut found = numbers(&sink.events());
    found.sort_unstable();
    assert_eq!(found, [0, 1, 2, 3]);
    assert!(recorder.dead_letters().is_empty());
}

#[tokio::test]
async fn a_replay_stays_a_dead_letter_on_the_disk_until_the_spool_has_it() {
    let directory = TempDir::new();
    let small = SpoolDir::new(directory.path()).max_bytes(64 << 10);
    let (sink, recorder) = three_letters(small).await;
    sink.break_down();
    let calls = Calls::of(&recorder);
    let mut number = 3;
    while recorder.persist().await {
        calls.calls("acme", number..number + 50);
        number += 50;
    }
    assert_eq!(recorder.replay_dead_letters(), 3);
    for _ in 0..3 {
        assert!(!recorder.persist().await);
    }
    // What a kill would leave now.
    let killed = TempDir::new();
    let letters = directory.path().join("dead_letters");
    fs::copy(letters, killed.path().join("dead_letters")).unwrap();
    let (after, _) = find(killed.path()).await;
    assert_eq!(after.dead_letters().len(), 3);
    // With no room in the spool, a shutdown makes dead letters of them again.
    let _ = recorder.shutdown(Duration::ZERO).await;
    assert_eq!(recorder.dead_letters().len(), 3);
    let counters = recorder.counters();
    assert!(counters.is_balanced() && counters.in_flight == 0);
    let (after, _) = find(directory.path()).await;
    assert_eq!(after.dead_letters().len(), 3);
}

#[tokio::test]
async fn dead_letters_above_their_bounds_are_counted_after_a_restart_too() {
    let directory = TempDir::new();
    let (_, recorder) = three_letters(SpoolDir::new(directory.path())).await;
    let _ = recorder.shutdown(SECOND).await;
    let fewer = spooled(MemorySink::new(), directory.path()).dead_letters(1);
    let recorder = fewer.build().unwrap();
    let counters = recorder.counters();
    assert_eq!(recorder.dead_letters().len(), 1);
    assert_eq!(
        (counters.dead_lettered, counters.dropped_dead_letters_full),
        (1, 2)
    );
    assert!(counters.is_balanced(), "{counters:?}");
    assert_eq!(recorder.losses()[0].reason, LossReason::DeadLettersFull);
    let _ = recorder.shutdown(SECOND).await;
}

#[tokio::test]
async fn long_dead_letters_are_bounded_by_their_bytes() {
    let directory = TempDir::new();
    let sink = Switched::rejecting();
    let recorder = spooled(sink, directory.path()).build().unwrap();
    let meter = CallMeter::new(recorder.clone(), "n".repeat(64 << 10));
    let caller = identity("acme");
    for _ in 0..420 {
        let call = meter.open(SystemClock::new().now());
        call.meter().identify(&caller);
        call.end(StatusCode::OK);
    }
    recorder.flush().await;
    let counters = recorder.counters();
    assert!(counters.dropped_dead_letters_full > 10, "{counters:?}");
    assert_eq!(counters.dead_lettered + counters.dropped(), 420);
    assert!(counters.is_balanced());
    let n_letters = recorder.dead_letters().len();
    assert_eq!(n_letters as u64, counters.dead_lettered);
    let _ = recorder.shutdown(SECOND).await;
    let (recorder, _) = find(directory.path()).await;
    assert_eq!(recorder.dead_letters().len(), n_letters);
}

#[tokio::test]
async fn a_file_of_dead_letters_that_is_too_long_is_kept_for_people() {
    let directory = TempDir::new();
    let (_, recorder) = three_letters(SpoolDir::new(directory.path())).await;
    let _ = recorder.shutdown(SECOND).await;
    let path = directory.path().join("dead_letters");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(65 << 20).unwrap();
    let (recorder, _) = find(directory.path()).await;
    assert_eq!(recorder.counters().dropped_corrupt, 1);
    let bad = directory.path().join("dead_letters.bad");
    assert_eq!(fs::metadata(bad).unwrap().len(), 65 << 20);
    assert!(!path.exists());
}

#[test]
fn a_recorder_that_is_dropped_before_a_replay_is_offered_leaves_it_in_the_spool() {
    let directory = TempDir::new();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
    };
    let three = three_letters(SpoolDir::new(directory.path()));
    let (_, recorder) = runtime().block_on(three);
    // No task runs any more.
    assert_eq!(recorder.replay_dead_letters(), 3);
    drop(recorder);
    let (recorder, sink) = runtime().block_on(find(directory.path()));
    assert_eq!(numbers(&sink.events()), [0, 1, 2]);
    assert!(recorder.dead_letters().is_empty());
}
