use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    cursor::Position,
    error::SpoolError,
    open,
    segment::{self, HEADER_BYTES, Header},
};
use crate::{
    clock::Timestamp,
    disk,
    meter::{DeadLetter, batch::Frozen},
};

/// The largest segment.
const MAX_SEGMENT_BYTES: u64 = 16 << 20;
/// Nothing that this crate writes is longer: a segment and the largest batch behind it.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;

/// What a spool may hold, and how sure it must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_bytes: u64,
    pub(crate) max_age: Option<Duration>,
    /// Each append reaches the disk before it counts.
    pub(crate) sync: bool,
}

/// Where a batch is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secured {
    /// On the disk and in the hands of the flusher, under this ticket.
    InHand(u64),
    /// On the disk only: it is read back when its turn comes.
    OnDisk,
    /// In memory only: an event of it cannot be written as a record.
    Never,
}

pub(super) struct Segment {
    /// As far as it holds whole records.
    pub(super) bytes: u64,
    pub(super) created: Timestamp,
    /// Events that nobody has read yet.
    pub(super) unread: u64,
}

/// A batch in the hands of the flusher.
pub(super) struct Loaded {
    ticket: u64,
    pub(super) start: Position,
    is_done: bool,
}

/// The files of one recorder. All of it blocks.
pub(crate) struct Spool {
    pub(super) directory: PathBuf,
    pub(super) limits: Limits,
    pub(super) boot: u64,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) next_number: u64,
    /// The segment that is appended to.
    active: Option<(u64, File)>,
    /// Where what nobody has read begins.
    pub(super) read: Position,
    pub(super) reading: Option<(u64, Vec<u8>)>,
    /// The last attempt to read failed, which was told.
    pub(super) is_unreadable: bool,
    pub(super) loaded: VecDeque<Loaded>,
    next_ticket: u64,
    /// As it is on the disk.
    pub(super) cursor: Position,
    /// Batches that were read back and not yet taken by the flusher.
    pub(super) inbox: Vec<Arc<Frozen>>,
    /// Events that were on the disk and cannot be read any more.
    pub(super) corrupt: u64,
    pub(super) expired: u64,
    buffer: Vec<u8>,
    /// Something is written that was not admitted yet.
    has_pending: bool,
    /// Something that was appended since the last sync may not be on the disk. A second sync would not say so: the
    /// system tells of a failure once.
    is_unsure: bool,
    /// Given back when this is dropped, or the process ends.
    _lock: File,
}

pub(super) fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:020}.seg"))
}

/// Where the first record of a segment stands.
pub(super) const fn begin_of(segment: u64) -> Position {
    Position {
        segment,
        offset: HEADER_BYTES as u64,
    }
}

impl Spool {
    pub(super) fn new(directory: PathBuf, limits: Limits, boot: u64, lock: File) -> Self {
        Self {
            directory,
            limits,
            boot,
            segments: BTreeMap::new(),
            next_number: 1,
            active: None,
            read: Position::default(),
            reading: None,
            is_unreadable: false,
            loaded: VecDeque::new(),
            next_ticket: 0,
            cursor: Position::default(),
            inbox: Vec::new(),
            corrupt: 0,
            expired: 0,
            buffer: Vec::new(),
            has_pending: false,
            is_unsure: false,
            _lock: lock,
        }
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        segment_path(&self.directory, number)
    }

    pub(crate) fn unread(&self) -> u64 {
        self.segments.values().map(|segment| segment.unread).sum()
    }

    /// The bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// Small spools have small segments, as only whole ones are given back.
    fn segment_bytes(&self) -> u64 {
        (self.limits.max_bytes / 8).clamp(4 << 10, MAX_SEGMENT_BYTES)
    }

    /// Appends batches and notes on each where it is kept. Those that were not written stay as they were: whoever
    /// calls keeps them and tries again.
    ///
    /// With `keep`, batches stay in the caller's hands as well, unless older ones are still to be read.
    pub(crate) fn append(
        &mut self,
        batches: &[Arc<Frozen>],
        now: Timestamp,
        keep: bool,
    ) -> Result<(), SpoolError> {
        let first_new = self.next_number;
        self.is_unsure = false;
        let before = self.active.as_ref().map(|(number, _)| *number);
        let before = before.and_then(|number| Some((number, self.segments.get(&number)?.bytes)));
        let mut written = Vec::new();
        let mut fault = Ok(());
        for batch in batches.iter().filter(|batch| batch.secured().is_none()) {
            self.has_pending = !written.is_empty();
            match self.write_batch(batch, now) {
                Ok(Some(start)) => written.push((batch, start)),
                Ok(None) => {}
                Err(error) => {
                    fault = Err(error);
                    break;
                }
            }
        }
        self.has_pending = false;
        if self.limits.sync
            && !written.is_empty()
            && let Err(error) = self.sync_all()
        {
            // What the system has forgotten after a failed sync, nobody can know: a new segment is begun.
            self.take_back(first_new, before);
            fault?;
            return Err(SpoolError::of(error));
        }
        for (batch, places) in written {
            self.admit(batch, places, keep);
        }
        fault
    }

    /// Writes a batch and says from where to where; `None` for one that cannot be written as records.
    fn write_batch(
        &mut self,
        batch: &Frozen,
        now: Timestamp,
    ) -> Result<Option<(Position, Position)>, SpoolError> {
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        let place = match segment::encode_batch(&mut bytes, &*batch.events) {
            Ok(()) => self.write(&bytes, now).map(Some),
            Err(unwritable) => {
                tracing::error!(
                    error = &unwritable as &dyn std::error::Error,
                    "a usage event cannot be spooled: its batch is held in memory"
                );
                batch.secure(Secured::Never);
                Ok(None)
            }
        };
        self.buffer = bytes;
        place
    }

    /// Notes a batch that is on the disk.
    fn admit(&mut self, batch: &Frozen, (start, end): (Position, Position), keep: bool) {
        if keep && self.unread() == 0 {
            self.read = end;
            batch.secure(Secured::InHand(self.hand_out(start)));
        } else if let Some(segment) = self.segments.get_mut(&start.segment) {
            segment.unread += batch.events.len() as u64;
            batch.secure(Secured::OnDisk);
        }
    }

    /// A ticket for a batch that goes into the hands of the flusher.
    pub(super) fn hand_out(&mut self, start: Position) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.loaded.push_back(Loaded {
            ticket,
            start,
            is_done: false,
        });
        ticket
    }

    /// Appends no more to that segment.
    pub(super) fn leave_active(&mut self, number: u64) {
        self.active.take_if(|(active, _)| *active == number);
    }

    fn sync(&mut self) -> io::Result<()> {
        match &self.active {
            Some((_, file)) => file.sync_data(),
            None => Ok(()),
        }
    }

    /// Says whether all that this call has appended is on the disk.
    fn sync_all(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_unsure) {
            return Err(io::Error::other("an earlier sync has failed"));
        }
        self.sync()
    }

    /// Forgets segments from `first_new` on, and what was appended since the last one before had that length.
    fn take_back(&mut self, first_new: u64, before: Option<(u64, u64)>) {
        self.active = None;
        for number in self.segments.split_off(&first_new).into_keys() {
            let _ = fs::remove_file(self.path(number));
        }
        let Some((number, length)) = before else {
            return;
        };
        if let Ok(file) = OpenOptions::new().write(true).open(self.path(number)) {
            let _ = file.set_len(length);
        }
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.bytes = length;
        }
    }

    /// Writes the bytes of a batch and says from where to where; once more where room can be made for them.
    fn write(&mut self, bytes: &[u8], now: Timestamp) -> Result<(Position, Position), SpoolError> {
        match self.try_write(bytes, now) {
            Err(error @ (SpoolError::Full | SpoolError::NoSpace(_))) => {
                let before = self.bytes();
                self.reclaim();
                if self.bytes() < before {
                    self.try_write(bytes, now)
                } else {
                    Err(error)
                }
            }
            outcome => outcome,
        }
    }

    fn try_write(
        &mut self,
        bytes: &[u8],
        now: Timestamp,
    ) -> Result<(Position, Position), SpoolError> {
        let n_bytes = bytes.len() as u64;
        if self.bytes() + n_bytes > self.limits.max_bytes {
            return Err(SpoolError::Full);
        }
        if !self.has_room(n_bytes) {
            self.rotate(now)?;
        }
        let Some((number, file)) = &mut self.active else {
            return Err(SpoolError::Closed);
        };
        let number = *number;
        let Some(segment) = self.segments.get_mut(&number) else {
            return Err(SpoolError::Closed);
        };
        let start = segment.bytes;
        let written = file
            .seek(SeekFrom::Start(start))
            .and_then(|_| file.write_all(bytes));
        if let Err(error) = written {
            // Half of a record would be taken for one that a kill has torn; it is better gone.
            if file.set_len(start).is_err() {
                self.active = None;
                self.is_unsure = true;
            }
            return Err(SpoolError::of(error));
        }
        segment.bytes = start + n_bytes;
        let at = |offset| Position {
            segment: number,
            offset,
        };
        Ok((at(start), at(start + n_bytes)))
    }

    /// Whether the segment that is appended to takes that many bytes more; an empty one takes any.
    fn has_room(&self, n_bytes: u64) -> bool {
        let active = self.active.as_ref();
        let length = active.and_then(|(number, _)| Some(self.segments.get(number)?.bytes));
        length.is_some_and(|length| {
            length <= HEADER_BYTES as u64 || length + n_bytes <= self.segment_bytes()
        })
    }

    /// Begins a new segment.
    fn rotate(&mut self, now: Timestamp) -> Result<(), SpoolError> {
        let synced = if self.limits.sync {
            self.sync()
        } else {
            Ok(())
        };
        self.active = None;
        if let Err(error) = synced {
            self.is_unsure = true;
            return Err(SpoolError::of(error));
        }
        let number = self.next_number;
        let path = self.path(number);
        let header = Header {
            boot: self.boot,
            created: now,
        };
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        // Who calls how much is nobody else's business.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let made = options.open(&path).and_then(|mut file| {
            file.write_all(&header.encode())?;
            if self.limits.sync {
                file.sync_data()?;
                disk::sync_directory(&path)?;
            }
            Ok(file)
        });
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                let _ = fs::remove_file(&path);
                return Err(SpoolError::of(error));
            }
        };
        self.next_number = number + 1;
        self.active = Some((number, file));
        let segment = Segment {
            bytes: HEADER_BYTES as u64,
            created: now,
            unread: 0,
        };
        self.segments.insert(number, segment);
        Ok(())
    }

    /// Gives the room of finished segments back, of the one that is appended to as well.
    fn reclaim(&mut self) {
        if self.save_cursor().is_err() {
            self.give_room();
        }
        self.remove_all_finished();
    }

    /// Removes what is finished though the cursor could not be written. It then says less than is true, which costs
    /// batches that are offered again; to keep the room would cost all that follow.
    fn give_room(&mut self) {
        self.remove_finished(self.finished());
        self.remove_all_finished();
    }

    /// Removes every segment when there is nothing in them that is not finished.
    fn remove_all_finished(&mut self) {
        if self.unread() == 0 && self.loaded.is_empty() && !self.has_pending {
            let all = std::mem::take(&mut self.segments);
            self.active = None;
            for number in all.into_keys() {
                let _ = fs::remove_file(self.path(number));
            }
        }
    }

    /// Everything before this is finished.
    fn finished(&self) -> Position {
        self.loaded.front().map_or(self.read, |loaded| loaded.start)
    }

    fn remove_finished(&mut self, finished: Position) {
        let rest = self.segments.split_off(&finished.segment);
        for number in std::mem::replace(&mut self.segments, rest).into_keys() {
            // One that stays is removed at the next start.
            let _ = fs::remove_file(self.path(number));
        }
    }

    fn save_cursor(&mut self) -> io::Result<()> {
        while self.loaded.front().is_some_and(|loaded| loaded.is_done) {
            self.loaded.pop_front();
        }
        let finished = self.finished();
        if finished != self.cursor {
            disk::replace(&self.directory.join(open::CURSOR), &finished.encode(), None)?;
            self.cursor = finished;
        }
        self.remove_finished(finished);
        Ok(())
    }

    /// Writes down what is finished: the dead letters first, where they are new, then the cursor behind the batches
    /// with these tickets; then removes what nobody needs.
    pub(crate) fn commit(
        &mut self,
        letters: Option<&[DeadLetter]>,
        finished: &[u64],
    ) -> Result<(), SpoolError> {
        if let Some(letters) = letters {
            open::write_letters(self, letters)?;
        }
        for ticket in finished {
            let place = self
                .loaded
                .binary_search_by_key(ticket, |loaded| loaded.ticket);
            if let Some(loaded) = place.ok().and_then(|place| self.loaded.get_mut(place)) {
                loaded.is_done = true;
            }
        }
        if let Err(error) = self.save_cursor() {
            // A disk that these segments fill has no room for the cursor until they are gone.
            self.give_room();
            self.save_cursor().map_err(|_| SpoolError::of(error))?;
        }
        if self.bytes() > self.segment_bytes() / 2 {
            self.remove_all_finished();
        }
        Ok(())
    }

    /// Ends the spool: what nobody needs is removed, and the next recorder may have the directory.
    pub(crate) fn close(
        mut self,
        letters: Option<&[DeadLetter]>,
        finished: &[u64],
    ) -> Result<(), SpoolError> {
        self.commit(letters, finished)?;
        self.remove_all_finished();
        if self.limits.sync {
            self.sync().map_err(SpoolError::of)?;
        }
        Ok(())
    }
}
