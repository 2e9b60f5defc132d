//! Rounds of slices, and what is printed of them.

use std::{
    sync::{Arc, Barrier, Mutex},
    thread,
    time::Instant,
};

/// Odd, so that there is one median.
const ROUNDS: usize = 501;
const WARM_UP: usize = 10;

/// Nanoseconds for each call of a slice.
pub(crate) type Slice = Box<dyn FnMut() -> f64>;

/// Nanoseconds for each of `n` calls.
pub(crate) fn time(n: u64, call: impl FnMut(u64)) -> f64 {
    let started = Instant::now();
    (0..n).for_each(call);
    started.elapsed().as_nanos() as f64 / n as f64
}

/// The same after as many calls that are not timed: what the rows before have pushed out of the processor's
/// caches is there again.
pub(crate) fn warm_time(n: u64, mut call: impl FnMut(u64)) -> f64 {
    (0..n).for_each(&mut call);
    time(n, call)
}

/// A slice of `n` calls.
pub(crate) fn slice(n: u64, mut call: impl FnMut(u64) + 'static) -> Slice {
    Box::new(move || warm_time(n, &mut call))
}

struct Row {
    what: &'static str,
    goal: &'static str,
    ours: Slice,
    /// Whom the row is held against, and its slice; a row without one has a goal in nanoseconds.
    theirs: Option<(&'static str, Slice)>,
    measured: Vec<(f64, f64)>,
}

/// All rows of a run.
#[derive(Default)]
pub(crate) struct Rounds {
    rows: Vec<Row>,
}

impl Rounds {
    /// A row whose goal is a ratio.
    pub(crate) fn ratio(
        &mut self,
        what: &'static str,
        goal: &'static str,
        ours: Slice,
        against: &'static str,
        theirs: Slice,
    ) {
        self.rows.push(Row {
            what,
            goal,
            ours,
            theirs: Some((against, theirs)),
            measured: Vec::new(),
        });
    }

    /// A row whose goal is a time.
    pub(crate) fn time(&mut self, what: &'static str, goal: &'static str, ours: Slice) {
        self.rows.push(Row {
            what,
            goal,
            ours,
            theirs: None,
            measured: Vec::new(),
        });
    }

    /// Runs the rows whose name holds one of the words, all of them where there is none.
    pub(crate) fn run(&mut self, words: &[String]) {
        if !words.is_empty() {
            self.rows
                .retain(|row| words.iter().any(|word| row.what.contains(&**word)));
        }
        for round in 0..WARM_UP + ROUNDS {
            for row in &mut self.rows {
                let ours = (row.ours)();
                let theirs = row.theirs.as_mut().map_or(f64::NAN, |(_, slice)| slice());
                if round >= WARM_UP {
                    row.measured.push((ours, theirs));
                }
            }
        }
    }

    pub(crate) fn print(&self) {
        println!("| what | against | goal | ratio | middle half | tollgate | the other |");
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for row in &self.rows {
            let Some((against, _)) = &row.theirs else {
                continue;
            };
            let ratios = sorted(row.measured.iter().map(|(ours, theirs)| ours / theirs));
            println!(
                "| {} | {against} | {} | {} | {} to {} | {} | {} |",
                row.what,
                row.goal,
                ratio(median(&ratios)),
                ratio(ratios[ratios.len() / 4]),
                ratio(ratios[ratios.len() * 3 / 4]),
                nanoseconds(row.measured.iter().map(|(ours, _)| *ours)),
                nanoseconds(row.measured.iter().map(|(_, theirs)| *theirs)),
            );
        }
        println!("\n| what | goal | time |\n| --- | --- | --- |");
        for row in self.rows.iter().filter(|row| row.theirs.is_none()) {
            let ours = nanoseconds(row.measured.iter().map(|(ours, _)| *ours));
            println!("| {} | {} | {ours} |", row.what, row.goal);
        }
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// Two digits, and for a small ratio its inverse, which is easier to read.
fn ratio(ratio: f64) -> String {
    if ratio.abs() < 0.1 {
        format!("1/{:.0}", 1.0 / ratio)
    } else {
        format!("{ratio:.2}")
    }
}

fn nanoseconds(values: impl Iterator<Item = f64>) -> String {
    format!("{:.0} ns", median(&sorted(values)))
}

/// Gives the nanoseconds for each call.
type Job = Arc<dyn Fn() -> f64 + Send + Sync>;

/// A second thread, started once, that runs the same slice at the same time.
pub(crate) struct Twin {
    /// Met before and after each slice.
    meeting: Barrier,
    job: Mutex<Option<Job>>,
    measured: Mutex<f64>,
}

impl Twin {
    pub(crate) fn start() -> Arc<Self> {
        let twin = Arc::new(Self {
            meeting: Barrier::new(2),
            job: Mutex::default(),
            measured: Mutex::default(),
        });
        let other = Arc::clone(&twin);
        thread::spawn(move || {
            loop {
                other.meeting.wait();
                let job = other.job.lock().expect("nobody panics with it").take();
                let measured = job.expect("set before the meeting")();
                *other.measured.lock().expect("nobody panics with it") = measured;
                other.meeting.wait();
            }
        });
        twin
    }

    /// A slice of `n` calls on each of the two threads; the time is that of the slower one, for each of its calls.
    pub(crate) fn slice(
        self: &Arc<Self>,
        n: u64,
        call: impl Fn(u64) + Send + Sync + 'static,
    ) -> Slice {
        let twin = Arc::clone(self);
        let job: Job = Arc::new(move || warm_time(n, &call));
        Box::new(move || {
            *twin.job.lock().expect("nobody panics with it") = Some(Arc::clone(&job));
            twin.meeting.wait();
            let own = job();
            twin.meeting.wait();
            own.max(*twin.measured.lock().expect("nobody panics with it"))
        })
    }
}
