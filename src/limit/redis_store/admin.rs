//! What an operator does with counts.

use std::sync::Arc;

use super::{
    super::{
        compile::CompiledAlgorithm,
        cost::Cost,
        set::{LimitSet, ScopeValues},
        store::{LimitCall, LimitStoreError},
    },
    answer::{Applied, applied},
    inner::{Inner, NotACount},
    wire::{Operation, status},
};

impl Inner {
    pub(super) async fn administer(
        &self,
        operation: Operation,
        set: &Arc<LimitSet>,
        scopes: &ScopeValues,
        rule: Option<&str>,
        units: u64,
    ) -> Result<usize, LimitStoreError> {
        let cost = Cost::requests(0);
        let call = LimitCall::new(set, scopes, &cost, self.clock.now());
        let is_wanted = |applied: &Applied<'_>| {
            let is_grantable = matches!(
                applied.rule.compiled(),
                CompiledAlgorithm::TokenBucket(_) | CompiledAlgorithm::Quota(_)
            );
            rule.is_none_or(|name| applied.rule.name() == name)
                && (operation != Operation::Grant || is_grantable)
        };
        let wanted: Vec<Applied<'_>> = applied(&call)
            .into_iter()
            .filter(is_wanted)
            .map(|applied| Applied {
                amount: units,
                ..applied
            })
            .collect();
        let packed = self.pack(
            operation,
            &call,
            &wanted,
            self.server_wall(call.now.wall()),
            0,
        );
        let n_rules = packed.rules.len();
        if n_rules == 0 {
            return Ok(0);
        }
        let answer = self.ask(self.shard_of(&packed), packed, None).await;
        if let Some(slices) = &self.slices {
            // Also when the answer is lost: the counts may have changed.
            for rule in &wanted {
                slices.changed(self, &call, rule, operation == Operation::Reset);
            }
        }
        match answer?.values.first() {
            Some(&status::CORRUPT) => Err(LimitStoreError::Corrupt(NotACount.into())),
            _ => Ok(n_rules),
        }
    }
}
