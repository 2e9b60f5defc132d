//! What every limit store must do.

#![expect(
    clippy::panic,
    reason = "a conformance suite reports a difference by a panic, as a test does"
)]

use std::{
    collections::VecDeque, fmt::Debug, net::Ipv6Addr, num::NonZeroU32, sync::Arc, time::Duration,
};

use async_trait::async_trait;

use super::limit_model::{LimitModel, ModelReceipt};
use crate::{
    clock::{Clock, ManualClock, Now, Timestamp},
    id::{Environment, KeyId, TenantId},
    limit::{
        Concurrency, Cost, Decision, LimitCall, LimitSet, LimitStore, Outcome, Owner, Quota, Rate,
        Receipt, Rule, RuleSet, Scope, ScopeValues, Settlement, Unit, Window,
    },
};

/// Moves a store's time.
///
/// # Contract
///
/// A store that takes the time from the call gets [`now`](Self::now) with each call. A store with a clock of
/// its own is moved by [`advance`](Self::advance) too, and decides at exactly that time.
#[async_trait]
pub trait LimitClock: Send + Sync {
    /// The time of the next call.
    fn now(&self) -> Now;

    /// Lets time pass.
    async fn advance(&self, by: Duration);

    /// Steps the wall clock alone, and says whether this clock has one that can be stepped.
    fn step_wall(&self, to: Timestamp) -> bool;
}

#[async_trait]
impl LimitClock for ManualClock {
    fn now(&self) -> Now {
        Clock::now(self)
    }

    async fn advance(&self, by: Duration) {
        Self::advance(self, by);
    }

    fn step_wall(&self, to: Timestamp) -> bool {
        self.set_wall(to);
        true
    }
}

/// Runs every check of this room: a few hundred random histories against [`LimitModel`], then races.
///
/// Each check uses tenants of its own, so the store need not be emptied in between. Must be called within a
/// tokio runtime; races need one with several threads to mean much.
///
/// # Panics
///
/// With the history and the difference when the store does not keep [`LimitStore`]'s contract.
pub async fn limit_store(store: Arc<dyn LimitStore>, clock: &dyn LimitClock) {
    for seed in 0..100 {
        limit_store_follows_the_model(Arc::clone(&store), clock, seed, 100).await;
    }
    limit_store_admits_exactly_the_limit_under_races(store, clock).await;
}

/// Plays one random history of decisions, settlements, passing time, stepped clocks and changed plans, and
/// compares every answer with [`LimitModel`]. The same seed gives the same history.
///
/// # Panics
///
/// With the last operations and both answers when they differ.
pub async fn limit_store_follows_the_model(
    store: Arc<dyn LimitStore>,
    clock: &dyn LimitClock,
    seed: u64,
    n_steps: usize,
) {
    let mut dice = Dice(seed);
    let mut play = Play::new(store, &mut dice, seed);
    for _ in 0..n_steps {
        match dice.below(20) {
            0..=11 => play.decide(clock, &mut dice).await,
            12..=14 => play.settle(clock, &mut dice),
            15 => play.change_plan(&mut dice),
            16 if dice.below(3) == 0 => play.step_wall(clock, &mut dice),
            _ => play.advance(clock, &mut dice).await,
        }
    }
}

/// Lets a thousand tasks at once ask for a limit of 100, under each algorithm and under sets of several
/// rules, and counts.
///
/// # Panics
///
/// When not exactly 100 calls pass, or a threshold is told more than once.
pub async fn limit_store_admits_exactly_the_limit_under_races(
    store: Arc<dyn LimitStore>,
    clock: &dyn LimitClock,
) {
    let day = Duration::from_secs(86_400);
    let rate = || Rate::per_day(100).thresholds([50, 100]);
    let window = || Window::new(100, day).thresholds([50, 100]);
    let smooth = || Window::new(100, day).smooth().named("smooth");
    let log = || Window::new(100, day).exact_log().named("log");
    let quota = || Quota::monthly(100).thresholds([50, 100]);
    let gauge = || Concurrency::new(100).thresholds([50, 100]);
    let wide = || Rate::per_day(10_000).named("wide");
    let sets: [Vec<Rule>; 8] = [
        vec![rate()],
        vec![window()],
        vec![smooth()],
        vec![log()],
        vec![quota()],
        vec![gauge()],
        vec![rate(), window(), quota()],
        vec![wide(), gauge(), smooth(), log(), quota(), window(), rate()],
    ];
    for (number, rules) in sets.into_iter().enumerate() {
        let description = format!("{rules:?}");
        let set = bind(&format!("races-{number}"), None, rules);
        let now = clock.now();
        let tasks: Vec<_> = (0..1_000)
            .map(|_| {
                let (store, set) = (Arc::clone(&store), Arc::clone(&set));
                tokio::spawn(async move {
                    ask(&store, &set, &ScopeValues::default(), &Cost::default(), now).await
                })
            })
            .collect();
        let mut n_admitted = 0;
        let mut told = Vec::new();
        for task in tasks {
            match task.await {
                Ok(decision) => {
                    n_admitted += usize::from(decision.is_admitted());
                    let crossed =
                        |crossing: &crate::limit::Crossing| (crossing.rule, crossing.percent);
                    told.extend(decision.crossings.iter().map(crossed));
                }
                Err(error) => panic!("a racing decision failed: {error}\nrules: {description}"),
            }
        }
        let n_told = told.len();
        told.sort_unstable();
        told.dedup();
        if n_admitted != 100 {
            panic!("{n_admitted} of 1000 racing calls passed a limit of 100\nrules: {description}");
        }
        if n_told != told.len() {
            panic!("a threshold was told {n_told} times in a race\nrules: {description}");
        }
    }
}

async fn ask(
    store: &Arc<dyn LimitStore>,
    set: &Arc<LimitSet>,
    scopes: &ScopeValues,
    cost: &Cost,
    now: Now,
) -> Decision {
    let call = LimitCall::new(set, scopes, cost, now);
    let answer = match store.try_decide(&call) {
        Some(answer) => answer,
        None => Arc::clone(store).decide(call.to_owned()).await,
    };
    match answer {
        Ok(decision) => decision,
        Err(error) => panic!("the store failed: {error}"),
    }
}

fn bind(tenant: &str, key: Option<&str>, rules: Vec<Rule>) -> Arc<LimitSet> {
    let (Ok(tenant), Ok(rules)) = (TenantId::new(tenant), RuleSet::compile(rules)) else {
        panic!("the suite's own rules do not compile");
    };
    let mut owner = Owner::tenant(tenant)
        // 31 January 2025, 10:30:00 in UTC: a day that most months lack.
        .billing_anchor(Timestamp::from_unix_seconds(1_738_319_400));
    if let Some(key) = key.and_then(|key| KeyId::new(key).ok()) {
        owner = owner.key(key).environment(Environment::Test);
    }
    Arc::new(LimitSet::new(owner, rules))
}

/// One random history.
struct Play {
    store: Arc<dyn LimitStore>,
    model: LimitModel,
    seed: u64,
    /// The same tenant under several plans, bound to its two keys.
    plans: Vec<[Arc<LimitSet>; 2]>,
    plan: usize,
    open: Vec<Open>,
    history: VecDeque<String>,
}

struct Open {
    set: Arc<LimitSet>,
    scopes: ScopeValues,
    receipt: Receipt,
    expected: ModelReceipt,
}

impl Play {
    fn new(store: Arc<dyn LimitStore>, dice: &mut Dice, seed: u64) -> Self {
        let tenant = format!("model-{seed}");
        let shape = dice.next();
        let plans = (0..3)
            .map(|_| {
                let rules = random_rules(shape, dice);
                [
                    bind(&tenant, None, rules.clone()),
                    bind(&tenant, Some("key"), rules),
                ]
            })
            .collect();
        Self {
            store,
            model: LimitModel::default(),
            seed,
            plans,
            plan: 0,
            open: Vec::new(),
            history: VecDeque::new(),
        }
    }

    fn note(&mut self, line: String) {
        if self.history.len() >= 30 {
            self.history.pop_front();
        }
        self.history.push_back(line);
    }

    async fn decide(&mut self, clock: &dyn LimitClock, dice: &mut Dice) {
        let [first, second] = &self.plans[self.plan];
        let set = Arc::clone(if dice.below(4) == 0 { second } else { first });
        let scopes = random_scopes(dice);
        let cost = random_cost(dice);
        let now = clock.now();
        self.note(format!("decide {cost:?} {scopes:?} at {now:?}"));
        let decision = ask(&self.store, &set, &scopes, &cost, now).await;
        let expected = self.model.decide(&set, &scopes, &cost, now);
        self.compare("outcome", &decision.outcome, &expected.outcome);
        self.compare("states", &decision.states.to_vec(), &expected.states);
        self.compare(
            "crossings",
            &decision.crossings.to_vec(),
            &expected.crossings,
        );
        let holds = decision.receipt.holds().iter();
        let holds: Vec<_> = holds.map(|hold| (hold.rule, hold.amount)).collect();
        self.compare("holds", &holds, &expected.receipt.holds().collect());
        if matches!(decision.outcome, Outcome::Admitted { .. }) {
            self.open.push(Open {
                set,
                scopes,
                receipt: decision.receipt,
                expected: expected.receipt,
            });
        }
    }

    fn compare<T: Debug + PartialEq>(&self, what: &str, got: &T, expected: &T) {
        if got == expected {
            return;
        }
        let history: Vec<_> = self.history.iter().map(String::as_str).collect();
        panic!(
            "seed {}: the store's {what} differ from the model's\n  store: {got:?}\n  model: {expected:?}\nplan {}: {:#?}\nhistory:\n  {}",
            self.seed,
            self.plan,
            self.plans[self.plan][0].rules(),
            history.join("\n  "),
        );
    }

    fn settle(&mut self, clock: &dyn LimitClock, dice: &mut Dice) {
        if self.open.is_empty() {
            return;
        }
        let place = dice.below(self.open.len() as u64) as usize;
        let settlement = match dice.below(5) {
            0 => Settlement::Refund,
            1 => Settlement::Cancel,
            2 => Settlement::Waive(random_cost(dice)),
            _ => Settlement::Actual(random_cost(dice)),
        };
        let now = clock.now();
        let mut open = self.open.swap_remove(place);
        self.note(format!(
            "settle {settlement:?} of {:?} at {now:?}",
            open.expected
        ));
        let cost = Cost::default();
        let call = LimitCall::new(&open.set, &open.scopes, &cost, now);
        // Twice, which must have the effect of once.
        for _ in 0..2 {
            self.store.settle(&call, &open.receipt, &settlement);
            self.model
                .settle(&open.set, now, &mut open.expected, &settlement);
        }
    }

    fn change_plan(&mut self, dice: &mut Dice) {
        self.plan = dice.below(self.plans.len() as u64) as usize;
        self.note(format!("plan {}", self.plan));
    }

    fn step_wall(&mut self, clock: &dyn LimitClock, dice: &mut Dice) {
        let wall = clock.now().wall();
        let step = Duration::from_secs([1, 3_600, 90_000, 3_000_000][dice.below(4) as usize]);
        let to = if dice.below(2) == 0 {
            wall.saturating_add(step)
        } else {
            wall.saturating_sub(step)
        };
        if clock.step_wall(to) {
            self.note(format!("the wall clock steps to {to}"));
        }
    }

    async fn advance(&mut self, clock: &dyn LimitClock, dice: &mut Dice) {
        let scale = [
            1,
            1_000,
            1_000_000,
            60_000_000,
            86_400_000_000,
            3_000_000_000_000,
        ];
        let scale = scale[dice.below(6) as usize];
        let by = Duration::from_micros(1 + dice.below(scale));
        clock.advance(by).await;
        self.note(format!("{by:?} pass"));
    }
}

/// Rules of one shape with random numbers, so that several plans share their counts.
fn random_rules(shape: u64, dice: &mut Dice) -> Vec<Rule> {
    let mut shape = Dice(shape);
    let n_rules = 1 + shape.below(4);
    (0..n_rules)
        .map(|number| random_rule(&mut shape, dice).named(format!("rule-{number}")))
        .collect()
}

fn random_rule(shape: &mut Dice, dice: &mut Dice) -> Rule {
    let limit = [0, 1, 2, 5, 10, 100][dice.below(6) as usize];
    let length = Duration::from_micros([7, 999, 1_000_000, 60_000_000][shape.below(4) as usize]);
    let rule: Rule = match shape.below(9) {
        0..=2 => {
            let n = [1, 3, 7, 60, 1_000_000_007][dice.below(5) as usize];
            let period = [1, 3, 1_000_000, 60_000_000][dice.below(4) as usize];
            let period = Duration::from_micros(period);
            match limit {
                0 => Rate::per(0, period).into(),
                burst => Rate::per(n, period).burst(burst).into(),
            }
        }
        3 | 4 => {
            let cells = [1, 2, 3, 7][shape.below(4) as usize];
            let cells = NonZeroU32::new(cells).unwrap_or(NonZeroU32::MIN);
            let window = Window::new(limit, length).cells(cells);
            if dice.below(2) == 0 {
                window.into()
            } else {
                window.smooth().into()
            }
        }
        5 => Window::new(limit, length).exact_log().into(),
        6 | 7 => match shape.below(4) {
            0 => Quota::hourly(limit).into(),
            1 => Quota::daily(limit).time_zone("Europe/Berlin").into(),
            2 => Quota::monthly(limit).into(),
            _ => Quota::per_billing_period(limit).into(),
        },
        _ => Concurrency::new(limit).into(),
    };
    let rule = rule.scope(match shape.below(8) {
        0 => Scope::Key,
        1 => Scope::Route,
        2 => Scope::Address,
        3 => Scope::Custom("workspace".into()),
        _ => Scope::Tenant,
    });
    let rule = rule.unit(match shape.below(4) {
        0 => Unit::custom("tokens"),
        _ => Unit::Requests,
    });
    let rule = match dice.below(8) {
        0 => rule.warn(),
        1 => rule.overage(),
        2 => rule.shadow(),
        _ => rule,
    };
    let rule = match shape.below(6) {
        0 => rule.route("/a"),
        _ => rule,
    };
    match dice.below(2) {
        0 => rule.thresholds([80, 50, 100]),
        _ => rule,
    }
}

fn random_scopes(dice: &mut Dice) -> ScopeValues {
    let scopes = match dice.below(3) {
        0 => ScopeValues::default(),
        1 => ScopeValues::default().route("/a"),
        _ => ScopeValues::default().route("/b"),
    };
    let scopes = match dice.below(4) {
        0 => scopes,
        1 => scopes.address([192, 0, 2, 1].into()),
        2 => scopes.address(Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]).into()),
        // In the same /64 as the one before.
        _ => scopes.address(Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 9, 9, 9, 9]).into()),
    };
    match dice.below(2) {
        0 => scopes,
        _ => scopes.custom("workspace", "w"),
    }
}

fn random_cost(dice: &mut Dice) -> Cost {
    let amount = |dice: &mut Dice| [0, 1, 1, 1, 2, 3, 10, 1_000][dice.below(8) as usize];
    let requests = amount(dice);
    Cost::requests(requests).with("tokens", amount(dice))
}

/// A sequence of numbers that the same seed repeats (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
