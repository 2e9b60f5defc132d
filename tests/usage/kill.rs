//! A real process, killed by `kill -9` again and again.

use std::{
    collections::{HashMap, HashSet},
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tollgate::meter::{Durability, Recorder};

use super::{
    common::temp::TempDir,
    stand::{Calls, Lines, identity, spooled},
};

/// Set for the child: where its files are.
const DIRECTORY: &str = "TOLLGATE_TEST_SPOOL";
const SEED: u64 = 20_261_129;
const N_KILLS: u64 = 25;

fn start(directory: &Path) -> (Child, std::sync::mpsc::Receiver<u64>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args([
            "kill::kill_9_loses_no_promised_event_and_doubles_none",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, promises) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            // The runner of the child writes lines of its own. A line that the kill cut has no end mark.
            let Some(line) = line.split("promised: ").nth(1) else {
                continue;
            };
            if let Some(number) = line.strip_suffix('.') {
                let _ = sender.send(number.parse().unwrap());
            }
        }
    });
    (child, promises)
}

/// What the child does: it makes calls, and says the numbers of those that are promised.
async fn serve(directory: &Path) {
    let sink = Lines::append_to(&directory.join("lines"));
    let spool = directory.join("spool");
    let recorder = spooled(sink, &spool).max_batch(20);
    let recorder = if std::process::id().is_multiple_of(2) {
        recorder.durability(Durability::spool_sync(&spool))
    } else {
        recorder
    };
    let recorder: Recorder = recorder.build().unwrap();
    let calls = Calls::of(&recorder);
    let caller = identity("acme");
    let first = u64::from(std::process::id()) << 32;
    let mut number = first;
    loop {
        let until = number + 1 + number % 50;
        for number in number..until {
            calls.call(&caller, number);
        }
        assert!(recorder.persist().await);
        for number in number..until {
            println!("promised: {number}.");
        }
        number = until;
    }
}

#[test]
fn kill_9_loses_no_promised_event_and_doubles_none() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(directory) = env::var_os(DIRECTORY) {
        runtime.block_on(serve(Path::new(&directory)));
        return;
    }
    let directory = TempDir::new();
    let mut promised = HashSet::new();
    let mut random = SEED;
    for _ in 0..N_KILLS {
        let (mut child, promises) = start(directory.path());
        // At least one promise, then some time more: the kill comes at any step of the work.
        promised.insert(promises.recv_timeout(Duration::from_secs(60)).unwrap());
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        std::thread::sleep(Duration::from_micros(random >> 49));
        child.kill().unwrap();
        child.wait().unwrap();
        promised.extend(promises.iter());
    }
    // The last life delivers what all others have left.
    let spool = directory.path().join("spool");
    let lines = directory.path().join("lines");
    let recorder = {
        let _in_runtime = runtime.enter();
        spooled(Lines::append_to(&lines), &spool).build().unwrap()
    };
    let report = runtime.block_on(recorder.shutdown(Duration::from_secs(30)));
    assert_eq!((report.dropped, report.spooled), (0, 0));
    assert_eq!(recorder.counters().dropped_corrupt, 0);

    let mut ids: HashMap<u64, HashSet<String>> = HashMap::new();
    let text = fs::read_to_string(&lines).unwrap();
    for line in text.lines() {
        // The last lines of a life may be cut.
        if let [id, number, "."] = line.split(' ').collect::<Vec<_>>()[..] {
            ids.entry(number.parse().unwrap())
                .or_default()
                .insert(id.to_owned());
        }
    }
    let lost = promised
        .iter()
        .filter(|number| !ids.contains_key(number))
        .count();
    let doubled = ids.values().filter(|ids| ids.len() > 1).count();
    println!(
        "metering seed={SEED} events={} kills={N_KILLS} lost={lost} doubled={doubled} promised={}",
        ids.len(),
        promised.len(),
    );
    assert_eq!((lost, doubled), (0, 0));
    assert!(promised.len() as u64 > N_KILLS);
}
