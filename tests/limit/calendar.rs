use super::*;

use proptest::prelude::*;
use tollgate::limit::{CompiledAlgorithm, Period, PeriodBounds, QuotaParameters};

fn calendar(period: Period, zone: &str) -> QuotaParameters {
    QuotaParameters::new(1, period, Some(&zone.into())).unwrap()
}

fn bounds(calendar: &QuotaParameters, now: &str, anchor: Option<&str>) -> (String, String) {
    let PeriodBounds { start, end, .. } = calendar.bounds(at(now), anchor.map(at));
    (start.to_string(), end.to_string())
}

fn from_to(start: &str, end: &str) -> (String, String) {
    (start.to_owned(), end.to_owned())
}

#[test]
fn fault_49_an_anchor_on_the_31st_falls_on_the_last_day_and_comes_back() {
    let billing = calendar(Period::Billing, "UTC");
    let anchor = Some("2025-01-31T10:30:00Z");
    for (now, start, end) in [
        (
            "2025-02-01T00:00:00Z",
            "2025-01-31T10:30:00Z",
            "2025-02-28T10:30:00Z",
        ),
        (
            "2025-02-28T10:29:59Z",
            "2025-01-31T10:30:00Z",
            "2025-02-28T10:30:00Z",
        ),
        (
            "2025-02-28T10:30:00Z",
            "2025-02-28T10:30:00Z",
            "2025-03-31T10:30:00Z",
        ),
        (
            "2025-04-15T00:00:00Z",
            "2025-03-31T10:30:00Z",
            "2025-04-30T10:30:00Z",
        ),
        (
            "2028-02-10T00:00:00Z",
            "2028-01-31T10:30:00Z",
            "2028-02-29T10:30:00Z",
        ),
        // Before the anchor, too.
        (
            "2024-12-31T10:30:00Z",
            "2024-12-31T10:30:00Z",
            "2025-01-31T10:30:00Z",
        ),
    ] {
        assert_eq!(bounds(&billing, now, anchor), from_to(start, end), "{now}");
    }
}

#[test]
fn fault_49_an_anchor_on_february_29_works_in_every_year() {
    let billing = calendar(Period::Billing, "UTC");
    let anchor = Some("2024-02-29T00:00:00Z");
    assert_eq!(
        bounds(&billing, "2025-02-28T12:00:00Z", anchor),
        from_to("2025-02-28T00:00:00Z", "2025-03-29T00:00:00Z")
    );
    assert_eq!(
        bounds(&billing, "2028-02-29T12:00:00Z", anchor),
        from_to("2028-02-29T00:00:00Z", "2028-03-29T00:00:00Z")
    );
}

#[test]
fn fault_49_a_billing_period_without_an_anchor_is_a_calendar_month() {
    let billing = calendar(Period::Billing, "Europe/Berlin");
    let month = calendar(Period::Month, "Europe/Berlin");
    let now = "2026-03-31T22:30:00Z";
    let expected = from_to("2026-03-31T22:00:00Z", "2026-04-30T22:00:00Z");
    assert_eq!(bounds(&billing, now, None), expected);
    assert_eq!(bounds(&month, now, None), expected);
}

#[test]
fn fault_49_a_day_of_a_clock_change_has_23_or_25_hours() {
    let day = calendar(Period::Day, "Europe/Berlin");
    let hours = |now: &str| {
        let bounds = day.bounds(at(now), None);
        bounds.end.saturating_since(bounds.start).as_secs() / 3_600
    };
    assert_eq!(hours("2026-03-29T12:00:00Z"), 23);
    assert_eq!(hours("2026-10-25T12:00:00Z"), 25);
    assert_eq!(hours("2026-06-01T12:00:00Z"), 24);
}

#[test]
fn fault_49_an_unknown_time_zone_is_a_config_error() {
    let error = RuleSet::compile([Quota::daily(1).time_zone("Europe/Atlantis")]).unwrap_err();
    assert_eq!(error.path(), "rules[0].time_zone");
    assert!(error.to_string().contains("Europe/Atlantis"), "{error}");
}

#[test]
fn fault_50_a_wait_of_a_month_is_exact() {
    let bench = Bench::new([Quota::monthly(1)]);
    bench.clock.set_wall(at("2026-01-01T00:00:00Z"));
    let admitted = bench.decide(1);
    assert_eq!(admitted.states[0].reset(), Some(SECOND * 86_400 * 31));
    assert_eq!(retry_after(&bench.decide(1)), Some(SECOND * 86_400 * 31));
    bench.clock.set_wall(at("2026-02-01T00:00:00Z"));
    assert!(bench.passes(1));
    assert_eq!(retry_after(&bench.decide(1)), Some(SECOND * 86_400 * 28));
}

#[test]
fn a_quota_works_at_both_ends_of_the_calendar() {
    for wall in [Timestamp::UNIX_EPOCH, Timestamp::MAX] {
        for quota in [
            Quota::hourly(2),
            Quota::daily(2).time_zone("Pacific/Apia"),
            Quota::monthly(2),
            Quota::per_billing_period(2),
        ] {
            let bench = Bench::new([quota]);
            bench.clock.set_wall(wall);
            assert_eq!(bench.admits(5), 2);
        }
    }
}

/// Zones with summer time, half hours, changes by half an hour or a whole day, and midnights that are missing
/// or come twice.
const ZONES: [&str; 12] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Asia/Beirut",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Africa/Casablanca",
    "Atlantic/Azores",
];

fn any_calendar() -> impl Strategy<Value = QuotaParameters> {
    let periods = [Period::Hour, Period::Day, Period::Month, Period::Billing];
    (
        prop::sample::select(periods.to_vec()),
        prop::sample::select(ZONES.to_vec()),
    )
        .prop_map(|(period, zone)| calendar(period, zone))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn fault_49_periods_tile_time_without_gap_or_overlap(
        calendar in any_calendar(),
        // 1975 to 2100: the database's changes, and the rules that go on from there.
        now in 157_766_400_u64..4_102_444_800,
        anchor in prop::option::of(157_766_400_u64..4_102_444_800),
    ) {
        let anchor = anchor.map(Timestamp::from_unix_seconds);
        let now = Timestamp::from_unix_seconds(now);
        let period = calendar.bounds(now, anchor);
        prop_assert!(period.contains(now), "{:?} in {:?}", now, period);
        let last = Timestamp::from_unix_micros(period.end.as_unix_micros() - 1);
        for inside in [period.start, last] {
            prop_assert_eq!(calendar.bounds(inside, anchor), period);
        }
        let next = calendar.bounds(period.end, anchor);
        prop_assert_eq!(next.start, period.end);
        let before = Timestamp::from_unix_micros(period.start.as_unix_micros() - 1);
        prop_assert_eq!(calendar.bounds(before, anchor).end, period.start);
    }
}

#[test]
fn fault_49_periods_tile_around_every_clock_change_of_odd_zones() {
    for zone in ZONES {
        let jiff_zone = jiff::tz::TimeZone::get(zone).unwrap();
        let from: jiff::Timestamp = "1975-01-01T00:00:00Z".parse().unwrap();
        for change in jiff_zone.following(from).take(150) {
            for period in [Period::Hour, Period::Day, Period::Month] {
                let calendar = calendar(period, zone);
                let change = Timestamp::from(change.timestamp());
                let mut now = change.saturating_sub(SECOND * 3 * 86_400);
                let end = change.saturating_add(SECOND * 3 * 86_400);
                let mut period = calendar.bounds(now, None);
                while now < end {
                    assert!(period.contains(now), "{zone} {now:?} {period:?}");
                    now = period.end;
                    let next = calendar.bounds(now, None);
                    assert_eq!(next.start, now, "{zone}");
                    let inside = Timestamp::from_unix_micros(next.end.as_unix_micros() - 1);
                    assert_eq!(calendar.bounds(inside, None), next, "{zone}");
                    period = next;
                }
            }
        }
    }
}

#[test]
fn a_compiled_quota_shows_its_calendar() {
    let set = set([Quota::monthly(7)]);
    let CompiledAlgorithm::Quota(quota) = set.rules()[0].compiled() else {
        panic!("not a quota");
    };
    assert_eq!((quota.limit(), quota.period()), (7, Period::Month));
}
