//! Events on the disk: what a kill, a full disk and damage cost.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use proptest::prelude::*;
use tollgate::{
    clock::{Clock as _, ManualClock, SystemClock, Timestamp},
    meter::{CallMeter, Durability, LossReason, Recorder, SpoolDir},
    sink::MemorySink,
};

use super::{
    common::temp::TempDir,
    stand::{Calls, Switched, Tmpfs, identity, numbers, spooled, with_spool},
};

const SECOND: Duration = Duration::from_secs(1);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

/// Leaves calls in a spool, one batch for each, whose sink was down all the time.
async fn leave(directory: &Path, n_calls: u64) -> Vec<String> {
    let sink = Switched::down();
    let recorder = spooled(sink.clone(), directory).build().unwrap();
    let calls = Calls::of(&recorder);
    for number in 0..n_calls {
        calls.calls("acme", [number]);
        assert!(recorder.persist().await);
    }
    let report = recorder.shutdown(Duration::ZERO).await;
    assert_eq!((report.spooled, report.dropped), (n_calls, 0));
    calls.assert_balanced();
    sink.offered().into_iter().map(|(_, json)| json).collect()
}

/// What the next life finds, at rest.
pub(crate) async fn find(directory: &Path) -> (Recorder, MemorySink) {
    let sink = MemorySink::new();
    let recorder = spooled(sink.clone(), directory).build().unwrap();
    recorder.flush().await;
    let counters = recorder.counters();
    assert!(counters.is_balanced(), "{counters:?}");
    assert_eq!((counters.spooled, counters.in_flight), (0, 0));
    (recorder, sink)
}

fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(ending))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn the_next_life_offers_what_was_left_first_and_byte_for_byte() {
    let directory = TempDir::new();
    let offered = leave(directory.path(), 3).await;
    let sink = Switched::down();
    let recorder = spooled(sink.clone(), directory.path()).build().unwrap();
    let counters = recorder.counters();
    assert_eq!((counters.recovered, counters.spooled), (3, 3));
    assert_eq!((counters.opened, counters.settled), (3, 3));
    let calls = Calls::of(&recorder);
    calls.calls("acme", [7]);
    sink.up();
    recorder.flush().await;
    assert_eq!(numbers(&sink.accepted.events()), [0, 1, 2, 7]);
    let again: Vec<_> = sink.offered().into_iter().map(|(_, json)| json).collect();
    assert!(again.contains(&offered[0]), "the batch is as it was");
    calls.assert_balanced();
    let report = recorder.shutdown(SECOND).await;
    assert_eq!((report.spooled, report.dropped), (0, 0));
    assert!(files(directory.path(), ".seg").is_empty());
}

#[tokio::test]
async fn a_directory_belongs_to_one_recorder_at_a_time() {
    let directory = TempDir::new();
    let first = spooled(MemorySink::new(), directory.path())
        .build()
        .unwrap();
    let second = spooled(MemorySink::new(), directory.path()).build();
    let error = second.expect_err("the directory is taken");
    assert_eq!(error.path(), "durability");
    assert!(
        error.to_string().contains("belongs to another recorder"),
        "{error}"
    );
    let _ = first.shutdown(SECOND).await;
    let third = spooled(MemorySink::new(), directory.path()).build();
    assert!(third.is_ok());
}

#[test]
fn a_directory_that_cannot_be_written_to_is_an_error_at_the_start() {
    let directory = TempDir::new();
    let file = directory.path().join("file");
    fs::write(&file, "no directory").unwrap();
    let build = |path: &Path| spooled(MemorySink::new(), path).build();
    assert_eq!(build(&file).unwrap_err().path(), "durability");
    let Some(disk) = Tmpfs::mount(&directory.path().join("disk"), 64) else {
        return;
    };
    assert!(build(disk.path()).is_ok());
    fs::write(disk.path().join("full"), vec![7; 60 << 10]).unwrap();
    // A page is left, if any.
    let _ = fs::write(disk.path().join("fuller"), vec![7; 4 << 10]);
    let error = build(disk.path()).unwrap_err();
    assert!(error.to_string().contains("make room"), "{error}");
    fs::remove_file(disk.path().join("full")).unwrap();
    disk.make_read_only();
    let error = build(disk.path()).unwrap_err();
    assert!(error.to_string().contains("Read-only"), "{error}");
}

#[tokio::test]
async fn bounds_out_of_range_are_refused_by_name() {
    let directory = TempDir::new();
    let of = |directory: SpoolDir| with_spool(MemorySink::new(), directory).build();
    let path = directory.path();
    for (directory, field) in [
        (SpoolDir::new(""), "durability"),
        (SpoolDir::new(path).max_bytes(1_000), "durability.max_bytes"),
        (SpoolDir::new(path).max_age(SECOND), "durability.max_age"),
    ] {
        assert_eq!(of(directory).unwrap_err().path(), field);
    }
}

#[test]
fn a_record_that_is_torn_at_any_byte_costs_no_other_event() {
    let directory = TempDir::new();
    let runtime = runtime();
    runtime.block_on(leave(directory.path(), 2));
    let [segment] = &files(directory.path(), ".seg")[..] else {
        panic!("one segment")
    };
    let before = fs::read(segment).unwrap().len();
    runtime.block_on(async {
        // A life of its own begins a segment of its own; its bytes are put behind the first one's.
        let other = TempDir::new();
        leave(other.path(), 1).await;
        let last = fs::read(&files(other.path(), ".seg")[0]).unwrap();
        let mut bytes = fs::read(segment).unwrap();
        bytes.extend(&last[32..]);
        // A segment for each cut, all in one directory.
        let torn = TempDir::new();
        let mut expected = 0;
        for cut in before..bytes.len() {
            let name = format!("{:020}.seg", 1 + cut - before);
            fs::write(torn.path().join(name), &bytes[..cut]).unwrap();
            // The event itself may be whole, and only the seal behind it torn.
            expected += if cut >= bytes.len() - 13 { 3 } else { 2 };
        }
        let (recorder, sink) = find(torn.path()).await;
        let counters = recorder.counters();
        assert_eq!((counters.recovered, counters.dropped()), (expected, 0));
        assert_eq!(numbers(&sink.events()), [0, 1, 0]);
        assert!(files(torn.path(), ".bad").is_empty());
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_flipped_bit_costs_one_event_at_most_and_is_counted(place in 32..usize::MAX, bit in 0..8) {
        let directory = TempDir::new();
        runtime().block_on(async {
            leave(directory.path(), 4).await;
            let segment = &files(directory.path(), ".seg")[0];
            let mut bytes = fs::read(segment).unwrap();
            let place = 32 + place % (bytes.len() - 32);
            bytes[place] ^= 1_u8 << bit;
            fs::write(segment, &bytes).unwrap();
            let (recorder, sink) = find(directory.path()).await;
            let found = numbers(&sink.events());
            assert!(found.len() >= 3 && found.iter().all(|number| *number < 4), "{found:?}");
            let lost = 4 - found.len() as u64;
            let counters = recorder.counters();
            // A seal is no event, but who finds it damaged cannot know. At the very end it looks torn.
            assert!((lost..=1).contains(&counters.dropped_corrupt) || place >= bytes.len() - 13);
            if counters.dropped_corrupt > 0 {
                assert_eq!(files(directory.path(), ".bad").len(), 1);
                let losses = recorder.losses();
                assert_eq!((losses[0].reason, losses[0].events), (LossReason::Corrupt, 1));
                assert_eq!(losses[0].tenant, None);
            }
        });
    }

    #[test]
    fn whatever_stands_in_the_files_a_start_neither_panics_nor_takes_much(
        segment in junk(), second in junk(), cursor in junk(), letters in junk(),
    ) {
        let directory = TempDir::new();
        fs::write(directory.path().join("00000000000000000001.seg"), segment).unwrap();
        fs::write(directory.path().join("00000000000000000003.seg"), second).unwrap();
        fs::write(directory.path().join("00000000000000000003.seg.new"), "").unwrap();
        fs::write(directory.path().join("99999999999999999999999.seg"), "").unwrap();
        fs::write(directory.path().join("cursor"), cursor).unwrap();
        fs::write(directory.path().join("dead_letters"), letters).unwrap();
        runtime().block_on(async {
            let (recorder, _) = find(directory.path()).await;
            Calls::of(&recorder).calls("acme", [1]);
            assert!(recorder.persist().await);
            let report = recorder.shutdown(SECOND).await;
            assert_eq!(report.dropped, 0);
            assert!(recorder.counters().is_balanced());
        });
    }
}

/// Bytes that are nothing, or begin as a file of ours does, or look like records all over.
fn junk() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..2_000);
    let records = prop::collection::vec(
        (
            prop_oneof![Just(0_u32), Just(1), 2..100_u32, Just(u32::MAX)],
            any::<[u8; 4]>(),
            0xf7..0xfc_u8,
        ),
        0..200,
    );
    let header = header(1, 9, 1_700_000_000_000_000);
    let cursor = framed(*b"tgcursor", 1, 2, 40);
    prop_oneof![
        bytes(),
        bytes().prop_map(move |junk| [&header[..], &junk].concat()),
        bytes().prop_map(move |junk| [&cursor[..], &junk].concat()),
        records.prop_map(|records| {
            let record = |(length, sum, kind): (u32, [u8; 4], u8)| {
                [&length.to_le_bytes()[..], &sum, &[kind]].concat()
            };
            records.into_iter().flat_map(record).collect()
        }),
    ]
}

fn header(version: u16, boot: u64, created: u64) -> Vec<u8> {
    framed(*b"tgspool\n", version, boot, created)
}

fn framed(magic: [u8; 8], version: u16, first: u64, second: u64) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(first.to_le_bytes());
    bytes.extend(second.to_le_bytes());
    let sum = crc32(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// The checksum of Ethernet and gzip, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| {
        if sum & 1 == 0 {
            sum >> 1
        } else {
            (sum >> 1) ^ 0xedb8_8320
        }
    };
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), step)
    })
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_left_alone_and_of_an_unknown_one_is_read_as_far_as_it_goes() {
    let directory = TempDir::new();
    leave(directory.path(), 2).await;
    let segment = &files(directory.path(), ".seg")[0];
    let written = fs::read(segment).unwrap();
    fs::write(segment, [&header(2, 1, 1)[..], &written[32..]].concat()).unwrap();
    let error = spooled(MemorySink::new(), directory.path()).build();
    let error = error.expect_err("a newer version").to_string();
    assert!(
        error.contains("version 2") && error.contains(".seg"),
        "{error}"
    );
    assert!(segment.exists());
    fs::write(segment, [&header(0, 1, 1)[..], &written[32..]].concat()).unwrap();
    let (_recorder, sink) = find(directory.path()).await;
    assert_eq!(numbers(&sink.events()), [0, 1]);
    assert_eq!(files(directory.path(), ".bad").len(), 1);
}

#[tokio::test]
async fn a_segment_that_is_gone_costs_what_it_held_and_no_more() {
    let directory = TempDir::new();
    for _ in 0..3 {
        let sink = Switched::down();
        let recorder = spooled(sink, directory.path()).build().unwrap();
        Calls::of(&recorder).calls("acme", [1, 2]);
        let _ = recorder.shutdown(Duration::ZERO).await;
    }
    let segments = files(directory.path(), ".seg");
    assert_eq!(segments.len(), 3);
    fs::remove_file(&segments[1]).unwrap();
    let (_recorder, sink) = find(directory.path()).await;
    assert_eq!(numbers(&sink.events()), [1, 2, 1, 2]);
}

/// A backlog of ten events in one segment, the first of which the flusher has in its hands.
async fn backlog(directory: &Path) -> (Switched, Recorder, PathBuf) {
    let sink = Switched::down();
    let recorder = spooled(sink.clone(), directory).build().unwrap();
    let calls = Calls::of(&recorder);
    calls.calls("acme", [0]);
    assert!(recorder.persist().await);
    while sink.offered().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    calls.calls("acme", 1..10);
    assert!(recorder.persist().await);
    assert_eq!(recorder.counters().spooled, 9);
    let segment = files(directory, ".seg").remove(0);
    (sink, recorder, segment)
}

#[tokio::test]
async fn a_segment_that_cannot_be_read_for_a_while_loses_nothing() {
    let directory = TempDir::new();
    let (sink, recorder, segment) = backlog(directory.path()).await;
    let away = directory.path().join("away");
    fs::rename(&segment, &away).unwrap();
    // What stands there is not gone, and cannot be read: a link to itself.
    std::os::unix::fs::symlink(&segment, &segment).unwrap();
    sink.up();
    while sink.accepted.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..3 {
        let _ = recorder.persist().await;
    }
    let counters = recorder.counters();
    assert_eq!((counters.spooled, counters.dropped()), (9, 0));
    fs::rename(&away, &segment).unwrap();
    recorder.flush().await;
    let counters = recorder.counters();
    assert_eq!((counters.spooled, counters.dropped()), (0, 0));
    assert!(counters.is_balanced());
    let expected: Vec<_> = (0..10).collect();
    assert_eq!(numbers(&sink.accepted.events()), expected);
}

#[tokio::test]
async fn a_segment_that_grows_too_long_is_kept_for_people() {
    let directory = TempDir::new();
    let (sink, recorder, segment) = backlog(directory.path()).await;
    let file = fs::OpenOptions::new().write(true).open(&segment).unwrap();
    file.set_len(65 << 20).unwrap();
    sink.up();
    recorder.flush().await;
    let counters = recorder.counters();
    assert_eq!((counters.acked, counters.dropped_corrupt), (1, 9));
    assert!(counters.is_balanced());
    assert_eq!(files(directory.path(), ".seg.bad").len(), 1);
    Calls::of(&recorder).calls("acme", [10]);
    assert!(recorder.persist().await);
    recorder.flush().await;
    assert_eq!(numbers(&sink.accepted.events()), [0, 10]);
}

#[tokio::test]
async fn extreme_events_are_the_same_after_a_restart() {
    let directory = TempDir::new();
    let sink = Switched::down();
    let recorder = spooled(sink.clone(), directory.path()).build().unwrap();
    let long = "é".repeat(32 << 10);
    let call = CallMeter::new(recorder.clone(), long.as_str()).open(SystemClock::new().now());
    call.meter().identify(&identity("acme"));
    call.meter().add("number", u64::MAX);
    call.meter().add("number", 1);
    call.end(StatusCode::OK);
    assert!(recorder.persist().await);
    let report = recorder.shutdown(Duration::ZERO).await;
    assert_eq!((report.spooled, report.dropped), (1, 0));
    let (_recorder, found) = find(directory.path()).await;
    assert_eq!(numbers(&found.events()), [u64::MAX]);
    assert_eq!(*found.events()[0].api, *long);
    let json = serde_json::to_string(&found.events()).unwrap();
    assert_eq!(json, sink.offered()[0].1);
}

#[tokio::test]
async fn a_clock_that_steps_drops_nothing_unless_age_is_bounded() {
    let directory = TempDir::new();
    let day = Duration::from_secs(86_400);
    for (life, days) in [100_u64, 140, 60, 100].into_iter().enumerate() {
        let clock = ManualClock::at(Timestamp::UNIX_EPOCH.saturating_add(day * days as u32));
        let builder = spooled(Switched::down(), directory.path()).clock(Arc::new(clock));
        let recorder = builder.build().unwrap();
        assert_eq!(recorder.counters().recovered, life as u64);
        Calls::of(&recorder).calls("acme", [life as u64]);
        let _ = recorder.shutdown(Duration::ZERO).await;
    }
    let clock = ManualClock::at(Timestamp::UNIX_EPOCH.saturating_add(day * 200));
    let sink = MemorySink::new();
    let bounded = SpoolDir::new(directory.path()).max_age(day * 70);
    let builder = with_spool(sink.clone(), bounded).clock(Arc::new(clock));
    let recorder = builder.build().unwrap();
    recorder.flush().await;
    let counters = recorder.counters();
    // The first segment's events are known to be older than the second segment, which is 60 days old: they stay, and
    // so does all that is behind them.
    assert_eq!((counters.dropped_expired, sink.len()), (0, 4));
    assert!(counters.is_balanced());
}

#[tokio::test]
async fn events_that_are_older_than_they_may_be_are_dropped_and_counted() {
    let directory = TempDir::new();
    let day = Duration::from_secs(86_400);
    let at = |days| ManualClock::at(Timestamp::UNIX_EPOCH.saturating_add(day * days));
    for days in [100, 110, 150] {
        let builder = spooled(Switched::down(), directory.path()).clock(Arc::new(at(days)));
        let recorder = builder.build().unwrap();
        Calls::of(&recorder).calls("acme", [u64::from(days)]);
        let _ = recorder.shutdown(Duration::ZERO).await;
    }
    let sink = MemorySink::new();
    let bounded = SpoolDir::new(directory.path()).max_age(day * 30);
    let builder = with_spool(sink.clone(), bounded).clock(Arc::new(at(160)));
    let recorder = builder.build().unwrap();
    recorder.flush().await;
    let counters = recorder.counters();
    assert_eq!(numbers(&sink.events()), [110, 150]);
    assert_eq!(counters.dropped_expired, 1);
    assert!(counters.is_balanced(), "{counters:?}");
    assert_eq!(recorder.losses()[0].reason, LossReason::Expired);
}

#[tokio::test]
async fn a_spool_that_is_full_holds_what_it_promised_and_says_what_is_lost() {
    const N_CALLS: u64 = 4_000;
    let directory = TempDir::new();
    let sink = Switched::down();
    let small = SpoolDir::new(directory.path()).max_bytes(64 << 10);
    let recorder = with_spool(sink.clone(), small)
        .queue_capacity(1_000)
        .build()
        .unwrap();
    let calls = Calls::of(&recorder);
    calls.calls("acme", 0..10);
    assert!(recorder.persist().await);
    let caller = identity("acme");
    for number in 10..N_CALLS {
        calls.call(&caller, number);
        if number % 200 == 0 {
            let _ = recorder.persist().await;
            calls.assert_balanced();
        }
    }
    assert!(!recorder.persist().await);
    let counters = recorder.counters();
    assert!(counters.dropped_spool_full > 0, "{counters:?}");
    assert!(counters.spool_failures > 0 && counters.spool_bytes <= 64 << 10);
    assert_eq!(counters.dropped(), counters.dropped_spool_full);
    let losses = recorder.losses();
    let [loss] = &losses[..] else {
        panic!("{losses:?}")
    };
    assert_eq!(loss.tenant.as_ref().unwrap().as_str(), "acme");
    assert_eq!(
        (loss.reason, loss.events),
        (LossReason::SpoolFull, counters.dropped())
    );
    assert!(loss.quantities["number"] > loss.events);
    sink.up();
    recorder.flush().await;
    calls.assert_balanced();
    assert_eq!(sink.accepted.len() as u64 + counters.dropped(), N_CALLS);
    assert_eq!(sink.accepted.duplicates(), 0);
    assert!(recorder.persist().await);
}

#[tokio::test]
async fn a_disk_that_fills_up_and_is_freed_costs_nothing() {
    let directory = TempDir::new();
    let Some(disk) = Tmpfs::mount(&directory.path().join("disk"), 64) else {
        // One who may not mount has the test with a bound on bytes.
        return;
    };
    for sync in [false, true] {
        let sink = Switched::down();
        let durability = if sync {
            Durability::spool_sync
        } else {
            Durability::spool
        };
        let recorder = spooled(sink.clone(), disk.path())
            .durability(durability(disk.path()))
            .build()
            .unwrap();
        let calls = Calls::of(&recorder);
        let mut n_calls = 0;
        while recorder.persist().await {
            calls.calls("acme", [n_calls]);
            n_calls += 1;
        }
        assert!(n_calls > 10);
        calls.calls("acme", n_calls..n_calls + 5);
        assert!(!recorder.persist().await);
        let counters = recorder.counters();
        assert!(counters.is_balanced() && counters.spool_failures > 0);
        sink.up();
        recorder.flush().await;
        assert_eq!(sink.accepted.len() as u64, n_calls + 5);
        calls.calls("acme", [1]);
        assert!(recorder.persist().await, "there is room again");
        let report = recorder.shutdown(SECOND).await;
        assert_eq!((report.spooled, report.dropped), (0, 0));
        assert_eq!(sink.accepted.duplicates(), 0);
    }
}

#[tokio::test]
async fn a_shutdown_in_the_middle_of_a_write_leaves_the_rest_in_the_spool() {
    let directory = TempDir::new();
    let sink = Switched::hanging();
    let recorder = spooled(sink.clone(), directory.path()).build().unwrap();
    let calls = Calls::of(&recorder);
    calls.calls("acme", 0..3);
    assert!(recorder.persist().await);
    while sink.offered().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The sink has the first batch now; what follows is secured all the same.
    calls.calls("acme", 3..6);
    assert!(recorder.persist().await);
    calls.calls("acme", [6]);
    let report = recorder.shutdown(Duration::from_millis(20)).await;
    assert_eq!((report.acked, report.spooled), (0, 7));
    assert_eq!((report.dropped, report.still_open), (0, 0));
    calls.assert_balanced();
    assert!(recorder.losses().is_empty());
    let (_recorder, found) = find(directory.path()).await;
    assert_eq!(numbers(&found.events()), (0..7).collect::<Vec<_>>());
}

#[test]
fn a_recorder_that_is_dropped_leaves_its_events_in_the_spool() {
    let directory = TempDir::new();
    // Without a runtime, with one that has ended, and within one.
    let recorder = spooled(Switched::down(), directory.path()).build().unwrap();
    Calls::of(&recorder).calls("acme", [0]);
    drop(recorder);
    let recorder = spooled(Switched::down(), directory.path()).build().unwrap();
    Calls::of(&recorder).calls("acme", [1]);
    runtime().block_on(async { recorder.persist().await });
    Calls::of(&recorder).calls("acme", [2]);
    drop(recorder);
    runtime().block_on(async {
        let recorder = spooled(Switched::down(), directory.path()).build().unwrap();
        Calls::of(&recorder).calls("acme", [3]);
        drop(recorder);
        // The directory is free when the task has given it back.
        let sink = MemorySink::new();
        let recorder = loop {
            match spooled(sink.clone(), directory.path()).build() {
                Ok(recorder) => break recorder,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        recorder.flush().await;
        assert_eq!(numbers(&sink.events()), [0, 1, 2, 3]);
    });
}
