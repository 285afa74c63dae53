//! Which way of reading histories is right for these requests: each runs in miniature beside the others.
//!
//! A sample of the ids (by a hash of the id, so that all requests for one are in it or none) goes through small caches,
//! one for each model and size, whose sizes are shares of the sampled ids and so have nothing to do with the tier's
//! budget. C. Waldspurger, T. Saemundsson, I. Ahmad, N. Park, "Cache Modeling and Optimization using Miniature
//! Simulations", USENIX ATC 2017. The model that saves most is used, where being worse than plain recency at any
//! size counts many times.
//!
//! What was right may be wrong from one request to the next: when other ids become the favourites, what counted requests
//! keeps the old ones. So a model is left as soon as it did worse than plain recency of late, by more than chance, at any
//! size but the smallest, which holds too few ids to tell. Only those with a limit need no such care: at large sizes they
//! are plain recency. Their limits are the ages at which its small caches let go.

use hashbrown::HashMap;

use super::history::{History, Model, Newcomers};
use super::order::Line;

/// The most ids in the sample. With a third of them it takes twice as long to see that the favourites are others.
const IDS_MAX: usize = 768;

/// Shares of the sampled ids that the small caches hold, one in so many.
const PARTS: [u64; SIZES] = [32, 8, 4, 2];

const SIZES: usize = 4;
const MODELS: usize = Model::ALL.len();

/// The small caches.
#[derive(Debug)]
pub(super) struct Trial {
    rows: Vec<Row>,
    /// Each model's line for each row.
    lines: [Vec<Line>; MODELS],
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
    /// Seconds that each cache saved of late and plain recency's did not, less those that only that did; and the sum of
    /// their squares.
    ahead: [[f64; SIZES]; MODELS],
    squares: [[f64; SIZES]; MODELS],
    /// The ages at which plain recency's caches let go, of late.
    ages: [f64; SIZES],
    requests: u32,
    models: [Model; MODELS],
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
            lines: [const { Vec::new() }; MODELS],
            by_id: HashMap::new(),
            shift: 0,
            epoch: 0,
            bytes: 0,
            held: [[0; SIZES]; MODELS],
            asked: 0.0,
            saved: [[0.0; SIZES]; MODELS],
            ahead: [[0.0; SIZES]; MODELS],
            squares: [[0.0; SIZES]; MODELS],
            ages: [0.0; SIZES],
            requests: 0,
            models: Model::ALL,
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
        let row = Row { id, history: *history, size, inside: 0 };
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
        for (lines, model) in self.lines.iter_mut().zip(self.models) {
            let line = model.line(history, size.weight, history.last);
            match lines.get_mut(at) {
                Some(known) => *known = line,
                None => lines.push(line),
            }
        }
        let saved = size.bytes as f64 / size.weight;
        self.asked += saved;
        self.fade(RECENT);
        for model in 0..MODELS {
            for part in 0..SIZES {
                let difference =
                    i8::from(before & bit(model, part) != 0) - i8::from(before & bit(0, part) != 0);
                let difference = saved * f64::from(difference);
                self.ahead[model][part] += difference;
                self.squares[model][part] += difference * difference;
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
        self.requests.is_multiple_of(32).then(|| self.choose()).flatten()
    }

    /// Takes the worst out of each cache of a model that is too full. False if none is.
    fn evict(&mut self, model: usize, now: u64, newcomers: &Newcomers) -> bool {
        let full = |part: &usize| self.held[model][*part] > self.bytes / PARTS[*part];
        let over = (0..SIZES).filter(full).fold(0, |over, part| over | bit(model, part));
        if over == 0 {
            return false;
        }
        let mut worst = [(f64::NEG_INFINITY, usize::MAX); SIZES];
        let rule = self.models[model];
        for (at, (row, line)) in self.rows.iter().zip(&mut self.lines[model]).enumerate() {
            let inside = row.inside & over;
            if inside == 0 {
                continue;
            }
            if now > line.deadline {
                *line = rule.line(&row.history, row.size.weight, now);
            }
            let value = line.value(now, newcomers);
            for (part, worst) in worst.iter_mut().enumerate() {
                if inside & bit(model, part) != 0 && value >= worst.0 {
                    *worst = (value, at);
                }
            }
        }
        let mut gone = false;
        for (part, (_, at)) in worst.into_iter().enumerate() {
            if let Some(row) = self.rows.get_mut(at) {
                if model == 0 {
                    self.ages[part] += ((now - row.history.last) as f64 - self.ages[part]) / 32.0;
                }
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
        (0..MODELS).for_each(|model| self.draw(model));
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

    /// What was ahead or behind of late counts less by one part in so many.
    fn fade(&mut self, parts: f64) {
        let sums = self.ahead.as_flattened_mut().iter_mut().chain(self.squares.as_flattened_mut());
        sums.for_each(|sum| *sum *= 1.0 - 1.0 / parts);
    }

    /// Sets the limits by the ages at which plain recency lets go.
    fn limit(&mut self) {
        for (model, part) in LIMITED {
            // Powers of two, and a little is no reason: each change puts all in order again.
            let age = self.ages[part].max(1.0);
            let within = self.models[model].within.unwrap_or(1) as f64;
            if age >= within * 0.875 && age < within * 2.25 {
                continue;
            }
            self.models[model].within = Some(age.log2().floor().exp2() as u64);
            self.draw(model);
        }
    }

    /// Makes a model's lines anew, as they were when each id was last asked for: [`evict`](Self::evict) sees which are
    /// late.
    fn draw(&mut self, model: usize) {
        let rule = self.models[model];
        let lines = self.rows.iter().map(|row| rule.line(&row.history, row.size.weight, row.history.last));
        self.lines[model].clear();
        self.lines[model].extend(lines);
    }

    /// By how many standard deviations of chance a model was ahead of plain recency of late, at its worst size but the
    /// smallest: McNemar's test, of the requests that one saved and the other did not.
    fn lead(&self, model: usize) -> f64 {
        let leads = (1..SIZES)
            .map(|part| self.ahead[model][part] / self.squares[model][part].max(f64::MIN_POSITIVE).sqrt());
        leads.fold(f64::INFINITY, f64::min)
    }

    /// Takes the model of the highest score, if it is clearly above that in use.
    fn choose(&mut self) -> Option<Model> {
        let before = self.models[self.chosen];
        self.limit();
        // Without a limit a model must not lose, and not have lost to come back.
        let free = |model: usize| model > LIMITED[LIMITED.len() - 1].0;
        if free(self.chosen) && self.lead(self.chosen) < -BY_CHANCE {
            self.chosen = 0;
        }
        let least = if free(self.chosen) { -BY_CHANCE } else { 0.0 };
        let mut best = self.chosen;
        for model in 0..MODELS {
            if free(model) && self.lead(model) < least {
                continue;
            }
            if self.score(model) > self.score(best).max(self.score(self.chosen) + MARGIN) {
                best = model;
            }
        }
        if self.requests.is_multiple_of(1024) {
            self.asked *= FADE;
            self.saved.as_flattened_mut().iter_mut().for_each(|saved| *saved *= FADE);
        }
        self.chosen = best;
        (self.models[best] != before).then(|| self.models[best])
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

/// The models with a limit, each with the size of the small cache that sets it.
const LIMITED: [(usize, usize); 2] = [(1, 1), (2, 2)];

/// Of how many sampled requests "of late" is the mean age.
const RECENT: f64 = 384.0;

/// So many standard deviations behind is no more chance.
const BY_CHANCE: f64 = 1.5;

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
