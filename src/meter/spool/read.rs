//! Reading back what the flusher has let go, and what an earlier life has left.

use std::{fs, io, sync::Arc};

use super::{
    cursor::Position,
    segment,
    store::{MAX_FILE_BYTES, Secured, Spool, begin_of},
};
use crate::{
    clock::Timestamp,
    disk,
    meter::{UsageEvent, batch::Frozen},
};

impl Spool {
    /// Drops the segments whose events are all older than they may be, and counts their events as expired.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        let Some(max_age) = self.limits.max_age else {
            return;
        };
        loop {
            let mut segments = self.segments.iter();
            let (Some((&number, segment)), Some((_, next))) = (segments.next(), segments.next())
            else {
                return;
            };
            let unread = segment.unread;
            // The events of a segment are older than the one behind it.
            let is_old = now.saturating_since(next.created) > max_age;
            let mut in_hand = self.loaded.iter();
            if !is_old || unread == 0 || in_hand.any(|loaded| loaded.start.segment <= number) {
                return;
            }
            tracing::error!(
                segment = number,
                lost = unread,
                "usage events in the spool are older than they may be and are dropped"
            );
            self.expired += unread;
            self.segments.remove(&number);
            self.read = self.read.max(begin_of(number + 1));
            let _ = fs::remove_file(self.path(number));
        }
    }

    /// Reads batches back into the inbox, oldest first, until there are `n_events` or no more.
    pub(crate) fn load(&mut self, n_events: u64) {
        let mut n_read = 0;
        while n_read < n_events && self.unread() > 0 {
            let Some(batch) = self.load_one() else { break };
            n_read += batch.events.len() as u64;
            self.inbox.push(batch);
        }
    }

    pub(crate) fn take_inbox(&mut self) -> Vec<Arc<Frozen>> {
        std::mem::take(&mut self.inbox)
    }

    pub(crate) fn take_losses(&mut self) -> (u64, u64) {
        (
            std::mem::take(&mut self.corrupt),
            std::mem::take(&mut self.expired),
        )
    }

    fn load_one(&mut self) -> Option<Arc<Frozen>> {
        loop {
            let (&number, segment) = self.segments.range(self.read.segment..).next()?;
            let (length, unread) = (segment.bytes, segment.unread);
            self.read = self.read.max(begin_of(number));
            if unread == 0 || self.read.offset >= length {
                self.leave(number);
                let (&next, _) = self.segments.range(number + 1..).next()?;
                self.read = begin_of(next);
                continue;
            }
            let start = self.read;
            let (events, n_lost, end) = match self.decode_at(start, length) {
                Ok(Some(batch)) => batch,
                Ok(None) => {
                    self.read.offset = length;
                    continue;
                }
                Err(error) => {
                    self.note_unreadable(number, &error);
                    return None;
                }
            };
            self.is_unreadable = false;
            self.read.offset = end;
            if n_lost > 0 {
                self.keep_aside(number);
            }
            if let Some(segment) = self.segments.get_mut(&number) {
                let left = unread.saturating_sub(events.len() as u64);
                let n_lost = n_lost.min(left);
                segment.unread = left - n_lost;
                self.corrupt += n_lost;
            }
            if !events.is_empty() {
                let frozen = Frozen::new(events);
                frozen.secure(Secured::InHand(self.hand_out(start)));
                return Some(Arc::new(frozen));
            }
        }
    }

    /// The events of the batch that begins there, how many of it cannot be read, and where it ends; `None` where the
    /// segment has nothing more to read. An error may pass, and says nothing about what the segment holds.
    fn decode_at(
        &mut self,
        at: Position,
        length: u64,
    ) -> io::Result<Option<(Vec<UsageEvent>, u64, u64)>> {
        let known = self.reading.take();
        let is_current = |(number, bytes): &(u64, Vec<u8>)| {
            *number == at.segment && bytes.len() as u64 == length
        };
        let (_, bytes) = match known.filter(is_current) {
            Some(known) => self.reading.insert(known),
            None => {
                let Some(mut bytes) = self.read_whole(at.segment)? else {
                    return Ok(None);
                };
                bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
                self.reading.insert((at.segment, bytes))
            }
        };
        let offset = usize::try_from(at.offset).unwrap_or(usize::MAX);
        let Some(batch) = segment::batch_at(bytes, offset) else {
            return Ok(None);
        };
        let events: Vec<UsageEvent> = batch
            .events
            .iter()
            .filter_map(|json| serde_json::from_slice(json).ok())
            .collect();
        let n_unreadable = (batch.events.len() - events.len()) as u64;
        Ok(Some((events, batch.lost + n_unreadable, batch.end as u64)))
    }

    /// The bytes of a segment; `None` for one that is gone, or longer than any that is written, which is put aside.
    fn read_whole(&mut self, number: u64) -> io::Result<Option<Vec<u8>>> {
        let path = self.path(number);
        let fault = match disk::read_at_most(&path, MAX_FILE_BYTES) {
            Ok(Some(bytes)) => return Ok(Some(bytes)),
            Ok(None) => {
                fs::rename(&path, disk::beside(&path, ".bad"))?;
                "it is longer than any that is written, and is kept as `.bad`"
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => "it is gone",
            Err(error) => return Err(error),
        };
        tracing::error!(
            segment = number,
            fault,
            "a segment of the usage spool cannot be read any more: it is skipped"
        );
        // What is appended to a file without its name, nobody finds.
        self.leave_active(number);
        Ok(None)
    }

    /// Says once that a segment cannot be read at the moment: it is tried again until it can.
    fn note_unreadable(&mut self, number: u64, error: &io::Error) {
        if !std::mem::replace(&mut self.is_unreadable, true) {
            tracing::error!(
                segment = number,
                error = error as &dyn std::error::Error,
                "a segment of the usage spool cannot be read at the moment: its events wait until it can"
            );
        }
    }

    /// Counts what was not found in a segment that is read to its end.
    fn leave(&mut self, number: u64) {
        if let Some(segment) = self.segments.get_mut(&number) {
            self.corrupt += std::mem::take(&mut segment.unread);
        }
    }

    /// Keeps a damaged segment under another name, for people.
    fn keep_aside(&self, number: u64) {
        let path = self.path(number);
        let aside = disk::beside(&path, ".bad");
        if !aside.exists() {
            let kept = fs::copy(&path, &aside);
            tracing::error!(
                file = %aside.display(),
                kept = kept.is_ok(),
                "a segment of the usage spool is damaged: what can be read of it is read"
            );
        }
    }
}
