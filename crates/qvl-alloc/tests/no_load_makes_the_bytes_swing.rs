//! Under steady, periodic and adversarial loads of others the bytes settle, and somebody who is asked for memory gives
//! it back at once. A governor without memory of what went wrong fails here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use proptest::prelude::*;
use qvl_alloc::governor::simulate::{Load, Machine, Verdict, run};
use qvl_alloc::{Envelope, Governor, Mode, ResourcePlan, Signals};

const GIB: u64 = 1 << 30;
const HOUR: Duration = Duration::from_secs(3600);

fn envelope() -> Envelope {
    Envelope {
        threads: 2..=8,
        token_budget: 64..=2048,
        hot_cache_bytes: 0..=16 * GIB,
        staging_bytes: 256 << 20..=GIB,
        prefetch_depth: 1..=9,
        reserve_bytes: 2 * GIB,
    }
}

/// 21 GiB: the envelope at most, and the reserve twice.
fn machine() -> Machine {
    Machine::new(&envelope())
}

fn governed(machine: &Machine, time: Duration) -> Verdict {
    let mut governor = Governor::new(envelope(), Mode::Performance).unwrap();
    run(machine, time, |now, signals| governor.step(now, signals), |_| {})
}

/// Bytes in proportion to how little pressure there is: what one would write first.
fn proportional(machine: &Machine, time: Duration) -> Verdict {
    let Envelope { hot_cache_bytes, staging_bytes, .. } = envelope();
    let policy = |_: Duration, signals: &Signals| {
        let share = 1.0 - signals.memory_pressure.unwrap_or(0.0);
        let bytes = |range: std::ops::RangeInclusive<u64>| {
            range.start() + ((range.end() - range.start()) as f64 * share) as u64
        };
        ResourcePlan {
            threads: 8,
            token_budget: 2048,
            hot_cache_bytes: bytes(hot_cache_bytes.clone()),
            staging_bytes: bytes(staging_bytes.clone()),
            prefetch_depth: 1,
        }
    };
    run(machine, time, policy, |_| {})
}

/// Falls after a rise: those that doublings allow at once, one for each that can be forgotten within the time
/// (sixteen times 10 s of calm each), and the first.
fn most_oscillations(time: Duration) -> u32 {
    6 + (time.as_secs() / 160) as u32
}

#[track_caller]
fn check(machine: &Machine, time: Duration) -> Verdict {
    let verdict = governed(machine, time);
    let Verdict { oscillations, bytes_changes, reaction_s, .. } = verdict;
    assert!(oscillations <= most_oscillations(time), "{verdict:?} with {machine:?}");
    // A swing has at most eight parts up, and no more falls than those.
    assert!(bytes_changes <= 16 * (oscillations + 1), "{verdict:?} with {machine:?}");
    // 100 ms to confirm and a step; after a fall 500 ms until its effect is seen.
    assert!(reaction_s <= 0.6 + machine.step_s, "{verdict:?} with {machine:?}");
    verdict
}

#[test]
fn a_steady_load_is_answered_once() {
    for bytes in (0..=20).map(|gib| gib * GIB) {
        let machine = Machine { load: Load::Steady { bytes }, ..machine() };
        let verdict = check(&machine, HOUR);
        assert!(!verdict.killed, "{bytes}");
        assert_eq!(verdict.oscillations, 0, "{bytes}: {verdict:?}");
        assert!(verdict.bytes_settled_s < 60.0, "{bytes}: {verdict:?}");
    }
}

#[test]
fn a_step_is_answered_in_a_tenth_of_a_second_and_a_step() {
    for step_s in [0.02, 0.1, 0.5] {
        for gib in [5, 8, 12, 16] {
            let load = Load::Step { at_s: 100.0, bytes: gib * GIB };
            let machine = Machine { load, step_s, ..machine() };
            let mut governor = Governor::new(envelope(), Mode::Performance).unwrap();
            let (mut pressed, mut fell) = (None, None);
            let mut before = u64::MAX;
            let verdict = run(
                &machine,
                Duration::from_secs(200),
                |now, signals| governor.step(now, signals),
                |moment| {
                    let now = moment.now;
                    if moment.signals.memory_pressure.unwrap() >= 0.5 {
                        pressed.get_or_insert(now);
                    }
                    if moment.plan.hot_cache_bytes < before && now >= Duration::from_secs(100) {
                        fell.get_or_insert(now);
                    }
                    before = moment.plan.hot_cache_bytes;
                },
            );
            assert!(!verdict.killed, "{step_s} {gib}: {verdict:?}");
            assert_eq!(verdict.oscillations, 0, "{step_s} {gib}: {verdict:?}");
            let took = (fell.unwrap() - pressed.unwrap()).as_secs_f64();
            assert!(took <= 0.1 + step_s + 1e-6, "{step_s} {gib}: {took}");
        }
    }
}

#[test]
fn a_square_wave_of_any_period_is_given_up_on() {
    for period_s in [0.2, 0.3, 0.5, 0.7, 1.0, 1.3, 2.0, 3.0, 5.0, 7.0, 10.0, 13.0, 20.0, 30.0, 45.0, 60.0] {
        for (low, high) in [(0, 6), (0, 12), (2, 4), (8, 10), (0, 18), (1, 3)] {
            for knows_bytes in [true, false] {
                let load = Load::Square { period_s, low_bytes: low * GIB, high_bytes: high * GIB };
                let machine = Machine { load, knows_bytes, ..machine() };
                let verdict = check(&machine, HOUR);
                assert!(!verdict.killed, "{machine:?}: {verdict:?}");
                // At most a trial of the wall every few minutes remains, and it costs one part.
                assert!(verdict.oscillations <= 14, "{machine:?}: {verdict:?}");
                assert!(verdict.bytes_changes <= 60, "{machine:?}: {verdict:?}");
            }
        }
    }
}

#[test]
fn a_sawtooth_a_leak_and_noise_do_not_kill_and_do_not_swing() {
    for period_s in [1.0, 4.0, 10.0, 30.0, 60.0, 300.0] {
        let load = Load::Sawtooth { period_s, high_bytes: 18 * GIB };
        let verdict = check(&Machine { load, ..machine() }, HOUR);
        assert!(!verdict.killed, "{period_s}: {verdict:?}");
    }
    let leak = Load::Ramp { bytes_per_s: (100 << 20) as f64, most_bytes: 20 * GIB };
    let verdict = check(&Machine { load: leak, ..machine() }, HOUR);
    // It rises where there is room, and the leak takes that: each time later.
    assert!(!verdict.killed && verdict.oscillations <= 5, "{verdict:?}");
    for noise in [0.05, 0.1, 0.2] {
        for bytes in [1, 2, 3, 8].map(|gib| gib * GIB) {
            let machine = Machine { load: Load::Steady { bytes }, noise, ..machine() };
            let verdict = check(&machine, HOUR);
            assert!(!verdict.killed && verdict.oscillations <= 12, "{noise} {bytes}: {verdict:?}");
        }
    }
}

#[test]
fn late_and_stuck_signals_cost_memory_and_not_stability() {
    for delay_s in [0.2, 0.5, 1.0, 2.0, 10.0] {
        for knows_bytes in [true, false] {
            let load = Load::Ramp { bytes_per_s: (50 << 20) as f64, most_bytes: 12 * GIB };
            let machine = Machine { load, delay_s, knows_bytes, grace_s: 2.0, ..machine() };
            let verdict = governed(&machine, HOUR);
            // A pressure that is 10 s old and all that is known is older than the cache takes to fill.
            assert!(
                !verdict.killed || (delay_s > 2.0 && !knows_bytes),
                "{delay_s} {knows_bytes}: {verdict:?}"
            );
            assert!(verdict.oscillations <= 14, "{delay_s}: {verdict:?}");
        }
    }
    for (from_s, bytes) in [(99.0, 8 * GIB), (101.0, 8 * GIB), (100.3, 14 * GIB)] {
        // It sticks for a minute at what it says round a step.
        let machine = Machine {
            load: Load::Step { at_s: 100.0, bytes },
            stuck_s: Some((from_s, from_s + 60.0)),
            grace_s: 90.0,
            ..machine()
        };
        let verdict = check(&machine, HOUR);
        assert!(!verdict.killed && verdict.oscillations <= 2, "{from_s}: {verdict:?}");
    }
}

#[test]
fn pressure_that_the_plan_itself_makes_is_tried_less_and_less() {
    // Only the pressure is known, and the whole plan does not fit by far.
    for fixed in (4..=16).map(|gib| gib * GIB) {
        for delay_s in [0.0, 1.0, 5.0] {
            let machine =
                Machine { fixed_bytes: fixed, knows_bytes: false, delay_s, grace_s: 20.0, ..machine() };
            let early = governed(&machine, HOUR);
            let late = governed(&machine, HOUR * 3);
            assert!(!early.killed, "{early:?}");
            assert!(early.oscillations <= 16, "{fixed} {delay_s}: {early:?}");
            // From the second hour on a trial every 11 minutes at most.
            assert!(late.oscillations - early.oscillations <= 12, "{fixed} {delay_s}: {early:?} {late:?}");
        }
    }
}

#[test]
fn a_governor_without_memory_fails_here() {
    let square = |period_s| Machine {
        load: Load::Square { period_s, low_bytes: 0, high_bytes: 6 * GIB },
        ..machine()
    };
    let period = 10.0;
    let (naive, ours) = (proportional(&square(period), HOUR), governed(&square(period), HOUR));
    assert!(naive.oscillations > most_oscillations(HOUR), "{naive:?}");
    assert!(naive.oscillations > 20 * ours.oscillations.max(1), "{naive:?} {ours:?}");
    assert!(naive.mean_throughput_share + 0.1 < ours.mean_throughput_share, "{naive:?} {ours:?}");
    // With a signal that is a second old it swings for ever where nothing changes at all.
    let late = Machine { delay_s: 1.0, fixed_bytes: 4 * GIB, grace_s: 60.0, ..machine() };
    let (naive, ours) = (proportional(&late, HOUR), governed(&late, HOUR));
    assert!(naive.oscillations > 100, "{naive:?}");
    assert!(ours.oscillations <= 14, "{ours:?}");
    assert!(ours.bytes_changes * 20 < naive.bytes_changes, "{naive:?} {ours:?}");
}

#[test]
fn speed_does_not_fall_to_nothing_where_the_plan_makes_the_pressure() {
    for fixed in [4, 8, 12].map(|gib| gib * GIB) {
        for delay_s in [0.0, 0.5, 1.0] {
            let machine =
                Machine { fixed_bytes: fixed, knows_bytes: false, delay_s, grace_s: 20.0, ..machine() };
            let mut governor = Governor::new(envelope(), Mode::Performance).unwrap();
            let mut speeds = Vec::new();
            let verdict = run(
                &machine,
                HOUR,
                |now, signals| governor.step(now, signals),
                |moment| speeds.push(moment.tokens_per_s),
            );
            let mean = speeds.iter().sum::<f64>() / speeds.len() as f64;
            let settled = &speeds[1200..];
            let least = settled.iter().copied().fold(f64::INFINITY, f64::min);
            assert!(least > 0.7 * mean, "{fixed} {delay_s}: {least} of {mean}, {verdict:?}");
        }
    }
}

#[test]
fn no_minute_has_more_changes_than_dwell_times_allow() {
    // A rise every 4 s, and for each of them one fall at most: 30, reached by no load. What remains after ten minutes
    // is a trial of the wall and what takes it back.
    for period_s in [0.2, 1.0, 4.0, 9.0, 11.0, 20.0, 30.0, 60.0] {
        let load = Load::Square { period_s, low_bytes: 0, high_bytes: 12 * GIB };
        let machine = Machine { load, ..machine() };
        let mut governor = Governor::new(envelope(), Mode::Performance).unwrap();
        let (mut changes, mut before) = (Vec::new(), None);
        run(
            &machine,
            HOUR,
            |now, signals| governor.step(now, signals),
            |moment| {
                if before.replace(moment.plan).is_some_and(|before| before != moment.plan) {
                    changes.push(moment.now.as_secs());
                }
            },
        );
        let in_minute = |from: u64| changes.iter().filter(|at| (from..from + 60).contains(*at)).count();
        let most = (0..3600).map(in_minute).max().unwrap();
        let late = (600..3600).map(in_minute).max().unwrap();
        assert!(most <= 20 && late <= 4, "{period_s}: {most} and {late} in a minute: {changes:?}");
    }
}

/// Falls after a rise, with a pressure that is told from outside and may look at the plan.
fn swings(step: Duration, time: Duration, mut pressure: impl FnMut(Duration, &ResourcePlan) -> f64) -> u32 {
    let mut governor = Governor::new(envelope(), Mode::Performance).unwrap();
    let (mut now, mut plan, mut rose, mut swings) = (Duration::ZERO, governor.plan(), false, 0);
    while now < time {
        let signals = Signals { memory_pressure: Some(pressure(now, &plan)), ..Signals::default() };
        let before = std::mem::replace(&mut plan, governor.step(now, &signals));
        if plan.hot_cache_bytes != before.hot_cache_bytes {
            let rises = plan.hot_cache_bytes > before.hot_cache_bytes;
            swings += u32::from(rose && !rises);
            rose = rises;
        }
        now += step;
    }
    swings
}

#[test]
fn an_adversary_who_sees_the_plan_cannot_make_it_swing() {
    // Trouble each time that something was taken, as soon as it was or after some more of it, and calm otherwise.
    for patience in 1..=8 {
        for trouble in [0.6, 0.9] {
            let (mut rises, mut before, mut until) = (0, u64::MAX, Duration::ZERO);
            let swings = swings(Duration::from_millis(100), HOUR * 6, |now, plan| {
                rises += u32::from(plan.hot_cache_bytes > before);
                before = plan.hot_cache_bytes;
                if rises >= patience {
                    rises = 0;
                    until = now + Duration::from_millis(300);
                }
                if now < until { trouble } else { 0.0 }
            });
            assert!(swings <= most_oscillations(HOUR * 6), "{patience} {trouble}: {swings}");
        }
    }
}

/// Loads in steps of at least a second that stay within what the floor leaves free, a quarter of a GiB beside it.
fn recorded() -> impl Strategy<Value = Load> {
    proptest::collection::vec((1.0..40.0_f64, 0..=20 * GIB), 1..60).prop_map(|points| {
        let mut at_s = 0.0;
        let points = points.into_iter().map(|(apart, bytes)| {
            at_s += apart;
            (at_s, bytes)
        });
        Load::Recorded { points: points.collect() }
    })
}

/// Pressures and how long they last, short and long.
fn pressures() -> impl Strategy<Value = Vec<(f64, f64)>> {
    let pressure =
        prop_oneof![4 => Just(0.0), 1 => Just(0.4), 2 => Just(0.6), 1 => Just(0.9), 1 => 0.0..=1.0_f64];
    let lasts_s = prop_oneof![0.1..1.0_f64, 1.0..12.0_f64, 10.0..200.0_f64];
    proptest::collection::vec((pressure, lasts_s), 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_pressures_make_no_more_swings_than_there_can_be(pressures in pressures(), step_ms in 20_u64..300) {
        let mut left = pressures.iter().copied().cycle();
        let (mut pressure, mut until_s) = (0.0, 0.0);
        let swings = swings(Duration::from_millis(step_ms), HOUR, |now, _| {
            while now.as_secs_f64() >= until_s {
                let (next, lasts_s) = left.next().unwrap();
                pressure = next;
                until_s += lasts_s;
            }
            pressure
        });
        prop_assert!(swings <= most_oscillations(HOUR), "{swings}");
    }

    #[test]
    fn random_loads_neither_kill_nor_swing(
        load in recorded(),
        noise in 0.0..0.1_f64,
        step_s in prop::sample::select(vec![0.05, 0.1, 0.25]),
        knows_bytes in any::<bool>(),
    ) {
        let machine = Machine { load, noise, step_s, knows_bytes, ..machine() };
        let time = Duration::from_secs(1200);
        let verdict = governed(&machine, time);
        prop_assert!(!verdict.killed, "{verdict:?}");
        prop_assert!(verdict.oscillations <= most_oscillations(time), "{verdict:?}");
        prop_assert!(verdict.reaction_s <= 0.6 + step_s, "{verdict:?}");
    }
}
