//! How many threads cost the least, found by trying.
//!
//! Decoding is bound by the bandwidth of memory: past some number of threads the others wait, and draw watts. Where
//! that number lies depends on the machine, the model and the other programs, so it is measured: one rung down while
//! that is better, then one up while that is. The way up is tried also after one down: what was measured first may be
//! of a cold cache, beside which all that comes later looks better. Each rung is tried twice a climb at most, so a climb
//! ends. Then it holds. It climbs again only when the conditions are others, or what it holds costs a quarter more or
//! less than it did for a while; a climb that found nothing new doubles the time until the next.

use std::ops::RangeInclusive;
use std::time::Duration;

/// What is made small.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Objective {
    /// Joules times seconds a token: the energy-delay product (Gonzalez and Horowitz, "Energy dissipation in general
    /// purpose microprocessors", 1996). It gives up speed only for more than its share of energy.
    EnergyDelay,
    /// Joules a token.
    Energy,
    /// Joules a token down to so many, and speed from there.
    Enough(f64),
}

/// A measured step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) tokens_per_s: f64,
    pub(super) joules_per_token: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Climb {
    /// Thread counts, ascending.
    rungs: Vec<usize>,
    objective: Objective,
    at: usize,
    phase: Phase,
    window: Window,
    /// The best of this climb and its cost.
    best: (usize, f64),
    held: Option<Held>,
    rest: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Measures where it stands.
    Stand,
    /// The rung below the best is being tried.
    Down,
    /// The rung above it.
    Up,
    Held,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    at: usize,
    since: Duration,
    cost: f64,
    /// What it costs has been another since then.
    other_since: Option<Duration>,
}

/// The mean of some seconds after a change.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    changed_at: Duration,
    first_at: Option<Duration>,
    sum: f64,
    samples: u32,
}

/// After a change, what is measured is still of before.
const SETTLE: Duration = Duration::from_secs(2);
/// Tokens come in steps, so a mean needs some seconds and some values.
const MEASURE: Duration = Duration::from_secs(3);
const SAMPLES: u32 = 3;
/// Less of a gain is noise.
const GAIN: f64 = 0.97;
/// What is held costs so much more or less: it is another load.
const DRIFT: f64 = 0.25;
const DRIFT_FOR: Duration = Duration::from_secs(20);
const REST: Duration = Duration::from_secs(120);
const REST_MAX: Duration = Duration::from_secs(1920);
/// No two climbs sooner after each other, whatever changes.
const REST_MIN: Duration = Duration::from_secs(30);

impl Climb {
    pub(super) fn new(threads: &RangeInclusive<usize>, objective: Objective, now: Duration) -> Self {
        let rungs = rungs(threads);
        let mut climb = Self {
            at: rungs.len() - 1,
            rungs,
            objective,
            phase: Phase::Stand,
            window: Window::default(),
            best: (0, f64::INFINITY),
            held: None,
            rest: REST,
        };
        climb.at = climb.first();
        climb.begin(now);
        climb
    }

    /// Where nothing can be measured, this is what stays: half of the threads draw far less than all, and give more
    /// than half of the tokens.
    fn first(&self) -> usize {
        let last = self.rungs.len() - 1;
        match self.objective {
            Objective::Energy => self.rungs.partition_point(|rung| rung * 2 < self.rungs[last]),
            Objective::EnergyDelay | Objective::Enough(_) => last,
        }
    }

    pub(super) fn threads(&self) -> usize {
        self.rungs[self.at]
    }

    pub(super) fn objective(&self) -> Objective {
        self.objective
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Something was measured since the climb began.
    pub(super) fn has_measured(&self) -> bool {
        self.held.is_some() || self.phase != Phase::Stand || self.window.samples > 0
    }

    /// The conditions are others: climbs again from where it stands, if the last climb is long enough ago. Returns
    /// whether it does.
    pub(super) fn restart(&mut self, now: Duration, objective: Objective) -> bool {
        if self.held.is_some_and(|held| now - held.since < REST_MIN) || self.running() {
            return false;
        }
        self.objective = objective;
        self.rest = REST;
        if !self.has_measured() {
            self.at = self.first();
        }
        self.begin(now);
        true
    }

    /// A climb has begun and not ended.
    fn running(&self) -> bool {
        matches!(self.phase, Phase::Down | Phase::Up)
    }

    /// `limited`: something else allows fewer threads, so what is measured is not of this rung.
    pub(super) fn step(&mut self, now: Duration, sample: Option<Sample>, limited: bool) {
        let Some(cost) = sample.filter(|_| !limited).and_then(|sample| self.cost(sample)) else { return };
        if self.phase == Phase::Held {
            self.hold(now, cost);
        } else if let Some(mean) = self.window.add(now, cost) {
            self.advance(now, mean);
        }
    }

    fn cost(&self, sample: Sample) -> Option<f64> {
        // Without work there is nothing to measure.
        if sample.tokens_per_s <= 0.0 || sample.joules_per_token <= 0.0 {
            return None;
        }
        Some(match self.objective {
            Objective::EnergyDelay => sample.joules_per_token / sample.tokens_per_s,
            Objective::Energy | Objective::Enough(_) => sample.joules_per_token,
        })
    }

    fn begin(&mut self, now: Duration) {
        self.phase = Phase::Stand;
        self.window = Window { changed_at: now, ..Window::default() };
    }

    fn advance(&mut self, now: Duration, cost: f64) {
        let phase = match self.phase {
            Phase::Stand => {
                self.best = (self.at, cost);
                Phase::Down
            }
            phase if self.better(cost) => {
                self.best = (self.at, cost);
                phase
            }
            Phase::Down => Phase::Up,
            Phase::Up | Phase::Held => Phase::Held,
        };
        self.go(now, phase);
    }

    /// To the rung that a phase tries, or to the next phase where there is none.
    fn go(&mut self, now: Duration, phase: Phase) {
        let (best, cost) = self.best;
        // Fewer threads are not faster.
        let enough = matches!(self.objective, Objective::Enough(enough) if cost <= enough);
        let (at, phase) = match phase {
            Phase::Down if best > 0 && !enough => (best - 1, Phase::Down),
            Phase::Down | Phase::Up if best + 1 < self.rungs.len() => (best + 1, Phase::Up),
            _ => return self.end(now),
        };
        (self.at, self.phase) = (at, phase);
        self.window = Window { changed_at: now, ..Window::default() };
    }

    /// Whether the rung that was tried is better than the best.
    fn better(&self, cost: f64) -> bool {
        let less = cost < self.best.1 * GAIN;
        match self.objective {
            Objective::EnergyDelay | Objective::Energy => less,
            Objective::Enough(enough) if self.best.1 <= enough => self.phase == Phase::Up && cost <= enough,
            Objective::Enough(enough) => less || cost <= enough,
        }
    }

    fn end(&mut self, now: Duration) {
        let (at, cost) = self.best;
        let found_nothing = self.held.is_some_and(|held| held.at == at);
        self.rest = if found_nothing { (self.rest * 2).min(REST_MAX) } else { REST };
        self.at = at;
        self.phase = Phase::Held;
        self.held = Some(Held { at, since: now, cost, other_since: None });
    }

    fn hold(&mut self, now: Duration, cost: f64) {
        let Some(held) = &mut self.held else { return };
        if (cost / held.cost - 1.0).abs() <= DRIFT {
            held.other_since = None;
            return;
        }
        let since = *held.other_since.get_or_insert(now);
        if now - since >= DRIFT_FOR && now - held.since >= self.rest {
            self.begin(now);
        }
    }
}

impl Window {
    /// The mean, once there is one.
    fn add(&mut self, now: Duration, cost: f64) -> Option<f64> {
        if now - self.changed_at < SETTLE {
            return None;
        }
        let first = *self.first_at.get_or_insert(now);
        self.sum += cost;
        self.samples += 1;
        (now - first >= MEASURE && self.samples >= SAMPLES).then(|| self.sum / f64::from(self.samples))
    }
}

/// From most to least by the root of two: fine enough to be near the best, few enough to be tried in a minute.
fn rungs(threads: &RangeInclusive<usize>) -> Vec<usize> {
    let (least, most) = (*threads.start(), *threads.end());
    let mut rungs = Vec::new();
    let mut rung = most as f64;
    while rung.round() as usize > least {
        rungs.push(rung.round() as usize);
        rung /= std::f64::consts::SQRT_2;
    }
    rungs.push(least);
    rungs.reverse();
    rungs.dedup();
    rungs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half-second steps on a machine; the threads that were tried, in order.
    fn climb(
        climb: &mut Climb,
        seconds: std::ops::Range<u64>,
        machine: impl Fn(usize) -> Sample,
    ) -> Vec<usize> {
        let mut tried = vec![climb.threads()];
        for half in seconds.start * 2..seconds.end * 2 {
            climb.step(Duration::from_millis(half * 500), Some(machine(climb.threads())), false);
            if *tried.last().unwrap() != climb.threads() {
                tried.push(climb.threads());
            }
        }
        tried
    }

    /// Bound by bandwidth from `knee` threads on: more of them draw watts and make no tokens.
    fn bound(knee: usize) -> impl Fn(usize) -> Sample {
        move |threads| {
            let tokens_per_s = 10.0 * threads.min(knee) as f64;
            Sample { tokens_per_s, joules_per_token: (20.0 + 5.0 * threads as f64) / tokens_per_s }
        }
    }

    #[test]
    fn rungs_go_from_least_to_most() {
        assert_eq!(rungs(&(2..=16)), [2, 3, 4, 6, 8, 11, 16]);
        assert_eq!(rungs(&(1..=1)), [1]);
        assert_eq!(rungs(&(7..=8)), [7, 8]);
    }

    #[test]
    fn it_ends_where_bandwidth_does_and_holds() {
        for knee in [3, 4, 6, 8, 11, 16] {
            let mut search = Climb::new(&(2..=16), Objective::EnergyDelay, Duration::ZERO);
            let tried = climb(&mut search, 0..120, bound(knee));
            assert_eq!(search.threads(), knee, "{tried:?}");
            assert!(tried.len() <= 9, "{tried:?}");
            assert_eq!(climb(&mut search, 120..4000, bound(knee)), [knee]);
        }
    }

    #[test]
    fn a_target_is_met_with_as_many_threads_as_it_allows() {
        // 2 threads cost 1.5 J a token, 16 threads 1.25 J where bandwidth ends at 8; 8 cost 0.75 J and 11 cost 0.94 J.
        let mut search = Climb::new(&(2..=16), Objective::Enough(1.0), Duration::ZERO);
        climb(&mut search, 0..120, bound(8));
        assert_eq!(search.threads(), 11);
    }

    #[test]
    fn another_load_is_tried_again_but_not_at_once() {
        let mut search = Climb::new(&(2..=16), Objective::EnergyDelay, Duration::ZERO);
        let mut second = 0;
        while search.phase() != Phase::Held {
            climb(&mut search, second..second + 1, bound(4));
            second += 1;
        }
        assert!((20..50).contains(&second), "{second}");
        assert!(!search.restart(Duration::from_secs(second + 5), Objective::Energy));
        // Four threads cost the same there, so nothing is known of what more would bring.
        assert_eq!(climb(&mut search, second..120, bound(16)), [4]);
        assert!(search.restart(Duration::from_secs(120), Objective::EnergyDelay));
        climb(&mut search, 120..240, bound(16));
        assert_eq!(search.threads(), 16);
    }

    #[test]
    fn without_work_nothing_is_tried() {
        let mut search = Climb::new(&(2..=16), Objective::Energy, Duration::ZERO);
        let idle = |_| Sample { tokens_per_s: 0.0, joules_per_token: 1.0 };
        assert_eq!(climb(&mut search, 0..600, idle), [8]);
        assert!(!search.has_measured());
    }

    #[test]
    fn a_load_that_comes_and_goes_is_climbed_for_less_and_less() {
        // Every 200 s a token costs twice as much, or half; the best is the same.
        let mut search = Climb::new(&(2..=16), Objective::Energy, Duration::ZERO);
        let mut hour = |hour: u64| {
            let mut changes = 0;
            for block in hour * 18..(hour + 1) * 18 {
                let times = if block % 2 == 0 { 1.0 } else { 2.0 };
                let machine = |threads| {
                    let sample = bound(4)(threads);
                    Sample { joules_per_token: sample.joules_per_token * times, ..sample }
                };
                changes += climb(&mut search, block * 200..(block + 1) * 200, machine).len() - 1;
            }
            changes
        };
        let (first, second, third) = (hour(0), hour(1), hour(2));
        assert!(first <= 20 && second <= 8 && third <= 8, "{first} {second} {third}");
    }
}
