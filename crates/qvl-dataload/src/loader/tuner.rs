//! How many workers load and how far ahead, decided from measured times. Pure: figures go in, a decision comes out.
//!
//! A consumer that computes for `c` seconds an item is never kept waiting by `w / c` workers, if an item takes a
//! worker `w` seconds: that many and a fifth more are needed. Another program on the machine makes both `w` and `c`
//! longer, so their ratio stays, which is why it is steered by and not by the waiting alone.
//!
//! - up at once, when the consumer has waited and the ratio asks for more;
//! - down only after three periods in a row that asked for less by a margin, so that a burst changes nothing;
//! - a step up that brought no more items a second is taken back and not tried again for a while: the machine has no
//!   more to give.
//!
//! Items ahead hide an item that takes long behind those before it: as many as are consumed meanwhile. A consumer that
//! only waits consumes as fast as items are made, so it is the pace of consuming that counts, waits included, and not
//! the time it computes. More at once if it asks for a quarter more; fewer after three periods that asked for less than
//! half.

use std::time::Duration;

/// What happened in one period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Period {
    /// Its length.
    pub(crate) elapsed: Duration,
    /// Of it, the consumer waited.
    pub(crate) consumer_wait: Duration,
    /// Workers were reading and transforming, summed over them.
    pub(crate) busy: Duration,
    /// The longest time one item took.
    pub(crate) longest_item: Duration,
    /// Items that were made.
    pub(crate) items: u64,
}

/// What is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) workers: usize,
    pub(crate) items: usize,
}

/// Between which settings to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// `None`: it was set by the caller.
    pub(crate) workers_max: Option<usize>,
    pub(crate) items_max: Option<usize>,
    /// Items of a batch, as far as it is known.
    pub(crate) batch: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Tuner {
    range: Range,
    setting: Setting,
    /// Periods in a row that asked for fewer workers.
    calm: u32,
    /// Periods in a row that asked for far fewer items.
    calm_items: u32,
    /// Items a second before the last step up, and from how many workers it came.
    before_step: Option<(f64, usize)>,
    /// Periods for which no step up is tried.
    hold: u32,
}

/// Consumer waits below this share of a period are of no interest.
const WAIT_SHARE: f64 = 0.01;
/// More workers than the ratio asks for.
const MARGIN: f64 = 1.2;
/// How much less must be asked for before a worker goes.
const DOWN_MARGIN: f64 = 1.5;
/// Periods in a row before a worker goes.
const CALM: u32 = 3;
/// A step up must bring this much.
const GAIN: f64 = 1.05;
/// Periods without a step up after one that brought nothing.
const HOLD: u32 = 16;

impl Tuner {
    pub(crate) fn new(range: Range, setting: Setting) -> Self {
        Self { range, setting, calm: 0, calm_items: 0, before_step: None, hold: 0 }
    }

    /// The next setting and why, if it is another one.
    pub(crate) fn observe(&mut self, period: &Period) -> Option<(Setting, String)> {
        let (elapsed, wait) = (period.elapsed.as_secs_f64(), period.consumer_wait.as_secs_f64());
        if period.items == 0 || elapsed <= 0.0 {
            return None;
        }
        let items = period.items as f64;
        let making = period.busy.as_secs_f64() / items;
        // A consumer that does nothing but wait still takes a moment.
        let computing = ((elapsed - wait) / items).max(1e-9);
        let wait_share = wait / elapsed;
        let mut reason = Vec::new();
        let workers = self.workers(making / computing, wait_share, items / elapsed, &mut reason);
        let items = self.items(workers, period.longest_item.as_secs_f64() * items / elapsed, &mut reason);
        let setting = Setting { workers, items };
        if setting == self.setting {
            return None;
        }
        self.setting = setting;
        let figures = format!(
            "an item takes a worker {} and the consumer {}; the consumer waited {:.1} % of the time",
            shown(making),
            shown(computing),
            100.0 * wait_share
        );
        Some((setting, format!("{}: {figures}", reason.join(", "))))
    }

    fn workers(&mut self, ratio: f64, wait_share: f64, rate: f64, reason: &mut Vec<String>) -> usize {
        let now = self.setting.workers;
        let Some(most) = self.range.workers_max else { return now };
        self.hold = self.hold.saturating_sub(1);
        if let Some((before, workers)) = self.before_step.take()
            && rate < before * GAIN
            && wait_share > WAIT_SHARE
        {
            self.hold = HOLD;
            self.calm = 0;
            reason.push(format!("back to {workers} workers, since {now} made no more items a second"));
            return workers;
        }
        let asked = |margin: f64| ((ratio * margin).ceil().min(most as f64) as usize).max(1);
        if wait_share > WAIT_SHARE && asked(MARGIN) > now && self.hold == 0 {
            self.calm = 0;
            self.before_step = Some((rate, now));
            let workers = asked(MARGIN);
            reason.push(format!("{workers} workers in place of {now}, so that the consumer need not wait"));
            return workers;
        }
        if asked(DOWN_MARGIN) < now && wait_share <= WAIT_SHARE {
            self.calm += 1;
            if self.calm >= CALM {
                self.calm = 0;
                let workers = asked(DOWN_MARGIN);
                reason.push(format!("{workers} workers in place of {now} are enough"));
                return workers;
            }
        } else {
            self.calm = 0;
        }
        now
    }

    /// Enough that the slowest item is hidden behind those before it, and a batch beside that.
    fn items(&mut self, workers: usize, items_in_longest: f64, reason: &mut Vec<String>) -> usize {
        let now = self.setting.items;
        let Some(most) = self.range.items_max else { return now };
        let least = (2 * workers + self.range.batch).min(most);
        let asked = (items_in_longest.ceil().min(most as f64) as usize + least).clamp(least, most);
        self.calm_items = if 2 * asked < now { self.calm_items + 1 } else { 0 };
        let is_more = now < least || 4 * asked > 5 * now;
        if asked == now || !(is_more || self.calm_items >= CALM) {
            return now;
        }
        self.calm_items = 0;
        reason.push(format!("{asked} items ahead in place of {now}"));
        asked
    }
}

/// Seconds with a unit that suits them.
fn shown(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANGE: Range = Range { workers_max: Some(8), items_max: Some(256), batch: 4 };

    /// A machine with `cores` cores: an item costs a worker `making` seconds and the consumer `computing`; `load` says
    /// how much longer everything takes.
    fn run(tuner: &mut Tuner, cores: f64, making: f64, computing: f64, load: f64) -> Setting {
        run_with(tuner, cores, making, computing, load, 3.0)
    }

    /// `longest`: how much longer than the others the longest item takes.
    fn run_with(
        tuner: &mut Tuner,
        cores: f64,
        making: f64,
        computing: f64,
        load: f64,
        longest: f64,
    ) -> Setting {
        let workers = tuner.setting.workers as f64;
        // The consumer runs beside the workers; what is more than the cores is shared between them.
        let made = workers.min(cores) / making / load;
        let used = 1.0 / computing / load;
        let rate = made.min(used);
        let elapsed = 1.0;
        let wait = (elapsed - rate * computing * load).max(0.0);
        let slow = (workers / cores).max(1.0);
        let period = Period {
            elapsed: Duration::from_secs_f64(elapsed),
            consumer_wait: Duration::from_secs_f64(wait),
            busy: Duration::from_secs_f64(rate * making * load * slow),
            longest_item: Duration::from_secs_f64(longest * making * load),
            items: (rate * elapsed).ceil() as u64,
        };
        tuner.observe(&period);
        tuner.setting
    }

    fn tuner(workers: usize) -> Tuner {
        Tuner::new(RANGE, Setting { workers, items: 16 })
    }

    #[test]
    fn as_many_as_the_consumer_needs() {
        let mut tuner = tuner(1);
        // 40 ms to make, 10 ms to use: 4 and a margin.
        let settings: Vec<usize> = (0..12).map(|_| run(&mut tuner, 16.0, 0.04, 0.01, 1.0).workers).collect();
        assert_eq!(settings.last(), Some(&5), "{settings:?}");
    }

    #[test]
    fn no_more_than_the_machine_can_use() {
        let mut tuner = tuner(1);
        let settings: Vec<usize> = (0..12).map(|_| run(&mut tuner, 2.0, 0.04, 0.001, 1.0).workers).collect();
        let changes = settings.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes <= 2, "{settings:?}");
    }

    #[test]
    fn few_when_the_consumer_is_slow_and_only_after_a_while() {
        let mut tuner = tuner(8);
        let settings: Vec<usize> = (0..4).map(|_| run(&mut tuner, 16.0, 0.01, 0.1, 1.0).workers).collect();
        assert_eq!(settings, [8, 8, 1, 1]);
    }

    /// Found with photographs of 0.3 to 12 megapixels and a consumer that only waits: it went from 53 items ahead to
    /// 342 and back with every period.
    #[test]
    fn items_ahead_come_to_rest_when_sizes_vary() {
        let mut tuner = tuner(2);
        let mut settings = Vec::new();
        for period in 0..60 {
            // The longest item of a period is anything from the common size to twelve times that.
            let longest = 1.0 + f64::from(period * 7 % 12);
            settings.push(run_with(&mut tuner, 2.0, 0.05, 0.0005, 1.0, longest).items);
        }
        let changes = settings[10..].windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes <= 3, "{settings:?}");
        assert!(settings.iter().all(|items| *items <= 64), "{settings:?}");
    }

    #[test]
    fn what_the_caller_set_stays() {
        let range = Range { workers_max: None, items_max: None, batch: 1 };
        let setting = Setting { workers: 3, items: 7 };
        let mut tuner = Tuner::new(range, setting);
        for _ in 0..10 {
            assert_eq!(run(&mut tuner, 16.0, 1.0, 0.01, 1.0), setting);
        }
    }

    #[test]
    fn a_decision_says_why() {
        let mut tuner = tuner(1);
        let period = Period {
            elapsed: Duration::from_secs(1),
            consumer_wait: Duration::from_millis(500),
            busy: Duration::from_secs(1),
            longest_item: Duration::from_millis(40),
            items: 50,
        };
        let (setting, why) = tuner.observe(&period).unwrap();
        assert_eq!(setting.workers, 3);
        assert_eq!(
            why,
            "3 workers in place of 1, so that the consumer need not wait: an item takes a worker 20.0 ms and the \
             consumer 10.0 ms; the consumer waited 50.0 % of the time"
        );
    }

    proptest! {
        /// Whatever the costs, and with another load coming and going, it comes to rest.
        #[test]
        fn it_does_not_swing(
            cores in 1.0f64..16.0,
            making in 0.001f64..0.2,
            computing in 0.001f64..0.2,
            start in 1usize..8,
            loads in prop::collection::vec(0.8f64..1.3, 120),
        ) {
            let mut tuner = tuner(start);
            for load in &loads[..40] {
                run(&mut tuner, cores, making, computing, *load);
            }
            let settings: Vec<usize> =
                loads[40..].iter().map(|load| run(&mut tuner, cores, making, computing, *load).workers).collect();
            let changes = settings.windows(2).filter(|pair| pair[0] != pair[1]).count();
            // A step up that is tried every 16 periods and taken back is two changes: ten in eighty periods.
            prop_assert!(changes <= 10, "{changes} changes: {settings:?}");
        }
    }
}
