//! What all policies stand on: a table of slots that are used again, and lists threaded through such a table.
//!
//! Links are `u32` indexes, so an item costs a few bytes and moving it in a list is O(1).

use super::Slot;

/// Rows by [`Slot`]; a row that left is given to the next that comes.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    rows: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { rows: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert(&mut self, row: T) -> Slot {
        if let Some(at) = self.free.pop() {
            self.rows[at as usize] = Some(row);
            return Slot(at);
        }
        self.rows.push(Some(row));
        Slot(u32::try_from(self.rows.len() - 1).unwrap_or(NONE - 1))
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&T> {
        self.rows.get(slot.0 as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        self.rows.get_mut(slot.0 as usize)?.as_mut()
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<T> {
        let row = self.rows.get_mut(slot.0 as usize)?.take()?;
        self.free.push(slot.0);
        Some(row)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    /// All slots are below this.
    pub(crate) fn end(&self) -> u32 {
        self.rows.len() as u32
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        self.rows.iter().zip(0..).filter_map(|(row, at)| row.as_ref().map(|row| (Slot(at), row)))
    }
}

/// No slot.
const NONE: u32 = u32::MAX;

/// `N` doubly linked lists over the slots of one table. A slot is in at most one of them.
#[derive(Debug)]
pub(crate) struct Lists<const N: usize> {
    ends: [Ends; N],
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    front: u32,
    back: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    front: u32,
    back: u32,
    /// The list it is in, `N` for none.
    list: u8,
}

impl<const N: usize> Lists<N> {
    const OUT: Link = Link { front: NONE, back: NONE, list: N as u8 };

    pub(crate) const fn new() -> Self {
        Self { ends: [Ends { front: NONE, back: NONE }; N], links: Vec::new() }
    }

    /// Puts a slot at the front of a list, and out of the one it was in.
    pub(crate) fn push_front(&mut self, list: usize, slot: Slot) {
        self.remove(slot);
        let at = slot.0 as usize;
        if self.links.len() <= at {
            self.links.resize(at + 1, Self::OUT);
        }
        let next = self.ends[list].front;
        self.links[at] = Link { front: NONE, back: next, list: list as u8 };
        match self.links.get_mut(next as usize) {
            Some(link) => link.front = slot.0,
            None => self.ends[list].back = slot.0,
        }
        self.ends[list].front = slot.0;
    }

    /// Takes a slot out of whichever list it is in; says which.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<usize> {
        let Link { front, back, list } = self.links.get(slot.0 as usize).copied()?;
        let ends = self.ends.get_mut(usize::from(list))?;
        if front == NONE {
            ends.front = back;
        }
        if back == NONE {
            ends.back = front;
        }
        if let Some(link) = self.links.get_mut(front as usize) {
            link.back = back;
        }
        if let Some(link) = self.links.get_mut(back as usize) {
            link.front = front;
        }
        self.links[slot.0 as usize] = Self::OUT;
        Some(usize::from(list))
    }

    pub(crate) fn list_of(&self, slot: Slot) -> Option<usize> {
        self.links.get(slot.0 as usize).map(|link| usize::from(link.list)).filter(|list| *list < N)
    }

    pub(crate) fn front(&self, list: usize) -> Option<Slot> {
        Some(self.ends[list].front).filter(|at| *at != NONE).map(Slot)
    }

    pub(crate) fn back(&self, list: usize) -> Option<Slot> {
        Some(self.ends[list].back).filter(|at| *at != NONE).map(Slot)
    }

    /// From the back to the front.
    pub(crate) fn backward(&self, list: usize) -> impl Iterator<Item = Slot> {
        std::iter::successors(self.back(list), |slot| {
            Some(self.links[slot.0 as usize].front).filter(|at| *at != NONE).map(Slot)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_in_one_list_and_leaves_it_whole() {
        let mut lists = Lists::<2>::new();
        for at in [0, 1, 2, 3] {
            lists.push_front(0, Slot(at));
        }
        lists.push_front(1, Slot(2));
        lists.push_front(0, Slot(0));
        assert_eq!(lists.remove(Slot(3)), Some(0));
        assert_eq!(lists.remove(Slot(3)), None);
        assert_eq!(lists.backward(0).collect::<Vec<_>>(), [Slot(1), Slot(0)]);
        assert_eq!(lists.backward(1).collect::<Vec<_>>(), [Slot(2)]);
        assert_eq!(
            (lists.front(0), lists.list_of(Slot(2)), lists.list_of(Slot(3))),
            (Some(Slot(0)), Some(1), None)
        );
    }

    #[test]
    fn a_slot_that_left_is_used_again() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!((slab.insert('c'), slab.len()), (a, 2));
        assert_eq!(slab.iter().collect::<Vec<_>>(), [(a, &'c'), (b, &'b')]);
    }
}
