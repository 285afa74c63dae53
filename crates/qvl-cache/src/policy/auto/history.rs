//! What is remembered of an id, and what it says about when it is wanted again.

use std::sync::LazyLock;

use super::order::Line;

/// Ids that a half of the memory holds, as many as a table of 2^19 places takes.
pub(super) const EPOCH_IDS: u32 = 7 << 16;

/// What the requests said of an id until it was last asked for. The same at every budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct History {
    /// The request that last asked for it.
    pub(super) last: u64,
    pub(super) epoch: u64,
    /// Requests for it, as far as remembered.
    pub(super) count: u32,
    /// The mean gap, the last ones counting more; before there is one, what was expected of a newcomer.
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
    /// Different ids asked for in this epoch, which ends with so many.
    ids: u32,
    ids_max: u32,
    pub(super) newcomers: Newcomers,
}

/// What is expected of items that were asked for once, by what they weigh: pictures that one asks for again after
/// minutes stand beside layers that one asks for at every token.
#[derive(Debug)]
pub(super) struct Newcomers([Newcomer; 32]);

impl Newcomers {
    /// A class has four octaves of weight; below 2^-16 and above 2^108 bytes a second there is one more each.
    fn class(weight: f64) -> usize {
        ((weight.log2() / 4.0).floor() + 4.0).clamp(0.0, 31.0) as usize
    }

    /// Of a weight of 2^(quarters ÷ 4).
    pub(super) fn of(&self, quarters: i16) -> &Newcomer {
        &self.0[(quarters.div_euclid(16) + 4).clamp(0, 31) as usize]
    }
}

/// What is expected of an item that was asked for once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newcomer {
    /// Such items, and those of them that came again; older ones fade.
    firsts: f64,
    returns: f64,
    /// The gap after which they did: the mean of its logarithm, and how far gaps are from it.
    log_gap: f64,
    deviation: f64,
    gap: f64,
}

impl Newcomer {
    const FADE: f64 = 1.0 - 1.0 / 8192.0;

    /// Before anything was seen: every other one comes back after 55 requests.
    const NEW: Self = Self { firsts: 2.0, returns: 1.0, log_gap: 4.0, deviation: 1.0, gap: 54.6 };

    fn first(&mut self) {
        self.firsts = self.firsts * Self::FADE + 1.0;
        self.returns *= Self::FADE;
    }

    fn came_again(&mut self, gap: f64) {
        self.firsts *= Self::FADE;
        self.returns = self.returns * Self::FADE + 1.0;
        let off = gap.ln() - self.log_gap;
        self.log_gap += off / 32.0;
        self.deviation += (off.abs() - self.deviation) / 32.0;
        self.gap = self.log_gap.exp();
    }

    /// How many come for one that comes back.
    fn per_return(&self) -> f64 {
        /// At least one in so many comes back.
        const PER_RETURN_MAX: f64 = 256.0;
        (self.firsts / self.returns).clamp(1.0, PER_RETURN_MAX)
    }

    /// In how many requests one is expected when it has just come.
    fn wait(&self) -> f64 {
        self.gap * self.per_return()
    }

    /// In how many requests one of this age is expected. Falls until it is late, and grows from there or throughout: the
    /// oldest or the newest is the one of which most is expected.
    pub(super) fn expected(&self, age: f64) -> f64 {
        let is_loop = self.deviation < LATE.ln();
        match is_loop {
            true if age <= self.gap * LATE => self.gap - age,
            true => age,
            false => (self.gap / 2.0 + age) * self.per_return(),
        }
    }
}

/// So many gaps after its last use an item of a loop is late.
const LATE: f64 = 1.125;

impl Clock {
    pub(super) const fn new(ids_max: u32) -> Self {
        Self { now: 0, epoch: 0, ids: 0, ids_max, newcomers: Newcomers([Newcomer::NEW; 32]) }
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// One request, for an id of this history; the history after it. `None` for the weight of what is not known.
    pub(super) fn request(&mut self, known: Option<History>, weight: Option<f64>) -> History {
        self.now += 1;
        let mut unknown = Newcomer::NEW;
        let class = weight.map(Newcomers::class);
        let newcomer = class.map_or(&mut unknown, |class| &mut self.newcomers.0[class]);
        let mut history = known.filter(|history| history.epoch + 1 >= self.epoch).unwrap_or(History {
            last: self.now,
            epoch: u64::MAX,
            count: 0,
            gap: 0.0,
            deviation: 0.0,
            sums: [0.0; 3],
        });
        if history.count == 0 {
            newcomer.first();
            history.gap = newcomer.wait() as f32;
        }
        if history.count > 0 {
            let gap = (self.now - history.last) as f32;
            match history.count {
                1 => {
                    newcomer.came_again(f64::from(gap));
                    // One gap says nothing of how regular they are; what the others do says something.
                    (history.gap, history.deviation) = (gap, gap * newcomer.deviation.min(1.0) as f32);
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
            if self.ids >= self.ids_max {
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

    /// The gaps in a faded sum, and their mean.
    fn mean(&self, fading: usize) -> (f64, f64) {
        let gaps = TABLES.gaps[fading][self.row()];
        (gaps, f64::from(self.sums[fading]) / gaps)
    }

    /// After this request it is no more what it was: of the gaps after `n` with that mean one in 400 is as long, if they
    /// are Poisson's (then the next gap ÷ mean is above c with probability (1 + c ÷ n)^-n).
    fn late(&self, fading: usize) -> u64 {
        self.last + (f64::from(self.sums[fading]) * TABLES.late[fading][self.row()]) as u64 + 8
    }

    /// The row of [`Tables`]. No sum has any part left of what is more than 256 gaps ago.
    const fn row(&self) -> usize {
        (if self.count < 256 { self.count } else { 255 }) as usize
    }

    /// After this request an item of a loop is late.
    fn deadline(&self) -> u64 {
        self.last + (self.gap + (4.0 * self.deviation).max(self.gap / 8.0)) as u64 + 2
    }
}

const RARE: f64 = 400.0;

/// By fading and count of requests: how many gaps a sum of that many stands for, and how many times the sum is late.
struct Tables {
    gaps: [[f64; 256]; 3],
    late: [[f64; 256]; 3],
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut tables = Tables { gaps: [[1.0; 256]; 3], late: [[1.0; 256]; 3] };
    for (fading, keep) in FADING.into_iter().enumerate() {
        for count in 2..256 {
            let gaps = (1.0 - keep.powi(count - 1)) / (1.0 - keep);
            tables.gaps[fading][count as usize] = gaps;
            tables.late[fading][count as usize] = RARE.powf(1.0 / gaps) - 1.0;
        }
    }
    tables
});

/// How a history is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Model {
    /// `None`: only recency counts. Else which of [`FADING`].
    pub(super) fading: Option<usize>,
    /// Whether loops are looked for.
    pub(super) loops: bool,
    /// After so many requests without one for it only recency counts, and nothing goes before all that are so old. A
    /// tier that holds all that was asked for within is least recently used, but for [`LATE_WORSE`].
    pub(super) within: Option<u64>,
}

/// In a model with a limit the age of what is no more what it was counts so many times: the favourites of yesterday go
/// before what was never one.
const LATE_WORSE: f64 = 4.0;

impl Model {
    /// The first is used until another has shown that it is better.
    pub(super) const ALL: [Self; 7] = [
        Self { fading: None, loops: false, within: None },
        Self { fading: Some(0), loops: false, within: Some(1) },
        Self { fading: Some(0), loops: false, within: Some(1) },
        Self { fading: None, loops: true, within: None },
        Self { fading: Some(0), loops: true, within: None },
        Self { fading: Some(1), loops: true, within: None },
        Self { fading: Some(2), loops: true, within: None },
    ];

    /// An item's line.
    pub(super) fn line(&self, history: &History, weight: f64, now: u64) -> Line {
        let last = history.last as f64;
        // Expected in as many requests as have passed since: what is known of an item that has done nothing regular.
        let by_age = Line::rising(last, 0.0, weight, weight, u64::MAX);
        if let Some(within) = self.within {
            return self.line_within(within, history, weight, now);
        }
        if self.loops && history.is_regular() {
            let deadline = history.deadline();
            return if now <= deadline {
                Line::falling(last, f64::from(history.gap), weight, deadline)
            } else {
                by_age
            };
        }
        if history.count < 2 && self.loops {
            return Line::once(last, weight);
        }
        let Some(fading) = self.fading else { return by_age };
        let (gaps, mean) = history.mean(fading);
        let deadline = history.late(fading);
        if now > deadline { by_age } else { Line::rising(last, mean, weight, weight / gaps, deadline) }
    }

    /// An item's line if only recency counts after `within` requests.
    fn line_within(&self, within: u64, history: &History, weight: f64, now: u64) -> Line {
        let last = history.last as f64;
        let late = if history.count < 2 { u64::MAX } else { history.late(FADING.len() - 1) };
        if now > late {
            return Line::rising(last, 0.0, weight, weight * LATE_WORSE, u64::MAX);
        }
        let old = history.last + within;
        if now > old {
            return Line::rising(last, 0.0, weight, weight, late);
        }
        let (gaps, mean) = match self.fading {
            Some(fading) if history.count >= 2 => history.mean(fading),
            _ => (1.0, f64::from(history.gap)),
        };
        // As without a limit, pressed below the limit: harmonically, so that the order of the means stays.
        let within = within as f64;
        let start = within * mean / (within + mean);
        Line::rising(last, start / 2.0, weight, weight / (2.0 * gaps), old.min(late))
    }

    pub(super) fn why(&self, history: &History, uses: u32, now: u64) -> String {
        let ago = now - history.last;
        let gap = history.gap.round() as u64;
        if history.count < 2 {
            return match uses {
                0 | 1 => format!("used once, {ago} requests ago"),
                _ => format!("used {uses} times, last {ago} requests ago"),
            };
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
