//! What goes to the script and what comes back: MessagePack in, integers out. `decide.lua` says what they mean.

use smallvec::SmallVec;

use crate::redis_support::Key;

/// What is to be done with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Charge all rules, or none.
    Decide = 1,
    /// Decide as if some rule had refused already.
    Look = 2,
    /// Change the charges of a receipt.
    Settle = 3,
    /// Let the holds of a receipt lapse later.
    Renew = 4,
    /// Forget the counts.
    Reset = 5,
    /// Give units back.
    Grant = 6,
    /// Begin a quota with what is known to have been used.
    Seed = 7,
}

/// The first value of an answer.
pub(super) mod status {
    pub(in super::super) const ADMITTED: i64 = 0;
    pub(in super::super) const REFUSED: i64 = 1;
    pub(in super::super) const CORRUPT: i64 = 2;
    pub(in super::super) const CALENDAR: i64 = 3;
    pub(in super::super) const MISSING: i64 = 4;
}

/// MessagePack, as far as the script needs it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pack(SmallVec<[u8; 96]>);

impl Pack {
    pub(super) fn array(&mut self, n: usize) {
        match u8::try_from(n) {
            Ok(n) if n < 16 => self.0.push(0x90 | n),
            _ => {
                self.0.push(0xdd);
                let n = u32::try_from(n).unwrap_or(u32::MAX);
                self.0.extend_from_slice(&n.to_be_bytes());
            }
        }
    }

    pub(super) fn integer(&mut self, n: u64) {
        match n {
            0..=0x7f => self.0.push(n as u8),
            0x80..=0xffff => {
                self.0.push(0xcd);
                self.0.extend_from_slice(&(n as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.0.push(0xce);
                self.0.extend_from_slice(&(n as u32).to_be_bytes());
            }
            _ => {
                self.0.push(0xcf);
                self.0.extend_from_slice(&n.to_be_bytes());
            }
        }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        match u8::try_from(bytes.len()) {
            Ok(n) if n < 32 => self.0.push(0xa0 | n),
            _ => {
                self.0.push(0xdb);
                let n = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                self.0.extend_from_slice(&n.to_be_bytes());
            }
        }
        self.0.extend_from_slice(bytes);
    }

    /// Appends what was packed before.
    pub(super) fn append(&mut self, packed: &[u8]) {
        self.0.extend_from_slice(packed);
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One rule of a call, packed but for the number of its slot, which the batch gives.
#[derive(Clone, Debug)]
pub(super) struct PackedRule {
    pub(super) key: Key,
    pub(super) field: Key,
    pub(super) kind: u8,
    /// The values after the slot, and how many they are.
    pub(super) rest: Pack,
    pub(super) n_rest: usize,
    /// Where in them the parameters begin.
    pub(super) parameters_from: usize,
}

impl PackedRule {
    /// The same rule of a settlement that gives back so many units of a period: another three values before the
    /// parameters.
    pub(super) fn as_release(&self, period: u64, units: u64) -> Self {
        let mut rest = Pack::default();
        rest.integer(period);
        rest.integer(units);
        rest.integer(0);
        rest.append(self.rest.0.get(self.parameters_from..).unwrap_or_default());
        Self {
            rest,
            ..self.clone()
        }
    }
}

/// One call, ready for a batch.
#[derive(Clone, Debug)]
pub(super) struct PackedCall {
    pub(super) operation: Operation,
    /// The time of the call where the server's clock is not to be asked: monotonic and wall.
    pub(super) time: Option<(u64, u64)>,
    pub(super) rules: SmallVec<[PackedRule; 3]>,
}

/// A script's answer for one call.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// The server's time in microseconds.
    pub(super) server_micros: u64,
    pub(super) values: SmallVec<[i64; 16]>,
}

/// An answer is not of the form that the script gives.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the script's answer is not of its form")]
pub(super) struct BadAnswer;

/// Reads an answer's values one after the other.
#[derive(Debug)]
pub(super) struct Values<'a>(std::slice::Iter<'a, i64>);

impl<'a> Values<'a> {
    pub(super) fn new(values: &'a [i64]) -> Self {
        Self(values.iter())
    }

    pub(super) fn signed(&mut self) -> Result<i64, BadAnswer> {
        self.0.next().copied().ok_or(BadAnswer)
    }

    pub(super) fn count(&mut self) -> Result<u64, BadAnswer> {
        u64::try_from(self.signed()?).map_err(|_| BadAnswer)
    }
}
