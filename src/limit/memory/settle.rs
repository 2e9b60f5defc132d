//! The end of a charge.

use super::{
    super::{
        decision::{Hold, Receipt},
        store::{LimitCall, Settlement},
    },
    MemoryLimits, Place, Prepared,
    cell::{Adjustment, Moment},
};

impl MemoryLimits {
    pub(super) fn settle_now(
        &self,
        call: &LimitCall<'_>,
        receipt: &Receipt,
        settlement: &Settlement,
    ) {
        if !receipt.begin_settlement() {
            return;
        }
        let moment = Moment::of(call);
        let prepared = self.prepared(call.set);
        for hold in receipt.holds() {
            let Some(rule) = call.set.rules().get(hold.rule) else {
                continue;
            };
            let place = Place {
                index: hold.rule,
                rule,
                owner: call.set.owner(),
                scopes: call.scopes,
            };
            let adjustment = match settlement.change(rule, hold.amount) {
                (0, more) => Adjustment::Add(more),
                (back, _) => Adjustment::GiveBack(back),
            };
            if !matches!(adjustment, Adjustment::GiveBack(0) | Adjustment::Add(0)) {
                self.adjust(&place, &moment, prepared, hold, adjustment);
            }
        }
    }

    fn adjust<'a>(
        &self,
        place: &Place<'a>,
        moment: &Moment,
        mut prepared: Option<&'a Prepared>,
        hold: &Hold,
        adjustment: Adjustment,
    ) {
        // A new cell is found for one that was evicted; a store without room for it loses the settlement,
        // as it would have refused the call.
        while let Ok(Some(cell)) = self.cell(place, moment, prepared) {
            if cell
                .adjust(place.rule, moment, hold.period, adjustment)
                .is_ok()
            {
                return;
            }
            prepared = None;
        }
    }
}
