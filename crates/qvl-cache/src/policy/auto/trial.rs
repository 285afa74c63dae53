//! Which way of reading histories is right for these requests: each runs in miniature beside the others.
//!
//! A sample of the ids (by a hash of the id, so that all requests for one are in it or none) goes through small caches,
//! one for each model and size, whose sizes are shares of the sampled ids and so have nothing to do with the tier's
//! budget. C. Waldspurger, T. Saemundsson, I. Ahmad, N. Park, "Cache Modeling and Optimization using Miniature
//! Simulations", USENIX ATC 2017. The model that saves most is used, where being worse than plain recency at any
//! size counts many times.

use hashbrown::HashMap;

use super::history::{History, Model, Newcomers};
use super::order::Line;

/// The most ids in the sample. Twice as many are no better on the committed traces.
const IDS_MAX: usize = 256;

/// Shares of the sampled ids that the small caches hold, one in so many.
const PARTS: [u64; SIZES] = [32, 8, 4, 2];

const SIZES: usize = 4;
const MODELS: usize = Model::ALL.len();

/// The small caches.
#[derive(Debug)]
pub(super) struct Trial {
    rows: Vec<Row>,
    by_id: HashMap<u64, u32>,
    /// One id in 2^shift is in the sample.
    shift: u32,
    epoch: u64,
    /// Bytes of all ids in the sample.
    bytes: u64,
    /// Bytes that each cache holds.
    held: [[u64; SIZES]; MODELS],
    /// Seconds that could have been saved of late, and that each cache did save.
    asked: f64,
    saved: [[f64; SIZES]; MODELS],
    requests: u32,
    chosen: usize,
}

/// What an item takes, and what a second that it saves costs in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) weight: f64,
}

#[derive(Debug)]
struct Row {
    id: u64,
    history: History,
    size: Size,
    lines: [Line; MODELS],
    /// The caches it is in, a bit each.
    inside: u32,
}

const fn bit(model: usize, part: usize) -> u32 {
    1 << (model * SIZES + part)
}

impl Trial {
    pub(super) fn new() -> Self {
        Self {
            rows: Vec::new(),
            by_id: HashMap::new(),
            shift: 0,
            epoch: 0,
            bytes: 0,
            held: [[0; SIZES]; MODELS],
            asked: 0.0,
            saved: [[0.0; SIZES]; MODELS],
            requests: 0,
            chosen: 0,
        }
    }

    /// Whether an id is in the sample.
    pub(super) const fn samples(&self, id: u64) -> bool {
        hash(id).leading_zeros() >= self.shift
    }

    /// A request for an id of the sample. Says which model is to be used, if that is another than before.
    pub(super) fn request(
        &mut self,
        id: u64,
        history: &History,
        size: Size,
        newcomers: &Newcomers,
    ) -> Option<Model> {
        let lines = Model::ALL.map(|model| model.line(history, size.weight, history.last));
        let row = Row { id, history: *history, size, lines, inside: 0 };
        let at = *self.by_id.entry(id).or_insert(self.rows.len() as u32) as usize;
        let (before, old) = match self.rows.get_mut(at) {
            Some(known) => {
                let known = std::mem::replace(known, row);
                (known.inside, known.size.bytes)
            }
            None => {
                self.rows.push(row);
                (0, 0)
            }
        };
        self.bytes = (self.bytes - old).saturating_add(size.bytes);
        let saved = size.bytes as f64 / size.weight;
        self.asked += saved;
        for model in 0..MODELS {
            for part in 0..SIZES {
                if before & bit(model, part) != 0 {
                    self.saved[model][part] += saved;
                    self.held[model][part] -= old;
                }
                if size.bytes <= self.bytes / PARTS[part] {
                    self.rows[at].inside |= bit(model, part);
                    self.held[model][part] += size.bytes;
                }
            }
            while self.evict(model, history.last, newcomers) {}
        }
        if self.rows.len() > IDS_MAX {
            self.shift += 1;
            self.keep(|_, sampled| sampled);
        }
        self.requests = self.requests.wrapping_add(1);
        self.requests.is_multiple_of(64).then(|| self.choose()).flatten()
    }

    /// Takes the worst out of each cache of a model that is too full. False if none is.
    fn evict(&mut self, model: usize, now: u64, newcomers: &Newcomers) -> bool {
        let full = |part: &usize| self.held[model][*part] > self.bytes / PARTS[*part];
        let over = (0..SIZES).filter(full).fold(0, |over, part| over | bit(model, part));
        if over == 0 {
            return false;
        }
        let mut worst = [(f64::NEG_INFINITY, usize::MAX); SIZES];
        for (at, row) in self.rows.iter().enumerate() {
            let inside = row.inside & over;
            if inside == 0 {
                continue;
            }
            let value = row.lines[model].value_or_late(now, row.history.last, row.size.weight, newcomers);
            for (part, worst) in worst.iter_mut().enumerate() {
                if inside & bit(model, part) != 0 && value >= worst.0 {
                    *worst = (value, at);
                }
            }
        }
        let mut gone = false;
        for (part, (_, at)) in worst.into_iter().enumerate() {
            if let Some(row) = self.rows.get_mut(at) {
                row.inside &= !bit(model, part);
                self.held[model][part] -= row.size.bytes;
                gone = true;
            }
        }
        gone
    }

    /// Keeps some of the sample, by their history and whether they would come into it now.
    fn keep(&mut self, stays: impl Fn(&History, bool) -> bool) {
        let shift = self.shift;
        self.rows.retain(|row| stays(&row.history, hash(row.id).leading_zeros() >= shift));
        self.by_id.clear();
        self.by_id.extend(self.rows.iter().zip(0..).map(|(row, at)| (row.id, at)));
        self.bytes = self.rows.iter().fold(0, |sum, row| sum.saturating_add(row.size.bytes));
        for (model, held) in self.held.iter_mut().enumerate() {
            for (part, held) in held.iter_mut().enumerate() {
                let inside = self.rows.iter().filter(|row| row.inside & bit(model, part) != 0);
                *held = inside.fold(0, |sum, row| sum.saturating_add(row.size.bytes));
            }
        }
    }

    /// Forgets the ids that the memory has forgotten, and takes more into the sample if few are left.
    pub(super) fn turn(&mut self, epoch: u64) {
        if epoch == self.epoch {
            return;
        }
        self.epoch = epoch;
        self.keep(|history, _| history.epoch + 1 >= epoch);
        if self.rows.len() < IDS_MAX / 2 {
            self.shift = self.shift.saturating_sub(1);
        }
    }

    /// Takes the model of the highest score, if it is clearly above that in use.
    fn choose(&mut self) -> Option<Model> {
        let mut best = self.chosen;
        for model in 0..MODELS {
            if self.score(model) > self.score(best).max(self.score(self.chosen) + MARGIN) {
                best = model;
            }
        }
        if self.requests.is_multiple_of(1024) {
            self.asked *= FADE;
            self.saved.as_flattened_mut().iter_mut().for_each(|saved| *saved *= FADE);
        }
        let changed = best != self.chosen;
        self.chosen = best;
        changed.then(|| Model::ALL[best])
    }

    /// How much better than plain recency a model is: the logarithms of what it saved more, summed over the sizes. Where
    /// it saved less counts many times: nobody asked for a cache that is better on the whole and worse for them.
    fn score(&self, model: usize) -> f64 {
        // What is saved besides, so that a few hits more or less are nothing: a hundredth, and some requests.
        let besides = self.asked * (0.01 + 8.0 / f64::from(self.requests.min(4096)));
        let logarithms = (0..SIZES).map(|part| {
            ((self.saved[model][part] + besides) / (self.saved[0][part] + besides).max(f64::MIN_POSITIVE))
                .ln()
        });
        logarithms.map(|log| if log < 0.0 { WORSE * log } else { log }).sum()
    }
}

/// How many times more it counts to be worse than plain recency than to be better.
const WORSE: f64 = 20.0;

/// Another model has to be so much better: putting all in order again is not for nothing.
const MARGIN: f64 = 0.02;

/// What is left of what was saved, after a thousand sampled requests.
const FADE: f64 = 0.75;

/// SplitMix64's last step: all bits depend on all.
const fn hash(id: u64) -> u64 {
    let mut z = id.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
