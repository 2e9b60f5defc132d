use std::{net::IpAddr, time::Duration};

use proptest::prelude::*;
use tollgate::{
    auth::FailureLimit,
    clock::{Clock, ManualClock},
};

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

#[test]
fn refuses_after_thirty_failures_until_one_is_forgiven() {
    let (limit, clock) = (FailureLimit::default(), ManualClock::default());
    let attacker = address("203.0.113.5");
    for _ in 0..30 {
        assert_eq!(limit.check(attacker, clock.now()), Ok(()));
        limit.record(attacker, clock.now());
    }
    let wait = limit.check(attacker, clock.now()).unwrap_err();
    assert_eq!(wait, Duration::from_secs(2));
    clock.advance(wait - Duration::from_micros(1));
    assert!(limit.check(attacker, clock.now()).is_err());
    clock.advance(Duration::from_micros(1));
    assert_eq!(limit.check(attacker, clock.now()), Ok(()));
    // A check alone counts nothing.
    (0..100).for_each(|_| assert!(limit.check(attacker, clock.now()).is_ok()));
}

#[test]
fn one_address_cannot_exhaust_another() {
    let (limit, clock) = (FailureLimit::default(), ManualClock::default());
    (0..100).for_each(|_| limit.record(address("203.0.113.5"), clock.now()));
    assert!(limit.check(address("203.0.113.5"), clock.now()).is_err());
    assert!(limit.check(address("203.0.113.6"), clock.now()).is_ok());
    assert!(limit.check(None, clock.now()).is_ok());
}

#[test]
fn an_ipv6_network_and_a_mapped_address_are_one_client() {
    let (limit, clock) = (FailureLimit::default(), ManualClock::default());
    for n in 0..30 {
        limit.record(address(&format!("2001:db8:0:1::{n}")), clock.now());
        limit.record(address("::ffff:203.0.113.5"), clock.now());
    }
    assert!(
        limit
            .check(address("2001:db8:0:1:ffff::1"), clock.now())
            .is_err()
    );
    assert!(limit.check(address("2001:db8:0:2::1"), clock.now()).is_ok());
    assert!(limit.check(address("203.0.113.5"), clock.now()).is_err());
}

#[test]
fn clients_without_an_address_share_one_count() {
    let (limit, clock) = (FailureLimit::default(), ManualClock::default());
    (0..30).for_each(|_| limit.record(None, clock.now()));
    assert!(limit.check(None, clock.now()).is_err());
    assert!(limit.check(address("203.0.113.5"), clock.now()).is_ok());
}

#[test]
fn a_wall_clock_that_steps_changes_nothing() {
    let (limit, clock) = (FailureLimit::default(), ManualClock::default());
    (0..30).for_each(|_| limit.record(None, clock.now()));
    clock.set_wall(tollgate::clock::Timestamp::MAX);
    assert_eq!(limit.check(None, clock.now()), Err(Duration::from_secs(2)));
    clock.set_wall(tollgate::clock::Timestamp::UNIX_EPOCH);
    assert_eq!(limit.check(None, clock.now()), Err(Duration::from_secs(2)));
}

#[test]
fn no_flood_makes_it_remember_more_networks() {
    let limit = FailureLimit::with_networks(30, 1, 1_000).unwrap();
    let clock = ManualClock::default();
    for n in 0..100_000_u32 {
        limit.record(Some(IpAddr::V4(n.into())), clock.now());
    }
    let remembered = (0..100_000_u32)
        .filter(|&n| {
            limit
                .check(Some(IpAddr::V4(n.into())), clock.now())
                .is_err()
        })
        .count();
    assert!((1..=1_000).contains(&remembered), "{remembered}");
}

#[test]
fn failures_at_once_cannot_lock_out_for_longer_than_one_refill() {
    let limit = FailureLimit::new(1, 5).unwrap();
    let clock = ManualClock::default();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (limit, clock) = (limit.clone(), clock.clone());
            scope.spawn(move || (0..1_000).for_each(|_| limit.record(None, clock.now())));
        }
    });
    assert_eq!(limit.check(None, clock.now()), Err(Duration::from_secs(60)));
}

#[test]
fn zeros_are_refused_at_build() {
    let path = |limit: Result<FailureLimit, tollgate::error::ConfigError>| {
        limit.unwrap_err().path().to_owned()
    };
    assert_eq!(path(FailureLimit::new(0, 1)), "per_minute");
    assert_eq!(path(FailureLimit::new(1, 0)), "burst");
    assert_eq!(path(FailureLimit::with_networks(1, 1, 0)), "networks");
}

proptest! {
    /// A plain model: tokens in units of one micro-token, refilled by the elapsed time.
    #[test]
    fn agrees_with_a_bucket_of_tokens(
        per_minute in 1..200_u32,
        burst in 1..50_u32,
        steps in prop::collection::vec((0..5_000_000_u64, any::<bool>()), 1..200),
    ) {
        let limit = FailureLimit::new(per_minute, burst).unwrap();
        let clock = ManualClock::default();
        let interval = 60_000_000_u64.div_ceil(u64::from(per_minute));
        let full = interval * u64::from(burst);
        let mut level = full;
        for (pause, fails) in steps {
            clock.advance(Duration::from_micros(pause));
            level = full.min(level + pause);
            let expected = interval.checked_sub(level).filter(|&missing| missing > 0);
            let expected = expected.map_or(Ok(()), |missing| Err(Duration::from_micros(missing)));
            prop_assert_eq!(limit.check(None, clock.now()), expected);
            if fails {
                limit.record(None, clock.now());
                level = level.saturating_sub(interval);
            }
        }
    }
}
