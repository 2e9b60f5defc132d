//! Properties of prices, against a plain model that walks unit by unit.

use proptest::prelude::*;
use tollgate::pricing::{
    LineKind, MeterPrice, Part, Partial, Prices, Tier, TraceStep, UsageTotals, Used, rate,
};

use crate::pricing::{book, calls, minor, month, one_meter, seconds};

#[derive(Clone, Debug)]
struct Steps {
    /// Length, price and fee of each tier, in 10^-12 and cents.
    tiers: Vec<(u64, u64, u64)>,
}

fn dollars(picos: u64) -> String {
    format!(
        "{}.{:012}",
        picos / 1_000_000_000_000,
        picos % 1_000_000_000_000
    )
}

fn cents(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

impl Steps {
    fn tiers(&self) -> Vec<Tier> {
        let mut last = 0;
        let n = self.tiers.len();
        let tiers = self.tiers.iter().enumerate();
        tiers
            .map(|(index, (length, price, fee))| {
                let tier = if index + 1 == n {
                    Tier::rest(dollars(*price)).from(last + 1)
                } else {
                    last += length;
                    Tier::up_to(last, dollars(*price))
                };
                if *fee > 0 {
                    tier.fee(cents(*fee))
                } else {
                    tier
                }
            })
            .collect()
    }

    /// The tier that a unit falls in.
    fn tier_of(&self, unit: u64) -> usize {
        let mut last = 0;
        let found = self.tiers.iter().position(|(length, ..)| {
            last += length;
            unit <= last
        });
        found
            .unwrap_or(self.tiers.len() - 1)
            .min(self.tiers.len() - 1)
    }

    /// Unit by unit, in 10^-12.
    fn graduated(&self, units: u64) -> u128 {
        let mut reached = None;
        (1..=units)
            .map(|unit| {
                let tier = self.tier_of(unit);
                let (_, price, fee) = self.tiers[tier];
                let fee = if reached == Some(tier) { 0 } else { fee };
                reached = Some(tier);
                u128::from(price) + u128::from(fee) * 10_000_000_000
            })
            .sum()
    }

    fn volume(&self, units: u64) -> u128 {
        if units == 0 {
            return 0;
        }
        let (_, price, fee) = self.tiers[self.tier_of(units)];
        u128::from(price) * u128::from(units) + u128::from(fee) * 10_000_000_000
    }
}

/// To the cent, a half to the even one.
fn half_even(picos: u128) -> i128 {
    let cent = 10_000_000_000;
    let (whole, rest) = (picos / cent, picos % cent);
    let up = rest > cent / 2 || (rest == cent / 2 && whole % 2 == 1);
    i128::try_from(whole).expect("room") + i128::from(up)
}

fn steps() -> impl Strategy<Value = Steps> {
    let tier = (
        1_u64..60,
        0_u64..5_000_000_000_000,
        prop_oneof![3 => Just(0), 1 => 0_u64..500],
    );
    prop::collection::vec(tier, 1..6).prop_map(|tiers| Steps { tiers })
}

fn any_price() -> impl Strategy<Value = MeterPrice> {
    let price = || (0_u64..2_000_000_000_000).prop_map(dollars);
    let model = prop_oneof![
        price().prop_map(|price| MeterPrice::per_unit("calls", price)),
        steps().prop_map(|steps| MeterPrice::graduated("calls", steps.tiers())),
        (1_u64..50, price(), any::<bool>()).prop_map(|(size, price, up)| {
            let partial = if up {
                Partial::RoundUp
            } else {
                Partial::Prorate
            };
            MeterPrice::package("calls", size, price, partial)
        }),
    ];
    (
        model,
        0_u64..40,
        prop::option::of(0_u64..=1_000_000),
        prop::option::of((0_u64..3_000, 0_u64..9_000)),
    )
        .prop_map(|(price, included, discount, bounds)| {
            let mut price = price.included(included);
            if let Some(discount) = discount {
                price = price.discount(format!("{}.{:04}", discount / 10_000, discount % 10_000));
            }
            if let Some((minimum, more)) = bounds {
                price = price.minimum(cents(minimum)).cap(cents(minimum + more));
            }
            price
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn graduated_is_the_sum_of_its_tiers(steps in steps(), units in 0_u64..400) {
        let book = one_meter(MeterPrice::graduated("calls", steps.tiers()));
        prop_assert_eq!(minor(&book, units), half_even(steps.graduated(units)));
        let rated = rate(&book, &calls(units, 0), month().whole()).expect("rated");
        for line in &rated.lines {
            let tiers = line.trace.iter().filter_map(|step| match step {
                TraceStep::Tier { units, amount, .. } => Some((*units, *amount)),
                _ => None,
            });
            let (units_of_tiers, amounts): (Vec<_>, Vec<_>) = tiers.unzip();
            prop_assert_eq!(units_of_tiers.iter().sum::<u64>(), units);
            // The amounts are told exactly.
            let picos = amounts.iter().map(|amount| {
                let text = amount.to_string();
                let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
                format!("{whole}{rest:0<12}").parse::<u128>().expect("digits")
            });
            prop_assert_eq!(picos.sum::<u128>(), steps.graduated(units));
        }
    }

    #[test]
    fn volume_prices_all_units_by_the_last(steps in steps(), units in 0_u64..400) {
        let book = one_meter(MeterPrice::volume("calls", steps.tiers()));
        prop_assert_eq!(minor(&book, units), half_even(steps.volume(units)));
    }

    #[test]
    fn volume_changes_exactly_at_its_boundaries(steps in steps()) {
        let book = one_meter(MeterPrice::volume("calls", steps.tiers()));
        let mut last = 0;
        for (length, ..) in &steps.tiers {
            last += length;
            for units in [last - 1, last, last + 1] {
                prop_assert_eq!(minor(&book, units), half_even(steps.volume(units)));
            }
        }
    }

    #[test]
    fn more_use_never_costs_less(price in any_price(), units in prop::collection::vec(0_u64..500, 2..20)) {
        let book = one_meter(price);
        let mut units = units;
        units.sort_unstable();
        let amounts: Vec<_> = units.iter().map(|units| minor(&book, *units)).collect();
        prop_assert!(amounts.is_sorted(), "{:?} {:?}", units, amounts);
    }

    #[test]
    fn splitting_the_use_of_a_period_never_changes_its_total(
        price in any_price(),
        overage in any::<bool>(),
        uses in prop::collection::vec((0_usize..3, 0_u64..60, 0_u64..60, 0_usize..5), 0..40),
    ) {
        let price = if overage { price.overage("0.0123") } else { price };
        let prices = Prices::new("USD")
            .fee("base", "1.00")
            .minimum("3.00")
            .meter(price.clone().api("api-0"))
            .meter(price);
        let book = book(&prices);
        let apis = ["api-0", "api-1", "api-2"];
        let mut whole = UsageTotals::new();
        let mut processes = vec![UsageTotals::new(); 5];
        for (api, units, overage, process) in &uses {
            whole.add(apis[*api], "calls", Used::new(*units, *overage));
            processes[*process].add(apis[*api], "calls", Used::new(*units, *overage));
        }
        let mut merged = UsageTotals::new();
        for process in processes.iter().rev() {
            merged.merge(process);
        }
        let rated = |usage: &UsageTotals| rate(&book, usage, month().whole()).expect("rated");
        prop_assert_eq!(rated(&merged), rated(&whole));
    }

    #[test]
    fn parts_of_a_period_add_up_to_the_whole(
        fee in 0_u64..1_000_000,
        included in 0_u64..1_000_000,
        cuts in prop::collection::btree_set(1_u64..2_592_000, 0..6),
    ) {
        let month = month();
        let prices = Prices::new("USD")
            .fee("base", cents(fee))
            .meter(MeterPrice::per_unit("calls", "0.01").included(included));
        let book = book(&prices);
        let mut from = 0;
        let ends = cuts.into_iter().chain([2_592_000]);
        let parts: Vec<Part> = ends
            .map(|to| {
                let part = month.part(seconds(from), seconds(to)).expect("a part");
                from = to;
                part
            })
            .collect();
        let (mut fees, mut free) = (0, 0);
        for part in parts {
            let rated = rate(&book, &calls(2_000_000, 0), part).expect("rated");
            for line in &rated.lines {
                match line.kind {
                    LineKind::Fee => fees += line.amount.minor(),
                    _ => free += 2_000_000 - line.amount.minor(),
                }
            }
        }
        prop_assert_eq!(fees, i128::from(fee));
        prop_assert_eq!(free, i128::from(included));
    }
}
