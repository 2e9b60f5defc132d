//! From bytes to the data of server-sent events (WHATWG HTML, section 9.2.6), within bounds.

/// Splits a stream into events and gives the data of each. Holds one event at most.
#[derive(Debug)]
pub(super) struct EventReader {
    max_bytes: usize,
    /// The line that has not ended yet; without its bytes once it is too long.
    line: Vec<u8>,
    /// The data of the event that has not ended yet.
    data: Vec<u8>,
    line_is_too_long: bool,
    event_is_too_long: bool,
    has_data: bool,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    after_return: bool,
    /// Nothing was read yet: a byte order mark may come.
    at_start: bool,
}

/// What an idle reader keeps of a large event's room.
const KEPT_BYTES: usize = 4096;

impl EventReader {
    pub(super) const fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            line: Vec::new(),
            data: Vec::new(),
            line_is_too_long: false,
            event_is_too_long: false,
            has_data: false,
            after_return: false,
            at_start: true,
        }
    }

    /// Reads more of the stream and calls `event` with the data of each event that ended; data that is longer
    /// than the bound is left out.
    pub(super) fn read(&mut self, mut bytes: &[u8], event: &mut impl FnMut(&[u8])) {
        while let Some(place) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            let (head, rest) = bytes.split_at(place);
            let Some((&end, rest)) = rest.split_first() else {
                return;
            };
            bytes = rest;
            let joins = end == b'\n' && self.after_return && head.is_empty();
            self.after_return = end == b'\r';
            if !joins {
                self.end_line(head, event);
            }
        }
        if !bytes.is_empty() {
            self.after_return = false;
            self.keep(bytes);
        }
    }

    /// The stream has ended. What it left unended is read all the same: some servers spare the last blank line.
    pub(super) fn end(&mut self, event: &mut impl FnMut(&[u8])) {
        self.end_line(&[], event);
        self.end_event(event);
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.line_is_too_long || self.line.len().saturating_add(bytes.len()) > self.max_bytes {
            self.line_is_too_long = true;
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    fn end_line(&mut self, rest: &[u8], event: &mut impl FnMut(&[u8])) {
        if self.line.is_empty() && !self.line_is_too_long {
            // The line came in one piece, as most do: it is read where it lies.
            self.line_ended(rest, event);
            return;
        }
        self.keep(rest);
        if std::mem::take(&mut self.line_is_too_long) {
            self.event_is_too_long = true;
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        self.line_ended(&line, event);
        line.clear();
        line.shrink_to(KEPT_BYTES);
        self.line = line;
    }

    fn line_ended(&mut self, mut line: &[u8], event: &mut impl FnMut(&[u8])) {
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.end_event(event);
            return;
        }
        let value = match line.strip_prefix(b"data") {
            Some([]) => &[],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            // Another field, or a comment.
            _ => return,
        };
        let line_feed = usize::from(self.has_data);
        let length = self.data.len().saturating_add(value.len() + line_feed);
        if self.event_is_too_long || length > self.max_bytes {
            self.event_is_too_long = true;
            self.data = Vec::new();
            return;
        }
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        self.data.extend_from_slice(value);
    }

    fn end_event(&mut self, event: &mut impl FnMut(&[u8])) {
        let is_whole = !std::mem::take(&mut self.event_is_too_long);
        if std::mem::take(&mut self.has_data) && is_whole {
            event(&self.data);
        }
        self.data.clear();
        self.data.shrink_to(KEPT_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(pieces: &[&[u8]], max_bytes: usize) -> Vec<String> {
        let mut reader = EventReader::new(max_bytes);
        let mut events = Vec::new();
        let mut keep = |data: &[u8]| events.push(String::from_utf8_lossy(data).into_owned());
        for piece in pieces {
            reader.read(piece, &mut keep);
        }
        reader.end(&mut keep);
        events
    }

    #[test]
    fn reads_the_examples_of_the_standard() {
        for (stream, expected) in [
            ("data: YHOO\ndata: +2\ndata: 10\n\n", &["YHOO\n+2\n10"][..]),
            (
                ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
                &["first event", "second event", " third event"],
            ),
            ("data\n\ndata\ndata\n\ndata:\n", &["", "\n", ""]),
            ("data:test\r\rdata: test\r\n\r\n", &["test", "test"]),
            ("\u{feff}data: marked\n\n", &["marked"]),
            ("database: no\n\nevent: ping\n\n", &[]),
            ("data: unended", &["unended"]),
        ] {
            assert_eq!(events(&[stream.as_bytes()], 1_000), expected, "{stream:?}");
        }
    }

    #[test]
    fn an_event_above_the_bound_is_left_out_and_the_next_is_read() {
        let long = format!("data: {}\n\ndata: short\n\n", "x".repeat(100));
        assert_eq!(events(&[long.as_bytes()], 50), ["short"]);
        let many = "data: ten bytes.\n".repeat(10) + "\ndata: short\n\n";
        assert_eq!(events(&[many.as_bytes()], 50), ["short"]);
        let split: Vec<&[u8]> = long.as_bytes().chunks(7).collect();
        assert_eq!(events(&split, 50), ["short"]);
    }

    proptest! {
        #[test]
        fn the_cuts_between_frames_make_no_difference(
            lines in prop::collection::vec("(data: ?[a-c]{0,6}|: x|id: 1|)", 0..12),
            ends in prop::collection::vec(prop_oneof![Just("\n"), Just("\r\n"), Just("\r")], 12),
            cuts in prop::collection::vec(0_usize..100, 0..6),
        ) {
            let stream: String = lines.iter().zip(&ends).flat_map(|(line, end)| [line.as_str(), end]).collect();
            let whole = events(&[stream.as_bytes()], 1_000);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % (stream.len() + 1)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([stream.len()]) {
                pieces.push(&stream.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert_eq!(events(&pieces, 1_000), whole);
        }
    }
}
