//! Events of one tenant within one minute, as what is sent to Stripe: pure.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::meter::StripeMeter;
use crate::{
    clock::Timestamp,
    id::TenantId,
    meter::{EventId, UsageEvent},
    sink::Verdict,
};

/// The largest value of 15 digits: Stripe refuses longer ones.
pub(super) const MAX_VALUE: u64 = 999_999_999_999_999;
const MAX_IDENTIFIER: usize = 100;

/// Which events are added up before they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grouping {
    Minute,
    Event,
}

/// Events that have one verdict: they are delivered together, for all meters, or offered again together.
///
/// Were they offered apart, what is left of them would add up to something else under another identifier, and count
/// again where the first had arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) tenant: TenantId,
    /// The start of the minute, or the event's own second.
    pub(super) time: Timestamp,
    /// The lowest id of its events: no other unit ever has it.
    first: EventId,
    /// The places of its events in the batch.
    pub(super) places: Vec<usize>,
    /// For each meter, in their order.
    sums: Vec<u128>,
}

/// One value for one meter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Charge {
    pub(super) meter: usize,
    pub(super) identifier: String,
    pub(super) value: u64,
}

/// Adds up a batch. Events that no meter counts are accepted as they are, and those that count too much rejected.
pub(super) fn group(
    batch: &[UsageEvent],
    meters: &[StripeMeter],
    grouping: Grouping,
    verdicts: &mut [Verdict],
) -> Vec<Unit> {
    let mut units: BTreeMap<(Timestamp, TenantId, Option<EventId>), Unit> = BTreeMap::new();
    for (place, (event, verdict)) in batch.iter().zip(verdicts).enumerate() {
        let amounts: Vec<u64> = meters.iter().map(|meter| meter.amount(event)).collect();
        if amounts.iter().all(|amount| *amount == 0) {
            *verdict = Verdict::Accepted;
            continue;
        }
        if amounts.iter().any(|amount| *amount > MAX_VALUE) {
            *verdict = Verdict::Rejected {
                reason: "value_too_many_digits",
            };
            continue;
        }
        let second = event.time.as_unix_seconds();
        let (start, alone) = match grouping {
            Grouping::Minute => (second - second % 60, None),
            Grouping::Event => (second, Some(event.id)),
        };
        let time = Timestamp::from_unix_seconds(start);
        let unit = units
            .entry((time, event.tenant.clone(), alone))
            .or_insert_with(|| Unit {
                tenant: event.tenant.clone(),
                time,
                first: event.id,
                places: Vec::new(),
                sums: vec![0; meters.len()],
            });
        unit.first = unit.first.min(event.id);
        unit.places.push(place);
        for (sum, amount) in unit.sums.iter_mut().zip(amounts) {
            // A batch has far fewer than 2^64 events.
            *sum = sum.saturating_add(amount.into());
        }
    }
    units.into_values().collect()
}

impl Unit {
    /// What is sent of it. A sum of more than 15 digits goes in several values.
    pub(super) fn charges(&self, meters: &[StripeMeter]) -> Vec<Charge> {
        let mut charges = Vec::new();
        for (place, (meter, sum)) in meters.iter().zip(&self.sums).enumerate() {
            let (mut rest, mut part) = (*sum, 0_u32);
            while rest > 0 {
                let value = u64::try_from(rest).unwrap_or(MAX_VALUE).min(MAX_VALUE);
                charges.push(Charge {
                    meter: place,
                    identifier: self.identifier(meter.event_name(), part),
                    value,
                });
                rest -= u128::from(value);
                part += 1;
            }
        }
        charges
    }

    /// Names a value for ever: by tenant, meter, minute and the lowest event id, of which the first half is the number
    /// of the process's start. A digest of that where it is too long, or not plain text.
    fn identifier(&self, event_name: &str, part: u32) -> String {
        let (tenant, first) = (self.tenant.as_str(), self.first);
        let second = self.time.as_unix_seconds();
        let mut text = format!("{tenant}:{event_name}:{second}:{first}");
        if part > 0 {
            text.push_str(&format!(":{part}"));
        }
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_plain && text.len() <= MAX_IDENTIFIER {
            return text;
        }
        let digest = Sha256::digest(text);
        let digits = digest.iter().map(|byte| format!("{byte:02x}"));
        digits.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::id::PlanName;

    fn event(sequence: u64, tenant: &str, second: u64, tokens: u64) -> UsageEvent {
        let mut event = UsageEvent::new(
            EventId::new(7, sequence),
            Timestamp::from_unix_seconds(second),
            TenantId::new(tenant).unwrap(),
            PlanName::new("pro").unwrap(),
        );
        event.quantities.insert(Arc::from("tokens"), tokens);
        event
    }

    fn meters() -> Vec<StripeMeter> {
        vec![
            StripeMeter::calls("calls").unwrap(),
            StripeMeter::quantity("tokens", "tokens").unwrap(),
        ]
    }

    fn untold(n: usize) -> Vec<Verdict> {
        crate::sink::isolate::unsettled(n)
    }

    proptest! {
        #[test]
        fn every_amount_is_in_one_charge_and_the_same_batch_gives_the_same(
            calls in prop::collection::vec(
                (0..3_u8, 0..300_u64, prop_oneof![0..5_u64, Just(MAX_VALUE), Just(u64::MAX)]),
                0..60,
            ),
            each in any::<bool>(),
        ) {
            let batch: Vec<_> = calls.iter().enumerate()
                .map(|(n, (tenant, second, tokens))| event(n as u64, &format!("t{tenant}"), *second, *tokens))
                .collect();
            let meters = meters();
            let grouping = if each { Grouping::Event } else { Grouping::Minute };
            let mut verdicts = untold(batch.len());
            let units = group(&batch, &meters, grouping, &mut verdicts);
            let mut again = untold(batch.len());
            prop_assert_eq!(&group(&batch, &meters, grouping, &mut again), &units);

            let mut identifiers = HashSet::new();
            let mut told = [0_u128; 2];
            for unit in &units {
                for charge in unit.charges(&meters) {
                    prop_assert!((1..=MAX_VALUE).contains(&charge.value));
                    prop_assert!(charge.identifier.len() <= MAX_IDENTIFIER);
                    prop_assert!(identifiers.insert(charge.identifier));
                    told[charge.meter] += u128::from(charge.value);
                }
            }
            let fits = |tokens: u64| tokens <= MAX_VALUE;
            let n_calls = calls.iter().filter(|(.., tokens)| fits(*tokens)).count();
            let tokens = calls.iter().filter(|(.., tokens)| fits(*tokens)).map(|(.., n)| u128::from(*n)).sum();
            prop_assert_eq!(told, [n_calls as u128, tokens]);
        }
    }

    #[test]
    fn an_identifier_is_readable_where_it_fits_and_a_digest_where_not() {
        let of = |tenant: &str| {
            let batch = [event(9, tenant, 125, 1), event(4, tenant, 130, 2)];
            let units = group(&batch, &meters(), Grouping::Minute, &mut untold(2));
            units[0].charges(&meters())[1].identifier.clone()
        };
        assert_eq!(
            of("acme"),
            "acme:tokens:120:00000000000000070000000000000004"
        );
        for odd in ["a b", "ä", &"x".repeat(64)] {
            let digest = of(odd);
            assert!(digest.len() == 64 && digest.bytes().all(|it| it.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn what_nobody_pays_for_is_not_counted() {
        use crate::{id::Environment, meter::CallOutcome};
        let mut batch: Vec<_> = (0..6).map(|n| event(n, "acme", 0, 1)).collect();
        batch[0].environment = Environment::Test;
        batch[1].outcome = CallOutcome::Refused;
        batch[2].outcome = CallOutcome::Failed;
        batch[3].waived = true;
        // A report of a call that goes on: its tokens count, and it is no call.
        batch[4].part_of = Some(EventId::new(7, 99));
        let units = group(&batch, &meters(), Grouping::Minute, &mut untold(6));
        assert_eq!(units[0].places, [4, 5]);
        assert_eq!(units[0].sums, [1, 2]);
    }
}
