use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{Row, postgres::PgRow};

use super::{
    answer::{CountryUsage, RouteUsage, TenantTrend, UsagePoint, UsageQueryError},
    segments::{Segment, Step, cover},
    sql::{Group, Statement, totals, wide},
};
use crate::{
    error::ConfigError,
    id::TenantId,
    postgres_support::{Fault, PgMicros, Postgres, checked_deadline, within},
    usage::{
        CallsByDay, DeprecatedUse, DeprecationReport, QuantityTotal, TenantDay, UsageFilter,
        UsageTotals,
        sla::{AlertError, UsageSource},
    },
};

const DEADLINE: Duration = Duration::from_secs(10);

/// Reads the usage that a rollup has written to PostgreSQL.
///
/// A question is answered to the minute: whole days from the rows of days that are over, the rest from those of hours
/// and minutes. Days are made by [`make_days`](Self::make_days), to be called now and then; a day that was not made is
/// read from its hours, with the same answer.
///
/// ```no_run
/// use std::time::Duration;
/// use tollgate::{
///     clock::Timestamp,
///     id::TenantId,
///     postgres_support::Postgres,
///     usage::{PostgresUsage, UsageFilter},
/// };
///
/// # async fn example(now: Timestamp) -> Result<(), Box<dyn std::error::Error>> {
/// let postgres = Postgres::connect("postgres://api:s3cret@db.internal/api").await?;
/// let usage = PostgresUsage::new(&postgres);
/// let month = now.saturating_sub(Duration::from_secs(30 * 86_400));
/// let acme = UsageFilter::new(month, now).tenant(TenantId::new("acme")?).api("default");
/// let totals = usage.totals(&acme).await?;
/// println!("p99: {:?} microseconds", totals.latency.quantile(9_900));
/// for route in usage.top_routes(&acme, 10).await? {
///     println!("{} {}: {}", route.method, route.route, route.totals.calls);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresUsage {
    pub(super) postgres: Postgres,
    pub(super) deadline: Duration,
}

impl PostgresUsage {
    /// Reads from the schema of `postgres`, which must have been [migrated](Postgres::migrate).
    #[must_use]
    pub fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.clone(),
            deadline: DEADLINE,
        }
    }

    /// How long a question may take; 10 seconds unless set.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `deadline` when it is zero.
    pub fn deadline(mut self, deadline: Duration) -> Result<Self, ConfigError> {
        self.deadline = checked_deadline(deadline)?;
        Ok(self)
    }

    /// What was used in all, with latencies and without [quantities](Self::quantities).
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`], as with all questions.
    pub async fn totals(&self, filter: &UsageFilter) -> Result<UsageTotals, UsageQueryError> {
        let rows = self.sums(filter, Step::Day, Group::Nothing, true).await?;
        let row = rows.first().map(|row| totals(row, true)).transpose()?;
        Ok(row.unwrap_or_default())
    }

    /// What was used of named quantities.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`].
    pub async fn quantities(
        &self,
        filter: &UsageFilter,
    ) -> Result<BTreeMap<Arc<str>, QuantityTotal>, UsageQueryError> {
        let parts = cover(filter.from, filter.until, Step::Hour);
        if parts.is_empty() {
            return Ok(BTreeMap::new());
        }
        let statement = Statement::quantities(&parts);
        let rows = within(self.deadline, statement.rows(filter, self.postgres.pool())).await?;
        let quantities = rows.iter().map(|row| {
            let total = QuantityTotal {
                amount: wide(row, "amount")?,
                overage: wide(row, "overage")?,
            };
            Ok((text(row, "name")?, total))
        });
        Ok(quantities.collect::<Result<_, Fault>>()?)
    }

    /// A curve: what was used in each step that had calls, in the order of time. The time asked for is widened to
    /// whole steps.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`].
    pub async fn curve(
        &self,
        filter: &UsageFilter,
        step: Step,
    ) -> Result<Vec<UsagePoint>, UsageQueryError> {
        let mut whole = filter.clone();
        whole.from = step.start_of(filter.from);
        whole.until = step.first_at(filter.until);
        let rows = self.sums(&whole, step, Group::Start, true).await?;
        // A day that was not made is read by its hours, and the current day has but them.
        let mut points: BTreeMap<_, UsageTotals> = BTreeMap::new();
        for row in &rows {
            let start: PgMicros = row.try_get("start").map_err(Fault::from)?;
            let point = points.entry(step.start_of(start.0)).or_default();
            point.merge(&totals(row, true)?);
        }
        let points = points.into_iter();
        Ok(points
            .map(|(start, totals)| UsagePoint { start, totals })
            .collect())
    }

    /// The routes with the most calls.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`].
    pub async fn top_routes(
        &self,
        filter: &UsageFilter,
        n: usize,
    ) -> Result<Vec<RouteUsage>, UsageQueryError> {
        let rows = self.sums(filter, Step::Day, Group::Route, true).await?;
        let routes = rows.iter().map(|row| {
            Ok(RouteUsage {
                api: text(row, "api")?,
                method: text(row, "method")?,
                route: text(row, "route")?,
                totals: totals(row, true)?,
            })
        });
        let mut routes = routes.collect::<Result<Vec<_>, Fault>>()?;
        routes.sort_by(|a, b| {
            let by_calls = b.totals.calls.cmp(&a.totals.calls);
            by_calls.then_with(|| (&a.api, &a.route, &a.method).cmp(&(&b.api, &b.route, &b.method)))
        });
        routes.truncate(n);
        Ok(routes)
    }

    /// The countries that calls come from, most calls first.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`].
    pub async fn countries(
        &self,
        filter: &UsageFilter,
    ) -> Result<Vec<CountryUsage>, UsageQueryError> {
        let rows = self.sums(filter, Step::Day, Group::Country, true).await?;
        let countries = rows.iter().map(|row| {
            let country: Option<String> = row.try_get("country")?;
            Ok(CountryUsage {
                country: country.map(Arc::from),
                totals: totals(row, true)?,
            })
        });
        let mut countries = countries.collect::<Result<Vec<_>, Fault>>()?;
        countries.sort_by(|a, b| {
            let by_calls = b.totals.calls.cmp(&a.totals.calls);
            by_calls.then_with(|| a.country.cmp(&b.country))
        });
        Ok(countries)
    }

    /// Each tenant's calls beside those of the time before, the greatest losses first: who is about to leave.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`].
    pub async fn trends(&self, filter: &UsageFilter) -> Result<Vec<TenantTrend>, UsageQueryError> {
        let mut trends: BTreeMap<TenantId, (u64, u64)> = BTreeMap::new();
        for (time, is_now) in [(filter.clone(), true), (filter.before(), false)] {
            let rows = self.sums(&time, Step::Day, Group::Tenant, false).await?;
            for row in &rows {
                let (now, before) = trends.entry(tenant(row)?).or_default();
                *(if is_now { now } else { before }) = totals(row, false)?.calls;
            }
        }
        let mut trends: Vec<_> = trends
            .into_iter()
            .map(|(tenant, (calls, calls_before))| TenantTrend {
                tenant,
                calls,
                calls_before,
            })
            .collect();
        trends.sort_by_key(|trend| i128::from(trend.calls) - i128::from(trend.calls_before));
        Ok(trends)
    }

    /// Who calls deprecated versions: whom to tell before the sunset.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`].
    pub async fn deprecated(
        &self,
        filter: &UsageFilter,
    ) -> Result<DeprecationReport, UsageQueryError> {
        let rows = self
            .sums(filter, Step::Day, Group::TenantRoute, false)
            .await?;
        let uses = rows.iter().map(|row| {
            let last_seen: PgMicros = row.try_get("last_start")?;
            Ok(DeprecatedUse {
                tenant: tenant(row)?,
                api: text(row, "api")?,
                method: text(row, "method")?,
                route: text(row, "route")?,
                calls: totals(row, false)?.deprecated,
                last_seen: last_seen.0,
            })
        });
        let uses = uses.collect::<Result<_, Fault>>()?;
        Ok(DeprecationReport::from_uses(uses))
    }

    /// The calls of each day in UTC, as one side of [`reconcile`](crate::usage::reconcile).
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`].
    pub async fn calls_by_day(&self, filter: &UsageFilter) -> Result<CallsByDay, UsageQueryError> {
        let rows = self
            .sums(filter, Step::Day, Group::TenantApiStart, false)
            .await?;
        let mut days = CallsByDay::new();
        for row in &rows {
            let start: PgMicros = row.try_get("start").map_err(Fault::from)?;
            let calls = days
                .entry(TenantDay::new(tenant(row)?, text(row, "api")?, start.0))
                .or_default();
            *calls = calls.saturating_add(totals(row, false)?.calls);
        }
        Ok(days)
    }

    async fn sums(
        &self,
        filter: &UsageFilter,
        coarsest: Step,
        group: Group,
        latencies: bool,
    ) -> Result<Vec<PgRow>, Fault> {
        let work = async {
            let parts = self
                .by_made_days(cover(filter.from, filter.until, coarsest))
                .await?;
            if parts.is_empty() {
                return Ok(Vec::new());
            }
            let statement = Statement::sums(&parts, group, latencies);
            statement.rows(filter, self.postgres.pool()).await
        };
        within(self.deadline, work).await
    }

    /// The parts with days that were not made read by their hours.
    async fn by_made_days(&self, parts: Vec<Segment>) -> Result<Vec<Segment>, Fault> {
        let Some(days) = parts.iter().position(|part| part.step == Step::Day) else {
            return Ok(parts);
        };
        let made = self.made_days(parts[days].from, parts[days].until).await?;
        let mut read = Vec::with_capacity(parts.len() + 2);
        for part in parts {
            if part.step == Step::Day {
                super::days::split(part, &made, &mut read);
            } else {
                read.push(part);
            }
        }
        Ok(read)
    }
}

#[async_trait]
impl UsageSource for PostgresUsage {
    async fn totals(&self, filter: &UsageFilter) -> Result<UsageTotals, AlertError> {
        Ok(Self::totals(self, filter).await?)
    }
}

fn text(row: &PgRow, name: &str) -> Result<Arc<str>, Fault> {
    Ok(Arc::from(row.try_get::<String, _>(name)?))
}

fn tenant(row: &PgRow) -> Result<TenantId, Fault> {
    TenantId::new(row.try_get::<String, _>("tenant")?).map_err(Fault::corrupt)
}

impl fmt::Debug for PostgresUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresUsage")
            .field("postgres", &self.postgres)
            .field("deadline", &self.deadline)
            .finish()
    }
}
