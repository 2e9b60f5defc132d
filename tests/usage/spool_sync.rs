//! A disk that fails a sync once, and then says that all is well.

use std::{env, fs, path::Path, process::Command};

use tollgate::{meter::Durability, sink::MemorySink};

use super::{
    common::temp::TempDir,
    stand::{Calls, Switched, numbers, spooled},
};

/// Fails the sync that finds the file named so, and removes the file.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int fdatasync(int fd) {
    const char *armed = getenv("TOLLGATE_TEST_FAIL_SYNC");
    if (armed && unlink(armed) == 0) {
        errno = EIO;
        return -1;
    }
    return (int) syscall(SYS_fdatasync, fd);
}
"#;
const ARMED: &str = "TOLLGATE_TEST_FAIL_SYNC";

fn succeeds(command: &mut Command) {
    let output = command.output().expect("install gcc: apt-get install gcc");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn what_was_appended_before_a_sync_that_failed_is_appended_again() {
    if let Some(armed) = env::var_os(ARMED) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        return runtime.block_on(append_while_a_sync_fails(Path::new(&armed)));
    }
    let directory = TempDir::new();
    let (source, shim) = (
        directory.path().join("shim.c"),
        directory.path().join("shim.so"),
    );
    fs::write(&source, SHIM).unwrap();
    succeeds(
        Command::new("gcc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&shim, &source]),
    );
    // A process of its own, whose syncs fail.
    succeeds(
        Command::new(env::current_exe().unwrap())
            .args([
                "spool_sync::what_was_appended_before_a_sync_that_failed_is_appended_again",
                "--exact",
            ])
            .env("LD_PRELOAD", &shim)
            .env(ARMED, directory.path().join("armed")),
    );
}

async fn append_while_a_sync_fails(armed: &Path) {
    let directory = TempDir::new();
    let durability = || {
        // Segments of 8 KiB.
        let small = tollgate::meter::SpoolDir::new(directory.path()).max_bytes(64 << 10);
        Durability::SpoolSync(small)
    };
    let recorder = spooled(Switched::down(), directory.path())
        .durability(durability())
        .max_batch(5)
        .build()
        .unwrap();
    let calls = Calls::of(&recorder);
    calls.calls("acme", [0]);
    assert!(recorder.persist().await);
    let first = directory.path().join("00000000000000000001.seg");
    let length = fs::metadata(&first).unwrap().len();
    // More than the segment takes: its sync comes when the next one is begun, and fails.
    fs::write(armed, "").unwrap();
    calls.calls("acme", 1..40);
    while !recorder.persist().await {}
    assert!(!armed.exists());
    assert_eq!(recorder.counters().spool_failures, 1);
    assert_eq!(fs::metadata(&first).unwrap().len(), length);
    let report = recorder.shutdown(std::time::Duration::ZERO).await;
    assert_eq!((report.spooled, report.dropped), (40, 0));
    let sink = MemorySink::new();
    let recorder = spooled(sink.clone(), directory.path())
        .durability(durability())
        .build()
        .unwrap();
    recorder.flush().await;
    assert_eq!(numbers(&sink.events()), (0..40).collect::<Vec<_>>());
}
