//! Calm, low or critical, without going back and forth: pure, time is passed in.

use std::time::Duration;

use crate::{Error, Result};

/// How short memory is, in three words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// There is plenty.
    #[default]
    Calm,
    /// Take no more than is needed, give back what is spare.
    Low,
    /// Give back all that can be.
    Critical,
}

/// When levels change. Shares are those of [`Reading::share`](super::Reading::share).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// From here it is low.
    pub low_enter: f64,
    /// Below this it is no more.
    pub low_leave: f64,
    /// From here it is critical.
    pub critical_enter: f64,
    /// Below this it is no more.
    pub critical_leave: f64,
    /// How long a share has to be below before a level is left. Levels are entered at once: to wait there is to be
    /// killed.
    pub dwell: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            low_enter: 0.4,
            low_leave: 0.25,
            critical_enter: 0.75,
            critical_leave: 0.55,
            dwell: Duration::from_secs(2),
        }
    }
}

/// The level now, from shares as they come.
///
/// ```text
/// calm  -- share >= low_enter -->       low
/// any   -- share >= critical_enter -->  critical
/// a level -- share < its leave, for all of the dwell --> the level below
/// ```
///
/// In a time T the level changes no more than 2 T / dwell + 2 times, whatever the shares are: each way down takes a
/// dwell, and there are no more ways up than ways down and the two levels above calm.
#[derive(Clone, Debug)]
pub struct Levels {
    thresholds: Thresholds,
    level: Level,
    /// How long the share has been below what the level is left at; `None` if it is not below.
    below: Option<Duration>,
}

impl Levels {
    /// Begins calm.
    ///
    /// # Errors
    /// [`Error::Setting`] unless 0 < low leave <= low enter <= 1, the same for critical, and low is entered and left
    /// below critical.
    pub fn new(thresholds: Thresholds) -> Result<Self> {
        let Thresholds { low_enter, low_leave, critical_enter, critical_leave, .. } = thresholds;
        let fine = 0.0 < low_leave
            && low_leave <= low_enter
            && critical_leave <= critical_enter
            && low_leave <= critical_leave
            && low_enter <= critical_enter
            && critical_enter <= 1.0;
        if !fine {
            return Err(Error::Setting {
                name: "thresholds",
                got: format!("low {low_leave} to {low_enter}, critical {critical_leave} to {critical_enter}"),
                expected: "0 < leave <= enter <= 1, and low no higher than critical".to_owned(),
            });
        }
        Ok(Self { thresholds, level: Level::Calm, below: None })
    }

    /// The level now.
    pub fn level(&self) -> Level {
        self.level
    }

    /// When levels change.
    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// Takes a share that was seen `elapsed` after the one before. Returns the level that was left, if one was.
    /// A share that is not a number changes nothing, and what is not known is not taken for below.
    pub fn step(&mut self, share: f64, elapsed: Duration) -> Option<Level> {
        let Thresholds { low_enter, low_leave, critical_enter, critical_leave, dwell } = self.thresholds;
        let from = self.level;
        let (leave, down) = match from {
            Level::Calm => (f64::NEG_INFINITY, Level::Calm),
            Level::Low => (low_leave, Level::Calm),
            Level::Critical => (critical_leave, Level::Low),
        };
        let up = if share >= critical_enter {
            Level::Critical
        } else if share >= low_enter {
            Level::Low
        } else {
            Level::Calm
        };
        if up > from {
            self.level = up;
            self.below = None;
        } else if share < leave {
            let below = self.below.map_or(Duration::ZERO, |below| below.saturating_add(elapsed));
            if self.below.is_some() && below >= dwell {
                self.level = down;
                // The level below has a dwell of its own.
                self.below = None;
            } else {
                self.below = Some(below);
            }
        } else {
            self.below = None;
        }
        (self.level != from).then_some(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels() -> Levels {
        Levels::new(Thresholds::default()).unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn up_at_once_and_down_one_by_one() {
        let mut levels = levels();
        assert_eq!(levels.step(0.9, SECOND), Some(Level::Calm));
        assert_eq!(levels.level(), Level::Critical);
        let seen: Vec<Level> = (0..8)
            .map(|_| {
                levels.step(0.0, SECOND);
                levels.level()
            })
            .collect();
        use Level::{Calm, Critical, Low};
        assert_eq!(seen, [Critical, Critical, Low, Low, Low, Calm, Calm, Calm]);
    }

    #[test]
    fn a_rise_or_an_unknown_starts_the_dwell_again() {
        let mut levels = levels();
        levels.step(0.9, SECOND);
        for share in [0.1, 0.1, 0.6, 0.1, 0.1, f64::NAN, 0.1, 0.1] {
            assert_eq!(levels.step(share, SECOND), None, "{share}");
        }
        assert_eq!(levels.step(0.1, SECOND), Some(Level::Critical));
    }

    #[test]
    fn thresholds_that_cannot_be_are_refused() {
        for wrong in [
            Thresholds { low_enter: f64::NAN, ..Thresholds::default() },
            Thresholds { low_leave: 0.5, ..Thresholds::default() },
            Thresholds { critical_enter: 1.1, ..Thresholds::default() },
            Thresholds { critical_enter: 0.3, critical_leave: 0.3, ..Thresholds::default() },
        ] {
            assert!(Levels::new(wrong).is_err(), "{wrong:?}");
        }
    }
}
