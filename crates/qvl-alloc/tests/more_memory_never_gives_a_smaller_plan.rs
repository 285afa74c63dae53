//! Whatever the signals are, a plan is inside the envelope; and with more memory it is never smaller.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use proptest::prelude::*;
use qvl_alloc::{Envelope, Governor, Mode, ResourcePlan, Signals, Target};

prop_compose! {
    fn envelopes()(
        threads in (1_usize..64, 0_usize..64),
        tokens in (1_usize..512, 0_usize..4096),
        hot in (0_u64..1 << 40, 0_u64..1 << 40),
        staging in (0_u64..1 << 30, 0_u64..1 << 30),
        depth in (0_usize..4, 0_usize..40),
        reserve_bytes in 0_u64..1 << 36,
    ) -> Envelope {
        Envelope {
            threads: threads.0..=threads.0 + threads.1,
            token_budget: tokens.0..=tokens.0 + tokens.1,
            hot_cache_bytes: hot.0..=hot.0 + hot.1,
            staging_bytes: staging.0..=staging.0 + staging.1,
            prefetch_depth: depth.0..=depth.0 + depth.1,
            reserve_bytes,
        }
    }
}

/// Anything at all, and often something that can be.
fn figure() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        2 => Just(None),
        6 => (0.0..=1.0_f64).prop_map(Some),
        2 => (0.0..200.0_f64).prop_map(Some),
        1 => prop::num::f64::ANY.prop_map(Some),
    ]
}

fn bytes() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        1 => Just(None),
        4 => (0_u64..1 << 42).prop_map(Some),
        2 => (0_u64..1 << 34).prop_map(Some),
        1 => any::<u64>().prop_map(Some),
    ]
}

prop_compose! {
    fn signals()(
        memory_pressure in figure(),
        available_bytes in bytes(),
        used_bytes in bytes(),
        on_battery in any::<Option<bool>>(),
        charge_share in figure(),
        throttled_share in figure(),
        watts in figure(),
        tokens_per_s in figure(),
        joules_per_token in figure(),
    ) -> Signals {
        Signals {
            memory_pressure,
            available_bytes,
            used_bytes,
            on_battery,
            charge_share,
            throttled_share,
            watts,
            tokens_per_s,
            joules_per_token,
        }
    }
}

fn modes() -> impl Strategy<Value = (Mode, Target)> {
    let target = prop_oneof![
        Just(Target::None),
        (0.001..1000.0_f64).prop_map(Target::Watts),
        (0.001..1000.0_f64).prop_map(Target::JoulesPerToken),
    ];
    (prop::sample::select(vec![Mode::Performance, Mode::Balanced, Mode::Saver]), target)
}

fn inside(plan: &ResourcePlan, envelope: &Envelope) -> bool {
    envelope.threads.contains(&plan.threads)
        && envelope.token_budget.contains(&plan.token_budget)
        && envelope.hot_cache_bytes.contains(&plan.hot_cache_bytes)
        && envelope.staging_bytes.contains(&plan.staging_bytes)
        && envelope.prefetch_depth.contains(&plan.prefetch_depth)
}

fn no_smaller(plan: &ResourcePlan, than: &ResourcePlan) -> bool {
    plan.threads >= than.threads
        && plan.token_budget >= than.token_budget
        && plan.hot_cache_bytes >= than.hot_cache_bytes
        && plan.staging_bytes >= than.staging_bytes
        && plan.prefetch_depth >= than.prefetch_depth
}

/// The same with more memory.
fn roomier(signals: &Signals, less_pressure: f64, more_bytes: u64) -> Signals {
    Signals {
        memory_pressure: signals.memory_pressure.map(|pressure| pressure * less_pressure),
        available_bytes: signals.available_bytes.map(|bytes| bytes.saturating_add(more_bytes)),
        ..*signals
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_are_inside_and_monotone_from_any_state(
        envelope in envelopes(),
        (mode, target) in modes(),
        history in proptest::collection::vec((0_u64..20_000, signals()), 0..60),
        last in signals(),
        less_pressure in 0.0..=1.0_f64,
        more_bytes in 0_u64..1 << 42,
    ) {
        let mut governor = Governor::new(envelope.clone(), mode).unwrap().with_target(target).unwrap();
        let mut now = Duration::ZERO;
        for (apart_ms, signals) in &history {
            now += Duration::from_millis(*apart_ms);
            let plan = governor.step(now, signals);
            prop_assert!(inside(&plan, &envelope), "{plan:?} {envelope:?}");
            prop_assert_eq!(plan, governor.plan());
            prop_assert!(!governor.why().to_string().is_empty());
        }
        now += Duration::from_millis(100);
        let known = last.memory_pressure.is_none_or(|pressure| (0.0..=1.0).contains(&pressure));
        let mut other = governor.clone();
        let plan = governor.step(now, &last);
        let roomy = other.step(now, &roomier(&last, less_pressure, more_bytes));
        prop_assert!(inside(&plan, &envelope));
        prop_assert!(!known || no_smaller(&roomy, &plan), "{roomy:?} {plan:?}");
    }

    #[test]
    fn a_roomier_machine_is_never_behind_a_tighter_one(
        pressure in 0.0..=1.0_f64,
        available in 0_u64..64,
        less_pressure in 0.0..=1.0_f64,
        more in 0_u64..64,
        step_ms in 20_u64..1000,
    ) {
        let envelope = Envelope {
            threads: 1..=8,
            token_budget: 1..=100,
            hot_cache_bytes: 0..=32,
            staging_bytes: 0..=8,
            prefetch_depth: 0..=8,
            reserve_bytes: 8,
        };
        let tight = Signals {
            memory_pressure: Some(pressure),
            available_bytes: Some(available),
            ..Signals::default()
        };
        let roomy = roomier(&tight, less_pressure, more);
        let mut governors = [(); 2].map(|()| Governor::new(envelope.clone(), Mode::Balanced).unwrap());
        for step in 0..2000 {
            let now = Duration::from_millis(step * step_ms);
            let tight = governors[0].step(now, &tight);
            let roomy = governors[1].step(now, &roomy);
            prop_assert!(no_smaller(&roomy, &tight), "{step}: {roomy:?} {tight:?}");
        }
    }
}

#[test]
fn a_time_that_goes_back_is_taken_as_the_same() {
    let envelope = Envelope {
        threads: 1..=8,
        token_budget: 1..=100,
        hot_cache_bytes: 0..=32,
        staging_bytes: 0..=8,
        prefetch_depth: 0..=8,
        reserve_bytes: 8,
    };
    let mut governor = Governor::new(envelope, Mode::Saver).unwrap();
    for seconds in [1000, 0, 1001, 5, u64::MAX, 7] {
        let signals = Signals { memory_pressure: Some(0.1), watts: Some(5.0), ..Signals::default() };
        governor.step(Duration::from_secs(seconds), &signals);
    }
    assert_eq!(governor.plan().threads, 4);
}

#[test]
fn absurd_signals_are_counted_and_change_nothing() {
    let envelope = Envelope {
        threads: 1..=8,
        token_budget: 1..=100,
        hot_cache_bytes: 0..=32,
        staging_bytes: 0..=8,
        prefetch_depth: 0..=8,
        reserve_bytes: 8,
    };
    let mut governor = Governor::new(envelope, Mode::Performance).unwrap();
    let plan = governor.step(Duration::ZERO, &Signals::default());
    for step in 1..1000 {
        let absurd = Signals {
            memory_pressure: Some([f64::NAN, 1.5, -0.5, f64::INFINITY][step % 4]),
            throttled_share: Some(f64::NEG_INFINITY),
            ..Signals::default()
        };
        assert_eq!(governor.step(Duration::from_secs(step as u64), &absurd), plan);
    }
    assert_eq!(governor.ignored_signals(), 2 * 999);
}
