//! The bytes of a segment: a header, then records. Pure: what reads and writes the files is the store.
//!
//! A record is `length u32 | crc32 u32 | payload`, little-endian; the checksum covers the length and the payload. A
//! payload begins with a byte that no UTF-8 text holds, so that a reader finds the next record behind damage. A batch
//! is its events and then a seal that says how many they are.

use serde::Serialize;

use crate::{clock::Timestamp, meter::UsageEvent};

pub(crate) const HEADER_BYTES: usize = 32;
/// Longer records are damage. Every event that this crate makes is far below.
pub(crate) const MAX_RECORD_BYTES: usize = 4 << 20;
const MAGIC: [u8; 8] = *b"tgspool\n";
const VERSION: u16 = 1;
const PREFIX_BYTES: usize = 8;

const EVENT: u8 = 0xf8;
const SEAL: u8 = 0xf9;
const LETTER: u8 = 0xfa;

/// Who wrote a segment, and when it was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) boot: u64,
    pub(crate) created: Timestamp,
}

/// Why a header says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    Damaged,
    /// Written by a later version of this crate, whose records may mean something else.
    Newer(u16),
}

impl Header {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut bytes = frame(MAGIC, VERSION);
        bytes.extend(self.boot.to_le_bytes());
        bytes.extend(self.created.as_unix_micros().to_le_bytes());
        checked(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let (boot, created) = unframe(bytes, MAGIC, VERSION)?;
        Ok(Self {
            boot,
            created: Timestamp::from_unix_micros(created),
        })
    }
}

/// The begin of a file of ours: what it is, and the version of its form.
pub(super) fn frame(magic: [u8; 8], version: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend(magic);
    bytes.extend(version.to_le_bytes());
    bytes.extend([0; 2]);
    bytes
}

pub(super) fn checked(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc32fast::hash(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// The two numbers of a frame that is whole and of a version that is known.
pub(super) fn unframe(bytes: &[u8], magic: [u8; 8], newest: u16) -> Result<(u64, u64), BadHeader> {
    let bytes = bytes.get(..HEADER_BYTES).ok_or(BadHeader::Damaged)?;
    let (content, sum) = bytes.split_at(HEADER_BYTES - 4);
    let is_whole = content.starts_with(&magic)
        && sum == crc32fast::hash(content).to_le_bytes()
        && content.len() == HEADER_BYTES - 4;
    let number = |at: usize| {
        let bytes = content.get(at..at + 8)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    };
    let version = content.get(8..10).and_then(|bytes| bytes.try_into().ok());
    match (
        is_whole,
        version.map(u16::from_le_bytes),
        number(12),
        number(20),
    ) {
        (true, Some(version), ..) if version > newest => Err(BadHeader::Newer(version)),
        (true, Some(version), Some(first), Some(second)) if version == newest => {
            Ok((first, second))
        }
        _ => Err(BadHeader::Damaged),
    }
}

/// A record could not be made of a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unwritable {
    #[error("the event cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the event is longer than 4 MiB")]
    TooLong,
}

/// Appends a batch. What cannot be written is left out and told.
pub(crate) fn encode_batch<'a>(
    out: &mut Vec<u8>,
    events: impl IntoIterator<Item = &'a UsageEvent>,
) -> Result<(), Unwritable> {
    let mut n_events = 0_u32;
    let mut fault = Ok(());
    for event in events {
        match record(out, EVENT, |out| Ok(serde_json::to_writer(out, event)?)) {
            Ok(()) => n_events += 1,
            Err(unwritable) => fault = Err(unwritable),
        }
    }
    record(out, SEAL, |out| {
        out.extend(n_events.to_le_bytes());
        Ok(())
    })?;
    fault
}

/// Appends the events of a batch as they stand in another segment.
pub(crate) fn copy_batch(out: &mut Vec<u8>, events: &[&[u8]]) -> Result<(), Unwritable> {
    for event in events {
        record(out, EVENT, |out| {
            out.extend_from_slice(event);
            Ok(())
        })?;
    }
    record(out, SEAL, |out| {
        out.extend(
            u32::try_from(events.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        Ok(())
    })
}

pub(crate) fn encode_letter(out: &mut Vec<u8>, letter: &impl Serialize) -> Result<(), Unwritable> {
    record(out, LETTER, |out| Ok(serde_json::to_writer(out, letter)?))
}

fn record(
    out: &mut Vec<u8>,
    kind: u8,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), Unwritable>,
) -> Result<(), Unwritable> {
    let start = out.len();
    out.extend([0; PREFIX_BYTES]);
    out.push(kind);
    let written = write(out);
    let n_bytes = out.len() - start - PREFIX_BYTES;
    let is_short = n_bytes <= MAX_RECORD_BYTES;
    let length = u32::try_from(n_bytes).ok().filter(|_| is_short);
    let (Ok(()), Some(length)) = (&written, length) else {
        out.truncate(start);
        return written.and(Err(Unwritable::TooLong));
    };
    let length = length.to_le_bytes();
    let payload = out.get(start + PREFIX_BYTES..).unwrap_or_default();
    let sum = checksum(length, payload).to_le_bytes();
    for (to, from) in out.iter_mut().skip(start).zip(length.iter().chain(&sum)) {
        *to = *from;
    }
    Ok(())
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

/// What a reader meets in a segment.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Event(&'a [u8]),
    Seal(u32),
    Letter(&'a [u8]),
    /// Bytes that are no record, with a record behind them.
    Gap,
    /// The rest, which holds no record: of one that was being written, or damaged.
    Tail {
        torn: bool,
    },
}

/// Reads records one after the other, past whatever is damaged.
struct Walker<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How many bytes the search behind damage may still check: without a bound, bytes made for it would cost the
    /// square of their number.
    budget: usize,
}

impl<'a> Walker<'a> {
    const fn new(bytes: &'a [u8], at: usize) -> Self {
        Self {
            bytes,
            at,
            budget: bytes.len().saturating_mul(4),
        }
    }

    /// The payload of the record that begins there, if it can be one; unchecked.
    fn candidate(&self, at: usize) -> Option<([u8; 4], u32, &'a [u8])> {
        let prefix = self.bytes.get(at..)?.first_chunk::<PREFIX_BYTES>()?;
        let [a, b, c, d, sum @ ..] = *prefix;
        let length = [a, b, c, d];
        let n_bytes = u32::from_le_bytes(length) as usize;
        if !(1..=MAX_RECORD_BYTES).contains(&n_bytes) {
            return None;
        }
        let start = at + PREFIX_BYTES;
        let payload = self.bytes.get(start..start.checked_add(n_bytes)?)?;
        matches!(payload.first(), Some(&EVENT | &SEAL | &LETTER)).then_some((
            length,
            u32::from_le_bytes(sum),
            payload,
        ))
    }

    fn record_at(&mut self, at: usize) -> Option<&'a [u8]> {
        let (length, sum, payload) = self.candidate(at)?;
        self.budget = self.budget.saturating_sub(payload.len());
        (checksum(length, payload) == sum).then_some(payload)
    }

    /// Where the next record begins; `None` when there is none, or the search would cost too much.
    fn resume(&mut self) -> Option<usize> {
        for at in self.at + 1..self.bytes.len() {
            if self.budget == 0 {
                return None;
            }
            if self.record_at(at).is_some() {
                return Some(at);
            }
        }
        None
    }

    /// Whether the rest is the begin of a record, or nothing at all: what a kill or a loss of power leaves.
    fn is_torn(&self) -> bool {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if rest.iter().all(|byte| *byte == 0) {
            return true;
        }
        let Some([a, b, c, d, ..]) = rest.first_chunk::<PREFIX_BYTES>() else {
            return true;
        };
        let n_bytes = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        n_bytes <= MAX_RECORD_BYTES && n_bytes > rest.len() - PREFIX_BYTES
    }

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.at >= self.bytes.len() {
            return None;
        }
        if let Some(payload) = self.record_at(self.at) {
            self.at += PREFIX_BYTES + payload.len();
            return Some(piece(payload));
        }
        if let Some(next) = self.resume() {
            self.at = next;
            return Some(Piece::Gap);
        }
        let torn = self.is_torn();
        self.at = self.bytes.len();
        Some(Piece::Tail { torn })
    }
}

fn piece(payload: &[u8]) -> Piece<'_> {
    match payload {
        [EVENT, json @ ..] => Piece::Event(json),
        [LETTER, json @ ..] => Piece::Letter(json),
        [SEAL, a, b, c, d] => Piece::Seal(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => Piece::Gap,
    }
}

/// One batch as it stands in a segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch<'a> {
    /// The JSON of each event.
    pub(crate) events: Vec<&'a [u8]>,
    /// Where the next batch begins.
    pub(crate) end: usize,
    /// How many events are damaged: exact where the seal was read, else one for each damaged place.
    pub(crate) lost: u64,
}

/// What a whole segment holds.
#[derive(Debug, Default)]
pub(crate) struct Scan<'a> {
    pub(crate) batches: Vec<Batch<'a>>,
    /// The begin of a record that was never finished, and all behind it.
    pub(crate) torn_at: Option<usize>,
    pub(crate) damaged: bool,
}

/// Reads the batch that begins at `at`; `None` at the end.
pub(crate) fn batch_at(bytes: &[u8], at: usize) -> Option<Batch<'_>> {
    let mut walker = Walker::new(bytes, at);
    let mut scan = Scan::default();
    next_batches(&mut walker, &mut scan);
    let batch = scan.batches.into_iter().reduce(|mut first, second| {
        // The seal between them was damaged: they go on as one.
        first.events.extend(second.events);
        first.end = second.end;
        first.lost += second.lost;
        first
    });
    let end = walker.at;
    let is_empty = batch.is_none() && end > at;
    batch.or_else(|| {
        is_empty.then(|| Batch {
            end,
            ..Batch::default()
        })
    })
}

/// Reads all batches behind the header.
pub(crate) fn scan(bytes: &[u8]) -> Scan<'_> {
    let mut walker = Walker::new(bytes, HEADER_BYTES.min(bytes.len()));
    let mut scan = Scan::default();
    while walker.at < bytes.len() {
        next_batches(&mut walker, &mut scan);
    }
    scan
}

/// Reads up to the next seal or the end: one batch, or two where the seal between them is damaged.
fn next_batches<'a>(walker: &mut Walker<'a>, scan: &mut Scan<'a>) {
    let mut batch = Batch::default();
    let mut gaps = 0;
    loop {
        let before = walker.at;
        match walker.next() {
            Some(Piece::Event(json)) => batch.events.push(json),
            Some(Piece::Gap | Piece::Letter(_)) => {
                gaps += 1;
                scan.damaged = true;
            }
            Some(Piece::Seal(n_events)) => {
                let n_events = n_events as usize;
                batch.end = walker.at;
                if let Some(n_before) = batch.events.len().checked_sub(n_events)
                    && n_before > 0
                {
                    let rest = batch.events.split_off(n_before);
                    batch.lost = gaps;
                    scan.batches.push(batch);
                    batch = Batch {
                        events: rest,
                        end: walker.at,
                        lost: 0,
                    };
                } else {
                    // A seal made up by damage would be counted for more than a file can hold.
                    let most = (walker.bytes.len() / PREFIX_BYTES) as u64;
                    batch.lost = (n_events.saturating_sub(batch.events.len()) as u64).min(most);
                }
                break;
            }
            tail @ (Some(Piece::Tail { .. }) | None) => {
                match tail {
                    Some(Piece::Tail { torn: true }) => scan.torn_at = Some(before),
                    Some(_) => {
                        gaps += 1;
                        scan.damaged = true;
                    }
                    None => {}
                }
                batch.end = walker.at;
                batch.lost = gaps;
                break;
            }
        }
    }
    if !batch.events.is_empty() || batch.lost > 0 {
        scan.batches.push(batch);
    }
}

/// The letters of a file of dead letters, and whether some of it is damaged.
pub(crate) fn letters(bytes: &[u8]) -> (Vec<&[u8]>, bool) {
    let mut walker = Walker::new(bytes, HEADER_BYTES.min(bytes.len()));
    let mut letters = Vec::new();
    let mut damaged = false;
    while let Some(piece) = walker.next() {
        match piece {
            Piece::Letter(json) => letters.push(json),
            _ => damaged = true,
        }
    }
    (letters, damaged)
}
