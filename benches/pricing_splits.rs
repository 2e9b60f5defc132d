//! Random use, split in two ways and rated twice.
//!
//! `cargo bench --bench pricing_splits -- [VECTORS] [FIRST SEED]` makes a million usage vectors unless said, each with
//! prices of its own: every model, with and without included units, overage, discount, minimum and cap. Each vector is
//! rated whole; then split into pieces among processes that are merged in another order, and rated again; and a
//! third time as versions of an invoice, one for each process that reports late, whose totals are added up. It prints
//! the differences and ends with a panic where there is one.

#[path = "common/dice.rs"]
mod dice;

use std::{sync::Arc, time::Instant};

use tollgate::{
    clock::Timestamp,
    id::{PlanName, TenantId},
    pricing::{
        BillingPeriod, InvoiceDraft, MeterPrice, Partial, PriceBook, Prices, Rounding, Tier,
        UsageTotals, Used, rate,
    },
};

use self::dice::{Dice, number};

/// A price below three.
fn any_price(dice: &mut Dice) -> String {
    format!("{}.{:012}", dice.below(3), dice.below(1_000_000_000_000))
}

/// Small, or of any size.
fn units(dice: &mut Dice) -> u64 {
    let bits = dice.below(40);
    dice.next() >> (63 - bits)
}

const APIS: [&str; 3] = ["chat", "image", "search"];
const METERS: [&str; 2] = ["calls", "tokens"];

fn tiers(dice: &mut Dice) -> Vec<Tier> {
    let mut last = 0;
    let mut tiers = Vec::new();
    for _ in 0..dice.below(4) {
        last += 1 + dice.below(100_000);
        let tier = Tier::up_to(last, any_price(dice));
        tiers.push(if dice.below(3) == 0 {
            tier.fee("1.50")
        } else {
            tier
        });
    }
    tiers.push(Tier::rest(any_price(dice)));
    tiers
}

fn meter_price(dice: &mut Dice, meter: &str) -> MeterPrice {
    let mut price = match dice.below(5) {
        0 => MeterPrice::per_unit(meter, any_price(dice)),
        1 => MeterPrice::graduated(meter, tiers(dice)),
        2 => MeterPrice::volume(meter, tiers(dice)),
        3 => MeterPrice::package(
            meter,
            1 + dice.below(5_000),
            any_price(dice),
            Partial::RoundUp,
        ),
        _ => MeterPrice::package(
            meter,
            1 + dice.below(5_000),
            any_price(dice),
            Partial::Prorate,
        ),
    };
    if dice.below(2) == 0 {
        price = price.included(dice.below(10_000));
    }
    if dice.below(2) == 0 {
        price = price.overage(any_price(dice));
    }
    if dice.below(3) == 0 {
        price = price.discount(format!("{}.{:04}", dice.below(100), dice.below(10_000)));
    }
    if dice.below(3) == 0 {
        price = price
            .minimum("1.00")
            .cap(format!("{}.00", 1 + dice.below(1_000_000)));
    }
    price
}

fn prices(dice: &mut Dice) -> Prices {
    let rounding = match dice.below(4) {
        0 => Rounding::HalfEven,
        1 => Rounding::HalfUp,
        2 => Rounding::Up,
        _ => Rounding::Down,
    };
    let mut prices = Prices::new("USD").rounding(rounding).fee("base", "29.00");
    if dice.below(3) == 0 {
        prices = prices.minimum("75.00");
    }
    for meter in METERS {
        prices = prices.meter(meter_price(dice, meter));
        if dice.below(2) == 0 {
            prices = prices.meter(meter_price(dice, meter).api("chat"));
        }
    }
    prices
}

/// A part of at most `rest`, so that the parts come to it.
fn piece(dice: &mut Dice, rest: Used) -> Used {
    let units = dice.below(rest.units.saturating_add(1));
    let plain = rest.units - rest.overage;
    // As much overage as keeps the rest a sum of both kinds.
    let least = units.saturating_sub(plain);
    let most = units.min(rest.overage);
    Used::new(units, least + dice.below(most - least + 1))
}

fn main() {
    let (n_vectors, first_seed) = (number(0, 1_000_000), number(1, 0));
    let started = Instant::now();
    let period = BillingPeriod::new(
        Timestamp::UNIX_EPOCH,
        Timestamp::from_unix_seconds(2_592_000),
    )
    .expect("a period");
    let acme = TenantId::new("acme").expect("an id");
    let pro = PlanName::new("pro").expect("a name");
    let (mut differences, mut pieces) = (0_u64, 0_u64);
    for n in 0..n_vectors {
        let mut dice = Dice::of_case(first_seed.wrapping_add(n));
        let book = Arc::new(PriceBook::new(&prices(&mut dice)).expect("prices"));
        let mut whole = UsageTotals::new();
        let mut processes = vec![UsageTotals::new(); 1 + dice.below(4) as usize];
        for api in APIS {
            for meter in METERS {
                let units = units(&mut dice);
                let mut rest = Used::new(units, dice.below(units.saturating_add(1)));
                whole.add(api, meter, rest);
                for _ in 0..dice.below(4) {
                    let part = piece(&mut dice, rest);
                    rest = Used::new(rest.units - part.units, rest.overage - part.overage);
                    let process = dice.below(processes.len() as u64) as usize;
                    processes[process].add(api, meter, part);
                    pieces += 1;
                }
                let process = dice.below(processes.len() as u64) as usize;
                processes[process].add(api, meter, rest);
                pieces += 1;
            }
        }
        let once = rate(&book, &whole, period.whole()).expect("rated");
        let mut merged = UsageTotals::new();
        processes
            .iter()
            .rev()
            .for_each(|process| merged.merge(process));
        let again = rate(&book, &merged, period.whole()).expect("rated");

        let mut known = UsageTotals::new();
        let mut last: Option<InvoiceDraft> = None;
        let mut asked = 0;
        for process in &processes {
            known.merge(process);
            let state = InvoiceDraft::builder(acme.clone(), period).plan(
                pro.clone(),
                Arc::clone(&book),
                known.clone(),
            );
            let next = match &last {
                None => Some(state.draft().expect("a draft")),
                Some(before) => state.correct(before).expect("a draft"),
            };
            if let Some(next) = next {
                asked += next.total.minor();
                last = Some(next);
            }
        }
        if once != again || asked != once.total.minor() {
            differences += 1;
            eprintln!(
                "seed {}: {} whole, {} split, {asked} in versions",
                first_seed + n,
                once.total,
                again.total
            );
        }
    }
    println!(
        "{n_vectors} usage vectors of {pieces} pieces from seed {first_seed}, rated whole, merged and in versions: \
         differences {differences} in {:.1?}",
        started.elapsed()
    );
    assert_eq!(differences, 0, "splitting use changed its price");
}
