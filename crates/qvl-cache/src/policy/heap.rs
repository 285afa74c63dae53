//! A heap whose members can be found, moved and taken out: O(log n) each, the largest first in O(1).
//!
//! Four children a node: half the levels of a binary heap, and the children of a node share a cache line or two.

/// A member: what it is ordered by, and its slot.
pub(crate) type Member<K> = (K, u32);

/// The place of a slot that is in no heap.
pub(crate) const OUT: u32 = u32::MAX;

const CHILDREN: usize = 4;

/// The largest key is on top. Where each slot is stands in a table that several heaps share (`places`), since a slot is
/// in one of them at most.
#[derive(Debug)]
pub(crate) struct Heap<K> {
    members: Vec<Member<K>>,
}

impl<K: Ord + Copy> Heap<K> {
    pub(crate) const fn new() -> Self {
        Self { members: Vec::new() }
    }

    pub(crate) fn top(&self) -> Option<Member<K>> {
        self.members.first().copied()
    }

    pub(crate) fn clear(&mut self) {
        self.members.clear();
    }

    pub(crate) fn push(&mut self, places: &mut Vec<u32>, key: K, slot: u32) {
        if places.len() <= slot as usize {
            places.resize(slot as usize + 1, OUT);
        }
        self.members.push((key, slot));
        self.up(places, self.members.len() - 1);
    }

    /// Gives a member another key.
    pub(crate) fn change(&mut self, places: &mut [u32], key: K, slot: u32) {
        let at = places[slot as usize] as usize;
        let before = self.members[at].0;
        self.members[at].0 = key;
        if key > before { self.up(places, at) } else { self.down(places, at) }
    }

    pub(crate) fn remove(&mut self, places: &mut [u32], slot: u32) {
        let at = places[slot as usize] as usize;
        places[slot as usize] = OUT;
        let Some(last) = self.members.pop() else { return };
        if at == self.members.len() {
            return;
        }
        let before = std::mem::replace(&mut self.members[at], last);
        if last.0 > before.0 { self.up(places, at) } else { self.down(places, at) }
    }

    fn up(&mut self, places: &mut [u32], mut at: usize) {
        let member = self.members[at];
        while at > 0 {
            let parent = (at - 1) / CHILDREN;
            if self.members[parent].0 >= member.0 {
                break;
            }
            self.members[at] = self.members[parent];
            places[self.members[at].1 as usize] = at as u32;
            at = parent;
        }
        self.members[at] = member;
        places[member.1 as usize] = at as u32;
    }

    fn down(&mut self, places: &mut [u32], mut at: usize) {
        let member = self.members[at];
        loop {
            let first = at * CHILDREN + 1;
            let children = first..(first + CHILDREN).min(self.members.len());
            let Some(child) = children.max_by_key(|child| self.members[*child].0) else { break };
            if self.members[child].0 <= member.0 {
                break;
            }
            self.members[at] = self.members[child];
            places[self.members[at].1 as usize] = at as u32;
            at = child;
        }
        self.members[at] = member;
        places[member.1 as usize] = at as u32;
    }
}

/// A finite float as an integer of the same order.
pub(crate) fn ordered(value: f64) -> u64 {
    let bits = value.to_bits();
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}

/// The reverse of [`ordered`].
pub(crate) fn unordered(bits: u64) -> f64 {
    f64::from_bits(if bits >> 63 == 1 { bits & !(1 << 63) } else { !bits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::SplitMix;

    #[test]
    fn the_top_is_always_the_largest_of_the_members() {
        let (mut heap, mut places, mut model) = (Heap::new(), Vec::new(), vec![None; 64]);
        let mut random = SplitMix::new(1);
        for _ in 0..20_000 {
            let (slot, key) = (random.below(64) as u32, random.below(1000));
            match (model[slot as usize], random.below(3)) {
                (None, _) => {
                    heap.push(&mut places, key, slot);
                    model[slot as usize] = Some(key);
                }
                (Some(_), 0) => {
                    heap.remove(&mut places, slot);
                    model[slot as usize] = None;
                }
                (Some(_), _) => {
                    heap.change(&mut places, key, slot);
                    model[slot as usize] = Some(key);
                }
            }
            assert_eq!(heap.top().map(|(key, _)| key), model.iter().flatten().max().copied());
        }
    }

    #[test]
    fn floats_keep_their_order_as_integers() {
        let values = [f64::MIN, -2.5, -1e-9, 0.0, 1e-9, 3.0, f64::MAX];
        for pair in values.windows(2) {
            assert!(ordered(pair[0]) < ordered(pair[1]));
            assert_eq!(unordered(ordered(pair[0])), pair[0]);
        }
    }
}
