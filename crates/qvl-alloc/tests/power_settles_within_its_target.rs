//! Threads and the token budget settle: within the watts and joules that are asked for, below the heat that the
//! machine leads away, and where bandwidth ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use qvl_alloc::governor::simulate::{Machine, Verdict, run};
use qvl_alloc::{Envelope, Governor, Mode, ResourcePlan, Target};

fn envelope() -> Envelope {
    Envelope {
        threads: 2..=16,
        token_budget: 64..=2048,
        hot_cache_bytes: 0..=800,
        staging_bytes: 0..=80,
        prefetch_depth: 1..=9,
        reserve_bytes: 100,
    }
}

/// 10 W, and 5 W for each of 16 threads.
fn machine() -> Machine {
    Machine::new(&envelope())
}

const HOUR: Duration = Duration::from_secs(3600);

fn govern(machine: &Machine, mode: Mode, target: Target) -> (Verdict, ResourcePlan, String) {
    let mut governor = Governor::new(envelope(), mode).unwrap().with_target(target).unwrap();
    let verdict = run(machine, HOUR, |now, signals| governor.step(now, signals), |_| {});
    (verdict, governor.plan(), governor.why().to_string())
}

#[test]
fn a_target_in_watts_is_kept_with_all_but_the_last_thread_it_allows() {
    for target in [22.0, 30.0, 41.0, 55.0, 70.0, 84.0] {
        let (verdict, plan, why) = govern(&machine(), Mode::Performance, Target::Watts(target));
        assert!(verdict.late_watts <= target * 1.03, "{target}: {verdict:?} {why}");
        assert!(verdict.late_watts >= target - 10.0, "{target}: {verdict:?} {why}");
        assert!(verdict.threads_changes + verdict.tokens_changes <= 60, "{target}: {verdict:?}");
        assert!(plan.threads < 16, "{why}");
    }
    // Below what the fewest threads draw, the token budget goes too.
    let (verdict, plan, why) = govern(&machine(), Mode::Performance, Target::Watts(16.0));
    assert!(plan.threads == 2 && plan.token_budget < 2048, "{plan:?} {why}");
    assert!(verdict.late_watts <= 16.5, "{verdict:?}");
}

#[test]
fn a_machine_that_heats_up_loses_as_few_threads_as_it_must() {
    let hot = Machine { cooled_watts: 50.0, ..machine() };
    let (verdict, plan, why) = govern(&hot, Mode::Performance, Target::None);
    // 8 threads draw 50 W; up to 59 W less than 15 % of the speed is lost.
    assert!((6..=11).contains(&plan.threads), "{plan:?} {why} {verdict:?}");
    assert!(verdict.threads_changes <= 40, "{verdict:?}");
}

#[test]
fn balanced_ends_where_bandwidth_does_and_saves_energy() {
    for knee_threads in [3, 4, 6, 8] {
        let bound = Machine { knee_threads, ..machine() };
        let (all, _, _) = govern(&bound, Mode::Performance, Target::None);
        for mode in [Mode::Balanced, Mode::Saver] {
            let (verdict, plan, why) = govern(&bound, mode, Target::None);
            assert_eq!(plan.threads, knee_threads, "{mode:?}: {why}");
            assert!(verdict.threads_changes <= 12, "{verdict:?}");
            assert!(verdict.joules_per_token < 0.85 * all.joules_per_token, "{verdict:?} {all:?}");
            assert!(verdict.mean_throughput_share > 0.95 * all.mean_throughput_share, "{verdict:?} {all:?}");
        }
    }
}

#[test]
fn joules_a_token_are_kept_with_the_most_threads_that_do() {
    let bound = Machine { knee_threads: 8, ..machine() };
    // 16 threads cost 90 W / 80 = 1.13 J a token, 11 threads 0.81 J and 8 threads 0.63 J.
    let (_, plan, why) = govern(&bound, Mode::Performance, Target::JoulesPerToken(0.85));
    assert_eq!(plan.threads, 11, "{why}");
    let (_, plan, why) = govern(&bound, Mode::Performance, Target::JoulesPerToken(0.01));
    assert_eq!(plan.threads, 8, "out of reach: the fewest joules there are; {why}");
}
