//! With values of one size, what a smaller tier holds is always part of what a larger one holds, so more budget is never
//! fewer hits.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;
use qvl_cache::KeyId;
use qvl_cache::policy::belady::simulate;
use qvl_cache::policy::{Auto, Item, Leave, Policy, PolicyName, Slot};
use qvl_cache::trace::{SplitMix, Trace};

/// A tier that holds so many values of one size.
struct Tier {
    policy: Auto,
    room: usize,
    slots: HashMap<u64, Slot>,
    ids: HashMap<Slot, u64>,
    held: BTreeSet<u64>,
    hits: u64,
}

impl Tier {
    fn new(room: usize) -> Self {
        let mut policy = Auto::new();
        policy.set_budget(room as u64);
        Self { policy, room, slots: HashMap::new(), ids: HashMap::new(), held: BTreeSet::new(), hits: 0 }
    }

    fn ask(&mut self, id: u64, cost: f32) {
        if let Some(slot) = self.slots.get(&id) {
            self.hits += 1;
            self.policy.hit(*slot);
            return;
        }
        let slot = self.policy.insert(Item { id: KeyId(u128::from(id)), bytes: 1, cost, uses: 0 });
        self.slots.insert(id, slot);
        self.ids.insert(slot, id);
        self.held.insert(id);
        if self.slots.len() > self.room {
            let victim = self.policy.victim().unwrap();
            self.policy.leave(victim, Leave::Evicted);
            let id = self.ids.remove(&victim).unwrap();
            self.slots.remove(&id).unwrap();
            self.held.remove(&id);
        }
    }
}

/// Runs all sizes beside each other; a cost for each id from `costs`.
fn check(ids: &[u64], rooms: &[usize], cost: impl Fn(u64) -> f32) {
    let mut tiers: Vec<_> = rooms.iter().map(|room| Tier::new(*room)).collect();
    for (at, id) in ids.iter().enumerate() {
        for tier in &mut tiers {
            tier.ask(*id, cost(*id));
        }
        for pair in tiers.windows(2) {
            let (small, large) = (&pair[0], &pair[1]);
            assert!(small.hits <= large.hits, "request {at}: {} and {} hits", small.hits, large.hits);
            let missing: Vec<_> = small.held.difference(&large.held).collect();
            assert!(
                missing.is_empty(),
                "request {at}: only the smaller of {} and {} holds {missing:?}",
                small.room,
                large.room
            );
        }
    }
}

/// Some requests of one family, over ids from `first` on.
fn family() -> impl Strategy<Value = Trace> {
    let seed = any::<u64>();
    prop_oneof![
        (seed, 2_u64..300, 0.2_f64..1.5).prop_map(|(seed, ids, s)| Trace::zipf(seed, ids, s, 700)),
        (2_u64..200).prop_map(|ids| Trace::cycle(ids, 700)),
        (seed, 2_u64..200, 10_usize..100, 1_u64..100)
            .prop_map(|(seed, ids, every, length)| Trace::scans_in_zipf(seed, ids, 0.9, 700, every, length)),
        (seed, 10_u64..200, 2_u64..6)
            .prop_map(|(seed, ids, phases)| Trace::phases(seed, ids, 1.0, 700, phases)),
        (seed, 2_u64..200, 0.5_f64..1.6).prop_map(|(seed, ids, s)| Trace::recency(seed, ids, s, 700)),
        (seed, 2_u64..40, 1_u64..8)
            .prop_map(|(seed, layers, tokens)| Trace::streamed_weights(seed, layers, tokens, 20, 700)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_a_smaller_tier_holds_a_larger_one_holds(
        families in prop::collection::vec(family(), 1..4),
        rooms in prop::collection::btree_set(1_usize..150, 2..5),
        costs in any::<bool>(),
    ) {
        let ids: Vec<u64> = families.iter().flat_map(|trace| &trace.requests).map(|request| request.id).collect();
        let rooms: Vec<usize> = rooms.into_iter().collect();
        let cost = |id: u64| if costs { 1.0 + (SplitMix::new(id).below(1000) as f32) } else { 1.0 };
        check(&ids, &rooms, cost);
    }
}

#[test]
fn it_holds_over_a_long_run_with_changes_of_mind() {
    let parts = [
        Trace::recency(1, 400, 1.1, 6000),
        Trace::cycle(300, 6000),
        Trace::zipf(2, 600, 0.8, 6000),
        Trace::phases(4, 400, 1.0, 8000, 5),
        Trace::scans_in_zipf(3, 300, 1.0, 6000, 100, 150),
        Trace::cycle(120, 3000),
    ];
    let ids: Vec<u64> = parts.iter().flat_map(|trace| &trace.requests).map(|request| request.id).collect();
    check(&ids, &[10, 37, 100, 111, 250, 400], |_| 1.0);
}

#[test]
fn mixed_sizes_lose_little_by_a_larger_budget() {
    // With mixed sizes it cannot hold: a larger budget may let one large value in for which a smaller has no room, and
    // that pushes several small ones out. How much is lost is bounded here, over many pairs of budgets.
    let (mut pairs, mut fewer, mut worst) = (0, 0, 0.0_f64);
    for seed in 0..8 {
        let trace = Trace::zipf(seed, 400, 0.9, 3000).with_sizes(seed);
        let footprint = trace.footprint_bytes();
        let saved: Vec<f64> = (16..112)
            .map(|part| simulate(&mut *PolicyName::Auto.build(), &trace, footprint * part / 512).saved_rate())
            .collect();
        for pair in saved.windows(2) {
            pairs += 1;
            fewer += u32::from(pair[1] < pair[0]);
            worst = worst.max(pair[0] - pair[1]);
        }
    }
    eprintln!("{fewer} of {pairs} pairs saved less with more budget, at most {:.3} %", 100.0 * worst);
    assert!(f64::from(fewer) < 0.25 * f64::from(pairs), "{fewer} of {pairs}");
    assert!(worst < 0.02, "{worst}");
}
