use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    book::PriceBook,
    line::{Line, LineKind, PricingError, Share, Unpriced},
    money::{Currency, Money},
    period::{BillingPeriod, Part},
    rate::{plain_line, rate},
    reconcile::ReconcileReport,
    usage::{UsageTotals, Used},
};
use crate::{
    clock::Timestamp,
    id::{PlanName, TenantId},
};

/// What one tenant owes for one period, as of one version: what a person or a payment provider makes an invoice of.
///
/// Version 1 asks for all of it. What is learnt later, such as usage that arrived late, makes the next version by
/// [`correct`](InvoiceDraftBuilder::correct), which asks for the differences alone: an invoice that was sent is never
/// changed. The totals of all versions add up to [`standing_total`](Self::standing_total) of the last.
///
/// The same input makes the same draft, to the byte of its JSON: id and lines are derived, and nothing in it tells
/// when it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InvoiceDraft {
    /// The version of this form; [`InvoiceDraft::SCHEMA`].
    pub schema: u16,
    /// Names the draft: 32 hexadecimal digits, derived from tenant, period and version.
    pub id: Arc<str>,
    /// Who owes.
    pub tenant: TenantId,
    /// For which time.
    pub period: BillingPeriod,
    /// From 1; each later one holds what has changed since.
    pub version: u32,
    /// The currency of all amounts.
    pub currency: Currency,
    /// What this version asks for.
    pub lines: Vec<InvoiceLine>,
    /// Their sum; below zero where more is given back than asked for.
    pub total: Money,
    /// What the period comes to as of this version, with how each amount came about.
    pub standing: Vec<StandingLine>,
    /// Its sum.
    pub standing_total: Money,
    /// Units that no price is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unpriced: Vec<Unpriced>,
    /// How the use that is priced compares with another count of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<ReconcileReport>,
}

/// One line that a draft asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InvoiceLine {
    /// Names the line within its tenant and period: 32 hexadecimal digits, the same in every version.
    pub id: Arc<str>,
    /// What it is for.
    pub kind: LineKind,
    /// For people: `calls of chat: 12000`.
    pub description: String,
    /// The plan whose price it is; absent of a credit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanName>,
    /// The API whose price it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Arc<str>>,
    /// The meter, of a line for use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter: Option<Arc<str>>,
    /// All units of the period as of this version.
    #[serde(default, skip_serializing_if = "Used::is_none")]
    pub used: Used,
    /// What it asks for: in a later version the difference, below zero where something is given back.
    pub amount: Money,
    /// Who gets how much of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// What was asked for before, of a correction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrects: Option<Money>,
}

/// One line of what a period comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StandingLine {
    /// The id of the line in every version.
    pub id: Arc<str>,
    /// The plan; absent of a credit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanName>,
    /// From when the plan was in force in the period.
    pub from: Timestamp,
    /// Until when.
    pub to: Timestamp,
    /// The line.
    pub line: Line,
}

/// A plan that was in force for a part of a period, and what was used under it.
#[derive(Clone, Debug)]
struct PlanPart {
    plan: PlanName,
    prices: Arc<PriceBook>,
    part: Part,
    usage: UsageTotals,
}

/// All that is known of a tenant's period: plans, use and credits.
///
/// A builder holds the state of affairs as a whole, also for a correction: what it leaves out is given back.
#[derive(Clone, Debug)]
#[must_use]
pub struct InvoiceDraftBuilder {
    tenant: TenantId,
    period: BillingPeriod,
    parts: Vec<PlanPart>,
    credits: Vec<(Arc<str>, Money)>,
    reconcile: Option<ReconcileReport>,
}

impl InvoiceDraft {
    /// The version of the serialised form.
    pub const SCHEMA: u16 = 1;

    /// Begins the draft of a tenant's period.
    pub const fn builder(tenant: TenantId, period: BillingPeriod) -> InvoiceDraftBuilder {
        InvoiceDraftBuilder {
            tenant,
            period,
            parts: Vec::new(),
            credits: Vec::new(),
            reconcile: None,
        }
    }

    /// The draft as JSON, the same bytes for the same draft.
    ///
    /// # Errors
    ///
    /// [`serde_json::Error`] never in practice: the form has nothing that JSON lacks.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

impl InvoiceDraftBuilder {
    /// Adds a plan that was in force for the whole period, and what was used.
    pub fn plan(self, plan: PlanName, prices: Arc<PriceBook>, usage: UsageTotals) -> Self {
        let part = self.period.whole();
        self.plan_for(part, plan, prices, usage)
    }

    /// Adds a plan that was in force for a part of the period, and what was used in that part.
    pub fn plan_for(
        mut self,
        part: Part,
        plan: PlanName,
        prices: Arc<PriceBook>,
        usage: UsageTotals,
    ) -> Self {
        self.parts.push(PlanPart {
            plan,
            prices,
            part,
            usage,
        });
        self
    }

    /// Gives something back: an amount above zero that the total is less by.
    pub fn credit(mut self, name: impl Into<Arc<str>>, amount: Money) -> Self {
        self.credits.push((name.into(), amount));
        self
    }

    /// Attaches a comparison of counts.
    pub fn reconcile(mut self, report: ReconcileReport) -> Self {
        self.reconcile = Some(report);
        self
    }

    /// The first version, which asks for everything.
    ///
    /// # Errors
    ///
    /// [`PricingError`] when parts overlap or are of another period, when currencies mix, when credits are none or share
    /// a name, or when an amount is too large.
    pub fn draft(self) -> Result<InvoiceDraft, PricingError> {
        self.version(1, &[])
    }

    /// The next version after `before`, which asks for the differences; `None` when nothing has changed.
    ///
    /// # Errors
    ///
    /// [`PricingError::AnotherInvoice`] when `before` is of another tenant or period, [`MoneyError::Mixed`] when it is
    /// in another currency, and as [`InvoiceDraftBuilder::draft`].
    ///
    /// [`MoneyError::Mixed`]: super::MoneyError::Mixed
    pub fn correct(self, before: &InvoiceDraft) -> Result<Option<InvoiceDraft>, PricingError> {
        if before.tenant != self.tenant || before.period != self.period {
            return Err(PricingError::AnotherInvoice {
                tenant: before.tenant.clone(),
            });
        }
        let next = before.version.checked_add(1);
        let next = next.ok_or(PricingError::TooManyVersions)?;
        let draft = self.version(next, &before.standing)?;
        // What was agreed upon in one currency is not given back in another.
        draft.total.plus(before.total)?;
        Ok((!draft.lines.is_empty()).then_some(draft))
    }

    fn version(
        mut self,
        version: u32,
        before: &[StandingLine],
    ) -> Result<InvoiceDraft, PricingError> {
        self.check_parts()?;
        let currency = self.currency()?;
        let mut unpriced = Vec::new();
        let mut standing = Vec::new();
        for part in &self.parts {
            let rated = rate(&part.prices, &part.usage, part.part)?;
            unpriced.extend(rated.unpriced);
            let lines = rated.lines.into_iter();
            standing.extend(lines.map(|line| standing_line(Some(&part.plan), part.part, line)));
        }
        standing.extend(self.credit_lines()?);
        let standing_total = Money::sum(currency, standing.iter().map(|each| each.line.amount))?;
        let lines = if version == 1 {
            standing.iter().map(first_line).collect()
        } else {
            differences(before, &standing)?
        };
        let total = Money::sum(currency, lines.iter().map(|line| line.amount))?;
        Ok(InvoiceDraft {
            schema: InvoiceDraft::SCHEMA,
            id: draft_id(&self.tenant, self.period, version),
            tenant: self.tenant,
            period: self.period,
            version,
            currency,
            lines,
            total,
            standing,
            standing_total,
            unpriced,
            reconcile: self.reconcile,
        })
    }

    /// Puts the parts in their order, so that the order of calls makes no difference.
    fn check_parts(&mut self) -> Result<(), PricingError> {
        if self
            .parts
            .iter()
            .any(|each| each.part.period() != self.period)
        {
            return Err(PricingError::OutsidePeriod);
        }
        self.parts.sort_by_key(|each| each.part.from());
        let follow = self.parts.iter().zip(self.parts.iter().skip(1));
        for (one, next) in follow {
            if next.part.from() < one.part.to() {
                let at = next.part.from();
                return Err(PricingError::OverlappingParts { at });
            }
        }
        Ok(())
    }

    fn currency(&self) -> Result<Currency, PricingError> {
        let priced = self.parts.iter().map(|each| each.prices.currency());
        let credited = self.credits.iter().map(|(_, amount)| amount.currency());
        let mut currencies = priced.chain(credited);
        let first = currencies.next().ok_or(PricingError::Empty)?;
        currencies.try_fold(first, |first, other| {
            let zero = Money::zero(first).plus(Money::zero(other))?;
            Ok(zero.currency())
        })
    }

    fn credit_lines(&self) -> Result<Vec<StandingLine>, PricingError> {
        let mut by_name = BTreeMap::new();
        for (name, amount) in &self.credits {
            if amount.minor() <= 0 || TenantId::new(name).is_err() {
                return Err(PricingError::NoCredit);
            }
            if by_name.insert(name, *amount).is_some() {
                let name = Arc::clone(name);
                return Err(PricingError::SameCredit { name });
            }
        }
        let whole = self.period.whole();
        let lines = by_name.into_iter().map(|(name, amount)| {
            let back = Money::zero(amount.currency()).minus(amount)?;
            let line = plain_line(LineKind::Credit, name, back, Vec::new());
            Ok(standing_line(None, whole, line))
        });
        lines.collect()
    }
}

fn standing_line(plan: Option<&PlanName>, part: Part, line: Line) -> StandingLine {
    let seconds = |at: Timestamp| at.as_unix_seconds().to_string();
    let id = digest([
        plan.map_or("", PlanName::as_str),
        &seconds(part.from()),
        &seconds(part.to()),
        line.kind.as_str(),
        line.api.as_deref().unwrap_or_default(),
        &line.name,
    ]);
    StandingLine {
        id,
        plan: plan.cloned(),
        from: part.from(),
        to: part.to(),
        line,
    }
}

fn first_line(standing: &StandingLine) -> InvoiceLine {
    let line = &standing.line;
    InvoiceLine {
        id: Arc::clone(&standing.id),
        kind: line.kind,
        description: line.to_string(),
        plan: standing.plan.clone(),
        api: line.api.clone(),
        meter: (line.kind == LineKind::Usage).then(|| Arc::clone(&line.name)),
        used: line.used,
        amount: line.amount,
        shares: line.shares.clone(),
        corrects: None,
    }
}

/// What has changed, in the order of what stands now; what is gone comes last.
fn differences(
    before: &[StandingLine],
    now: &[StandingLine],
) -> Result<Vec<InvoiceLine>, PricingError> {
    let known: BTreeMap<&str, &StandingLine> =
        before.iter().map(|each| (&*each.id, each)).collect();
    let mut lines = Vec::new();
    for each in now {
        let line = match known.get(&*each.id) {
            None => first_line(each),
            Some(old) => corrected(first_line(each), &old.line)?,
        };
        lines.push(line);
    }
    for old in before {
        if now.iter().all(|each| each.id != old.id) {
            let mut gone = first_line(old);
            gone.used = Used::default();
            gone.amount = Money::zero(old.line.amount.currency());
            gone.shares.clear();
            lines.push(corrected(gone, &old.line)?);
        }
    }
    lines.retain(|line| {
        !line.amount.is_zero() || line.shares.iter().any(|share| !share.amount.is_zero())
    });
    Ok(lines)
}

/// Takes off what was asked for before.
fn corrected(mut line: InvoiceLine, before: &Line) -> Result<InvoiceLine, PricingError> {
    line.amount = line.amount.minus(before.amount)?;
    line.corrects = Some(before.amount);
    for old in &before.shares {
        let same = line.shares.iter_mut().find(|share| share.to == old.to);
        if let Some(share) = same {
            share.amount = share.amount.minus(old.amount)?;
        } else {
            let mut back = old.clone();
            back.amount = Money::zero(old.amount.currency()).minus(old.amount)?;
            line.shares.push(back);
        }
    }
    Ok(line)
}

fn draft_id(tenant: &TenantId, period: BillingPeriod, version: u32) -> Arc<str> {
    digest([
        tenant.as_str(),
        &period.start().as_unix_seconds().to_string(),
        &period.end().as_unix_seconds().to_string(),
        &version.to_string(),
    ])
}

/// 32 hexadecimal digits of the SHA-256 of the texts, each after its length, so that no two lists run together.
fn digest<const N: usize>(texts: [&str; N]) -> Arc<str> {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(text);
    }
    let mut digits = String::with_capacity(32);
    for byte in hash.finalize().iter().take(16) {
        // Writing to text cannot fail.
        let _ = write!(digits, "{byte:02x}");
    }
    Arc::from(digits)
}
