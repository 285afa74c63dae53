//! Whatever is done to a policy, in whatever order: who goes is there and not pinned, all go in the end, and nothing
//! panics.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use qvl_cache::KeyId;
use qvl_cache::policy::{Item, Leave, Policy, PolicyName, Slot};

#[derive(Clone, Debug)]
enum Op {
    /// A request, as a tier makes it.
    Ask {
        id: u64,
        bytes: u64,
        cost: f32,
        uses: u32,
    },
    Miss {
        id: u64,
    },
    Update {
        pick: usize,
        bytes: u64,
        cost: f32,
    },
    Pin {
        pick: usize,
    },
    Unpin {
        pick: usize,
    },
    Remove {
        pick: usize,
    },
    Budget {
        bytes: u64,
    },
    Look {
        pick: usize,
    },
}

fn cost() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => 0.0_f32..1.0,
        1 => Just(f32::NAN),
        1 => Just(f32::INFINITY),
        1 => Just(-1.0),
        1 => Just(0.0),
        1 => Just(f32::MAX)
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let pick = 0_usize..64;
    let bytes = prop_oneof![1_u64..200, Just(1), 1_u64..2];
    prop_oneof![
        20 => (0_u64..40, bytes.clone(), cost(), 0_u32..3)
            .prop_map(|(id, bytes, cost, uses)| Op::Ask { id, bytes, cost, uses }),
        2 => (0_u64..60).prop_map(|id| Op::Miss { id }),
        2 => (pick.clone(), bytes, cost()).prop_map(|(pick, bytes, cost)| Op::Update { pick, bytes, cost }),
        3 => pick.clone().prop_map(|pick| Op::Pin { pick }),
        4 => pick.clone().prop_map(|pick| Op::Unpin { pick }),
        2 => pick.clone().prop_map(|pick| Op::Remove { pick }),
        1 => (0_u64..1500).prop_map(|bytes| Op::Budget { bytes }),
        2 => pick.prop_map(|pick| Op::Look { pick }),
    ]
}

/// A tier without values.
struct Tier {
    policy: Box<dyn Policy>,
    budget: u64,
    /// By id: slot, bytes, pinned.
    held: BTreeMap<u64, (Slot, u64, bool)>,
    by_slot: HashMap<Slot, u64>,
}

impl Tier {
    fn new(name: PolicyName, budget: u64) -> Self {
        let mut policy = name.build();
        policy.set_budget(budget);
        Self { policy, budget, held: BTreeMap::new(), by_slot: HashMap::new() }
    }

    fn used(&self) -> u64 {
        self.held.values().map(|(_, bytes, _)| bytes).sum()
    }

    fn pick(&self, pick: usize) -> Option<(u64, Slot)> {
        self.held.iter().nth(pick % self.held.len().max(1)).map(|(id, (slot, _, _))| (*id, *slot))
    }

    fn drop(&mut self, slot: Slot, why: Leave) {
        self.policy.leave(slot, why);
        let id = self.by_slot.remove(&slot).unwrap();
        self.held.remove(&id).unwrap();
    }

    /// Evicts to the budget; `None` stands for "all pinned", and is checked to be.
    fn settle(&mut self) {
        while self.used() > self.budget {
            let victim = self.policy.victim();
            assert_eq!(victim, self.policy.victim(), "a victim stays until it leaves");
            let Some(victim) = victim else {
                assert!(
                    self.held.values().all(|(_, _, pinned)| *pinned),
                    "no victim, and not all are pinned"
                );
                return;
            };
            let id = self.by_slot.get(&victim).copied().unwrap();
            assert!(!self.held[&id].2, "{id} is pinned");
            self.drop(victim, Leave::Evicted);
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Ask { id, bytes, cost, uses } => match self.held.get(&id) {
                Some((slot, _, _)) => self.policy.hit(*slot),
                None => {
                    let slot = self.policy.insert(Item { id: KeyId(u128::from(id)), bytes, cost, uses });
                    self.held.insert(id, (slot, bytes, false));
                    assert_eq!(self.by_slot.insert(slot, id), None, "the slot was in use");
                }
            },
            Op::Miss { id } => {
                if !self.held.contains_key(&id) {
                    self.policy.miss(KeyId(u128::from(id)));
                }
            }
            Op::Update { pick, bytes, cost } => {
                if let Some((id, slot)) = self.pick(pick) {
                    self.policy.update(slot, bytes, cost);
                    self.held.get_mut(&id).unwrap().1 = bytes;
                }
            }
            Op::Pin { pick } => {
                if let Some((id, slot)) = self.pick(pick) {
                    self.policy.pin(slot);
                    self.held.get_mut(&id).unwrap().2 = true;
                }
            }
            Op::Unpin { pick } => {
                if let Some((id, slot)) = self.pick(pick) {
                    self.policy.unpin(slot);
                    self.held.get_mut(&id).unwrap().2 = false;
                }
            }
            Op::Remove { pick } => {
                if let Some((_, slot)) = self.pick(pick) {
                    self.drop(slot, Leave::Removed);
                }
            }
            Op::Budget { bytes } => {
                self.budget = bytes;
                self.policy.set_budget(bytes);
            }
            Op::Look { pick } => {
                if let Some((_, slot)) = self.pick(pick) {
                    assert!(self.policy.worth(slot) >= 0.0);
                    assert!(self.policy.uses(slot) >= 1);
                    assert!(!self.policy.why(slot).is_empty());
                }
                let mut order: Vec<_> = self.policy.order();
                assert_eq!(order.len(), self.held.len());
                order.sort();
                order.dedup();
                assert_eq!(order.len(), self.held.len());
            }
        }
        self.settle();
    }

    fn empty(&mut self) {
        for (slot, _, _) in self.held.values() {
            self.policy.unpin(*slot);
        }
        self.held.values_mut().for_each(|row| row.2 = false);
        while let Some(victim) = self.policy.victim() {
            assert!(self.by_slot.contains_key(&victim));
            self.drop(victim, Leave::Evicted);
        }
        assert_eq!(self.held.len(), 0);
        assert_eq!(self.policy.order(), []);
    }
}

fn check(name: PolicyName, ops: Vec<Op>, budget: u64) {
    let mut tier = Tier::new(name, budget);
    for op in ops {
        tier.run(op);
    }
    tier.empty();
}

proptest! {
    #[test]
    fn lru_keeps_it(ops in prop::collection::vec(op(), 0..400), budget in 0_u64..2000) {
        check(PolicyName::Lru, ops, budget);
    }

    #[test]
    fn tinylfu_keeps_it(ops in prop::collection::vec(op(), 0..400), budget in 0_u64..2000) {
        check(PolicyName::TinyLfu, ops, budget);
    }

    #[test]
    fn cost_aware_keeps_it(ops in prop::collection::vec(op(), 0..400), budget in 0_u64..2000) {
        check(PolicyName::CostAware, ops, budget);
    }

    #[test]
    fn cyclic_keeps_it(ops in prop::collection::vec(op(), 0..400), budget in 0_u64..2000) {
        check(PolicyName::Cyclic, ops, budget);
    }

    #[test]
    fn auto_keeps_it(ops in prop::collection::vec(op(), 0..400), budget in 0_u64..2000) {
        check(PolicyName::Auto, ops, budget);
    }

    #[test]
    fn lru_is_the_obvious_list(asked in prop::collection::vec(0_u64..30, 0..300), room in 1_usize..20) {
        let mut tier = Tier::new(PolicyName::Lru, room as u64);
        let mut model: Vec<u64> = Vec::new();
        for id in asked {
            tier.run(Op::Ask { id, bytes: 1, cost: 1.0, uses: 0 });
            model.retain(|other| *other != id);
            model.push(id);
            if model.len() > room {
                model.remove(0);
            }
            let order: Vec<u64> = tier.policy.order().into_iter().map(|slot| tier.by_slot[&slot]).collect();
            prop_assert_eq!(&order, &model);
        }
    }
}

#[test]
fn a_slot_that_left_is_known_to_no_policy() {
    for name in PolicyName::ALL {
        let mut policy = name.build();
        policy.set_budget(10);
        let slot = policy.insert(Item { id: KeyId(1), bytes: 1, cost: 1.0, uses: 0 });
        policy.leave(slot, Leave::Removed);
        for slot in [slot, Slot(77), Slot(u32::MAX)] {
            policy.hit(slot);
            policy.update(slot, 5, 1.0);
            policy.pin(slot);
            policy.unpin(slot);
            policy.leave(slot, Leave::Evicted);
            assert_eq!((policy.uses(slot), policy.worth(slot)), (0, 0.0), "{name}");
        }
        assert_eq!(policy.victim(), None, "{name}");
    }
}

#[test]
fn policies_are_found_by_name() {
    for name in PolicyName::ALL {
        assert_eq!(name.to_string().parse::<PolicyName>().unwrap(), name);
        assert_eq!(name.build().name(), name.name());
    }
    let message = "mru".parse::<PolicyName>().unwrap_err().to_string();
    assert_eq!(
        message,
        "policy = mru: there is no such policy; known are lru, tinylfu, cost-aware, cyclic, auto"
    );
}
