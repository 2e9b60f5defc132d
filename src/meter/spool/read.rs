//! Reading back what the flusher has let go, and what an earlier life has left.

use std::{fs, sync::Arc};

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
            let Some((events, n_lost, end)) = self.decode_at(start, length) else {
                self.read.offset = length;
                continue;
            };
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

    /// The events of the batch that begins there, how many of it cannot be read, and where it ends.
    fn decode_at(&mut self, at: Position, length: u64) -> Option<(Vec<UsageEvent>, u64, u64)> {
        let known = self.reading.take();
        let is_current = |(number, bytes): &(u64, Vec<u8>)| {
            *number == at.segment && bytes.len() as u64 == length
        };
        let (_, bytes) = match known.filter(is_current) {
            Some(known) => self.reading.insert(known),
            None => match disk::read_at_most(&self.path(at.segment), MAX_FILE_BYTES) {
                Ok(Some(mut bytes)) => {
                    bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
                    self.reading.insert((at.segment, bytes))
                }
                outcome => {
                    tracing::error!(
                        segment = at.segment,
                        error = ?outcome.err(),
                        "a segment of the usage spool cannot be read any more: it is skipped"
                    );
                    return None;
                }
            },
        };
        let batch = segment::batch_at(bytes, usize::try_from(at.offset).ok()?)?;
        let events: Vec<UsageEvent> = batch
            .events
            .iter()
            .filter_map(|json| serde_json::from_slice(json).ok())
            .collect();
        let n_unreadable = (batch.events.len() - events.len()) as u64;
        Some((events, batch.lost + n_unreadable, batch.end as u64))
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
