//! Who still calls a version that comes to its end.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use super::UsageMinute;
use crate::{clock::Timestamp, id::TenantId};

/// A tenant's use of one deprecated route.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeprecatedUse {
    /// Who calls.
    pub tenant: TenantId,
    /// The API.
    pub api: Arc<str>,
    /// The method.
    pub method: Arc<str>,
    /// The route template.
    pub route: Arc<str>,
    /// How many calls.
    pub calls: u64,
    /// The start of the last minute, hour or day with such a call, as finely as usage was read.
    pub last_seen: Timestamp,
}

/// The use of deprecated versions: whom to tell before the sunset.
///
/// [`DeprecationLayer`](crate::identity::DeprecationLayer) marks the calls that this counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeprecationReport {
    /// The uses, most calls first.
    pub uses: Vec<DeprecatedUse>,
}

impl DeprecationReport {
    /// The report of some minutes.
    #[must_use]
    pub fn of<'a>(minutes: impl IntoIterator<Item = &'a UsageMinute>) -> Self {
        let mut uses = BTreeMap::new();
        for minute in minutes {
            let (key, calls) = (&minute.key, minute.totals.deprecated);
            if calls == 0 {
                continue;
            }
            let (sum, last) = uses
                .entry((&key.tenant, &key.api, &key.method, &key.route))
                .or_insert((0_u64, minute.minute));
            *sum = sum.saturating_add(calls);
            *last = minute.minute.max(*last);
        }
        let uses = uses
            .into_iter()
            .map(
                |((tenant, api, method, route), (calls, last_seen))| DeprecatedUse {
                    tenant: tenant.clone(),
                    api: Arc::clone(api),
                    method: Arc::clone(method),
                    route: Arc::clone(route),
                    calls,
                    last_seen,
                },
            );
        Self::from_uses(uses.collect())
    }

    pub(super) fn from_uses(mut uses: Vec<DeprecatedUse>) -> Self {
        uses.sort_by(|a, b| {
            b.calls.cmp(&a.calls).then_with(|| {
                (&a.tenant, &a.api, &a.route, &a.method)
                    .cmp(&(&b.tenant, &b.api, &b.route, &b.method))
            })
        });
        Self { uses }
    }

    /// The tenants with at least so many calls over all routes, most calls first.
    #[must_use]
    pub fn to_notify(&self, least_calls: u64) -> Vec<(TenantId, u64)> {
        let mut tenants = BTreeMap::new();
        for each in &self.uses {
            let sum = tenants.entry(&each.tenant).or_insert(0_u64);
            *sum = sum.saturating_add(each.calls);
        }
        let mut tenants: Vec<_> = tenants
            .into_iter()
            .filter(|(_, calls)| *calls >= least_calls)
            .map(|(tenant, calls)| (tenant.clone(), calls))
            .collect();
        // Sorted by name before, and this sort keeps the order of equals.
        tenants.sort_by_key(|(_, calls)| Reverse(*calls));
        tenants
    }
}
