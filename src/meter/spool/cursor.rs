//! The file that says up to where the sink has given its last word.

use super::segment::{BadHeader, checked, frame, unframe};

const MAGIC: [u8; 8] = *b"tgcursor";
const VERSION: u16 = 1;

/// A place in the spool: everything before it is finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

impl Position {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut bytes = frame(MAGIC, VERSION);
        bytes.extend(self.segment.to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
        checked(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let (segment, offset) = unframe(bytes, MAGIC, VERSION)?;
        Ok(Self { segment, offset })
    }
}
