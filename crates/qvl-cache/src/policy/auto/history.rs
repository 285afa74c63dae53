//! What is remembered of an id, and what it says about when it is wanted again.

use super::order::Line;

/// Ids that a half of the memory holds; see [`Clock`].
const EPOCH_IDS: u32 = 7 << 16;

/// What the requests said of an id until it was last asked for. The same at every budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct History {
    /// The request that last asked for it.
    pub(super) last: u64,
    pub(super) epoch: u64,
    /// Requests for it, as far as remembered.
    pub(super) count: u32,
    /// The mean gap, the last ones counting more.
    gap: f32,
    /// How far gaps are from that mean.
    deviation: f32,
    /// Sums of gaps, older ones fading at the rates of [`FADING`].
    sums: [f32; 3],
}

/// What is left of an old gap's part in a sum when a new one comes.
const FADING: [f64; 3] = [0.5, 0.875, 0.968_75];

/// Counts requests, and what is learned of all of them together.
#[derive(Debug)]
pub(super) struct Clock {
    pub(super) now: u64,
    epoch: u64,
    /// Different ids asked for in this epoch.
    ids: u32,
    firsts: f64,
    returns: f64,
    /// The gap after which those asked for once were asked for again: the mean of its logarithm, and how far they are
    /// from that mean.
    return_gap: f64,
    return_deviation: f64,
}

/// What is expected of an item that was asked for once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newcomer {
    /// The gap after which such items came back.
    gap: f64,
    /// Whether those gaps are much alike: a loop.
    regular: bool,
    /// One that comes back stands for so many that came.
    per_return: f64,
}

impl Newcomer {
    /// In how many requests one of this age is expected. Falls until it is late, and grows from there or throughout: the
    /// oldest or the newest is the one of which most is expected.
    pub(super) fn expected(&self, age: f64) -> f64 {
        match self.regular {
            true if age <= self.gap * LATE => self.gap - age,
            true => age,
            false => (self.gap / 2.0 + age) * self.per_return,
        }
    }
}

/// So many gaps after its last use an item of a loop is late.
const LATE: f64 = 1.125;

impl Clock {
    pub(super) const fn new() -> Self {
        Self { now: 0, epoch: 0, ids: 0, firsts: 2.0, returns: 1.0, return_gap: 4.0, return_deviation: 1.0 }
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn newcomer(&self) -> Newcomer {
        let chance = (self.returns / self.firsts).clamp(1.0 / 256.0, 1.0);
        let regular = self.return_deviation < LATE.ln();
        Newcomer { gap: self.return_gap.exp(), regular, per_return: 1.0 / chance }
    }

    /// One request, for an id of this history; the history after it.
    pub(super) fn request(&mut self, known: Option<History>) -> History {
        const FADE: f64 = 1.0 - 1.0 / 8192.0;
        self.now += 1;
        let mut history = match known.filter(|history| history.epoch + 1 >= self.epoch) {
            Some(history) => history,
            None => {
                self.firsts = self.firsts * FADE + 1.0;
                self.returns *= FADE;
                History {
                    last: self.now,
                    epoch: u64::MAX,
                    count: 0,
                    gap: 0.0,
                    deviation: 0.0,
                    sums: [0.0; 3],
                }
            }
        };
        if history.count > 0 {
            let gap = (self.now - history.last) as f32;
            match history.count {
                1 => {
                    self.firsts *= FADE;
                    self.returns = self.returns * FADE + 1.0;
                    let off = f64::from(gap).ln() - self.return_gap;
                    self.return_gap += off / 32.0;
                    self.return_deviation += (off.abs() - self.return_deviation) / 32.0;
                    // One gap says nothing of how regular they are; what the others do says something.
                    (history.gap, history.deviation) = (gap, gap * self.return_deviation.min(1.0) as f32);
                }
                2 => {
                    history.deviation = (gap - history.gap).abs();
                    history.gap += (gap - history.gap) / 2.0;
                }
                _ => {
                    history.deviation += ((gap - history.gap).abs() - history.deviation) / 4.0;
                    history.gap += (gap - history.gap) / 4.0;
                }
            }
            for (sum, fading) in history.sums.iter_mut().zip(FADING) {
                *sum = *sum * fading as f32 + gap;
            }
        }
        history.count = history.count.saturating_add(1);
        history.last = self.now;
        if history.epoch != self.epoch {
            history.epoch = self.epoch;
            self.ids += 1;
            if self.ids >= EPOCH_IDS {
                self.epoch += 1;
                self.ids = 0;
            }
        }
        history
    }
}

impl History {
    fn is_regular(&self) -> bool {
        self.count >= 2 && self.deviation <= self.gap / 8.0 + 1.0
    }

    /// After this request it is late.
    fn deadline(&self) -> u64 {
        self.last + (self.gap + (4.0 * self.deviation).max(self.gap / 8.0)) as u64 + 2
    }
}

/// How a history is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Model {
    /// `None`: only recency counts. Else which of [`FADING`].
    pub(super) fading: Option<usize>,
    /// Whether loops are looked for.
    pub(super) loops: bool,
}

impl Model {
    /// The first is used until another has shown that it is better.
    pub(super) const ALL: [Self; 5] = [
        Self { fading: None, loops: false },
        Self { fading: None, loops: true },
        Self { fading: Some(0), loops: true },
        Self { fading: Some(1), loops: true },
        Self { fading: Some(2), loops: true },
    ];

    /// An item's line.
    pub(super) fn line(&self, history: &History, weight: f64, now: u64) -> Line {
        let last = history.last as f64;
        if self.loops && history.is_regular() {
            let deadline = history.deadline();
            if now <= deadline {
                return Line::falling(last, f64::from(history.gap), weight, deadline);
            }
            return Line::rising(last, 0.0, weight, weight);
        }
        if history.count < 2 && (self.loops || self.fading.is_some()) {
            return Line::once(last, weight);
        }
        let Some(fading) = self.fading else { return Line::rising(last, 0.0, weight, weight) };
        let keep = FADING[fading];
        let gaps = (1.0 - keep.powi(history.count.min(1000) as i32 - 1)) / (1.0 - keep);
        let mean = f64::from(history.sums[fading]) / gaps;
        Line::rising(last, mean, weight, weight / gaps)
    }

    pub(super) fn why(&self, history: &History, uses: u32, now: u64) -> String {
        let ago = now - history.last;
        let gap = history.gap.round() as u64;
        if history.count < 2 {
            return format!("used {uses} times, last {ago} requests ago");
        }
        if self.loops && history.is_regular() {
            if now <= history.deadline() {
                let next = (history.last + gap).saturating_sub(now);
                return format!("loop of about {gap} requests, wanted in {next}");
            }
            return format!("loop of about {gap} requests, late by {}", ago.saturating_sub(gap));
        }
        format!("used {uses} times, about every {gap} requests, last {ago} ago")
    }
}
