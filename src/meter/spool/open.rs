//! What a start finds in the directory, and how it is mended.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use super::{
    cursor::Position,
    error::SpoolError,
    segment::{self, BadHeader, HEADER_BYTES, Header},
    store::{Limits, MAX_FILE_BYTES, Segment, Spool, begin_of, segment_path},
};
use crate::{
    clock::Timestamp,
    disk::{self, beside},
    meter::DeadLetter,
};

pub(super) const CURSOR: &str = "cursor";
const LOCK: &str = "lock";
const LETTERS: &str = "dead_letters";

/// What an earlier life has left.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    pub(crate) letters: Vec<DeadLetter>,
    /// Segments that are gone, and nobody knows what they held.
    pub(crate) n_missing: u64,
}

impl Spool {
    /// Takes the directory, mends what a kill has left and counts what is to be read.
    pub(crate) fn open(
        directory: &Path,
        limits: Limits,
        boot: u64,
        now: Timestamp,
    ) -> Result<(Self, Opened), SpoolError> {
        fs::create_dir_all(directory).map_err(SpoolError::at(directory))?;
        let mut options = OpenOptions::new();
        // The file stays: whoever removed it while another process waits for it would let a third one in.
        options.write(true).create(true).truncate(false);
        let lock = options
            .open(directory.join(LOCK))
            .map_err(SpoolError::at(directory))?;
        fs4::FileExt::try_lock(&lock).map_err(|error| match error {
            fs4::TryLockError::WouldBlock => SpoolError::Locked {
                path: directory.to_owned(),
            },
            fs4::TryLockError::Error(source) => SpoolError::at(directory)(source),
        })?;
        let mut spool = Self::new(directory.to_owned(), limits, boot, lock);
        let mut opened = Opened::default();
        let cursor = spool.read_cursor()?;
        spool.read = cursor.unwrap_or_default();
        opened.n_missing = spool.read_segments(cursor)?;
        spool.cursor = spool.read;
        let path = directory.join(CURSOR);
        // Written at every start, so that a directory that cannot be written to is found now.
        disk::replace(&path, &spool.cursor.encode(), None).map_err(SpoolError::at(directory))?;
        opened.letters = spool.read_letters()?;
        spool.expire(now);
        Ok((spool, opened))
    }

    fn read_cursor(&self) -> Result<Option<Position>, SpoolError> {
        let path = self.directory.join(CURSOR);
        let bytes = match read(&path)? {
            Content::Whole(bytes) => bytes,
            // No cursor of ours.
            Content::TooLong => Vec::new(),
            Content::Absent => return Ok(None),
        };
        match Position::decode(&bytes) {
            Ok(cursor) => Ok(Some(cursor)),
            Err(BadHeader::Newer(version)) => Err(SpoolError::Newer { path, version }),
            Err(BadHeader::Damaged) => {
                tracing::error!(
                    "the cursor of the usage spool is damaged: all that the spool holds is offered again"
                );
                Ok(None)
            }
        }
    }

    /// Reads every segment; says how many are missing.
    fn read_segments(&mut self, cursor: Option<Position>) -> Result<u64, SpoolError> {
        let at = self.directory.clone();
        let numbers = self.numbers().map_err(SpoolError::at(&at))?;
        let mut n_missing = 0;
        let mut last = cursor.map(|cursor| cursor.segment);
        for number in numbers {
            let offset = match cursor {
                Some(cursor) if number < cursor.segment => {
                    // Finished; a kill came before it was removed.
                    fs::remove_file(segment_path(&at, number)).map_err(SpoolError::at(&at))?;
                    continue;
                }
                Some(cursor) if number == cursor.segment => cursor.offset,
                _ => HEADER_BYTES as u64,
            };
            if let Some(last) = last.filter(|last| *last < number) {
                n_missing += number - last - 1;
            }
            last = Some(number);
            self.read_segment(number, offset)?;
        }
        if n_missing > 0 {
            tracing::error!(
                n_missing,
                "segments of the usage spool are missing: whatever they held is lost"
            );
        }
        self.next_number = last.map_or(1, |last| last.saturating_add(1));
        Ok(n_missing)
    }

    /// The numbers of the segments that are there.
    fn numbers(&self) -> io::Result<BTreeSet<u64>> {
        let mut numbers = BTreeSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some((number, rest)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            let path = segment_path(&self.directory, number);
            match rest {
                "seg" => {}
                // The clean copy of a damaged segment, written whole before the damaged one lost its name.
                "seg.new" if !path.exists() && beside(&path, ".bad").exists() => {
                    fs::rename(beside(&path, ".new"), &path)?;
                }
                "seg.new" => {
                    fs::remove_file(beside(&path, ".new"))?;
                    continue;
                }
                _ => continue,
            }
            // The name that a number has, and no other that reads the same.
            if number < u64::MAX && path.exists() {
                numbers.insert(number);
            }
        }
        Ok(numbers)
    }

    /// Reads a segment, whose batches up to `offset` are finished, and mends it.
    fn read_segment(&mut self, number: u64, offset: u64) -> Result<(), SpoolError> {
        let path = segment_path(&self.directory, number);
        let bytes = match read(&path)? {
            Content::Whole(bytes) => bytes,
            Content::TooLong => return self.put_aside(&path),
            // Removed by somebody since the directory was read.
            Content::Absent => {
                self.corrupt += 1;
                return Ok(());
            }
        };
        let header = match Header::decode(&bytes) {
            Ok(header) => Some(header),
            Err(BadHeader::Newer(version)) => return Err(SpoolError::Newer { path, version }),
            Err(BadHeader::Damaged) => None,
        };
        let scan = segment::scan(&bytes);
        let is_boundary = offset == HEADER_BYTES as u64
            || offset >= bytes.len() as u64
            || scan.batches.iter().any(|batch| batch.end as u64 == offset);
        // A cursor that points into a batch says nothing: all of the segment is offered again.
        let offset = if is_boundary {
            offset
        } else {
            HEADER_BYTES as u64
        };
        let open = scan.batches.iter();
        let open: Vec<_> = open.filter(|batch| batch.end as u64 > offset).collect();
        let unread = open.iter().map(|batch| batch.events.len() as u64).sum();
        let mut length = scan.torn_at.unwrap_or(bytes.len()) as u64;
        let mut begin = begin_of(number);
        begin.offset = offset;
        if scan.damaged || (header.is_none() && bytes.len() >= HEADER_BYTES) {
            let lost: u64 = open.iter().map(|batch| batch.lost).sum();
            self.corrupt += lost.max(u64::from(header.is_none() && open.is_empty()));
            begin = begin_of(number);
            let header = header.unwrap_or(Header {
                boot: self.boot,
                created: Timestamp::UNIX_EPOCH,
            });
            length = self.rewrite(number, header, &open)?;
        } else if scan.torn_at.is_some() {
            let file = OpenOptions::new().write(true).open(&path);
            file.and_then(|file| file.set_len(length))
                .map_err(SpoolError::at(&path))?;
        }
        if self.segments.is_empty() {
            self.read = begin;
        }
        self.segments.insert(
            number,
            Segment {
                bytes: length,
                created: header.map_or(Timestamp::UNIX_EPOCH, |header| header.created),
                unread,
            },
        );
        Ok(())
    }

    /// Writes what can be read of a damaged segment in its place, and keeps the damaged one under another name.
    fn rewrite(
        &self,
        number: u64,
        header: Header,
        batches: &[&segment::Batch<'_>],
    ) -> Result<u64, SpoolError> {
        let path = segment_path(&self.directory, number);
        let mut clean = header.encode();
        for batch in batches.iter().filter(|batch| !batch.events.is_empty()) {
            // They were records before, so they can be records again.
            let _ = segment::copy_batch(&mut clean, &batch.events);
        }
        let bad = beside(&path, ".bad");
        tracing::error!(
            file = %bad.display(),
            "a segment of the usage spool is damaged: what can be read of it is read, and the file is kept"
        );
        // First the cursor, which knows places in the damaged file.
        let replaced = disk::replace(
            &self.directory.join(CURSOR),
            &self.read_or(number).encode(),
            None,
        )
        .and_then(|()| disk::replace(&path, &clean, Some(&bad)));
        replaced.map_err(SpoolError::at(&path))?;
        Ok(clean.len() as u64)
    }

    /// Where reading begins; at that segment, when there is none before it.
    fn read_or(&self, number: u64) -> Position {
        if self.segments.is_empty() {
            begin_of(number)
        } else {
            self.read
        }
    }

    /// Keeps a file that is none of ours, as it is far too long, under another name.
    fn put_aside(&mut self, path: &Path) -> Result<(), SpoolError> {
        let bad = beside(path, ".bad");
        tracing::error!(
            file = %bad.display(),
            "a file of the usage spool is longer than any that is written: it is not read"
        );
        self.corrupt += 1;
        fs::rename(path, bad).map_err(SpoolError::at(path))
    }

    fn read_letters(&mut self) -> Result<Vec<DeadLetter>, SpoolError> {
        let path = self.directory.join(LETTERS);
        let bytes = match read(&path)? {
            Content::Whole(bytes) => bytes,
            Content::TooLong => {
                self.put_aside(&path)?;
                return Ok(Vec::new());
            }
            Content::Absent => return Ok(Vec::new()),
        };
        if let Err(BadHeader::Newer(version)) = Header::decode(&bytes) {
            return Err(SpoolError::Newer { path, version });
        }
        let (records, mut is_damaged) = segment::letters(&bytes);
        let mut letters = Vec::with_capacity(records.len());
        for json in records {
            match serde_json::from_slice(json) {
                Ok(letter) => letters.push(letter),
                Err(_) => is_damaged = true,
            }
        }
        if is_damaged {
            let bad = beside(&path, ".bad");
            let kept = fs::copy(&path, &bad).is_ok();
            tracing::error!(file = %bad.display(), kept, "the file of dead letters is damaged in part");
        }
        Ok(letters)
    }
}

/// Writes the dead letters in place of those that are there.
pub(super) fn write_letters(spool: &Spool, letters: &[DeadLetter]) -> Result<(), SpoolError> {
    let path: PathBuf = spool.directory.join(LETTERS);
    let mut bytes = Header {
        boot: spool.boot,
        created: Timestamp::UNIX_EPOCH,
    }
    .encode();
    let header_bytes = bytes.len();
    let mut ends = Vec::with_capacity(letters.len());
    for letter in letters {
        if let Err(unwritable) = segment::encode_letter(&mut bytes, letter) {
            tracing::error!(
                error = &unwritable as &dyn std::error::Error,
                event = %letter.event.id,
                "a dead letter cannot be kept on the disk"
            );
        }
        ends.push(bytes.len());
    }
    let excess = (bytes.len() as u64).saturating_sub(MAX_FILE_BYTES);
    if excess > 0 {
        // A longer file would not be read again.
        let least = header_bytes as u64 + excess;
        let n_left_out = ends.partition_point(|end| (*end as u64) < least) + 1;
        let end = ends.get(n_left_out - 1).copied().unwrap_or(bytes.len());
        bytes.drain(header_bytes..end);
        tracing::error!(
            n_left_out,
            "the dead letters are longer than a file may be: the oldest are kept in memory only"
        );
    }
    disk::replace(&path, &bytes, None).map_err(SpoolError::of)
}

/// What stands under a name.
enum Content {
    Whole(Vec<u8>),
    /// Longer than any file of ours.
    TooLong,
    Absent,
}

fn read(path: &Path) -> Result<Content, SpoolError> {
    match disk::read_at_most(path, MAX_FILE_BYTES) {
        Ok(Some(bytes)) => Ok(Content::Whole(bytes)),
        Ok(None) => Ok(Content::TooLong),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Content::Absent),
        Err(error) => Err(SpoolError::at(path)(error)),
    }
}
