//! Threads and the token budget follow power: the mode, the battery, heat and the target.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::climb::{Climb, Objective, Phase, Sample};
use super::ratchet::{Around, Fall, Ratchet, Reading, Timing};
use super::watts::Watts;
use super::why::{ThreadsBound, TokensBound};
use super::{Envelope, Mode, PARTS, Signals, Target, part_of_count};

#[derive(Clone, Debug)]
pub(super) struct Power {
    threads: RangeInclusive<usize>,
    mode: Mode,
    target: Target,
    supply: Supply,
    heat: Option<Ratchet>,
    steering: Steering,
}

/// The one thing that steers threads, heat aside.
#[derive(Clone, Debug)]
enum Steering {
    /// All of them.
    All,
    Climb(Climb),
    Watts(Watts),
}

/// What is known of the battery.
#[derive(Clone, Copy, Debug, Default)]
struct Supply {
    on_battery: bool,
    /// What the machine says, since when, and whether it had turned not long before.
    says: bool,
    turned_at: Option<Duration>,
    again: bool,
    low: bool,
}

/// The share of speed lost to heat from which on threads are taken, and the one below which it is cool.
const HOT: f64 = 0.15;
const COOL: f64 = 0.05;

const HEAT: Timing = Timing {
    // Short peaks are what turbo is for.
    confirm: Duration::from_secs(2),
    // A heat sink takes some seconds to follow.
    settle: Duration::from_secs(6),
    rise: Duration::from_secs(20),
    calm: Duration::from_secs(30),
    doublings_max: 4,
    // Speed lost to heat is small at first, so one step down is often all there is to do.
    fall: Fall::One,
};

/// A plug that is pulled and put back within so long changes nothing.
const SUPPLY_CONFIRM: Duration = Duration::from_secs(2);
/// A loose plug: it turned a short time ago already, so this time it must last.
const SUPPLY_REST: Duration = Duration::from_secs(60);
const SUPPLY_CONFIRM_AGAIN: Duration = Duration::from_secs(30);
/// A battery is low below the first and no more from the second on.
const CHARGE_LOW: f64 = 0.20;
const CHARGE_ENOUGH: f64 = 0.25;

impl Power {
    pub(super) fn new(envelope: &Envelope, mode: Mode) -> Self {
        let mut power = Self {
            threads: envelope.threads.clone(),
            mode,
            target: Target::None,
            supply: Supply::default(),
            heat: None,
            steering: Steering::All,
        };
        power.steer(Duration::ZERO);
        power
    }

    pub(super) fn set_target(&mut self, target: Target) {
        self.target = target;
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    pub(super) fn step(&mut self, now: Duration, signals: &Signals) {
        self.supply.step(now, signals);
        self.step_heat(now, signals);
        self.steer(now);
        let (allowed, threads) = (self.allowed_by_heat(), self.threads());
        let least = *self.threads.start();
        match &mut self.steering {
            Steering::All => {}
            Steering::Climb(climb) => climb.step(now, sample(signals), allowed < climb.threads()),
            Steering::Watts(watts) => {
                let limited = threads < threads_of(least, watts.count());
                let applied = if limited { count_of(least, threads) } else { watts.count() };
                watts.step(now, signals.watts, applied);
            }
        }
    }

    fn step_heat(&mut self, now: Duration, signals: &Signals) {
        let heat = self.heat.get_or_insert_with(|| Ratchet::new(HEAT, PARTS, PARTS, now));
        // A machine that does not say is not known to be hot, nor to be cool.
        let reading = signals.throttled_share.map_or(Reading::Between, |share| match share {
            // Heat lasts: also when it is worst, each step down is given the time to be felt.
            HOT.. => Reading::Pressed,
            ..=COOL => Reading::Calm,
            _ => Reading::Between,
        });
        heat.step(now, reading, Around { used: heat.level(), fall_to: PARTS, room: true });
    }

    /// Takes what steers, if the conditions ask for another.
    fn steer(&mut self, now: Duration) {
        let objective = match self.target {
            Target::Watts(target) => {
                if !matches!(&self.steering, Steering::Watts(watts) if watts.target() == target) {
                    let most = TOKEN_PARTS + (self.threads.end() - self.threads.start()) as u32;
                    self.steering = Steering::Watts(Watts::new(target, most, now));
                }
                return;
            }
            Target::JoulesPerToken(enough) => Some(Objective::Enough(enough)),
            Target::None => self.objective(),
        };
        match (objective, &mut self.steering) {
            (None, steering) => *steering = Steering::All,
            (Some(objective), Steering::Climb(climb)) => {
                if climb.objective() != objective {
                    climb.restart(now, objective);
                }
            }
            (Some(objective), steering) => {
                *steering = Steering::Climb(Climb::new(&self.threads, objective, now));
            }
        }
    }

    fn objective(&self) -> Option<Objective> {
        if self.supply.low {
            return Some(Objective::Energy);
        }
        match (self.mode, self.supply.on_battery) {
            (Mode::Performance, false) => None,
            (Mode::Performance, true) | (Mode::Balanced, false) => Some(Objective::EnergyDelay),
            (Mode::Balanced, true) | (Mode::Saver, _) => Some(Objective::Energy),
        }
    }

    pub(super) fn threads(&self) -> usize {
        self.steered().min(self.allowed_by_heat())
    }

    fn steered(&self) -> usize {
        match &self.steering {
            Steering::All => *self.threads.end(),
            Steering::Climb(climb) => climb.threads(),
            Steering::Watts(watts) => threads_of(*self.threads.start(), watts.count()),
        }
    }

    fn allowed_by_heat(&self) -> usize {
        let level = self.heat.as_ref().map_or(PARTS, Ratchet::level);
        part_of_count(&self.threads, level)
    }

    /// Of [`PARTS`].
    pub(super) fn token_part(&self) -> u32 {
        let by_watts = match &self.steering {
            Steering::Watts(watts) => watts.count().min(TOKEN_PARTS),
            Steering::All | Steering::Climb(_) => PARTS,
        };
        // A long step on a battery that is nearly empty is one that may not end; and where the fewest threads are
        // still too hot, shorter steps leave pauses between them.
        let halved = self.supply.low || self.scorched();
        by_watts.min(if halved { PARTS / 2 } else { PARTS })
    }

    fn scorched(&self) -> bool {
        self.heat.as_ref().is_some_and(|heat| heat.level() == 0)
    }

    pub(super) fn why_threads(&self) -> ThreadsBound {
        let threads = self.threads();
        if self.allowed_by_heat() < self.steered() {
            return ThreadsBound::Heat { threads };
        }
        match &self.steering {
            Steering::All => ThreadsBound::Envelope { threads },
            Steering::Watts(_) => match self.target {
                Target::Watts(target) => ThreadsBound::Watts { threads, target },
                Target::None | Target::JoulesPerToken(_) => ThreadsBound::Envelope { threads },
            },
            Steering::Climb(climb) if !climb.has_measured() => ThreadsBound::Unmeasured { threads },
            Steering::Climb(climb) if climb.phase() == Phase::Held => ThreadsBound::Found { threads },
            Steering::Climb(_) => ThreadsBound::Trial { threads },
        }
    }

    pub(super) fn why_tokens(&self) -> TokensBound {
        match self.token_part() {
            PARTS => TokensBound::Envelope,
            part if self.supply.low => TokensBound::Charge { part },
            part if self.scorched() => TokensBound::Heat { part },
            part => TokensBound::Watts { part },
        }
    }
}

/// Counts of the controller that are parts of the token budget; those above are threads. Threads go first on the way
/// down, since the last of them draw the most for the least.
const TOKEN_PARTS: u32 = PARTS;

fn threads_of(least: usize, count: u32) -> usize {
    least + count.saturating_sub(TOKEN_PARTS) as usize
}

fn count_of(least: usize, threads: usize) -> u32 {
    TOKEN_PARTS + (threads - least) as u32
}

fn sample(signals: &Signals) -> Option<Sample> {
    let tokens_per_s = signals.tokens_per_s?;
    let joules_per_token = match (signals.joules_per_token, signals.watts) {
        (Some(joules), _) => joules,
        (None, Some(watts)) if tokens_per_s > 0.0 => watts / tokens_per_s,
        (None, _) => return None,
    };
    Some(Sample { tokens_per_s, joules_per_token })
}

impl Supply {
    fn step(&mut self, now: Duration, signals: &Signals) {
        if let Some(says) = signals.on_battery {
            if says != self.says {
                self.again = self.turned_at.is_some_and(|at| now - at < SUPPLY_REST);
                (self.says, self.turned_at) = (says, Some(now));
            }
            let confirm = if self.again { SUPPLY_CONFIRM_AGAIN } else { SUPPLY_CONFIRM };
            if self.turned_at.is_some_and(|at| now - at >= confirm) {
                self.on_battery = says;
            }
        }
        let charge = signals.charge_share;
        let low_until = if self.low { CHARGE_ENOUGH } else { CHARGE_LOW };
        self.low = self.on_battery && charge.map_or(self.low, |charge| charge < low_until);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::envelope;
    use super::*;

    fn run(power: &mut Power, seconds: std::ops::Range<u64>, signals: impl Fn(&Power) -> Signals) {
        for second in seconds {
            let signals = signals(power);
            power.step(Duration::from_secs(second), &signals);
        }
    }

    #[test]
    fn performance_on_mains_has_all_and_a_battery_is_believed_after_a_while() {
        let mut power = Power::new(&envelope(), Mode::Performance);
        run(&mut power, 0..10, |_| Signals::default());
        assert_eq!((power.threads(), power.why_threads()), (10, ThreadsBound::Envelope { threads: 10 }));
        let battery =
            |_: &Power| Signals { on_battery: Some(true), charge_share: Some(0.1), ..Signals::default() };
        run(&mut power, 10..12, battery);
        assert_eq!((power.threads(), power.token_part()), (10, PARTS));
        run(&mut power, 12..14, battery);
        assert_eq!((power.threads(), power.why_threads()), (5, ThreadsBound::Unmeasured { threads: 5 }));
        assert_eq!((power.token_part(), power.why_tokens()), (4, TokensBound::Charge { part: 4 }));
    }

    #[test]
    fn a_charge_between_the_two_thresholds_changes_nothing() {
        let mut power = Power::new(&envelope(), Mode::Saver);
        let charge = |share| {
            move |_: &Power| Signals {
                on_battery: Some(true),
                charge_share: Some(share),
                ..Signals::default()
            }
        };
        run(&mut power, 0..10, charge(0.22));
        assert_eq!(power.token_part(), PARTS);
        run(&mut power, 10..20, charge(0.19));
        assert_eq!(power.token_part(), 4);
        run(&mut power, 20..30, charge(0.22));
        assert_eq!(power.token_part(), 4);
        run(&mut power, 30..40, charge(0.26));
        assert_eq!(power.token_part(), PARTS);
    }

    #[test]
    fn heat_takes_one_part_at_a_time_and_gives_back_slowly() {
        let mut power = Power::new(&envelope(), Mode::Performance);
        let hot = |power: &Power| Signals {
            throttled_share: Some(if power.threads() > 7 { 0.3 } else { 0.0 }),
            ..Signals::default()
        };
        run(&mut power, 0..30, hot);
        assert_eq!((power.threads(), power.why_threads()), (7, ThreadsBound::Heat { threads: 7 }));
        let mut changes = 0;
        for second in 30..3600 {
            let before = power.threads();
            let signals = hot(&power);
            power.step(Duration::from_secs(second), &signals);
            changes += u32::from(before != power.threads());
            assert!(power.threads() >= 7, "one step up is tried, and taken back");
        }
        assert!((2..=16).contains(&changes), "{changes}");
    }

    #[test]
    fn what_is_measured_while_heat_allows_less_is_not_of_that_rung() {
        let mut power = Power::new(&envelope(), Mode::Balanced);
        run(&mut power, 0..60, |_| Signals {
            throttled_share: Some(0.5),
            watts: Some(50.0),
            tokens_per_s: Some(10.0),
            ..Signals::default()
        });
        assert!(matches!(&power.steering, Steering::Climb(climb) if climb.phase() != Phase::Held));
    }

    #[test]
    fn a_loose_plug_changes_the_plan_once() {
        let mut power = Power::new(&envelope(), Mode::Balanced);
        let mut changes = 0;
        for second in 0..3600 {
            let before = power.threads();
            let on_battery = Some(second / 5 % 2 == 1);
            power.step(Duration::from_secs(second), &Signals { on_battery, ..Signals::default() });
            changes += u32::from(before != power.threads());
        }
        assert_eq!(changes, 1);
    }
}
