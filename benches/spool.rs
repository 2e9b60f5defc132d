//! What a spool costs: each call, and the events on their way through it while the process is killed.
//!
//! `cargo bench --bench spool -- EVENTS KILLS SEED` sends at least that many events through a spool that is synced, in a
//! process that is killed by `kill -9` that many times, and prints the line that begins `metering`. Without arguments
//! 100,000 events, 20 kills and seed 1.

#[path = "common/dice.rs"]
mod dice;

use std::{
    collections::HashMap,
    env,
    error::Error,
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    mem,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use dice::Dice;
use http::StatusCode;
use tollgate::{
    clock::{Clock as _, SystemClock},
    id::TenantId,
    identity::Identity,
    meter::{CallMeter, Durability, Recorder, UsageEvent},
    plan::Plan,
    sink::{MemorySink, SinkError, UsageSink, Verdicts},
};

type Failure = Box<dyn Error + Send + Sync>;

/// Set for the process that is killed: where its files are, and the first number of its calls.
const CHILD: &str = "TOLLGATE_BENCH_SPOOL";
/// Calls between two promises.
const STEP: u64 = 1_000;

/// Appends a line for each event, again for each time that it is offered.
#[derive(Debug)]
struct Lines(File);

impl Lines {
    fn append_to(directory: &Path) -> Result<Self, Failure> {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true);
        Ok(Self(file.open(directory.join("lines"))?))
    }
}

#[async_trait]
impl UsageSink for Lines {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        // A kill may cut a line: whatever follows begins on a line of its own.
        let mut lines = String::from("\n");
        for event in batch {
            lines += &format!("{} {} .\n", event.id, event.quantities["number"]);
        }
        (&self.0)
            .write_all(lines.as_bytes())
            .map_err(SinkError::unavailable)?;
        Ok(Verdicts::AllAccepted)
    }
}

fn identity() -> Result<Identity, Failure> {
    let plan = Arc::new(Plan::new("pro").compile()?);
    Ok(Identity::of_tenant(TenantId::new("acme")?, plan))
}

fn recorder(directory: &Path) -> Result<Recorder, Failure> {
    let spool = Durability::spool_sync(directory.join("spool"));
    let recorder = Recorder::builder(Lines::append_to(directory)?).durability(spool);
    Ok(recorder.tick(Duration::from_millis(5)).build()?)
}

/// Makes calls and says how far they are promised, until it is killed.
async fn serve(directory: &Path, first: u64) -> Result<(), Failure> {
    let recorder = recorder(directory)?;
    let calls = CallMeter::new(recorder.clone(), "bench");
    let (clock, caller) = (SystemClock::new(), identity()?);
    let mut next = first;
    loop {
        for number in next..next + STEP {
            let call = calls.open(clock.now());
            call.meter().identify(&caller);
            call.meter().add("number", number);
            call.end(StatusCode::OK);
        }
        next += STEP;
        if recorder.persist().await {
            println!("promised {next} .");
        }
    }
}

/// A life that ends by a kill: when `n` events are promised and some time has passed. Says up to where it promised.
fn live_and_die(directory: &Path, first: u64, n: u64, extra: Duration) -> Result<u64, Failure> {
    let place = format!("{}\n{first}", directory.display());
    let mut child = Command::new(env::current_exe()?)
        .env(CHILD, place)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let (sender, promises) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let words: Vec<_> = line.split(' ').collect();
            if let ["promised", until, "."] = words[..] {
                let _ = sender.send(until.parse::<u64>());
            }
        }
    });
    let mut until = first;
    while until < first + n {
        until = promises.recv_timeout(Duration::from_secs(60))??;
    }
    std::thread::sleep(extra);
    child.kill()?;
    child.wait()?;
    reader.join().map_err(|_| "the reader of a child failed")?;
    for promise in promises.iter() {
        until = until.max(promise?);
    }
    Ok(until)
}

fn metering(n_events: u64, n_kills: u64, seed: u64) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let mut dice = Dice(seed);
    let runtime = tokio::runtime::Runtime::new()?;
    let begun = Instant::now();
    let mut promised = Vec::new();
    for life in 0..n_kills {
        // Each life has numbers of its own: what was not promised when it died may be there or not.
        let first = life << 32;
        let extra = Duration::from_micros(dice.below(20_000));
        let until = live_and_die(directory.path(), first, n_events.div_ceil(n_kills), extra)?;
        promised.push(first..until);
    }
    let lives = begun.elapsed();
    let begun = Instant::now();
    let recorder = {
        let _in_runtime = runtime.enter();
        recorder(directory.path())?
    };
    let opened = begun.elapsed();
    let recovered = recorder.counters().recovered;
    let report = runtime.block_on(recorder.shutdown(Duration::from_secs(600)));
    let drained = begun.elapsed();

    let mut seen: HashMap<u64, (String, u64)> = HashMap::new();
    let mut doubled = 0;
    for line in BufReader::new(File::open(directory.path().join("lines"))?).lines() {
        let line = line?;
        if let [id, number, "."] = line.split(' ').collect::<Vec<_>>()[..] {
            let known = seen
                .entry(number.parse()?)
                .or_insert_with(|| (id.to_owned(), 0));
            doubled += u64::from(known.0 != id);
            known.1 += 1;
        }
    }
    let events: u64 = promised.iter().map(|range| range.end - range.start).sum();
    let numbers = promised.into_iter().flatten();
    let lost = numbers.filter(|number| !seen.contains_key(number)).count();
    let offered: u64 = seen.values().map(|(_, n)| n).sum();
    let per_second = events * 1_000 / u64::try_from(lives.as_millis())?.max(1);
    println!(
        "metering seed={seed} events={events} kills={n_kills} lost={lost} doubled={doubled} \
         redelivered={} recovered={recovered} dropped={} open_ms={} drain_ms={} events_per_s={per_second}",
        offered - seen.len() as u64,
        report.dropped,
        opened.as_millis(),
        drained.as_millis(),
    );
    Ok(())
}

/// The end of one call, with each durability in turn: its time, its allocations, and whether it wakes the task.
fn hot_path() -> Result<(), Failure> {
    const OPEN: usize = 250;
    const ROUNDS: usize = 400;
    let directory = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let _in_runtime = runtime.enter();
    let place = |name: &str| -> PathBuf { directory.path().join(name) };
    let (clock, caller) = (SystemClock::new(), identity()?);
    let rows = [
        ("memory", Durability::Memory),
        ("spool", Durability::spool(place("spool"))),
        ("synced spool", Durability::spool_sync(place("synced"))),
    ];
    let mut rows: Vec<_> = rows
        .into_iter()
        .map(|(name, durability)| {
            // No tick falls due meanwhile.
            let recorder =
                Recorder::builder(MemorySink::keeping(1)).tick(Duration::from_secs(3_600));
            let recorder = recorder.durability(durability).build()?;
            let calls = CallMeter::new(recorder.clone(), "bench");
            Ok::<_, Failure>((name, recorder, calls, Vec::new(), 0, 0))
        })
        .collect::<Result<_, _>>()?;
    for _ in 0..ROUNDS {
        for (_, recorder, calls, times, allocations, woken) in &mut rows {
            let open: Vec<_> = (0..OPEN)
                .map(|_| {
                    let call = calls.open(clock.now());
                    call.meter().identify(&caller);
                    // Lives on, so that the end alone is measured.
                    mem::forget(call.meter().clone());
                    call
                })
                .collect();
            let begun = Instant::now();
            let info = allocation_counter::measure(|| {
                for call in open {
                    call.end(StatusCode::OK);
                }
            });
            times.push(begun.elapsed().as_nanos() / OPEN as u128);
            // The list of the calls itself is given back, not taken.
            *allocations += info.count_total;
            runtime.block_on(async {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            });
            *woken += u64::from(recorder.counters().queued < OPEN as u64);
            runtime.block_on(recorder.flush());
        }
    }
    println!("| the end of one call, queued | ns, median | allocations | wakes the task |");
    println!("| --- | --- | --- | --- |");
    for (name, recorder, _, mut times, allocations, woken) in rows {
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or(0);
        println!("| {name} | {median} | {allocations} | {woken} |");
        let _ = runtime.block_on(recorder.shutdown(Duration::from_secs(10)));
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    if let Ok(place) = env::var(CHILD) {
        let (directory, first) = place.rsplit_once('\n').ok_or("no place")?;
        let runtime = tokio::runtime::Runtime::new()?;
        return runtime.block_on(serve(Path::new(directory), first.parse()?));
    }
    let numbers: Vec<u64> = env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .map(|argument| argument.parse())
        .collect::<Result<_, _>>()?;
    let [n_events, n_kills, seed] = [100_000, 20, 1]
        .into_iter()
        .enumerate()
        .map(|(place, default)| numbers.get(place).copied().unwrap_or(default))
        .collect::<Vec<_>>()[..]
    else {
        return Err("cargo bench --bench spool -- EVENTS KILLS SEED".into());
    };
    hot_path()?;
    fs::create_dir_all(env::temp_dir())?;
    metering(n_events, n_kills.max(1), seed)
}
