//! How much of the machine may be used, from pressure, power and what was measured. Pure.
//!
//! A governor is told what the machine says and answers with a plan inside an [`Envelope`]. It has no thread and no
//! clock: whoever steps it says what time it is, so a run can be repeated to the last bit, and [`simulate`] tries a
//! policy on hours of a machine in milliseconds.
//!
//! - Bytes (hot cache, staging, read-ahead) follow memory. They are halved at once and grow back part by part after a
//!   time of calm, slower each time it went wrong (`ratchet.rs`).
//! - Threads and the token budget follow power: heat takes threads away one part at a time (the same ratchet), a
//!   target in watts is held by a controller (`watts.rs`), and what costs the fewest joules is found by trying
//!   (`climb.rs`). Only one of the last two runs, since two that steer one figure hunt each other.
//!
//! Memory does not steer threads and power does not steer bytes, so neither loop sees the other's moves.
//!
//! What holds for the bytes, whatever is signalled: they fall no later than 100 ms and a step after pressure begins,
//! at once when it is critical; they are at the least within 4 falls, 500 ms apart (2 steps when it is critical); they
//! rise no sooner than after 5 s of calm and then every 4 s; and within a time `T` they fall after a rise no more than
//! `6 + T / 160 s` times. A signal that is late by more than a few seconds costs memory, and is safe only if the
//! reserve is as large as what is filled meanwhile.

mod climb;
mod memory;
mod power;
mod ratchet;
pub mod simulate;
mod watts;
mod why;

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::{Error, Result};
use memory::Memory;
use power::Power;
pub use why::{BytesBound, ThreadsBound, TokensBound, Why};

/// What the machine says now. What is not known is `None`; what cannot be (not finite, negative, a share above 1) is
/// taken as not known and counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signals {
    /// How short of memory the machine is: 0 is plenty, 1 is about to be killed.
    pub memory_pressure: Option<f64>,
    /// Bytes that could be taken without anybody being the worse for it.
    pub available_bytes: Option<u64>,
    /// Of the hot cache and the staging, the bytes that are filled. A plan that was raised is not filled yet, and what
    /// is available will still be less by the difference; without this figure it is taken as filled.
    pub used_bytes: Option<u64>,
    /// Whether it runs on a battery.
    pub on_battery: Option<bool>,
    /// How full the battery is, 0 to 1.
    pub charge_share: Option<f64>,
    /// The share of its speed that the machine takes away because of heat, 0 to 1.
    pub throttled_share: Option<f64>,
    /// Watts that are drawn.
    pub watts: Option<f64>,
    /// Tokens a second, measured since the last step. 0 while there is no work.
    pub tokens_per_s: Option<f64>,
    /// Joules a token; where it is not known it is `watts / tokens_per_s`.
    pub joules_per_token: Option<f64>,
}

/// The least and the most of each resource. Both ends are included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Threads; at least 1 and at most 65536.
    pub threads: RangeInclusive<usize>,
    /// Tokens of a step; at least 1.
    pub token_budget: RangeInclusive<usize>,
    /// Bytes of the hot cache.
    pub hot_cache_bytes: RangeInclusive<u64>,
    /// Bytes of the staging buffers.
    pub staging_bytes: RangeInclusive<u64>,
    /// Items read ahead.
    pub prefetch_depth: RangeInclusive<usize>,
    /// Available bytes that are left to others: with fewer than these something is given back.
    pub reserve_bytes: u64,
}

/// What may be used until the next step. Always inside the [`Envelope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourcePlan {
    /// Threads that compute.
    pub threads: usize,
    /// Most tokens of a step.
    pub token_budget: usize,
    /// Bytes of the hot cache.
    pub hot_cache_bytes: u64,
    /// Bytes of the staging buffers.
    pub staging_bytes: u64,
    /// Items read ahead.
    pub prefetch_depth: usize,
}

/// What matters more, speed or energy. On a battery each mode is as the next one is on mains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// All threads.
    Performance,
    /// The fewest joule-seconds a token: half the time is worth twice the energy (the energy-delay product).
    #[default]
    Balanced,
    /// The fewest joules a token.
    Saver,
}

/// What must be kept, whatever the mode.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Target {
    /// Nothing but the mode.
    #[default]
    None,
    /// No more than so many watts, on the average of a few seconds and to within 2 %.
    Watts(f64),
    /// No more than so many joules a token, with as many threads as that allows.
    JoulesPerToken(f64),
}

/// Decides how much may be used. [`step`](Self::step) takes constant time and does not block.
///
/// ```
/// use std::time::Duration;
/// use qvl_alloc::{Envelope, Governor, Mode, Signals};
///
/// let envelope = Envelope {
///     threads: 2..=8,
///     token_budget: 64..=2048,
///     hot_cache_bytes: 0..=8 << 30,
///     staging_bytes: 16 << 20..=256 << 20,
///     prefetch_depth: 1..=9,
///     reserve_bytes: 1 << 30,
/// };
/// let mut governor = Governor::new(envelope, Mode::Performance)?;
/// let plenty = Signals { available_bytes: Some(32 << 30), ..Signals::default() };
/// assert_eq!(governor.step(Duration::ZERO, &plenty).hot_cache_bytes, 8 << 30);
///
/// let short = Signals { available_bytes: Some(100 << 20), memory_pressure: Some(0.9), ..Signals::default() };
/// assert_eq!(governor.step(Duration::from_millis(100), &short).hot_cache_bytes, 2 << 30);
/// println!("{}", governor.why());
/// # Ok::<(), qvl_alloc::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Governor {
    envelope: Envelope,
    memory: Memory,
    power: Power,
    /// The latest time that was said: one that goes back is taken as this one.
    now: Duration,
    ignored_signals: u64,
}

/// Parts that bytes are cut into: a plan has least + n/8 of what lies between least and most. Fewer parts would waste
/// memory, more would change the plan for less than it costs to change a cache.
pub const PARTS: u32 = 8;

impl Governor {
    /// A governor that has seen nothing yet.
    ///
    /// # Errors
    /// [`Error::Setting`] names a range of the envelope that is empty, begins at 0 where that cannot be, or has too many threads.
    pub fn new(envelope: Envelope, mode: Mode) -> Result<Self> {
        check(&envelope)?;
        let power = Power::new(&envelope, mode);
        Ok(Self { envelope, memory: Memory::default(), power, now: Duration::ZERO, ignored_signals: 0 })
    }

    /// The same with a target.
    ///
    /// # Errors
    /// [`Error::Setting`] if the target is not a finite number above 0.
    pub fn with_target(mut self, target: Target) -> Result<Self> {
        self.set_target(target)?;
        Ok(self)
    }

    /// Another target from the next step on.
    ///
    /// # Errors
    /// As [`Self::with_target`]; the old target stays.
    pub fn set_target(&mut self, target: Target) -> Result<()> {
        let figure = match target {
            Target::None => None,
            Target::Watts(value) => Some(("target watts", value)),
            Target::JoulesPerToken(value) => Some(("target joules_per_token", value)),
        };
        if let Some((name, value)) = figure
            && !(value.is_finite() && value > 0.0)
        {
            return Err(Error::Setting {
                name,
                got: value.to_string(),
                expected: "a finite number above 0 is needed".to_owned(),
            });
        }
        self.power.set_target(target);
        Ok(())
    }

    /// Another mode from the next step on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.power.set_mode(mode);
    }

    /// The plan until the next step. `now` counts from any fixed moment; a time before that of the last step is taken
    /// as the same. Steps of 50 ms to 1 s are usual: memory that runs out is seen no sooner than at a step.
    pub fn step(&mut self, now: Duration, signals: &Signals) -> ResourcePlan {
        self.now = self.now.max(now);
        let (signals, ignored) = known(signals);
        self.ignored_signals = self.ignored_signals.saturating_add(ignored);
        self.memory.step(self.now, &signals, &self.envelope);
        self.power.step(self.now, &signals);
        self.plan()
    }

    /// The plan in force, without a step.
    pub fn plan(&self) -> ResourcePlan {
        let part = self.memory.part();
        let Envelope { token_budget, hot_cache_bytes, staging_bytes, prefetch_depth, .. } = &self.envelope;
        ResourcePlan {
            threads: self.power.threads(),
            token_budget: part_of_count(token_budget, self.power.token_part()),
            hot_cache_bytes: part_of(hot_cache_bytes, part),
            staging_bytes: part_of(staging_bytes, part),
            prefetch_depth: part_of_count(prefetch_depth, part),
        }
    }

    /// What bounds each figure of the plan.
    pub fn why(&self) -> Why {
        Why {
            bytes: self.memory.why(self.now),
            threads: self.power.why_threads(),
            tokens: self.power.why_tokens(),
        }
    }

    /// How many signals were taken as not known because they cannot be.
    pub fn ignored_signals(&self) -> u64 {
        self.ignored_signals
    }
}

/// Bytes of the plan in part `part` of [`PARTS`].
fn planned_bytes(envelope: &Envelope, part: u32) -> u64 {
    part_of(&envelope.hot_cache_bytes, part).saturating_add(part_of(&envelope.staging_bytes, part))
}

/// Least and so many parts of what lies between, rounded down: less is always right.
fn part_of(range: &RangeInclusive<u64>, part: u32) -> u64 {
    let between = u128::from(range.end() - range.start());
    // A part of what lies between is no more than that, which is a `u64`.
    range.start() + (between * u128::from(part.min(PARTS)) / u128::from(PARTS)) as u64
}

fn part_of_count(range: &RangeInclusive<usize>, part: u32) -> usize {
    part_of(&(*range.start() as u64..=*range.end() as u64), part) as usize
}

fn check(envelope: &Envelope) -> Result<()> {
    let Envelope { threads, token_budget, hot_cache_bytes, staging_bytes, prefetch_depth, reserve_bytes: _ } =
        envelope;
    check_range("threads", threads, 1)?;
    if *threads.end() > THREADS_MAX {
        return Err(Error::Setting {
            name: "threads",
            got: format!("{}..={}", threads.start(), threads.end()),
            expected: format!("no more than {THREADS_MAX} are needed"),
        });
    }
    check_range("token_budget", token_budget, 1)?;
    check_range("hot_cache_bytes", hot_cache_bytes, 0)?;
    check_range("staging_bytes", staging_bytes, 0)?;
    check_range("prefetch_depth", prefetch_depth, 0)
}

fn check_range<T: PartialOrd + std::fmt::Display>(
    name: &'static str,
    range: &RangeInclusive<T>,
    least: T,
) -> Result<()> {
    if range.start() <= range.end() && *range.start() >= least {
        return Ok(());
    }
    Err(Error::Setting {
        name,
        got: format!("{}..={}", range.start(), range.end()),
        expected: format!(
            "a range that begins at {least} or more and does not end before it begins is needed"
        ),
    })
}

/// The signals without those that cannot be, and how many those were.
fn known(signals: &Signals) -> (Signals, u64) {
    let mut known = *signals;
    let mut ignored = 0;
    let mut keep = |value: &mut Option<f64>, most: f64| {
        if value.is_some_and(|value| !(0.0..=most).contains(&value)) {
            *value = None;
            ignored += 1;
        }
    };
    keep(&mut known.memory_pressure, 1.0);
    keep(&mut known.charge_share, 1.0);
    keep(&mut known.throttled_share, 1.0);
    // No machine draws a gigawatt, and what is below that stays finite in any sum of steps.
    keep(&mut known.watts, ABSURD);
    keep(&mut known.tokens_per_s, ABSURD);
    keep(&mut known.joules_per_token, ABSURD);
    (known, ignored)
}

const ABSURD: f64 = 1e9;

/// More than any machine has, and few enough to be counted in any type here.
const THREADS_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::governor) fn envelope() -> Envelope {
        Envelope {
            threads: 2..=10,
            token_budget: 64..=2048,
            hot_cache_bytes: 0..=800,
            staging_bytes: 10..=90,
            prefetch_depth: 1..=9,
            reserve_bytes: 100,
        }
    }

    #[test]
    fn parts_reach_both_ends_and_do_not_overflow() {
        assert_eq!(part_of(&(7..=u64::MAX), 0), 7);
        assert_eq!(part_of(&(7..=u64::MAX), PARTS), u64::MAX);
        assert_eq!(part_of(&(10..=90), 4), 50);
        assert_eq!(part_of(&(5..=5), 3), 5);
    }

    #[test]
    fn an_envelope_that_cannot_be_is_named() {
        #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
        let error = Governor::new(Envelope { threads: 4..=2, ..envelope() }, Mode::Saver).unwrap_err();
        assert!(error.to_string().starts_with("threads is 4..=2:"), "{error}");
        let error =
            Governor::new(Envelope { threads: 1..=usize::MAX, ..envelope() }, Mode::Saver).unwrap_err();
        assert!(error.to_string().contains("no more than 65536"), "{error}");
        let error = Governor::new(Envelope { token_budget: 0..=2, ..envelope() }, Mode::Saver).unwrap_err();
        assert!(error.to_string().starts_with("token_budget is 0..=2:"), "{error}");
    }

    #[test]
    fn a_target_that_cannot_be_is_refused_and_the_old_one_stays() {
        let mut governor = Governor::new(envelope(), Mode::Balanced).unwrap();
        for value in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
            assert!(governor.set_target(Target::Watts(value)).is_err());
            assert!(governor.set_target(Target::JoulesPerToken(value)).is_err());
        }
        assert!(governor.set_target(Target::Watts(15.0)).is_ok());
    }

    #[test]
    fn what_cannot_be_is_not_known_and_counted() {
        let signals = Signals {
            memory_pressure: Some(f64::NAN),
            charge_share: Some(1.5),
            throttled_share: Some(-0.1),
            watts: Some(f64::INFINITY),
            tokens_per_s: Some(10.0),
            ..Signals::default()
        };
        let (known, ignored) = known(&signals);
        assert_eq!(ignored, 4);
        assert_eq!(known, Signals { tokens_per_s: Some(10.0), ..Signals::default() });
    }
}
