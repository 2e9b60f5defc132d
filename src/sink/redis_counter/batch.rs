//! Events as the script takes them: those of one tenant at a time, added up.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use sha2::{Digest, Sha256};

use super::day_of;
use crate::{
    id::{Environment, TenantId},
    meter::{CallOutcome, UsageEvent},
    redis_support::{DayUsage, Key, Redis},
};

/// How many events one script takes. All batches of a tenant but the last one are as large, so that what is left of
/// several is cut in the same places when it is offered again.
const MAX_EVENTS: usize = 256;
/// The largest amount that is added at once.
const MAX_AMOUNT: u64 = 1 << 53;

/// What is added to a counter, by field.
type Fields<'a> = BTreeMap<Cow<'a, str>, u64>;

/// Events of one tenant's environment.
pub(super) struct Batch<'a> {
    tenant: &'a TenantId,
    environment: Environment,
    first: &'a UsageEvent,
    ids: Sha256,
    /// Where the events stand in what was offered.
    pub(super) places: Vec<usize>,
    /// By day and API.
    counters: BTreeMap<(Arc<str>, &'a str), Fields<'a>>,
}

/// Puts events together by tenant, in their order.
pub(super) fn batches(events: &[UsageEvent]) -> Vec<Batch<'_>> {
    let mut batches: Vec<Batch<'_>> = Vec::new();
    // The batch of each tenant that has room.
    let mut open: BTreeMap<(&TenantId, Environment), usize> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        let owner = (&event.tenant, event.environment);
        let known = open.get(&owner).and_then(|known| batches.get_mut(*known));
        match known {
            Some(batch) if batch.places.len() < MAX_EVENTS => batch.add(place, event),
            _ => {
                let mut batch = Batch::new(event);
                batch.add(place, event);
                open.insert(owner, batches.len());
                batches.push(batch);
            }
        }
    }
    batches
}

impl<'a> Batch<'a> {
    fn new(first: &'a UsageEvent) -> Self {
        Self {
            tenant: &first.tenant,
            environment: first.environment,
            first,
            ids: Sha256::new(),
            places: Vec::new(),
            counters: BTreeMap::new(),
        }
    }

    fn add(&mut self, place: usize, event: &'a UsageEvent) {
        self.places.push(place);
        self.ids.update(event.id.as_u128().to_be_bytes());
        let counter = self
            .counters
            .entry((day_of(event), &*event.api))
            .or_default();
        let mut add = |field: Cow<'a, str>, amount: u64| {
            if amount > 0 {
                let sum = counter.entry(field).or_insert(0);
                *sum = sum.saturating_add(amount).min(MAX_AMOUNT);
            }
        };
        // A part of a call that goes on is no call of its own.
        if event.part_of.is_none() {
            add("calls".into(), 1);
            match event.outcome {
                CallOutcome::Failed | CallOutcome::Panicked => add("errors".into(), 1),
                CallOutcome::Refused => add("refused".into(), 1),
                CallOutcome::Served | CallOutcome::Aborted => {}
            }
        }
        add("request_bytes".into(), event.request_bytes);
        add("response_bytes".into(), event.response_bytes);
        for (name, amount) in &event.quantities {
            add(format!("q:{name}").into(), *amount);
        }
    }

    pub(super) fn keys(&self, redis: &Redis) -> Vec<Key> {
        let of = |day: &str, usage| redis.usage(self.tenant.as_str(), self.environment, day, usage);
        let written = of(&day_of(self.first), DayUsage::Written);
        let counters = self.counters.keys();
        std::iter::once(written)
            .chain(counters.map(|(day, api)| of(day, DayUsage::Api(api))))
            .collect()
    }

    pub(super) fn arguments(&self, written_millis: u64, counter_millis: u64) -> Vec<String> {
        let writer = self.first.id.as_u128() >> 64;
        let token: String = self
            .ids
            .clone()
            .finalize()
            .iter()
            .take(8)
            .fold(String::with_capacity(16), |text, byte| {
                text + &format!("{byte:02x}")
            });
        let mut arguments = vec![
            format!("{writer:016x}"),
            token,
            written_millis.to_string(),
            counter_millis.to_string(),
        ];
        for fields in self.counters.values() {
            arguments.push(fields.len().to_string());
            for (name, amount) in fields {
                arguments.push(name.clone().into_owned());
                arguments.push(amount.to_string());
            }
        }
        arguments
    }
}
