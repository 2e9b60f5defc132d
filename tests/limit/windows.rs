use super::*;

use proptest::prelude::*;
use tollgate::limit::Window;

#[test]
fn fault_22_an_instant_at_the_edge_belongs_to_the_new_window() {
    // The log's window is the plainest: a unit is out after exactly its length.
    let bench = Bench::new([Window::new(1, SECOND).exact_log()]);
    assert!(bench.passes(1));
    bench.clock.advance(SECOND - MICRO);
    assert!(!bench.passes(1));
    bench.clock.advance(MICRO);
    assert!(bench.passes(1));
    // The manual clock starts at a whole second, so this is the first instant of a cell.
    let bench = Bench::new([Window::new(1, SECOND)]);
    assert!(bench.passes(1));
    bench.clock.advance(SECOND * 11 / 10 - MICRO);
    assert!(!bench.passes(1));
    bench.clock.advance(MICRO);
    assert!(bench.passes(1));
    let bench = Bench::new([Quota::hourly(1)]);
    bench.clock.set_wall(at("2026-01-15T12:59:59.999999Z"));
    assert!(bench.passes(1));
    assert!(!bench.passes(1));
    bench.clock.set_wall(at("2026-01-15T13:00:00Z"));
    assert!(bench.passes(1));
}

/// The most units that any window of this length admitted.
fn worst_window(admitted: &[u64], length: u64) -> usize {
    let in_window = |end: &u64| {
        admitted
            .iter()
            .filter(|at| **at <= *end && **at + length > *end)
            .count()
    };
    admitted.iter().map(in_window).max().unwrap_or(0)
}

fn admitted_times(rule: impl Into<Rule>, pauses: &[u64]) -> Vec<u64> {
    let bench = Bench::new([rule.into()]);
    let mut times = Vec::new();
    for pause in pauses {
        bench.clock.advance(Duration::from_micros(*pause));
        if bench.passes(1) {
            times.push(bench.clock.now().monotonic_micros());
        }
    }
    times
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn fault_23_no_window_admits_more_than_the_algorithm_promises(
        limit in 1_u64..8,
        length in 100_u64..1_000,
        cells in 1_u32..12,
        pauses in prop::collection::vec(0_u64..120, 1..300),
    ) {
        let window = || Window::new(limit, Duration::from_micros(length)).cells(cells.try_into().unwrap());
        let limit = limit as usize;
        prop_assert!(worst_window(&admitted_times(window(), &pauses), length) <= limit);
        prop_assert!(worst_window(&admitted_times(window().exact_log(), &pauses), length) <= limit);
        prop_assert!(worst_window(&admitted_times(window().smooth(), &pauses), length) <= 2 * limit);
        // A bucket: the burst, and what comes back within the window.
        let rate = Rate::per(limit as u64, Duration::from_micros(length));
        prop_assert!(worst_window(&admitted_times(rate, &pauses), length) <= 2 * limit);
    }

    #[test]
    fn a_unit_of_a_strict_window_comes_back_at_most_one_cell_late(
        offset in 0_u64..10_000_000,
        length in 100_u64..10_000_000,
        cells in 1_u32..100,
    ) {
        let window = Window::new(1, Duration::from_micros(length)).cells(cells.try_into().unwrap());
        let bench = Bench::new([window]);
        bench.clock.advance(Duration::from_micros(offset));
        prop_assert!(bench.passes(1));
        let wait = retry_after(&bench.decide(1)).unwrap();
        // A cell is rounded up to whole microseconds, and so is a window of them.
        let cell = length.div_ceil(u64::from(cells));
        let longest = cell * (u64::from(cells) + 1);
        prop_assert!(wait >= Duration::from_micros(length));
        prop_assert!(wait <= Duration::from_micros(longest));
    }
}

#[test]
fn fault_23_a_smooth_window_comes_close_to_twice_the_limit() {
    // Spent at the very end of a cell, all of it seems spread over that cell.
    let bench = Bench::new([Window::new(100, SECOND * 10).smooth()]);
    bench.clock.advance(SECOND - MICRO);
    assert_eq!(bench.admits(200), 100);
    bench.clock.advance(SECOND * 10 - MICRO);
    assert_eq!(bench.admits(200), 99, "199 in less than ten seconds");
}

#[test]
fn fault_24_a_window_left_alone_is_empty() {
    for window in [
        Window::new(5, SECOND * 10),
        Window::new(5, SECOND * 10).smooth(),
        Window::new(5, SECOND * 10).exact_log(),
    ] {
        let bench = Bench::new([window]);
        for pause in [11, 15, 20, 21, 1_000, 1_000_000_000] {
            assert_eq!(bench.admits(9), 5, "before {pause} s");
            bench.clock.advance(SECOND * pause);
        }
    }
}
