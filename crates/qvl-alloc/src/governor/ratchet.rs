//! A level that falls at once and rises slowly, and less often the more often that went wrong.
//!
//! Multiplicative decrease and additive increase (AIMD; Chiu and Jain, "Analysis of the increase and decrease
//! algorithms for congestion avoidance in computer networks", 1989) is the one linear law under which several that
//! share something come to fair shares without telling each other; each program on a machine is one of several. AIMD
//! alone keeps sawing between half and full, though, and every tooth throws a cache away. Two memories stop that:
//!
//! - the *wall*, the level at which the last trouble began: below it the level rises quickly, to it and past it only after
//!   four times the calm;
//! - *doublings*: each rise that ended in a fall doubles the calm that the next one needs, up to a most. They are
//!   forgotten one at a time, each after sixteen times that calm without trouble.
//!
//! So with `h` the shortest calm there are no more than `doublings_max + 1 + T / 32h` falls after a rise within a time
//! `T`: for each one past the first few a doubling must have been forgotten, which takes sixteen times `2h` or more, or
//! the most calm was waited for. This holds for any signal, which is what makes flipping between less and more
//! impossible and not only unlikely.

use std::time::Duration;

/// What a signal says, after its thresholds. Between calm and pressed there is a band in which nothing changes, so
/// that noise round one threshold cannot cross both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reading {
    Calm,
    /// In the band, or not known: no reason to fall, and none to rise.
    Between,
    Pressed,
    /// There is no time to wait and see.
    Critical,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    /// For so long it must be pressed before the level falls; one bad value is no reason.
    pub(super) confirm: Duration,
    /// After a fall, until its effect can be seen: no other fall but a critical one.
    pub(super) settle: Duration,
    /// Between two rises below the wall.
    pub(super) rise: Duration,
    /// The calm before the first rise.
    pub(super) calm: Duration,
    /// How often `calm` doubles at most.
    pub(super) doublings_max: u32,
    /// By halves, or one at a time.
    pub(super) fall: Fall,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fall {
    /// To half, and to a quarter when it is critical.
    Halve,
    /// One down.
    One,
}

/// What is there besides the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Around {
    /// The level that is made use of. Trouble comes at this one: a level above it that is halved may change nothing.
    pub(super) used: u32,
    /// A fall ends here or lower.
    pub(super) fall_to: u32,
    /// A rise is known to fit.
    pub(super) room: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Ratchet {
    timing: Timing,
    level: u32,
    most: u32,
    /// It has been pressed since then, without a break.
    pressed_since: Option<Duration>,
    /// When it was last anything but calm.
    uneasy_at: Duration,
    fell_at: Option<Duration>,
    rose_at: Option<Duration>,
    /// There was calm since it last fell, so the next fall is of another trouble.
    other_trouble: bool,
    /// It rose since it last fell.
    rising: bool,
    wall: Option<u32>,
    doublings: u32,
    forgave_at: Duration,
}

/// Calm that a rise to the wall takes, in those that a rise takes.
const PROBE: u32 = 4;
/// Calm until a doubling is forgotten.
const FORGIVE: u32 = 16;

impl Ratchet {
    pub(super) fn new(timing: Timing, level: u32, most: u32, now: Duration) -> Self {
        Self {
            timing,
            level: level.min(most),
            most,
            pressed_since: None,
            uneasy_at: now,
            fell_at: None,
            rose_at: None,
            other_trouble: true,
            rising: false,
            wall: None,
            doublings: 0,
            forgave_at: now,
        }
    }

    pub(super) fn level(&self) -> u32 {
        self.level
    }

    pub(super) fn wall(&self) -> Option<u32> {
        self.wall
    }

    /// Calm that is needed before a rise.
    pub(super) fn calm_needed(&self) -> Duration {
        self.timing.calm * (1 << self.doublings)
    }

    /// When it last was anything but calm.
    pub(super) fn uneasy_at(&self) -> Duration {
        self.uneasy_at
    }

    /// Whether it waits before it rises to where trouble came.
    pub(super) fn at_wall(&self) -> bool {
        self.wall.is_some_and(|wall| self.level + 1 >= wall)
    }

    pub(super) fn step(&mut self, now: Duration, reading: Reading, around: Around) {
        if reading < Reading::Pressed {
            self.pressed_since = None;
        }
        if reading > Reading::Calm {
            self.other_trouble |= now - self.uneasy_at >= self.timing.calm;
            self.uneasy_at = now;
        }
        match reading {
            Reading::Calm => {
                self.forgive(now);
                if around.room {
                    self.rise(now);
                }
            }
            Reading::Between => {}
            Reading::Pressed => {
                let since = *self.pressed_since.get_or_insert(now);
                let settled = self.fell_at.is_none_or(|at| now - at >= self.timing.settle);
                if now - since >= self.timing.confirm && settled {
                    self.fall(now, false, around);
                }
            }
            Reading::Critical => {
                self.pressed_since.get_or_insert(now);
                self.fall(now, true, around);
            }
        }
    }

    fn fall(&mut self, now: Duration, critical: bool, around: Around) {
        let used = self.level.min(around.used);
        let to = match self.timing.fall {
            // A trial of the wall that failed gives back what it took: the level before it is known to be good, and
            // half of it would be lost for nothing. If that was not it, the next fall halves.
            _ if self.trial(now) && !critical => self.level - 1,
            Fall::Halve => used / if critical { 4 } else { 2 },
            Fall::One => used.saturating_sub(1),
        };
        let to = to.min(around.fall_to);
        if to >= self.level {
            return;
        }
        if self.rising {
            self.doublings = (self.doublings + 1).min(self.timing.doublings_max);
            self.rising = false;
        }
        // Falls in a row are of one trouble: with a signal that comes late the later ones say nothing of their level.
        if std::mem::take(&mut self.other_trouble) {
            self.wall = Some(used.max(to + 1));
        }
        self.level = to;
        self.fell_at = Some(now);
        self.rose_at = None;
    }

    /// The last thing that happened is a rise to the wall or past it, not long ago.
    fn trial(&self, now: Duration) -> bool {
        self.wall.is_some_and(|wall| self.level >= wall)
            && self.rose_at.is_some_and(|at| now - at < self.calm_needed())
    }

    fn rise(&mut self, now: Duration) {
        let calm = now - self.uneasy_at;
        let needed = self.calm_needed();
        let (needed, apart) =
            if self.at_wall() { (needed * PROBE, needed) } else { (needed, self.timing.rise) };
        let apart = self.rose_at.is_none_or(|at| now - at >= apart);
        if self.level == self.most || calm < needed || !apart {
            return;
        }
        self.level += 1;
        self.rose_at = Some(now);
        self.rising = true;
    }

    fn forgive(&mut self, now: Duration) {
        if now - self.uneasy_at.max(self.forgave_at) < self.calm_needed() * FORGIVE {
            return;
        }
        self.forgave_at = now;
        if self.doublings == 0 || self.wall.is_some_and(|wall| self.level >= wall) {
            self.wall = None;
        }
        self.doublings = self.doublings.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        confirm: Duration::from_millis(100),
        settle: Duration::from_millis(500),
        rise: Duration::from_secs(4),
        calm: Duration::from_secs(5),
        doublings_max: 5,
        fall: Fall::Halve,
    };

    fn free(level: u32) -> Around {
        Around { used: level, fall_to: u32::MAX, room: true }
    }

    /// Steps of 100 ms; the times in ms at which the level changed, and to what.
    fn run(
        ratchet: &mut Ratchet,
        ms: std::ops::Range<u64>,
        reading: impl Fn(u32) -> Reading,
    ) -> Vec<(u64, u32)> {
        let mut changes = Vec::new();
        for at in ms.step_by(100) {
            let before = ratchet.level();
            ratchet.step(Duration::from_millis(at), reading(before), free(before));
            if ratchet.level() != before {
                changes.push((at, ratchet.level()));
            }
        }
        changes
    }

    #[test]
    fn it_falls_by_halves_once_the_last_fall_is_seen() {
        let mut ratchet = Ratchet::new(TIMING, 8, 8, Duration::ZERO);
        let changes = run(&mut ratchet, 0..5000, |_| Reading::Pressed);
        assert_eq!(changes, [(100, 4), (600, 2), (1100, 1), (1600, 0)]);
    }

    #[test]
    fn a_critical_reading_waits_for_nothing() {
        let mut ratchet = Ratchet::new(TIMING, 8, 8, Duration::ZERO);
        assert_eq!(run(&mut ratchet, 0..500, |_| Reading::Critical), [(0, 2), (100, 0)]);
    }

    #[test]
    fn one_bad_value_changes_nothing_and_the_band_neither() {
        let mut ratchet = Ratchet::new(TIMING, 4, 8, Duration::ZERO);
        ratchet.step(Duration::from_millis(100), Reading::Pressed, free(4));
        assert_eq!(run(&mut ratchet, 200..100_000, |_| Reading::Between), []);
    }

    #[test]
    fn it_rises_to_below_the_wall_and_tries_that_later() {
        let mut ratchet = Ratchet::new(TIMING, 8, 8, Duration::ZERO);
        run(&mut ratchet, 0..200, |_| Reading::Pressed);
        assert_eq!((ratchet.level(), ratchet.wall()), (4, Some(8)));
        // Pressed until 100: calm 5 s, then every 4 s, then 4 x 5 s after the trouble.
        let changes = run(&mut ratchet, 200..60_000, |_| Reading::Calm);
        assert_eq!(changes, [(5100, 5), (9100, 6), (13_100, 7), (20_100, 8)]);
    }

    #[test]
    fn a_level_that_does_not_hold_is_tried_less_and_less() {
        let mut ratchet = Ratchet::new(TIMING, 8, 8, Duration::ZERO);
        let reading = |level| if level > 5 { Reading::Pressed } else { Reading::Calm };
        let changes = run(&mut ratchet, 0..4_000_000, reading);
        let tried: Vec<u64> = changes.iter().filter(|(_, level)| *level == 6).map(|(at, _)| *at).collect();
        let apart: Vec<u64> = tried.windows(2).map(|pair| (pair[1] - pair[0]) / 1000).collect();
        assert!(apart.windows(2).all(|pair| pair[0] <= pair[1]), "{apart:?}");
        assert!(apart[0] < 60 && *apart.last().unwrap() >= 600, "{apart:?}");
        // Once the wall is known, a trial that fails gives back one level and not half of all.
        let after = changes.iter().skip_while(|(at, _)| *at < tried[1]);
        assert!(after.clone().all(|(_, level)| *level >= 5), "{changes:?}");
    }

    #[test]
    fn calm_is_forgiven_one_doubling_at_a_time() {
        let mut ratchet = Ratchet::new(TIMING, 8, 8, Duration::ZERO);
        ratchet.doublings = 2;
        run(&mut ratchet, 0..320_000, |_| Reading::Calm);
        assert_eq!(ratchet.calm_needed(), Duration::from_secs(20));
        run(&mut ratchet, 320_000..480_000, |_| Reading::Calm);
        assert_eq!(ratchet.calm_needed(), Duration::from_secs(10));
        run(&mut ratchet, 480_000..480_100, |_| Reading::Calm);
        assert_eq!(ratchet.calm_needed(), Duration::from_secs(5));
    }

    #[test]
    fn falls_of_one_trouble_have_the_wall_where_it_began() {
        let mut ratchet = Ratchet::new(TIMING, 8, 8, Duration::ZERO);
        run(&mut ratchet, 0..5000, |_| Reading::Pressed);
        assert_eq!((ratchet.level(), ratchet.wall()), (0, Some(8)));
        // After some calm it is another trouble.
        run(&mut ratchet, 5000..20_000, |_| Reading::Calm);
        assert_eq!(ratchet.level(), 3);
        run(&mut ratchet, 20_000..20_200, |_| Reading::Pressed);
        assert_eq!((ratchet.level(), ratchet.wall()), (1, Some(3)));
    }
}
