//! Bytes follow memory: two signals become one reading, and a ratchet does the rest.

use std::time::Duration;

use super::ratchet::{Around, Fall, Ratchet, Reading, Timing};
use super::why::BytesBound;
use super::{Envelope, PARTS, Signals, planned_bytes};

/// What the bytes have: a part of [`PARTS`].
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// `None` until the first step.
    ratchet: Option<Ratchet>,
    last: Option<Reading>,
    /// The last step had calm, but no room to rise.
    full: bool,
}

/// From here on something is given back.
const PRESSED: f64 = 0.5;
/// Up to here it is calm. The band above it is as wide as the noise of averages over ten seconds.
const CALM: f64 = 0.3;
/// From here on there is no waiting.
const CRITICAL: f64 = 0.85;

const TIMING: Timing = Timing {
    // One value may be wrong; two in 100 ms are not by chance.
    confirm: Duration::from_millis(100),
    // Giving back a cache and seeing that in the next figures takes some hundreds of milliseconds.
    settle: Duration::from_millis(500),
    // Filling an eighth of a cache takes seconds, and only then is its effect seen.
    rise: Duration::from_secs(4),
    calm: Duration::from_secs(5),
    // To 160 s, and so a trial of the wall every 11 minutes.
    doublings_max: 5,
    fall: Fall::Halve,
};

impl Memory {
    pub(super) fn step(&mut self, now: Duration, signals: &Signals, envelope: &Envelope) {
        let reading = reading(signals, envelope.reserve_bytes);
        let ratchet =
            self.ratchet.get_or_insert_with(|| Ratchet::new(TIMING, start(signals, envelope), PARTS, now));
        let part = ratchet.level();
        let planned = planned_bytes(envelope, part);
        let used = signals.used_bytes.map_or(planned, |used| used.min(planned));
        let room = part < PARTS && has_room(signals, envelope, part, used);
        // Half may be less than what is missing.
        let missing =
            signals.available_bytes.map_or(0, |available| envelope.reserve_bytes.saturating_sub(available));
        let fall_to = part_within(envelope, used.saturating_sub(missing));
        ratchet.step(
            now,
            reading.unwrap_or(Reading::Between),
            Around { used: part_over(envelope, used), fall_to, room },
        );
        self.last = reading;
        self.full = reading == Some(Reading::Calm) && !room && part < PARTS;
    }

    pub(super) fn part(&self) -> u32 {
        self.ratchet.as_ref().map_or(START, Ratchet::level)
    }

    pub(super) fn why(&self, now: Duration) -> BytesBound {
        let Some(ratchet) = &self.ratchet else { return BytesBound::Unknown };
        let calm = now.saturating_sub(ratchet.uneasy_at());
        match self.last {
            None => BytesBound::Unknown,
            Some(Reading::Pressed | Reading::Critical) if ratchet.level() == 0 => BytesBound::Floor,
            Some(Reading::Pressed | Reading::Critical) => BytesBound::Pressed { part: ratchet.level() },
            _ if ratchet.level() == PARTS => BytesBound::Envelope,
            Some(Reading::Between) => BytesBound::Band { part: ratchet.level() },
            Some(Reading::Calm) if self.full => BytesBound::Room { part: ratchet.level() },
            Some(Reading::Calm) if ratchet.at_wall() => {
                BytesBound::Wall { part: ratchet.level(), wall: ratchet.wall().unwrap_or(PARTS), calm }
            }
            Some(Reading::Calm) => {
                BytesBound::Dwell { part: ratchet.level(), calm, needed: ratchet.calm_needed() }
            }
        }
    }
}

/// Without a figure of what is available: half, which a ratchet can go either way from.
const START: u32 = PARTS / 2;

/// Nothing is taken yet, so all that is available beyond the reserve can be.
fn start(signals: &Signals, envelope: &Envelope) -> u32 {
    signals
        .available_bytes
        .map_or(START, |available| part_within(envelope, available.saturating_sub(envelope.reserve_bytes)))
}

/// The worse of what the two signals say; `None` if neither is known.
fn reading(signals: &Signals, reserve_bytes: u64) -> Option<Reading> {
    let by_pressure = signals.memory_pressure.map(|pressure| match pressure {
        CRITICAL.. => Reading::Critical,
        PRESSED.. => Reading::Pressed,
        ..=CALM => Reading::Calm,
        _ => Reading::Between,
    });
    let by_bytes = signals.available_bytes.map(|available| {
        if available < reserve_bytes / 4 {
            Reading::Critical
        } else if available < reserve_bytes {
            Reading::Pressed
        } else if available < roomy(reserve_bytes) {
            Reading::Between
        } else {
            Reading::Calm
        }
    });
    by_pressure.max(by_bytes)
}

/// The band above the reserve.
fn roomy(reserve_bytes: u64) -> u64 {
    reserve_bytes.saturating_add(reserve_bytes / 4)
}

/// Whether one more part would still leave it calm, once it and what is planned already are filled. A wall that can be
/// seen need not be run into.
fn has_room(signals: &Signals, envelope: &Envelope, part: u32, used: u64) -> bool {
    signals.available_bytes.is_none_or(|available| {
        let to_come = planned_bytes(envelope, part + 1).saturating_sub(used);
        available >= roomy(envelope.reserve_bytes).saturating_add(to_come)
    })
}

/// The largest part whose bytes are no more than these, or 0.
fn part_within(envelope: &Envelope, bytes: u64) -> u32 {
    (0..=PARTS).rev().find(|part| planned_bytes(envelope, *part) <= bytes).unwrap_or(0)
}

/// The smallest part whose bytes are no fewer than these.
fn part_over(envelope: &Envelope, bytes: u64) -> u32 {
    (0..=PARTS).find(|part| planned_bytes(envelope, *part) >= bytes).unwrap_or(PARTS)
}

#[cfg(test)]
mod tests {
    use super::super::tests::envelope;
    use super::*;

    fn signals(pressure: impl Into<Option<f64>>, available: impl Into<Option<u64>>) -> Signals {
        Signals { memory_pressure: pressure.into(), available_bytes: available.into(), ..Signals::default() }
    }

    #[test]
    fn the_worse_of_two_signals_counts() {
        let read =
            |pressure: Option<f64>, available: Option<u64>| reading(&signals(pressure, available), 100);
        assert_eq!(read(None, None), None);
        assert_eq!(read(Some(0.3), None), Some(Reading::Calm));
        assert_eq!(read(Some(0.31), Some(1000)), Some(Reading::Between));
        assert_eq!(read(Some(0.0), Some(124)), Some(Reading::Between));
        assert_eq!(read(Some(0.0), Some(99)), Some(Reading::Pressed));
        assert_eq!(read(Some(0.5), Some(1000)), Some(Reading::Pressed));
        assert_eq!(read(Some(0.5), Some(24)), Some(Reading::Critical));
        assert_eq!(read(Some(1.0), Some(1000)), Some(Reading::Critical));
    }

    #[test]
    fn it_starts_with_what_fits_or_with_half() {
        // 10 + 110 a part, 890 in all; 100 are for others.
        assert_eq!(start(&signals(None, None), &envelope()), 4);
        assert_eq!(start(&signals(None, 990), &envelope()), 8);
        assert_eq!(start(&signals(None, 989), &envelope()), 7);
        assert_eq!(start(&signals(None, 50), &envelope()), 0);
    }

    #[test]
    fn what_is_missing_is_given_back_even_if_it_is_more_than_half() {
        let mut memory = Memory::default();
        let at = Duration::from_millis;
        memory.step(at(0), &signals(0.0, 2000), &envelope());
        assert_eq!(memory.part(), 8);
        let envelope = Envelope { reserve_bytes: 700, ..envelope() };
        memory.step(at(100), &signals(0.0, 200), &envelope);
        memory.step(at(200), &signals(0.0, 200), &envelope);
        // 890 - 500 missing are 390 at most: three parts of 110 and 10.
        assert_eq!(memory.part(), 3);
    }

    #[test]
    fn a_cache_that_is_not_filled_yet_counts_as_taken() {
        let mut memory = Memory::default();
        memory.step(Duration::ZERO, &signals(0.0, 560), &envelope());
        assert_eq!(memory.part(), 4);
        // 560 available, of which 450 are planned and not filled: no room for 110 more beside the reserve.
        let unfilled = Signals { used_bytes: Some(0), ..signals(0.0, 560) };
        for second in 1..600 {
            memory.step(Duration::from_secs(second), &unfilled, &envelope());
        }
        assert_eq!(memory.part(), 4);
        assert_eq!(memory.why(Duration::from_secs(600)), BytesBound::Room { part: 4 });
    }
}
