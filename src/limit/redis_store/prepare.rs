//! Rules in the form that goes to the script: packed once for a set, not for each call.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use super::{
    super::{
        compile::{CompiledAlgorithm, CompiledRule},
        memory::network,
        quota::QuotaParameters,
        rule::{Edge, Scope},
        set::{LimitSet, Owner, ScopeValues},
    },
    slices::Cell,
    wire::{Pack, PackedRule},
};
use crate::{
    clock::Timestamp,
    redis_support::{Key, KeyScope, KeySpace},
};

/// Times and counts in the script are at most this.
pub(super) const MAX_EXACT: u64 = 1 << 53;

/// What the store keeps beside a set.
#[derive(Debug)]
pub(super) struct Prepared {
    space: KeySpace,
    guards_quotas: bool,
    rules: Box<[PreparedRule]>,
}

#[derive(Debug)]
pub(super) struct PreparedRule {
    kind: u8,
    field: Key,
    /// The key, where the owner alone says it.
    key: Option<Key>,
    thresholds: Pack,
    parameters: Pack,
    n_parameters: usize,
    is_guarded: bool,
    /// The calendar's bounds around the last call: the starts of the period before, the current one, the next
    /// and the one after.
    bounds: Mutex<Option<[u64; 4]>>,
    /// What a store has in hand of the count, and which store; where the owner alone says the key.
    pub(super) cell: OnceLock<(u64, Arc<Cell>)>,
}

impl Prepared {
    /// The packed rules of a set, made at its first call.
    /// `guards_quotas` makes the script say that a quota is missing instead of beginning it at zero.
    pub(super) fn of(set: &LimitSet, space: &KeySpace, guards_quotas: bool) -> Arc<Self> {
        let make = || {
            Arc::new(Self {
                space: space.clone(),
                guards_quotas,
                rules: set
                    .rules()
                    .iter()
                    .map(|rule| PreparedRule::new(rule, set.owner(), space, guards_quotas))
                    .collect(),
            })
        };
        match set.prepared(make) {
            Some(prepared)
                if prepared.space == *space && prepared.guards_quotas == guards_quotas =>
            {
                Arc::clone(prepared)
            }
            // Another store, or one of other keys, has put its own there.
            _ => make(),
        }
    }

    pub(super) fn rule(&self, index: usize) -> Option<&PreparedRule> {
        self.rules.get(index)
    }
}

impl PreparedRule {
    fn new(rule: &CompiledRule, owner: &Owner, space: &KeySpace, guards_quotas: bool) -> Self {
        let mut thresholds = Pack::default();
        thresholds.array(rule.thresholds().len() * 2);
        for threshold in rule.thresholds() {
            thresholds.integer(threshold.percent.into());
            thresholds.integer(threshold.units);
        }
        let (kind, numbers) = numbers_of(rule);
        let mut parameters = Pack::default();
        for number in &numbers {
            parameters.integer(*number);
        }
        // A rule for one route alone counts under the same key at each of its calls.
        let key = matches!(rule.scope(), Scope::Tenant | Scope::Key)
            .then(|| key(space, owner, rule, &ScopeValues::default()));
        Self {
            kind,
            field: KeySpace::field(rule.shape(), rule.name()),
            key: key.flatten(),
            thresholds,
            parameters,
            n_parameters: numbers.len(),
            // What a route, an address or a value has used is in nobody's totals.
            is_guarded: guards_quotas && rule.is_fixed_by_owner(),
            bounds: Mutex::new(None),
            cell: OnceLock::new(),
        }
    }

    /// The key and the field that a call's rule counts in; `None` when the rule does not apply to the call.
    pub(super) fn place(
        &self,
        space: &KeySpace,
        owner: &Owner,
        rule: &CompiledRule,
        scopes: &ScopeValues,
    ) -> Option<(Key, Key)> {
        let key = match &self.key {
            Some(key) => Arc::clone(key),
            None => key(space, owner, rule, scopes)?,
        };
        Some((key, Arc::clone(&self.field)))
    }

    /// Whether the owner alone says the key.
    pub(super) const fn has_fixed_key(&self) -> bool {
        self.key.is_some()
    }

    /// The numbers that the rule counts by, and the thresholds.
    pub(super) fn numbers(&self) -> Box<[u8]> {
        let mut numbers = Pack::default();
        numbers.integer(self.kind.into());
        numbers.append(self.parameters.as_bytes());
        numbers.append(self.thresholds.as_bytes());
        numbers.as_bytes().into()
    }

    /// The key and the field of a count that the owner alone says.
    pub(super) fn fixed_place(&self) -> Option<(Key, Key)> {
        Some((Arc::clone(self.key.as_ref()?), Arc::clone(&self.field)))
    }

    /// Packs the rule of a call: after its slot `first` and `second`, then the thresholds of a decision or
    /// `third`, then the parameters, to which a quota adds its calendar and a concurrency limit the receipt.
    #[expect(
        clippy::too_many_arguments,
        reason = "the values of one line on the wire"
    )]
    pub(super) fn pack(
        &self,
        space: &KeySpace,
        set: &LimitSet,
        rule: &CompiledRule,
        scopes: &ScopeValues,
        (first, second, third): (u64, u64, Option<u64>),
        around: Timestamp,
        receipt: u128,
    ) -> Option<PackedRule> {
        let key = match &self.key {
            Some(key) => Arc::clone(key),
            None => key(space, set.owner(), rule, scopes)?,
        };
        let mut rest = Pack::default();
        rest.integer(first);
        rest.integer(second);
        match third {
            Some(third) => rest.integer(third),
            None => rest.append(self.thresholds.as_bytes()),
        }
        let parameters_from = rest.as_bytes().len();
        rest.append(self.parameters.as_bytes());
        let mut n_rest = 3 + self.n_parameters;
        match rule.compiled() {
            CompiledAlgorithm::Quota(quota) => {
                for bound in self.bounds_around(quota, around, set.owner().billing_anchor) {
                    rest.integer(bound);
                }
                rest.integer(self.is_guarded.into());
                n_rest += 5;
            }
            CompiledAlgorithm::Concurrency(_) => {
                rest.bytes(&receipt.to_be_bytes());
                n_rest += 1;
            }
            _ => {}
        }
        Some(PackedRule {
            key,
            field: Arc::clone(&self.field),
            kind: self.kind,
            rest,
            n_rest,
            parameters_from,
        })
    }

    fn bounds_around(
        &self,
        quota: &QuotaParameters,
        now: Timestamp,
        anchor: Option<Timestamp>,
    ) -> [u64; 4] {
        let micros = now.as_unix_micros();
        let mut known = self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bounds @ [_, start, end, _]) = *known
            && start <= micros
            && micros < end
        {
            return bounds;
        }
        let current = quota.bounds(now, anchor);
        let start = current.start.as_unix_micros();
        let before = quota.bounds(Timestamp::from_unix_micros(start.saturating_sub(1)), anchor);
        let next = quota.bounds(current.end, anchor);
        let bounds = [before.start, current.start, current.end, next.end]
            .map(|bound| bound.as_unix_micros().min(MAX_EXACT));
        *known = Some(bounds);
        bounds
    }
}

/// The script's number for how a rule counts, and the numbers that it counts by.
fn numbers_of(rule: &CompiledRule) -> (u8, Vec<u64>) {
    match rule.compiled() {
        CompiledAlgorithm::TokenBucket(bucket) => (
            1,
            vec![
                bucket.ticks_per_micro(),
                bucket.ticks_per_unit(),
                bucket.burst(),
            ],
        ),
        CompiledAlgorithm::SlidingWindow(window) => (
            2,
            vec![
                window.limit(),
                window.cell_micros(),
                window.cells(),
                u64::from(window.edge() == Edge::Smooth),
            ],
        ),
        CompiledAlgorithm::SlidingLog(log) => (3, vec![log.limit(), log.window_micros()]),
        CompiledAlgorithm::Quota(quota) => (4, vec![quota.limit()]),
        CompiledAlgorithm::Concurrency(gauge) => {
            (5, vec![gauge.limit(), gauge.lease_micros().min(MAX_EXACT)])
        }
        CompiledAlgorithm::Unlimited => (0, Vec::new()),
    }
}

/// The key of the hash that a rule of a call counts in; `None` when the rule does not apply to the call.
fn key(space: &KeySpace, owner: &Owner, rule: &CompiledRule, values: &ScopeValues) -> Option<Key> {
    let address;
    let scope = match rule.scope() {
        Scope::Tenant => KeyScope::Tenant,
        Scope::Key => KeyScope::Key(owner.key.as_ref().map(|key| key.as_str())),
        Scope::Route => KeyScope::Route(values.route.as_deref()),
        Scope::Address => {
            address = values.address.map(|address| short(network(address)));
            KeyScope::Address(address.as_deref())
        }
        Scope::Custom(name) => KeyScope::Custom(name, custom_value(values, name)?),
    };
    let tenant = owner.tenant.as_str();
    Some(space.counts(tenant, owner.environment.as_str(), scope))
}

fn custom_value<'a>(values: &'a ScopeValues, scope: &str) -> Option<&'a str> {
    let known = values.custom.iter().find(|(known, _)| **known == *scope);
    known.map(|(_, value)| &**value)
}

fn short(network: IpAddr) -> String {
    match network {
        IpAddr::V4(address) => address.to_string(),
        // Only the first half counts.
        IpAddr::V6(address) => format!("{:016x}", address.to_bits() >> 64),
    }
}
