//! Random and mutated documents of prices.
//!
//! `cargo bench --bench fuzz_pricing -- [SECONDS] [FIRST SEED]` reads documents for a minute unless said: valid ones,
//! valid ones with bytes, numbers and words changed, and soup of JSON words. What is read is rated at edges up to
//! `u64::MAX`. A panic ends it and shows the seed; else it prints the cases, how many were read and rated, and crashes 0.

#[path = "common/dice.rs"]
mod dice;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use tollgate::{
    clock::Timestamp,
    plan::{PlanCatalog, PlanDocument},
    pricing::{BillingPeriod, Part, UsageTotals, Used, rate},
};

use self::dice::{Dice, number};

fn below(dice: &mut Dice, n: usize) -> usize {
    dice.below(n as u64) as usize
}

fn one_of<'a>(dice: &mut Dice, words: &[&'a str]) -> &'a str {
    words[below(dice, words.len())]
}

const NUMBERS: [&str; 24] = [
    "0",
    "1",
    "2",
    "3",
    "999",
    "1000",
    "1001",
    "18446744073709551614",
    "18446744073709551615",
    "18446744073709551616",
    "-1",
    "1e3",
    "0.5",
    "\"0\"",
    "\"1\"",
    "\"0.01\"",
    "\"0.0005\"",
    "\"0.000000000001\"",
    "\"1000000000000000\"",
    "\"92233720368547758.07\"",
    "\"-1\"",
    "\"1e3\"",
    "\"99.9999\"",
    "null",
];
const WORDS: [&str; 34] = [
    "\"currency\"",
    "\"rounding\"",
    "\"fees\"",
    "\"name\"",
    "\"amount\"",
    "\"minimum\"",
    "\"cap\"",
    "\"meters\"",
    "\"meter\"",
    "\"api\"",
    "\"model\"",
    "\"price\"",
    "\"size\"",
    "\"partial\"",
    "\"tiers\"",
    "\"from\"",
    "\"up_to\"",
    "\"fee\"",
    "\"included\"",
    "\"overage\"",
    "\"discount\"",
    "\"splits\"",
    "\"to\"",
    "\"percent\"",
    "\"USD\"",
    "\"JPY\"",
    "\"KWD\"",
    "\"flat\"",
    "\"graduated\"",
    "\"package\"",
    "\"per_unit\"",
    "\"volume\"",
    "\"round_up\"",
    "\"prorate\"",
];
const MARKS: [&str; 7] = ["{", "}", "[", "]", ":", ",", " "];

/// A document that is often valid.
fn prices(dice: &mut Dice) -> String {
    let amount = |dice: &mut Dice| one_of(dice, &NUMBERS[13..20]).to_owned();
    let tiers = |dice: &mut Dice| {
        let mut last = 0_u64;
        let mut text = String::from("[");
        for _ in 0..below(dice, 4) {
            let first = last + 1;
            last += 1 + below(dice, 2_000) as u64;
            let from = if below(dice, 2) == 0 {
                format!("\"from\": {first}, ")
            } else {
                String::new()
            };
            text += &format!("{{{from}\"up_to\": {last}, \"price\": {}}}, ", amount(dice));
        }
        text + &format!("{{\"price\": {}}}]", amount(dice))
    };
    let mut meters = Vec::new();
    for n in 0..1 + below(dice, 3) {
        let mut meter = format!("{{\"meter\": \"m{n}\"");
        match below(dice, 5) {
            0 => meter += &format!(", \"model\": \"per_unit\", \"price\": {}", amount(dice)),
            1 => meter += &format!(", \"model\": \"graduated\", \"tiers\": {}", tiers(dice)),
            2 => meter += &format!(", \"model\": \"volume\", \"tiers\": {}", tiers(dice)),
            3 => {
                let (size, partial) = (one_of(dice, &NUMBERS[1..9]), one_of(dice, &WORDS[32..]));
                meter += &format!(
                    ", \"model\": \"package\", \"size\": {size}, \"partial\": {partial}, \"price\": {}",
                    amount(dice)
                );
            }
            _ => meter += ", \"model\": \"flat\", \"price\": \"5\"",
        }
        for (field, chance) in [
            ("included", 4),
            ("overage", 4),
            ("discount", 4),
            ("minimum", 4),
            ("cap", 4),
        ] {
            if below(dice, chance) == 0 {
                let value = if field == "included" {
                    one_of(dice, &NUMBERS[..9]).to_owned()
                } else {
                    amount(dice)
                };
                meter += &format!(", \"{field}\": {value}");
            }
        }
        meters.push(meter + "}");
    }
    let currency = one_of(dice, &WORDS[24..27]);
    format!(
        "{{\"currency\": {currency}, \"fees\": [{{\"name\": \"base\", \"amount\": \"29\"}}], \"meters\": [{}]}}",
        meters.join(", ")
    )
}

fn mutated(dice: &mut Dice, text: String) -> String {
    let mut bytes = text.into_bytes();
    for _ in 0..below(dice, 4) {
        let at = below(dice, bytes.len().max(1));
        let word = match below(dice, 4) {
            0 => one_of(dice, &NUMBERS),
            1 => one_of(dice, &WORDS),
            _ => one_of(dice, &MARKS),
        };
        match below(dice, 4) {
            0 => drop(bytes.splice(at..at, word.bytes())),
            1 => {
                let end = (at + below(dice, 12)).min(bytes.len());
                bytes.splice(at.min(end)..end, word.bytes());
            }
            2 if !bytes.is_empty() => bytes[at] = dice.next() as u8,
            _ => bytes.truncate(bytes.len() - below(dice, 2).min(bytes.len())),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn soup(dice: &mut Dice) -> String {
    let mut text = String::from("{");
    for _ in 0..below(dice, 60) {
        text += match below(dice, 3) {
            0 => one_of(dice, &NUMBERS),
            1 => one_of(dice, &WORDS),
            _ => one_of(dice, &MARKS),
        };
    }
    text
}

/// Whether the document was read, and how many of its ratings had room.
fn play(text: &str, parts: &[Part], units: &[u64]) -> (bool, u64) {
    let document = format!("{{\"plans\": [{{\"name\": \"pro\", \"prices\": {text}}}]}}");
    let Ok(catalog) =
        PlanDocument::from_json(&document).and_then(|it| PlanCatalog::from_document(&it))
    else {
        return (false, 0);
    };
    let mut rated = 0;
    for plan in catalog.snapshot() {
        let Some(book) = plan.prices() else { continue };
        for part in parts {
            for units in units {
                let mut usage = UsageTotals::new();
                for meter in ["m0", "m1", "m2", "calls"] {
                    usage.add("api", meter, Used::new(*units, units / 3));
                }
                rated += u64::from(rate(book, &usage, *part).is_ok());
            }
        }
    }
    (true, rated)
}

fn main() {
    let (seconds, first_seed) = (number(0, 60), number(1, 0));
    let at = Timestamp::from_unix_seconds;
    let period = BillingPeriod::new(at(0), at(2_592_000)).expect("a period");
    let parts = [
        period.whole(),
        period.part(at(1), at(1_000_003)).expect("a part"),
    ];
    let units = [0, 1, 999, 1_000, 1_001, u64::MAX - 1, u64::MAX];
    let started = Instant::now();
    let (mut cases, mut read, mut rated, mut crashes) = (0_u64, 0_u64, 0_u64, 0_u64);
    while started.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..256 {
            let seed = first_seed.wrapping_add(cases);
            let mut dice = Dice::of_case(seed);
            let text = match below(&mut dice, 4) {
                0 => prices(&mut dice),
                1 => soup(&mut dice),
                _ => {
                    let text = prices(&mut dice);
                    mutated(&mut dice, text)
                }
            };
            cases += 1;
            match catch_unwind(AssertUnwindSafe(|| play(&text, &parts, &units))) {
                Ok((is_read, n)) => {
                    read += u64::from(is_read);
                    rated += n;
                }
                Err(_) => {
                    crashes += 1;
                    eprintln!("seed {seed}: {text}");
                }
            }
        }
    }
    println!(
        "{cases} documents from seed {first_seed} in {:.0?}: {read} read, {rated} ratings with room, crashes {crashes}",
        started.elapsed()
    );
    assert_eq!(crashes, 0, "a document of prices made a panic");
}
