//! A small machine in virtual time, to try a policy on hours of it in milliseconds.
//!
//! The machine has memory that is shared with others, a signal that comes late, a cache that takes time to fill and is
//! worth speed once it is, threads that stop helping where bandwidth ends, and heat. It is not any machine: it has the
//! loops that a policy can fall into. What a plan costs is seen in the next signals.
//!
//! ```
//! use std::time::Duration;
//! use qvl_alloc::governor::simulate::{Load, Machine, run};
//! use qvl_alloc::{Envelope, Governor, Mode};
//!
//! let envelope = Envelope {
//!     threads: 2..=8,
//!     token_budget: 64..=2048,
//!     hot_cache_bytes: 0..=8 << 30,
//!     staging_bytes: 64 << 20..=256 << 20,
//!     prefetch_depth: 1..=9,
//!     reserve_bytes: 1 << 30,
//! };
//! let machine = Machine { load: Load::Step { at_s: 30.0, bytes: 6 << 30 }, ..Machine::new(&envelope) };
//! let mut governor = Governor::new(envelope, Mode::Performance)?;
//! let verdict = run(&machine, Duration::from_secs(120), |now, signals| governor.step(now, signals), |_| {});
//! assert!(!verdict.killed && verdict.oscillations == 0);
//! # Ok::<(), qvl_alloc::Error>(())
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use super::{Envelope, ResourcePlan, Signals};

/// A machine and what happens on it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Memory in all.
    pub capacity_bytes: u64,
    /// Memory of the program that no plan bounds, such as its weights.
    pub fixed_bytes: u64,
    /// What the others have.
    pub load: Load,
    /// The bytes of the largest plan, with which it is fastest.
    pub full_bytes: u64,
    /// The bytes of the smallest plan.
    pub floor_bytes: u64,
    /// The tokens of the largest plan.
    pub full_tokens: usize,
    /// How fast the cache fills up to its plan, in bytes a second. It is emptied at once.
    pub fill_bytes_per_s: f64,
    /// With more than so many bytes available there is no pressure; with none it is 1; between it is linear.
    pub easy_bytes: u64,
    /// For so long more memory may be wanted than there is, before somebody is killed: the system reclaims, and lets
    /// wait whoever asks.
    pub grace_s: f64,
    /// How old the memory signals are.
    pub delay_s: f64,
    /// The most that is added to or taken from the pressure at random.
    pub noise: f64,
    /// From when until when the memory signals stay what they were.
    pub stuck_s: Option<(f64, f64)>,
    /// Whether available and used bytes are known, or the pressure alone.
    pub knows_bytes: bool,
    /// The time of a step in seconds.
    pub step_s: f64,
    /// Threads past which bandwidth ends.
    pub knee_threads: usize,
    /// Tokens a second of one thread, with a full cache.
    pub tokens_per_s: f64,
    /// Share of the speed that is left with an empty cache.
    pub cold_share: f64,
    /// Watts of the machine without work.
    pub idle_watts: f64,
    /// Watts of a thread.
    pub thread_watts: f64,
    /// Watts that can be led away for ever; with more, heat builds up and speed is lost.
    pub cooled_watts: f64,
    /// How fast heat follows watts, in seconds.
    pub heat_s: f64,
}

/// What the others on a machine have, over time.
#[derive(Clone, Debug)]
pub enum Load {
    /// Always as much.
    Steady {
        /// How much.
        bytes: u64,
    },
    /// Nothing, and from one moment on something.
    Step {
        /// When.
        at_s: f64,
        /// How much.
        bytes: u64,
    },
    /// More and more: a leak. It ends at `most_bytes`.
    Ramp {
        /// How fast.
        bytes_per_s: f64,
        /// How much at last.
        most_bytes: u64,
    },
    /// Low for half of a period, then high for half.
    Square {
        /// The period.
        period_s: f64,
        /// How much while it is low.
        low_bytes: u64,
        /// How much while it is high.
        high_bytes: u64,
    },
    /// Rises all through a period and falls at its end.
    Sawtooth {
        /// The period.
        period_s: f64,
        /// How much at last.
        high_bytes: u64,
    },
    /// As it was recorded: so much from each moment on, in the order of time.
    Recorded {
        /// Seconds and bytes.
        points: Vec<(f64, u64)>,
    },
}

/// One step of a run.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// When.
    pub now: Duration,
    /// What the policy was told.
    pub signals: Signals,
    /// What it answered.
    pub plan: ResourcePlan,
    /// What the others have.
    pub others_bytes: u64,
    /// What is available then.
    pub available_bytes: u64,
    /// Tokens a second.
    pub tokens_per_s: f64,
    /// Watts.
    pub watts: f64,
}

/// How a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Verdict {
    /// How often bytes fell after they rose.
    pub oscillations: u32,
    /// How often the bytes changed.
    pub bytes_changes: u32,
    /// How often the threads changed.
    pub threads_changes: u32,
    /// How often the token budget changed.
    pub tokens_changes: u32,
    /// The longest that the bytes stayed what they were while less was possible and the signal said a half or more.
    pub reaction_s: f64,
    /// The same in steps.
    pub reaction_steps: u32,
    /// More memory was wanted than there is, for longer than is forgiven.
    pub killed: bool,
    /// When anything changed for the last time.
    pub settled_s: f64,
    /// When the bytes changed for the last time.
    pub bytes_settled_s: f64,
    /// Tokens of those that all threads and a full cache would have made on a cool machine.
    pub mean_throughput_share: f64,
    /// Joules a token.
    pub joules_per_token: f64,
    /// The mean of the watts in the second half.
    pub late_watts: f64,
}

impl Machine {
    /// A quiet machine on which the whole envelope fits, with the reserve twice beside it.
    pub fn new(envelope: &Envelope) -> Self {
        let most = envelope.hot_cache_bytes.end().saturating_add(*envelope.staging_bytes.end());
        let reserve = envelope.reserve_bytes;
        Self {
            capacity_bytes: most.saturating_add(reserve.saturating_mul(2)),
            fixed_bytes: 0,
            full_bytes: most,
            floor_bytes: envelope.hot_cache_bytes.start().saturating_add(*envelope.staging_bytes.start()),
            full_tokens: *envelope.token_budget.end(),
            load: Load::Steady { bytes: 0 },
            fill_bytes_per_s: most as f64 / 10.0,
            easy_bytes: reserve.saturating_mul(2),
            grace_s: 1.0,
            delay_s: 0.0,
            noise: 0.0,
            stuck_s: None,
            knows_bytes: true,
            step_s: 0.1,
            knee_threads: *envelope.threads.end(),
            tokens_per_s: 10.0,
            cold_share: 0.1,
            idle_watts: 10.0,
            thread_watts: 5.0,
            cooled_watts: f64::INFINITY,
            heat_s: 20.0,
        }
    }
}

impl Load {
    /// Bytes that the others have after so many seconds.
    pub fn bytes(&self, now_s: f64) -> u64 {
        match self {
            Self::Steady { bytes } => *bytes,
            Self::Step { at_s, bytes } => {
                if now_s >= *at_s {
                    *bytes
                } else {
                    0
                }
            }
            Self::Ramp { bytes_per_s, most_bytes } => ((bytes_per_s * now_s) as u64).min(*most_bytes),
            Self::Square { period_s, low_bytes, high_bytes } => {
                if (now_s / period_s).fract() < 0.5 {
                    *low_bytes
                } else {
                    *high_bytes
                }
            }
            Self::Sawtooth { period_s, high_bytes } => {
                (*high_bytes as f64 * (now_s / period_s).fract()) as u64
            }
            Self::Recorded { points } => {
                points.iter().take_while(|(at_s, _)| *at_s <= now_s).last().map_or(0, |(_, bytes)| *bytes)
            }
        }
    }
}

/// Runs a policy on a machine. `seen` is told each step.
pub fn run(
    machine: &Machine,
    time: Duration,
    mut policy: impl FnMut(Duration, &Signals) -> ResourcePlan,
    mut seen: impl FnMut(&Moment),
) -> Verdict {
    let mut state = State::new();
    let mut judge = Judge::default();
    let steps = (time.as_secs_f64() / machine.step_s) as u64;
    for step in 0..steps {
        let now_s = step as f64 * machine.step_s;
        let now = Duration::from_secs_f64(now_s);
        let signals = state.signals(machine, now_s);
        let plan = policy(now, &signals);
        let moment = state.advance(machine, now_s, signals, plan);
        judge.see(machine, &moment, step * 2 >= steps);
        seen(&moment);
    }
    judge.verdict.killed = state.killed;
    judge.finish()
}

/// What changes on a machine.
struct State {
    filled_bytes: u64,
    plan: Option<ResourcePlan>,
    /// Memory signals on their way: when they were measured, pressure, available, used.
    late: VecDeque<(f64, f64, u64, u64)>,
    told: Option<(f64, u64, u64)>,
    /// Watts that the heat has caught up with.
    heat_watts: f64,
    tokens_per_s: f64,
    watts: f64,
    short_since_s: Option<f64>,
    killed: bool,
    random: u64,
}

impl State {
    fn new() -> Self {
        Self {
            filled_bytes: 0,
            plan: None,
            late: VecDeque::new(),
            told: None,
            heat_watts: 0.0,
            tokens_per_s: 0.0,
            watts: 0.0,
            short_since_s: None,
            killed: false,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn signals(&mut self, machine: &Machine, now_s: f64) -> Signals {
        let available = available(machine, now_s, self.filled_bytes);
        let missing = 1.0 - available as f64 / machine.easy_bytes.max(1) as f64;
        let pressure = (missing + machine.noise * self.chance()).clamp(0.0, 1.0);
        self.late.push_back((now_s, pressure, available, self.filled_bytes));
        let stuck = machine.stuck_s.is_some_and(|(from, until)| (from..until).contains(&now_s));
        // One step of tolerance, so that a delay of a number of steps is that many.
        while let Some((_, pressure, available, used)) =
            self.late.pop_front_if(|(at_s, ..)| *at_s <= now_s - machine.delay_s + machine.step_s * 1e-6)
        {
            if !stuck || self.told.is_none() {
                self.told = Some((pressure, available, used));
            }
        }
        let told = self.told;
        let bytes = told.filter(|_| machine.knows_bytes);
        let throttled = throttled(machine, self.heat_watts);
        Signals {
            memory_pressure: told.map(|(pressure, ..)| pressure),
            available_bytes: bytes.map(|(_, available, _)| available),
            used_bytes: bytes.map(|(.., used)| used),
            throttled_share: Some(throttled),
            watts: self.plan.map(|_| self.watts),
            tokens_per_s: self.plan.map(|_| self.tokens_per_s),
            ..Signals::default()
        }
    }

    fn advance(&mut self, machine: &Machine, now_s: f64, signals: Signals, plan: ResourcePlan) -> Moment {
        let planned = plan.hot_cache_bytes.saturating_add(plan.staging_bytes);
        let filled = self.filled_bytes.saturating_add((machine.fill_bytes_per_s * machine.step_s) as u64);
        self.filled_bytes = filled.min(planned);
        self.plan = Some(plan);
        let others_bytes = machine.load.bytes(now_s);
        let wanted = others_bytes.saturating_add(machine.fixed_bytes).saturating_add(self.filled_bytes);
        if wanted > machine.capacity_bytes {
            let since = *self.short_since_s.get_or_insert(now_s);
            self.killed |= now_s - since > machine.grace_s;
        } else {
            self.short_since_s = None;
        }
        // Where memory is short, each token waits for pages.
        let stalled = if wanted > machine.capacity_bytes { 0.05 } else { 1.0 };
        let cached = self.filled_bytes as f64 / machine.full_bytes.max(1) as f64;
        let cached = machine.cold_share + (1.0 - machine.cold_share) * cached.min(1.0);
        let throttled = throttled(machine, self.heat_watts);
        let working = plan.threads.min(machine.knee_threads) as f64;
        self.tokens_per_s = machine.tokens_per_s * working * cached * stalled * (1.0 - throttled);
        // Fewer tokens a step leave pauses, down to a quarter of the draw.
        let busy = 0.25 + 0.75 * plan.token_budget as f64 / machine.full_tokens.max(1) as f64;
        self.watts = machine.idle_watts + machine.thread_watts * plan.threads as f64 * busy.min(1.0);
        self.heat_watts += (self.watts - self.heat_watts) * (machine.step_s / machine.heat_s).min(1.0);
        Moment {
            now: Duration::from_secs_f64(now_s),
            signals,
            plan,
            others_bytes,
            available_bytes: available(machine, now_s, self.filled_bytes),
            tokens_per_s: self.tokens_per_s,
            watts: self.watts,
        }
    }

    /// From -1 to 1 (xorshift; Marsaglia, "Xorshift RNGs", 2003).
    fn chance(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

fn available(machine: &Machine, now_s: f64, filled_bytes: u64) -> u64 {
    let taken = machine.load.bytes(now_s).saturating_add(machine.fixed_bytes).saturating_add(filled_bytes);
    machine.capacity_bytes.saturating_sub(taken)
}

fn throttled(machine: &Machine, heat_watts: f64) -> f64 {
    if heat_watts <= machine.cooled_watts { 0.0 } else { (1.0 - machine.cooled_watts / heat_watts).min(0.9) }
}

/// Keeps count.
#[derive(Default)]
struct Judge {
    verdict: Verdict,
    last: Option<ResourcePlan>,
    rose: bool,
    /// Since when the signal says a half or more and nothing was given back.
    waiting: Option<(f64, u32)>,
    tokens: f64,
    best_tokens: f64,
    joules: f64,
    late: (f64, u32),
}

impl Judge {
    fn see(&mut self, machine: &Machine, moment: &Moment, late: bool) {
        let now_s = moment.now.as_secs_f64();
        let plan = moment.plan;
        let bytes = |plan: &ResourcePlan| plan.hot_cache_bytes.saturating_add(plan.staging_bytes);
        let verdict = &mut self.verdict;
        let mut fell = false;
        if let Some(last) = self.last.replace(plan) {
            let (before, after) = (bytes(&last), bytes(&plan));
            if before != after {
                verdict.bytes_changes += 1;
                verdict.bytes_settled_s = now_s;
                fell = after < before;
                verdict.oscillations += u32::from(fell && self.rose);
                self.rose = !fell;
            }
            verdict.threads_changes += u32::from(last.threads != plan.threads);
            verdict.tokens_changes += u32::from(last.token_budget != plan.token_budget);
            if last != plan {
                verdict.settled_s = now_s;
            }
        }
        let pressed = moment.signals.memory_pressure.is_some_and(|pressure| pressure >= 0.5);
        if pressed && bytes(&plan) > machine.floor_bytes {
            let (since, steps) = self.waiting.filter(|_| !fell).unwrap_or((now_s, 0));
            verdict.reaction_s = verdict.reaction_s.max(now_s - since);
            verdict.reaction_steps = verdict.reaction_steps.max(steps);
            self.waiting = Some((since, steps + 1));
        } else {
            self.waiting = None;
        }
        self.tokens += moment.tokens_per_s * machine.step_s;
        self.best_tokens += machine.tokens_per_s * machine.knee_threads as f64 * machine.step_s;
        self.joules += moment.watts * machine.step_s;
        if late {
            self.late = (self.late.0 + moment.watts, self.late.1 + 1);
        }
    }

    fn finish(mut self) -> Verdict {
        self.verdict.mean_throughput_share = self.tokens / self.best_tokens.max(f64::MIN_POSITIVE);
        self.verdict.joules_per_token = self.joules / self.tokens.max(f64::MIN_POSITIVE);
        self.verdict.late_watts = self.late.0 / f64::from(self.late.1.max(1));
        self.verdict
    }
}
