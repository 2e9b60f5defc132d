use serde::{Deserialize, Serialize};

use super::{
    decimal::{Exact, Percent, Rounding, WHOLE},
    line::PricingError,
    money::Money,
};

/// Billionths of a unit in 10^-12.
const PICOS_OF_NANO: u128 = 1_000;

/// What a plan, a tenant or an API brought in beside what it cost whoever runs the service.
///
/// A report and no decision: what is charged is up to you.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MarginReport {
    /// What was charged.
    pub revenue: Money,
    /// What it cost, rounded up to the smallest coin.
    pub cost: Money,
    /// The difference; below zero for a loss.
    pub margin: Money,
    /// The difference in hundredths of a per cent of the revenue, rounded down; `None` without revenue.
    pub margin_basis_points: Option<i128>,
    /// What the same use would have to bring in to cover its cost and the buffer, rounded up.
    pub suggested: Money,
}

/// Compares revenue with cost, and says what cost plus a buffer would come to: cost-plus prices often take 30 to 50 per
/// cent.
///
/// `cost_nanos` are billionths of the revenue's currency's unit: the sum of
/// [`CallCost::total_nanos`](crate::meter::CallCost::total_nanos) over all events, also those that nobody pays for.
///
/// ```
/// use tollgate::pricing::margin_report;
///
/// let report = margin_report("10.00 USD".parse()?, 8_000_000_000, "30".parse()?)?;
/// assert_eq!(report.margin.to_string(), "2.00 USD");
/// assert_eq!(report.margin_basis_points, Some(2_000));
/// assert_eq!(report.suggested.to_string(), "10.40 USD");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`PricingError::TooLarge`] when an amount has no room in 128 bits.
pub fn margin_report(
    revenue: Money,
    cost_nanos: u128,
    buffer: Percent,
) -> Result<MarginReport, PricingError> {
    let currency = revenue.currency();
    let rounded = |amount: Exact| {
        let minor = amount.round(Rounding::Up, currency.exponent());
        minor.map(|minor| Money::from_minor(minor, currency))
    };
    let exact = cost_nanos.checked_mul(PICOS_OF_NANO).map(Exact::picos);
    let exact = exact.ok_or(PricingError::TooLarge)?;
    let with_buffer = WHOLE.saturating_add(buffer.as_millionths());
    let suggested = exact.scaled(with_buffer.into(), WHOLE.into());
    let cost = rounded(exact).ok_or(PricingError::TooLarge)?;
    let margin = revenue.minus(cost)?;
    let of_revenue = margin.minor().checked_mul(10_000);
    Ok(MarginReport {
        revenue,
        cost,
        margin,
        margin_basis_points: of_revenue
            .filter(|_| revenue.minor() > 0)
            .map(|part| part.div_euclid(revenue.minor())),
        suggested: suggested.and_then(rounded).ok_or(PricingError::TooLarge)?,
    })
}
