//! Keeps the draw at a number of watts: a PI controller whose output is a count.
//!
//! In velocity form, `u += Q (Kp (e - e') + Ki e)` with `e = (target - watts) / target`: the output is the state, so
//! clamping it is all the anti-windup there is to do, also where something else allows less. One loop a second on
//! means of a second; the draw follows within less than that, so an integral gain of 0.12 is stable up to a draw that
//! changes by eight targets over the whole range, and slower than exact is no fault: nobody hears 3 s of a watt more.
//!
//! The output is counted: tokens first from the bottom, then threads. A target between two counts would be sought for
//! ever; so a count that was over is not tried again for a minute, and for twice as long each time it was over again.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct Watts {
    target_watts: f64,
    most: u32,
    /// What the controller wants.
    output: f64,
    /// What is in force.
    count: u32,
    /// The error of the last tick.
    error: f64,
    ticked_at: Duration,
    sum: f64,
    samples: u32,
    /// This count and those above it drew too much; not tried until then.
    over: Option<(u32, Duration)>,
    block: Duration,
    /// The count in force was reached from below.
    raised: bool,
}

const TICK: Duration = Duration::from_secs(1);
const PROPORTIONAL: f64 = 0.1;
const INTEGRAL: f64 = 0.12;
/// An error of so much is none.
const DEAD: f64 = 0.02;
/// The output must be so far from the count in force. More than half, so that it does not flip at a half.
const BAND: f64 = 0.75;
const BLOCK: Duration = Duration::from_secs(60);
const BLOCK_MAX: Duration = Duration::from_secs(1920);

impl Watts {
    pub(super) fn new(target_watts: f64, most: u32, now: Duration) -> Self {
        Self {
            target_watts,
            most,
            output: f64::from(most),
            count: most,
            error: 0.0,
            ticked_at: now,
            sum: 0.0,
            samples: 0,
            over: None,
            block: BLOCK,
            raised: false,
        }
    }

    pub(super) fn target(&self) -> f64 {
        self.target_watts
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// `applied` is the count that was really in force: something else may allow less.
    pub(super) fn step(&mut self, now: Duration, watts: Option<f64>, applied: u32) {
        if let Some(watts) = watts {
            self.sum += watts;
            self.samples += 1;
        }
        if now - self.ticked_at < TICK || self.samples == 0 {
            return;
        }
        let mean = self.sum / f64::from(self.samples);
        (self.ticked_at, self.sum, self.samples) = (now, 0.0, 0);
        let error = (self.target_watts - mean) / self.target_watts;
        let error = if error.abs() <= DEAD { 0.0 } else { error.max(-1.0) };
        let change = PROPORTIONAL * (error - self.error) + INTEGRAL * error;
        self.error = error;
        self.output = (self.output + change * f64::from(self.most)).clamp(0.0, self.ceiling(now, applied));
        if (self.output - f64::from(self.count)).abs() > BAND {
            self.set(now, self.output.round() as u32);
        }
    }

    /// The output may not run ahead of what is in force by more than a step, nor of what is known to be too much.
    fn ceiling(&mut self, now: Duration, applied: u32) -> f64 {
        if self.over.is_some_and(|(_, until)| now >= until) {
            self.over = None;
        }
        let most = if applied < self.count { applied + 1 } else { self.most };
        let allowed = self.over.map_or(self.most, |(count, _)| count.saturating_sub(1));
        f64::from(most.min(allowed).min(self.most))
    }

    fn set(&mut self, now: Duration, count: u32) {
        if count < self.count && self.error < 0.0 {
            // On the way down from the start no count was tried, so none has failed.
            if self.raised {
                self.block = (self.block * 2).min(BLOCK_MAX);
            }
            self.over = Some((self.count, now.saturating_add(self.block)));
        }
        self.raised = count > self.count;
        self.count = count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of 200 ms; the counts that were in force, in order.
    fn run(watts: &mut Watts, seconds: std::ops::Range<u64>, draw: impl Fn(u32) -> f64) -> Vec<u32> {
        let mut counts = vec![watts.count()];
        for step in seconds.start * 5..seconds.end * 5 {
            watts.step(Duration::from_millis(step * 200), Some(draw(watts.count())), watts.count());
            if *counts.last().unwrap() != watts.count() {
                counts.push(watts.count());
            }
        }
        counts
    }

    #[test]
    fn it_settles_at_or_below_the_target_and_tries_less_and_less() {
        for (most, idle, each, target) in
            [(16, 10.0, 5.0, 52.0), (135, 20.0, 1.5, 100.0), (10, 5.0, 9.0, 30.0)]
        {
            let draw = |count: u32| idle + each * f64::from(count);
            let best = ((target * (1.0 + DEAD) - idle) / each).floor() as u32;
            let mut watts = Watts::new(target, most, Duration::ZERO);
            let counts = run(&mut watts, 0..300, draw);
            assert!(counts.len() < 30, "{counts:?}");
            run(&mut watts, 300..3600, draw);
            let late = run(&mut watts, 3600..7200, draw);
            assert!(late.len() <= 9, "{late:?}");
            assert!(watts.count() <= best + 1 && watts.count() + 2 >= best, "{} for {best}", watts.count());
        }
    }

    #[test]
    fn what_something_else_does_not_allow_is_not_wound_up() {
        let mut watts = Watts::new(50.0, 16, Duration::ZERO);
        run(&mut watts, 0..60, |count| 10.0 + 5.0 * f64::from(count));
        // For ten minutes no more than 2 are in force, which draw far less than the target.
        for second in 60..660 {
            watts.step(Duration::from_secs(second), Some(20.0), 2);
        }
        assert!(watts.output <= 9.0, "{}", watts.output);
    }

    #[test]
    fn a_target_out_of_reach_ends_at_either_end() {
        let mut watts = Watts::new(1.0, 16, Duration::ZERO);
        run(&mut watts, 0..120, |_| 100.0);
        assert_eq!(watts.count(), 0);
        let mut watts = Watts::new(1000.0, 16, Duration::ZERO);
        assert_eq!(run(&mut watts, 0..120, |_| 100.0), [16]);
    }
}
