//! Calls that one run of the script decides.

use std::{collections::HashMap, sync::Arc};

use redis::Value;
use smallvec::SmallVec;

use super::{
    driver::Queued,
    wire::{Answer, BadAnswer, Pack, PackedCall},
};
use crate::redis_support::Key;

/// The most calls and the most keys of one batch: about a millisecond of the server's time.
pub(super) const MAX_CALLS: usize = 128;
const MAX_KEYS: usize = 128;

/// One run of the script.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) slot: Option<u16>,
    pub(super) keys: Vec<Key>,
    pub(super) places: HashMap<Key, usize>,
    /// For each key the fields that are used.
    pub(super) fields: Vec<SmallVec<[Key; 3]>>,
    pub(super) calls: Vec<Queued>,
}

impl Batch {
    pub(super) fn new(slot: Option<u16>) -> Self {
        Self {
            slot,
            ..Self::default()
        }
    }

    pub(super) fn has_room(&self, call: &PackedCall) -> bool {
        self.calls.len() < MAX_CALLS
            && (self.keys.len() + call.rules.len() <= MAX_KEYS || self.calls.is_empty())
    }

    pub(super) fn push(&mut self, queued: Queued) {
        for rule in &queued.call.rules {
            let place = *self.places.entry(Arc::clone(&rule.key)).or_insert_with(|| {
                self.keys.push(Arc::clone(&rule.key));
                self.fields.push(SmallVec::new());
                self.keys.len() - 1
            });
            if let Some(fields) = self.fields.get_mut(place)
                && !fields.contains(&rule.field)
            {
                fields.push(Arc::clone(&rule.field));
            }
        }
        self.calls.push(queued);
    }

    /// The number of a rule's slot: fields are numbered through, from one.
    pub(super) fn slot_of(&self, starts: &[usize], key: &Key, field: &Key) -> usize {
        let place = self.places.get(key).copied().unwrap_or_default();
        let start = starts.get(place).copied().unwrap_or_default();
        let fields = self.fields.get(place).map_or(&[][..], |fields| fields);
        start
            + fields
                .iter()
                .position(|known| known == field)
                .unwrap_or_default()
    }

    pub(super) fn argument(&self, margin_micros: u64, has_epoch: bool) -> Pack {
        let mut starts = Vec::with_capacity(self.fields.len());
        let mut next = 1;
        let mut pack = Pack::default();
        pack.array(4);
        pack.integer(margin_micros);
        pack.array(self.fields.len());
        for fields in &self.fields {
            starts.push(next);
            next += fields.len();
            pack.array(fields.len());
            for field in fields {
                pack.bytes(field);
            }
        }
        pack.array(self.calls.len());
        for Queued { call, .. } in &self.calls {
            let (now, wall) = call.time.unwrap_or((0, 0));
            pack.array(3 + call.rules.len());
            pack.integer(call.operation as u64);
            pack.integer(now);
            pack.integer(wall);
            for rule in &call.rules {
                pack.array(2 + rule.n_rest);
                pack.integer(rule.kind.into());
                pack.integer(self.slot_of(&starts, &rule.key, &rule.field) as u64);
                pack.append(rule.rest.as_bytes());
            }
        }
        // The epoch stands behind the keys of counts.
        pack.integer(if has_epoch {
            self.fields.len() as u64 + 1
        } else {
            0
        });
        pack
    }
}

/// The answers of a batch, one for each call.
pub(super) fn read(value: &Value, n_calls: usize) -> Result<Vec<Answer>, BadAnswer> {
    let Value::Array(values) = value else {
        return Err(BadAnswer);
    };
    let mut numbers = values.iter().map(|value| match value {
        Value::Int(number) => Ok(*number),
        _ => Err(BadAnswer),
    });
    let mut next = || numbers.next().unwrap_or(Err(BadAnswer));
    let server_micros = u64::try_from(next()?).map_err(|_| BadAnswer)?;
    let mut answers = Vec::with_capacity(n_calls);
    for _ in 0..n_calls {
        let n_values = usize::try_from(next()?).map_err(|_| BadAnswer)?;
        answers.push(Answer {
            server_micros,
            values: (0..n_values.min(values.len()))
                .map(|_| next())
                .collect::<Result<_, _>>()?,
        });
    }
    Ok(answers)
}
