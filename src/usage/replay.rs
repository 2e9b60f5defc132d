//! Usage events from a log back into minutes.

use std::{
    collections::{BTreeMap, HashSet},
    io::{self, BufRead, Read},
};

use super::{UsageKey, UsageMinute};
use crate::{clock::Timestamp, meter::UsageEvent};

/// The longest line that is read, in bytes; an event takes some hundred.
const MAX_LINE_BYTES: usize = 1 << 20;
/// How many lines that are no events are described.
const MAX_DESCRIBED: usize = 100;

/// Minutes of usage made of events that were written as JSON, one on each line, as the log sink writes them.
///
/// An event that comes twice counts once, by its id. A line that is no event is counted and described, and stops
/// nothing. Takes 16 bytes and more of memory for each event, as ids are remembered: replay a month at a time.
///
/// ```
/// use tollgate::usage::Replay;
///
/// let log = concat!(
///     r#"{"schema":1,"id":"00000000000000010000000000000001","source":"api-1","time":"2026-01-15T12:00:03Z","#,
///     r#""tenant":"acme","plan":"pro","environment":"live","api":"default","route":"/v1","method":"GET","#,
///     r#""status":200,"outcome":"served","latency_micros":900,"request_bytes":0,"response_bytes":12}"#,
///     "\n",
/// );
/// let mut replay = Replay::new();
/// replay.read(format!("{log}{log}not an event\n").as_bytes())?;
/// assert_eq!((replay.events(), replay.duplicates(), replay.unreadable()), (1, 1, 1));
/// assert_eq!(replay.minutes().next().expect("one minute").totals.calls, 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Replay {
    minutes: BTreeMap<(Timestamp, UsageKey), UsageMinute>,
    seen: HashSet<u128>,
    duplicates: u64,
    n_lines: u64,
    n_unreadable: u64,
    unreadable: Vec<UnreadableLine>,
}

/// A line that is no usage event of this version.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnreadableLine {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl Replay {
    /// Nothing, to be read into.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a log to its end; several may follow each other. Empty lines are passed over.
    ///
    /// # Errors
    ///
    /// Those of the reader. What was read before counts.
    pub fn read(&mut self, mut log: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let most = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
            if log.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            self.n_lines += 1;
            if line.len() == MAX_LINE_BYTES && !line.ends_with(b"\n") {
                self.refuse("it is longer than a mebibyte".to_owned());
                skip_line(&mut log)?;
            } else if !line.trim_ascii().is_empty() {
                self.line(line.trim_ascii());
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        match serde_json::from_slice::<UsageEvent>(line) {
            Ok(event) if event.schema == UsageEvent::SCHEMA => self.add(&event),
            Ok(event) => self.refuse(format!("schema {} is not known", event.schema)),
            Err(error) => self.refuse(error.to_string()),
        }
    }

    fn refuse(&mut self, reason: String) {
        self.n_unreadable += 1;
        if self.unreadable.len() < MAX_DESCRIBED {
            let line = self.n_lines;
            self.unreadable.push(UnreadableLine { line, reason });
        }
    }

    /// Adds an event, unless its id has come before.
    pub fn add(&mut self, event: &UsageEvent) {
        if !self.seen.insert(event.id.as_u128()) {
            self.duplicates += 1;
            return;
        }
        let start = UsageMinute::start_of(event.time);
        self.minutes
            .entry((start, UsageKey::of(event)))
            .or_insert_with_key(|(start, key)| UsageMinute::new(key.clone(), *start))
            .totals
            .add(event);
    }

    /// The minutes, in the order of time.
    pub fn minutes(&self) -> impl Iterator<Item = &UsageMinute> {
        self.minutes.values()
    }

    /// How many different events were counted.
    #[must_use]
    pub fn events(&self) -> usize {
        self.seen.len()
    }

    /// How many events came again.
    #[must_use]
    pub const fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// How many lines are no events.
    #[must_use]
    pub const fn unreadable(&self) -> u64 {
        self.n_unreadable
    }

    /// The first hundred lines that are no events.
    #[must_use]
    pub fn unreadable_lines(&self) -> &[UnreadableLine] {
        &self.unreadable
    }
}

fn skip_line(log: &mut impl BufRead) -> io::Result<()> {
    loop {
        let available = log.fill_buf()?;
        if available.is_empty() {
            return Ok(());
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let (n, is_end) = end.map_or((available.len(), false), |place| (place + 1, true));
        log.consume(n);
        if is_end {
            return Ok(());
        }
    }
}
