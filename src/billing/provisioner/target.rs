//! What a tenant is to be, from what is known of its customer. Pure.

use std::sync::Arc;

use super::{
    super::{
        Account, Notice, NoticeKind,
        account::Told,
        facts::Facts,
        lifecycle::{Effect, LifecycleEvent, step, told},
    },
    Downgrade,
    settings::Settings,
};
use crate::{
    clock::Timestamp,
    id::{PlanName, TenantId},
    tenant::AccessState,
};

/// What a tenant is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) tenant: TenantId,
    pub(super) access: AccessState,
    pub(super) plan: PlanName,
    pub(super) billing_anchor: Option<Timestamp>,
    pub(super) pay_url: Option<Arc<str>>,
    /// The page of an invoice that needs no payment any more.
    pub(super) old_pay_url: Option<Arc<str>>,
    /// The plan that was bought last.
    bought: Option<PlanName>,
    ends_at: Option<Timestamp>,
}

impl Settings {
    /// What the account's tenant is to be; `None` while it is not known who bought, or what.
    pub(super) fn target(&self, account: &Account, now: Timestamp) -> Option<Target> {
        let tenant = account.tenant()?.clone();
        let (_, facts) = account.deciding()?;
        let events = account.standing()?;
        let last = account.told.as_ref();
        // Features go before a subscription ends: then the plan that it was for says what follows.
        let bought = self
            .bought(account, facts, now)
            .or_else(|| last.and_then(|told| told.bought.clone()));
        let last = last.map(|told| &told.plan);
        let of_plan = bought.as_ref().or(last).or_else(|| self.ranks.first())?;
        let policy = self.policies.of(&tenant, of_plan);
        // From a tenant that owes nothing, so that the order in which events came does not show.
        let mut access = AccessState::Active;
        let mut moved = None;
        for event in &events {
            let transition = step(access, *event, now, policy);
            access = transition.state;
            moved = transition
                .effects
                .into_iter()
                .find_map(|effect| match effect {
                    Effect::MoveToPlan(plan) => Some(plan),
                    _ => None,
                });
        }
        let is_paid = events == [LifecycleEvent::Recovered];
        let page = account.pay_page.as_ref().map(|page| Arc::clone(&page.url));
        Some(Target {
            tenant,
            access,
            plan: moved.or_else(|| bought.clone()).or_else(|| last.cloned())?,
            billing_anchor: facts.billing_anchor,
            pay_url: page
                .clone()
                .filter(|_| !is_paid)
                .or_else(|| self.pay_page.clone()),
            old_pay_url: page.filter(|_| is_paid),
            bought,
            ends_at: facts.ends_at.filter(|_| !facts.has_ended()),
        })
    }

    /// The plan that was bought: by price, else by entitlement.
    fn bought(&self, account: &Account, facts: &Facts, now: Timestamp) -> Option<PlanName> {
        self.by_price(facts, now).or_else(|| {
            let plans = account
                .entitlements()
                .filter_map(|key| self.entitlements.get(key));
            plans.max_by_key(|plan| self.rank(plan)).cloned()
        })
    }

    /// The changes of price in their order. A greater plan counts at once, a lesser one when the period ends that was
    /// paid for under the greater.
    fn by_price(&self, facts: &Facts, now: Timestamp) -> Option<PlanName> {
        let mut plan: Option<&PlanName> = None;
        let mut paid_until = None;
        let mut pending: Option<(&PlanName, Timestamp)> = None;
        for (at, prices) in &facts.prices {
            let Some(next) = self.plan_of(&prices.names) else {
                continue;
            };
            if let Some((lesser, due)) = pending
                && due <= *at
            {
                (plan, pending) = (Some(lesser), None);
            }
            let is_lesser = plan.is_some_and(|plan| self.rank(next) < self.rank(plan));
            if is_lesser && self.downgrade == Downgrade::AtPeriodEnd {
                let due = paid_until.or(prices.period_end).unwrap_or(*at);
                let due = pending.map_or(due, |(_, due)| due);
                pending = Some((next, due));
            } else {
                (plan, pending) = (Some(next), None);
                paid_until = prices.period_end;
            }
        }
        match pending {
            Some((lesser, due)) if due <= now => Some(lesser.clone()),
            _ => plan.cloned(),
        }
    }

    /// The greatest plan that one of these prices, products or lookup keys leads to.
    pub(super) fn plan_of(&self, names: &[Box<str>]) -> Option<&PlanName> {
        let plans = names.iter().filter_map(|name| self.prices.get(name));
        plans.max_by_key(|plan| self.rank(plan))
    }

    /// Notes in the account what the tenant is to be, which keys it is to have and what people are to be told of it.
    pub(super) fn note(&self, account: &mut Account, target: &Target, now: Timestamp) {
        let mut kinds = Vec::new();
        let environment = account.environment;
        for (checkout, purchase) in &mut account.checkouts {
            if purchase.key.is_none() {
                let key = self.secret.id(environment, checkout);
                purchase.key = Some(key.clone());
                let checkout = checkout.clone();
                kinds.push(NoticeKind::KeyIssued { checkout, key });
            }
        }
        let before = account.told.as_ref();
        let access = before.map_or(AccessState::Active, |told| told.access.at(now));
        kinds.extend(told(access, target.access).and_then(|effect| notice_of(&effect)));
        if let Some(before) = before {
            if before.plan != target.plan {
                kinds.push(NoticeKind::PlanChanged {
                    from: before.plan.clone(),
                    to: target.plan.clone(),
                });
            }
            match (before.ends_at, target.ends_at) {
                (old, Some(at)) if old != Some(at) => kinds.push(NoticeKind::WillEnd { at }),
                (Some(end), None) if end > now && target.access == AccessState::Active => {
                    kinds.push(NoticeKind::Resumed);
                }
                _ => {}
            }
        }
        account.told = Some(Told {
            access: target.access,
            plan: target.plan.clone(),
            bought: target.bought.clone(),
            ends_at: target.ends_at,
        });
        account.outbox.extend(kinds.into_iter().map(|kind| Notice {
            tenant: target.tenant.clone(),
            kind,
            at: now,
        }));
    }
}

fn notice_of(effect: &Effect) -> Option<NoticeKind> {
    Some(match *effect {
        Effect::GraceStarted { until } => NoticeKind::GraceStarted { until },
        Effect::ReadOnlyStarted { suspend_at } => NoticeKind::ReadOnlyStarted { suspend_at },
        Effect::Restored => NoticeKind::Restored,
        Effect::Suspended => NoticeKind::Suspended,
        Effect::Closed | Effect::MoveToPlan(_) => return None,
    })
}
