//! The state machine: every pair of state and event, and no way to make grace longer.

use std::time::Duration;

use proptest::prelude::*;
use tollgate::{
    billing::lifecycle::{
        Effect, LifecycleEvent, LifecyclePolicies, LifecyclePolicy, OnEnd, Transition, step,
    },
    clock::Timestamp,
    id::{PlanName, TenantId},
    tenant::AccessState,
};

use super::support::{DAY, START, at};

const GRACE: u64 = 7 * DAY;
const READ_ONLY: u64 = 30 * DAY;

fn policy() -> LifecyclePolicy {
    LifecyclePolicy::new()
}

fn free() -> PlanName {
    PlanName::new("free").unwrap()
}

fn grace(until: u64, suspend_at: u64) -> AccessState {
    AccessState::Grace {
        until: at(until),
        suspend_at: Some(at(suspend_at)),
    }
}

fn read_only(suspend_at: Option<u64>) -> AccessState {
    AccessState::ReadOnly {
        suspend_at: suspend_at.map(at),
    }
}

/// The states of the table, each with a failure a day before it.
fn states() -> [AccessState; 5] {
    [
        AccessState::Active,
        grace(START - DAY + GRACE, START - DAY + GRACE + READ_ONLY),
        read_only(Some(START + DAY)),
        AccessState::Suspended,
        AccessState::Closed,
    ]
}

fn events() -> [LifecycleEvent; 6] {
    let since = at(START);
    [
        LifecycleEvent::PaymentFailed { since },
        LifecycleEvent::Recovered,
        LifecycleEvent::Unpaid { since },
        LifecycleEvent::Paused,
        LifecycleEvent::Ended,
        LifecycleEvent::Closed,
    ]
}

#[test]
fn every_pair_of_state_and_event_has_its_outcome() {
    use AccessState::{Active, Closed, Suspended};
    let owing = START + GRACE + READ_ONLY;
    let since_yesterday = START - DAY + GRACE + READ_ONLY;
    // Rows are states, columns events, in the order of the functions above; the policy at the end is reading.
    let table = [
        [
            grace(START + GRACE, owing),
            Active,
            read_only(Some(owing)),
            read_only(None),
            read_only(None),
            Closed,
        ],
        [
            grace(START - DAY + GRACE, since_yesterday),
            Active,
            read_only(Some(since_yesterday)),
            read_only(Some(since_yesterday)),
            read_only(Some(since_yesterday)),
            Closed,
        ],
        [
            read_only(Some(START + DAY)),
            Active,
            read_only(Some(START + DAY)),
            read_only(Some(START + DAY)),
            read_only(Some(START + DAY)),
            Closed,
        ],
        [Suspended, Active, Suspended, Suspended, Suspended, Closed],
        [Closed; 6],
    ];
    let mut n_pairs = 0;
    for (state, row) in states().into_iter().zip(table) {
        for (event, expected) in events().into_iter().zip(row) {
            let Transition {
                state: after,
                effects,
                ..
            } = step(state, event, at(START), &policy());
            assert_eq!(after, expected, "{state:?} {event:?}");
            let told = match after {
                _ if after.as_str() == state.as_str() => vec![],
                Active => vec![Effect::Restored],
                AccessState::Grace { until, .. } => vec![Effect::GraceStarted { until }],
                AccessState::ReadOnly { suspend_at } => {
                    vec![Effect::ReadOnlyStarted { suspend_at }]
                }
                Suspended => vec![Effect::Suspended],
                Closed => vec![Effect::Closed],
                other => panic!("a state of a later version: {other:?}"),
            };
            assert_eq!(effects, told, "{state:?} {event:?}");
            n_pairs += 1;
        }
    }
    assert_eq!(n_pairs, 30);
}

#[test]
fn the_end_of_a_subscription_is_as_the_policy_says() {
    let ended = |state, on_end| {
        let policy = policy().on_end(on_end);
        let transition = step(state, LifecycleEvent::Ended, at(START), &policy);
        (transition.state, transition.effects)
    };
    for state in states() {
        let (after, effects) = ended(state, OnEnd::Downgrade(free()));
        if state == AccessState::Closed {
            assert_eq!((after, effects), (AccessState::Closed, vec![]));
            continue;
        }
        assert_eq!(after, AccessState::Active, "{state:?}");
        assert_eq!(effects[0], Effect::MoveToPlan(free()));
        let (after, _) = ended(state, OnEnd::Suspend);
        assert_eq!(after, AccessState::Suspended, "{state:?}");
    }
}

#[test]
fn time_alone_makes_grace_read_only_and_then_suspended() {
    let failed = LifecycleEvent::PaymentFailed { since: at(START) };
    let state = step(AccessState::Active, failed, at(START), &policy()).state;
    for (now, expected) in [
        (START, "grace"),
        (START + GRACE - 1, "grace"),
        (START + GRACE, "read-only"),
        (START + GRACE + READ_ONLY - 1, "read-only"),
        (START + GRACE + READ_ONLY, "suspended"),
        (START + 10_000 * DAY, "suspended"),
    ] {
        assert_eq!(state.at(at(now)).as_str(), expected, "{now}");
    }
    // Heard of late, it is where it would be.
    let late = step(
        AccessState::Active,
        failed,
        at(START + GRACE + DAY),
        &policy(),
    )
    .state;
    assert_eq!(late, read_only(Some(START + GRACE + READ_ONLY)));
    let never = policy().read_only(None);
    let state = step(AccessState::Active, failed, at(START), &never).state;
    assert_eq!(state.at(at(START + 10_000 * DAY)), read_only(None));
    let none = policy().grace(Duration::ZERO);
    let state = step(AccessState::Active, failed, at(START), &none).state;
    assert_eq!(state, read_only(Some(START + READ_ONLY)));
}

#[test]
fn a_tenants_own_policy_goes_before_its_plans() {
    let days = |n| LifecyclePolicy::new().grace(Duration::from_secs(n * DAY));
    let (acme, other) = (
        TenantId::new("acme").unwrap(),
        TenantId::new("other").unwrap(),
    );
    let (pro, basic) = (
        PlanName::new("pro").unwrap(),
        PlanName::new("basic").unwrap(),
    );
    let policies = LifecyclePolicies::new(days(1))
        .plan(pro.clone(), days(2))
        .tenant(acme.clone(), days(3));
    assert_eq!(policies.of(&other, &basic), &days(1));
    assert_eq!(policies.of(&other, &pro), &days(2));
    assert_eq!(policies.of(&acme, &pro), &days(3));
}

fn any_event() -> impl Strategy<Value = LifecycleEvent> {
    let since = || (0..100_u64).prop_map(|day| at(START + day * DAY));
    prop_oneof![
        4 => since().prop_map(|since| LifecycleEvent::PaymentFailed { since }),
        1 => Just(LifecycleEvent::Recovered),
        2 => since().prop_map(|since| LifecycleEvent::Unpaid { since }),
        1 => Just(LifecycleEvent::Paused),
        1 => Just(LifecycleEvent::Ended),
    ]
}

/// Whether a tenant in this state may write at this time.
fn may_write(state: AccessState, now: Timestamp) -> bool {
    matches!(
        state.at(now),
        AccessState::Active | AccessState::Grace { .. }
    )
}

proptest! {
    #[test]
    fn no_path_extends_grace(
        events in proptest::collection::vec((0..3 * DAY, any_event()), 1..40),
        suspend in any::<bool>(),
    ) {
        let policy = policy().on_end(if suspend { OnEnd::Suspend } else { OnEnd::ReadOnly });
        let (mut state, mut now) = (AccessState::Active, START);
        // When the present row of failures gave its first deadline.
        let mut deadline: Option<Timestamp> = None;
        for (pause, event) in events {
            now += pause;
            let before = state.at(at(now));
            state = step(state, event, at(now), &policy).state;
            if event == LifecycleEvent::Recovered {
                prop_assert_eq!(state, AccessState::Active);
                deadline = None;
                continue;
            }
            if let AccessState::Grace { until, .. } = state {
                let first = deadline.unwrap_or(until);
                prop_assert!(until <= first, "{:?} after {:?}", until, first);
                deadline = Some(first);
            }
            // Without a payment nothing is ever given back.
            prop_assert!(!may_write(state, at(now)) || may_write(before, at(now)));
            if let Some(deadline) = deadline {
                prop_assert!(!may_write(state, deadline));
            }
        }
    }

    #[test]
    fn the_same_event_again_changes_nothing(event in any_event(), later in 0..60 * DAY) {
        let now = at(START + later);
        let once = step(AccessState::Active, event, now, &policy()).state;
        let twice = step(once, event, now, &policy());
        prop_assert_eq!(twice.state, once);
        prop_assert!(twice.effects.is_empty());
    }
}
