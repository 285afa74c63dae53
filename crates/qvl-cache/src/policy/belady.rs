//! What could have been: the best that any policy can do on a trace that is known, and how far each is from it.
//!
//! For values of one size and one cost [`belady`] is the optimum: L. Belady, "A Study of Replacement Algorithms for a
//! Virtual-Storage Computer", IBM Systems Journal 5(2), 1966, with the newcomer as a possible victim. For mixed sizes
//! the optimum is NP-hard (M. Chrobak and others, "Caching Is Hard", ESA 2010). There are two figures then, and the
//! optimum is between them: a [`greedy`](belady) schedule that knows the future, and a [`bound`] that no schedule
//! exceeds (PFOO-U's counterpart for hits, from D. Berger, N. Beckmann, M. Harchol-Balter, "Practical Bounds on Optimal
//! Caching with Variable Object Sizes", SIGMETRICS 2018: space and time are given to the cheapest intervals first, as if
//! only their sum were limited).

use hashbrown::HashMap;

use super::heap::{Heap, OUT};
use super::{Item, Leave, Policy, PolicyName};
use crate::key::KeyId;
use crate::trace::Trace;

/// What came of a trace. Requests that store are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Reads.
    pub requests: u64,
    /// Reads of what was there.
    pub hits: u64,
    /// Bytes of all reads.
    pub bytes_requested: u64,
    /// Bytes of the hits.
    pub bytes_hit: u64,
    /// What the hits would have cost, in seconds.
    pub seconds_saved: f64,
    /// What all reads would have cost, in seconds.
    pub seconds_requested: f64,
}

impl Outcome {
    /// Hits a read, from 0 to 1.
    pub fn hit_rate(&self) -> f64 {
        share(self.hits as f64, self.requests as f64)
    }

    /// Bytes hit a byte read, from 0 to 1.
    pub fn byte_hit_rate(&self) -> f64 {
        share(self.bytes_hit as f64, self.bytes_requested as f64)
    }

    /// Seconds saved a second that all reads cost, from 0 to 1: what a policy is chosen by.
    pub fn saved_rate(&self) -> f64 {
        share(self.seconds_saved, self.seconds_requested)
    }

    fn count(&mut self, request: &crate::trace::Request, hit: bool) {
        let seconds = f64::from(request.cost_micros) * 1e-6;
        self.requests += 1;
        self.bytes_requested = self.bytes_requested.saturating_add(request.bytes);
        self.seconds_requested += seconds;
        if hit {
            self.hits += 1;
            self.bytes_hit = self.bytes_hit.saturating_add(request.bytes);
            self.seconds_saved += seconds;
        }
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// What a policy does with a trace in a tier of `budget` bytes, as a tier would ask it.
pub fn simulate(policy: &mut dyn Policy, trace: &Trace, budget: u64) -> Outcome {
    simulate_with(policy, trace, budget, |_, _| {})
}

/// As [`simulate`], and shows after each request its index and whether it was a hit.
pub fn simulate_with(
    policy: &mut dyn Policy,
    trace: &Trace,
    budget: u64,
    mut shown: impl FnMut(usize, bool),
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut slots = HashMap::new();
    let mut ids = HashMap::new();
    let mut used = 0_u64;
    policy.set_budget(budget);
    for (index, request) in trace.requests.iter().enumerate() {
        let key = KeyId(u128::from(request.id));
        let cost = request.cost_micros as f32 * 1e-6;
        let found = slots.get(&request.id).copied();
        if !request.write {
            outcome.count(request, found.is_some());
        }
        shown(index, found.is_some());
        match found {
            Some((slot, bytes)) => {
                policy.hit(slot);
                if bytes != request.bytes {
                    policy.update(slot, request.bytes, cost);
                    slots.insert(request.id, (slot, request.bytes));
                    used = used - bytes + request.bytes;
                }
            }
            None if request.bytes > budget => policy.miss(key),
            None => {
                let slot = policy.insert(Item { id: key, bytes: request.bytes, cost, uses: 0 });
                slots.insert(request.id, (slot, request.bytes));
                ids.insert(slot, request.id);
                used += request.bytes;
            }
        }
        while used > budget {
            let Some(victim) = policy.victim() else { break };
            let Some((_, bytes)) = ids.remove(&victim).and_then(|id| slots.remove(&id)) else { break };
            policy.leave(victim, Leave::Evicted);
            used -= bytes;
        }
    }
    outcome
}

/// When each request's id is read next, or `u64::MAX`: what is stored anew first need not be kept until then.
fn next_reads(trace: &Trace) -> Vec<u64> {
    let mut next = vec![u64::MAX; trace.requests.len()];
    let mut seen: HashMap<u64, usize> = HashMap::new();
    for (index, request) in trace.requests.iter().enumerate().rev() {
        if let Some(later) = seen.insert(request.id, index).filter(|later| !trace.requests[*later].write) {
            next[index] = later as u64;
        }
    }
    next
}

/// A schedule that knows the future: who goes is the largest of next read × bytes ÷ cost, the newcomer among them.
///
/// Exact for values of one size and cost (Belady's MIN): no policy has more hits. For mixed sizes it is a greedy
/// heuristic, neither the optimum nor a bound; see [`bound`]. There bytes ÷ cost is rounded to quarter octaves.
pub fn belady(trace: &Trace, budget: u64) -> Outcome {
    let next = next_reads(trace);
    let uniform = trace.is_uniform();
    let mut outcome = Outcome::default();
    let mut slots: HashMap<u64, u32> = HashMap::new();
    // One heap for each bytes ÷ cost, since only in it the order by next read does not change with time.
    let mut heaps: Vec<(i64, Heap<u64>)> = Vec::new();
    let mut places = Vec::new();
    let mut rows: Vec<(u64, usize)> = Vec::new();
    let mut used = 0_u64;
    for (index, request) in trace.requests.iter().enumerate() {
        let slot = *slots.entry(request.id).or_insert_with(|| {
            rows.push((0, 0));
            places.push(OUT);
            rows.len() as u32 - 1
        });
        let held = places[slot as usize] != OUT;
        if !request.write {
            outcome.count(request, held);
        }
        let (bytes, class) = rows[slot as usize];
        if held {
            heaps[class].1.remove(&mut places, slot);
            used -= bytes;
        }
        // What is never read again is not kept.
        let later = next[index];
        if later == u64::MAX || request.bytes > budget {
            continue;
        }
        let weight = if uniform { 0 } else { quarter_octaves(request) };
        let class = heaps.iter().position(|(other, _)| *other == weight).unwrap_or_else(|| {
            heaps.push((weight, Heap::new()));
            heaps.len() - 1
        });
        heaps[class].1.push(&mut places, later, slot);
        rows[slot as usize] = (request.bytes, class);
        used += request.bytes;
        while used > budget {
            let tops = heaps.iter().filter_map(|(weight, heap)| {
                let (later, slot) = heap.top()?;
                Some(((later - index as u64) as f64 * (*weight as f64 / 4.0).exp2(), slot))
            });
            let Some((_, victim)) = tops.max_by(|a, b| a.0.total_cmp(&b.0)) else { break };
            let (bytes, class) = rows[victim as usize];
            heaps[class].1.remove(&mut places, victim);
            used -= bytes;
        }
    }
    outcome
}

/// The logarithm of bytes ÷ cost.
fn quarter_octaves(request: &crate::trace::Request) -> i64 {
    let worth = super::saved_per_byte(request.cost_micros as f32 * 1e-6, request.bytes);
    (-worth.log2() * 4.0).round() as i64
}

/// A share of the reads' cost that no schedule can save more than, from 0 to 1.
///
/// A value kept from one read to the next takes its bytes for as many requests as lie between. All that is kept together
/// takes at most the budget times the length of the trace. Taking those that save the most for the space and time they
/// take, the last in part, as if nothing else bound them, gives at least what any schedule saves.
pub fn bound(trace: &Trace, budget: u64) -> f64 {
    let next = next_reads(trace);
    let mut intervals: Vec<(f64, f64)> = Vec::new();
    let mut requested = 0.0;
    for (index, request) in trace.requests.iter().enumerate() {
        if !request.write {
            requested += f64::from(request.cost_micros);
        }
        let later = next[index];
        if later != u64::MAX && request.bytes <= budget {
            let saved = f64::from(trace.requests[later as usize].cost_micros);
            intervals.push(((later - index as u64) as f64 * request.bytes as f64, saved));
        }
    }
    intervals.sort_by(|a, b| (a.0 * b.1).total_cmp(&(b.0 * a.1)));
    let mut space = budget as f64 * trace.requests.len() as f64;
    let mut saved = 0.0;
    for (takes, saves) in intervals {
        let part = (space / takes).min(1.0);
        saved += part * saves;
        space -= part * takes;
        if space <= 0.0 {
            break;
        }
    }
    share(saved, requested)
}

/// What each policy does with a trace, at each budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// By budget, then by policy as in [`PolicyName::ALL`].
    pub rows: Vec<Row>,
    /// Whether [`Row::belady`] is the optimum (one size, one cost) or a greedy schedule.
    pub exact: bool,
}

/// A policy at a budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// The policy.
    pub policy: PolicyName,
    /// The budget, in bytes.
    pub budget: u64,
    /// What the policy did.
    pub outcome: Outcome,
    /// What [`belady`] did.
    pub belady: Outcome,
    /// What no schedule saves more than ([`bound`]).
    pub bound: f64,
}

impl Row {
    /// The share of the cost saved that [`belady`] saves and this does not. Below 0 where a greedy schedule was beaten.
    pub fn gap(&self) -> f64 {
        self.belady.saved_rate() - self.outcome.saved_rate()
    }
}

impl Report {
    /// The policy that saved most, over all budgets alike; the default where several did.
    pub fn best(&self) -> PolicyName {
        let saved = |policy| -> f64 {
            self.rows.iter().filter(|row| row.policy == policy).map(|row| row.outcome.saved_rate()).sum()
        };
        let mut best = (PolicyName::default(), saved(PolicyName::default()));
        for policy in PolicyName::ALL {
            if saved(policy) > best.1 {
                best = (policy, saved(policy));
            }
        }
        best.0
    }

    /// The row of a policy at a budget.
    pub fn row(&self, policy: PolicyName, budget: u64) -> Option<&Row> {
        self.rows.iter().find(|row| row.policy == policy && row.budget == budget)
    }
}

/// Runs every policy over a trace at each of these budgets.
pub fn replay(trace: &Trace, budgets: &[u64]) -> Report {
    let mut rows = Vec::new();
    for budget in budgets.iter().copied() {
        let (belady, bound) = (belady(trace, budget), bound(trace, budget));
        for policy in PolicyName::ALL {
            let outcome = simulate(&mut *policy.build(), trace, budget);
            rows.push(Row { policy, budget, outcome, belady, bound });
        }
    }
    Report { rows, exact: trace.is_uniform() }
}

/// The budgets a trace is replayed at where none are named: 1/32, 1/8, 1/4 and 1/2 of its footprint.
pub fn budgets(trace: &Trace) -> [u64; 4] {
    let footprint = trace.footprint_bytes();
    [32, 8, 4, 2].map(|part| (footprint / part).max(1))
}

/// The policy that saves most on a trace at these budgets.
pub fn best(trace: &Trace, budgets: &[u64]) -> PolicyName {
    replay(trace, budgets).best()
}
