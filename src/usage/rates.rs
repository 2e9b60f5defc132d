//! What totals come to, in whole numbers.

use std::time::Duration;

use super::UsageTotals;

const MILLION: u128 = 1_000_000;
const MILLIS_PER_MINUTE: u128 = 60_000;

impl UsageTotals {
    /// The calls that the service answered for: all but the refused ones.
    #[must_use]
    pub const fn let_through(&self) -> u64 {
        self.calls.saturating_sub(self.refused)
    }

    /// How many of a million calls that were let through the service failed, rounded up, so that no failure shows as
    /// none. `None` without such a call.
    #[must_use]
    pub fn failed_per_million(&self) -> Option<u32> {
        per_million(self.failed, self.let_through())
    }

    /// How many of a million calls were answered with a status of 400 to 599, refusals among them, rounded up. `None`
    /// without a call.
    #[must_use]
    pub fn errors_per_million(&self) -> Option<u32> {
        let [.., client, server] = self.statuses;
        per_million(client.saturating_add(server), self.calls)
    }

    /// Calls per minute over a time, in thousandths, rounded down: 1,500 is one and a half. `None` over no time.
    #[must_use]
    pub fn calls_per_minute_thousandths(&self, over: Duration) -> Option<u64> {
        let millis = over.as_millis();
        let thousandths = (u128::from(self.calls) * 1_000)
            .checked_mul(MILLIS_PER_MINUTE)?
            .checked_div(millis)?;
        Some(u64::try_from(thousandths).unwrap_or(u64::MAX))
    }
}

/// A share in millionths, at most a million, rounded up.
fn per_million(part: u64, whole: u64) -> Option<u32> {
    let whole = (whole > 0).then_some(u128::from(whole))?;
    let share = (u128::from(part).min(whole) * MILLION).div_ceil(whole);
    u32::try_from(share).ok()
}
