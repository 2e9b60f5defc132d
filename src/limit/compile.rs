//! Rules checked once and turned into numbers.

use super::rule::{Algorithm, Rule};
use crate::error::ConfigError;

/// One rule in the form that stores decide with.
#[derive(Debug)]
pub struct CompiledRule {
    rule: Rule,
}

impl CompiledRule {
    /// The rule as it was written.
    #[must_use]
    pub const fn rule(&self) -> &Rule {
        &self.rule
    }

    /// How the rule counts.
    #[must_use]
    pub const fn algorithm(&self) -> &Algorithm {
        &self.rule.algorithm
    }
}

pub(super) fn compile(rules: &[Rule]) -> Result<Box<[CompiledRule]>, ConfigError> {
    Ok(rules
        .iter()
        .map(|rule| CompiledRule { rule: rule.clone() })
        .collect())
}
