//! The level follows the share, and changes no more often than it says, whatever the shares are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use proptest::prelude::*;
use qvl_alloc::pressure::{Level, Levels, Thresholds};

/// The level by looking back over all that was seen.
fn model(thresholds: &Thresholds, seen: &[(f64, Duration)]) -> Vec<Level> {
    let mut level = Level::Calm;
    // Where the level began to count.
    let mut since = 0;
    let mut levels = Vec::new();
    for now in 0..seen.len() {
        let share = seen[now].0;
        let up = match share {
            share if share >= thresholds.critical_enter => Level::Critical,
            share if share >= thresholds.low_enter => Level::Low,
            _ => Level::Calm,
        };
        let (leave, down) = match level {
            Level::Calm => (-1.0, Level::Calm),
            Level::Low => (thresholds.low_leave, Level::Calm),
            Level::Critical => (thresholds.critical_leave, Level::Low),
        };
        let below = (since..=now).rev().take_while(|&at| seen[at].0 < leave).last();
        let lasted = below.map(|first| seen[first + 1..=now].iter().map(|step| step.1).sum::<Duration>());
        if up > level {
            (level, since) = (up, now + 1);
        } else if below.is_some_and(|first| first < now)
            && lasted.is_some_and(|time| time >= thresholds.dwell)
        {
            (level, since) = (down, now + 1);
        }
        levels.push(level);
    }
    levels
}

fn thresholds() -> impl Strategy<Value = Thresholds> {
    (prop::collection::vec(0.01_f64..1.0, 4), 1_u64..3000).prop_map(|(mut four, ms)| {
        four.sort_by(f64::total_cmp);
        Thresholds {
            low_leave: four[0],
            low_enter: four[1],
            critical_leave: four[2],
            critical_enter: four[3],
            dwell: Duration::from_millis(ms),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn as_the_model_and_no_more_often_than_said(
        thresholds in thresholds(),
        seen in prop::collection::vec((0.0_f64..=1.0, 0_u64..2000), 1..200),
    ) {
        let seen: Vec<_> = seen.into_iter().map(|(share, ms)| (share, Duration::from_millis(ms))).collect();
        let mut levels = Levels::new(thresholds).unwrap();
        let mut changes = 0;
        let got: Vec<Level> = seen
            .iter()
            .map(|&(share, elapsed)| {
                changes += u128::from(levels.step(share, elapsed).is_some());
                levels.level()
            })
            .collect();
        prop_assert_eq!(&got, &model(&thresholds, &seen));
        let time: Duration = seen.iter().map(|step| step.1).sum();
        let most = 2 * (time.as_nanos() / thresholds.dwell.as_nanos()) + 2;
        prop_assert!(changes <= most, "{} changes, at most {}", changes, most);
    }

    /// What goes to and fro between two thresholds changes the level once at most, for however long.
    #[test]
    fn within_the_band_it_stays(
        shares in prop::collection::vec(0.25_f64..0.75, 2..300),
        ms in 0_u64..10_000,
    ) {
        let mut levels = Levels::new(Thresholds::default()).unwrap();
        let changes = shares.iter().filter(|&&share| levels.step(share, Duration::from_millis(ms)).is_some()).count();
        prop_assert!(changes <= 1, "{} changes", changes);
    }
}
