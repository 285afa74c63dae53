//! Where there is room in a range of addresses: two-level segregated fit. Pure: it never touches what it hands out.
//!
//! Free pieces are in lists by size, eight for each doubling, and two levels of bitmaps say which lists have any. So
//! allocating and freeing take constant time. Only where no list has pieces that are all large enough, those that may
//! have one are walked: what fits is found always.

/// A piece, from its allocation until it is freed.
pub(crate) type PieceId = u32;

/// A range of addresses in grains, and what of it is free.
pub(crate) struct Space {
    pieces: Vec<Piece>,
    /// Places in `pieces` that are not used.
    spare: Vec<PieceId>,
    /// The first piece of each list.
    lists: Vec<PieceId>,
    /// Doublings that have lists that have pieces.
    doublings: u64,
    /// Their lists that have pieces.
    steps: [u8; 64],
    grains: u64,
    free_grains: u64,
}

#[derive(Clone, Copy)]
struct Piece {
    at: u64,
    grains: u64,
    /// Its neighbours by address.
    before: PieceId,
    behind: PieceId,
    /// Its neighbours in the list, if it is free.
    previous: PieceId,
    next: PieceId,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Used,
    /// Free, and somebody wrote to it.
    Dirty,
    /// Free, and the system has no memory for it yet, or has it back.
    Clean,
    /// No piece.
    Spare,
}

impl State {
    fn is_free(self) -> bool {
        matches!(self, Self::Dirty | Self::Clean)
    }
}

const NONE: PieceId = PieceId::MAX;
const STEP_BITS: u32 = 3;
const STEPS: usize = 1 << STEP_BITS;

impl Space {
    /// All free and clean, from `at` on.
    pub(crate) fn new(at: u64, grains: u64) -> Self {
        let mut space = Self {
            pieces: Vec::new(),
            spare: Vec::new(),
            lists: vec![NONE; 64 * STEPS],
            doublings: 0,
            steps: [0; 64],
            grains,
            free_grains: grains,
        };
        let all = space.add(at, grains, State::Clean);
        space.link(all);
        space
    }

    /// The piece, and where it begins: at a multiple of `align`, a power of two. `grains` is not 0.
    pub(crate) fn allocate(&mut self, grains: u64, align: u64) -> Option<(PieceId, u64)> {
        // A piece of that length has an aligned part that is long enough, wherever it begins.
        let enough = grains.checked_add(align - 1)?;
        let certain = list_with_all(enough);
        let id = match self.next_list(certain) {
            Some(list) => self.lists[list],
            None => self.walk(grains, align)?,
        };
        Some(self.carve(id, grains, align))
    }

    /// The piece is free again, and one with its free neighbours.
    pub(crate) fn free(&mut self, id: PieceId) {
        let Piece { mut grains, before, behind, state, .. } = self.pieces[id as usize];
        debug_assert_eq!(state, State::Used);
        self.free_grains += grains;
        let mut id = id;
        if behind != NONE && self.pieces[behind as usize].state.is_free() {
            self.unlink(behind);
            grains += self.pieces[behind as usize].grains;
            self.remove(behind);
        }
        if before != NONE && self.pieces[before as usize].state.is_free() {
            self.unlink(before);
            grains += self.pieces[before as usize].grains;
            self.remove(id);
            id = before;
        }
        let piece = &mut self.pieces[id as usize];
        (piece.grains, piece.state) = (grains, State::Dirty);
        self.link(id);
    }

    pub(crate) fn grains_of(&self, id: PieceId) -> u64 {
        self.pieces[id as usize].grains
    }

    pub(crate) fn free_grains(&self) -> u64 {
        self.free_grains
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free_grains == self.grains
    }

    /// The largest free piece. Walks one list.
    pub(crate) fn largest_free(&self) -> u64 {
        let Some(doubling) = self.doublings.checked_ilog2() else { return 0 };
        let Some(step) = self.steps[doubling as usize].checked_ilog2() else { return 0 };
        let list = doubling as usize * STEPS + step as usize;
        self.list(list).map(|id| self.pieces[id as usize].grains).max().unwrap_or(0)
    }

    /// The most that could be had with an alignment. Walks all pieces.
    pub(crate) fn fits(&self, align: u64) -> u64 {
        let free = self.pieces.iter().filter(|piece| piece.state.is_free());
        free.map(|piece| (piece.at + piece.grains).saturating_sub(piece.at.next_multiple_of(align)))
            .max()
            .unwrap_or(0)
    }

    /// Calls with each free piece that somebody wrote to since it was last cleaned. Walks all pieces.
    pub(crate) fn clean(&mut self, mut give_back: impl FnMut(u64, u64)) {
        for piece in &mut self.pieces {
            if piece.state == State::Dirty {
                give_back(piece.at, piece.grains);
                piece.state = State::Clean;
            }
        }
    }

    fn walk(&self, grains: u64, align: u64) -> Option<PieceId> {
        let mut from = list_of(grains);
        loop {
            let list = self.next_list(from)?;
            let fitting = self.list(list).find(|&id| {
                let Piece { at, grains: has, .. } = self.pieces[id as usize];
                at.next_multiple_of(align) - at + grains <= has
            });
            if fitting.is_some() {
                return fitting;
            }
            from = list + 1;
        }
    }

    /// Makes a free piece a used one, with what is before and behind the aligned part left free.
    fn carve(&mut self, id: PieceId, grains: u64, align: u64) -> (PieceId, u64) {
        self.unlink(id);
        let Piece { at, grains: has, before, behind, state, .. } = self.pieces[id as usize];
        let aligned = at.next_multiple_of(align);
        let (skipped, left) = (aligned - at, has - (aligned - at) - grains);
        debug_assert!(state.is_free() && skipped + grains <= has);
        let piece = &mut self.pieces[id as usize];
        (piece.at, piece.grains, piece.state) = (aligned, grains, State::Used);
        if skipped > 0 {
            let front = self.add(at, skipped, state);
            self.join(before, front);
            self.join(front, id);
            self.link(front);
        }
        if left > 0 {
            let rest = self.add(aligned + grains, left, state);
            self.join(rest, behind);
            self.join(id, rest);
            self.link(rest);
        }
        self.free_grains -= grains;
        (id, aligned)
    }

    fn add(&mut self, at: u64, grains: u64, state: State) -> PieceId {
        let piece = Piece { at, grains, before: NONE, behind: NONE, previous: NONE, next: NONE, state };
        match self.spare.pop() {
            Some(id) => {
                self.pieces[id as usize] = piece;
                id
            }
            None => {
                self.pieces.push(piece);
                (self.pieces.len() - 1) as PieceId
            }
        }
    }

    /// Takes a piece out of the row by address.
    fn remove(&mut self, id: PieceId) {
        let Piece { before, behind, .. } = self.pieces[id as usize];
        self.join(before, behind);
        self.pieces[id as usize].state = State::Spare;
        self.spare.push(id);
    }

    fn join(&mut self, before: PieceId, behind: PieceId) {
        if before != NONE {
            self.pieces[before as usize].behind = behind;
        }
        if behind != NONE {
            self.pieces[behind as usize].before = before;
        }
    }

    fn link(&mut self, id: PieceId) {
        let list = list_of(self.pieces[id as usize].grains);
        let next = std::mem::replace(&mut self.lists[list], id);
        if next != NONE {
            self.pieces[next as usize].previous = id;
        }
        let piece = &mut self.pieces[id as usize];
        (piece.previous, piece.next) = (NONE, next);
        self.doublings |= 1 << (list / STEPS);
        self.steps[list / STEPS] |= 1 << (list % STEPS);
    }

    fn unlink(&mut self, id: PieceId) {
        let Piece { grains, previous, next, .. } = self.pieces[id as usize];
        if next != NONE {
            self.pieces[next as usize].previous = previous;
        }
        if previous != NONE {
            self.pieces[previous as usize].next = next;
            return;
        }
        let list = list_of(grains);
        self.lists[list] = next;
        if next == NONE {
            self.steps[list / STEPS] &= !(1 << (list % STEPS));
            if self.steps[list / STEPS] == 0 {
                self.doublings &= !(1 << (list / STEPS));
            }
        }
    }

    /// The first list that has pieces, from this one on.
    fn next_list(&self, list: usize) -> Option<usize> {
        let doubling = list / STEPS;
        let here = *self.steps.get(doubling)? & (u8::MAX << (list % STEPS));
        if here != 0 {
            return Some(doubling * STEPS + here.trailing_zeros() as usize);
        }
        let above = self.doublings & u64::MAX.checked_shl(doubling as u32 + 1).unwrap_or(0);
        if above == 0 {
            return None;
        }
        let doubling = above.trailing_zeros() as usize;
        Some(doubling * STEPS + self.steps[doubling].trailing_zeros() as usize)
    }

    fn list(&self, list: usize) -> impl Iterator<Item = PieceId> + '_ {
        let listed = |id: PieceId| (id != NONE).then_some(id);
        std::iter::successors(listed(self.lists[list]), move |&id| listed(self.pieces[id as usize].next))
    }
}

/// The list that a piece is in.
fn list_of(grains: u64) -> usize {
    if grains < STEPS as u64 {
        return grains as usize;
    }
    let doubling = grains.ilog2();
    let step = (grains >> (doubling - STEP_BITS)) as usize & (STEPS - 1);
    (doubling - STEP_BITS + 1) as usize * STEPS + step
}

/// The first list with nothing smaller in it.
fn list_with_all(grains: u64) -> usize {
    let list = list_of(grains);
    let finer = grains >= STEPS as u64 && grains & ((1 << (grains.ilog2() - STEP_BITS)) - 1) != 0;
    list + usize::from(finer)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Space {
        fn check(&self) {
            let mut rows: Vec<&Piece> =
                self.pieces.iter().filter(|piece| piece.state != State::Spare).collect();
            rows.sort_by_key(|piece| piece.at);
            assert_eq!(rows.iter().map(|piece| piece.grains).sum::<u64>(), self.grains);
            for pair in rows.windows(2) {
                assert_eq!(pair[0].at + pair[0].grains, pair[1].at, "a gap or an overlap");
                assert!(!(pair[0].state.is_free() && pair[1].state.is_free()), "free neighbours are one");
            }
            let listed: u64 = (0..self.lists.len())
                .flat_map(|list| self.list(list))
                .map(|id| self.pieces[id as usize].grains)
                .sum();
            assert_eq!(listed, self.free_grains);
        }
    }

    #[test]
    fn lists_are_in_order_of_size() {
        for grains in 1..5000 {
            assert!(list_of(grains) <= list_of(grains + 1));
            let all = list_with_all(grains);
            assert!((1..6000).all(|other| list_of(other) < all || other >= grains), "{grains}");
        }
        assert!(list_with_all(u64::MAX >> 1) < 64 * STEPS);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate { grains: u64, align: u32 },
        Free { number: usize },
        Clean,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u64..200, 0u32..8).prop_map(|(grains, align)| Step::Allocate { grains, align }),
            3 => any::<usize>().prop_map(|number| Step::Free { number }),
            1 => Just(Step::Clean),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The model: a map of what is used. Something fits exactly if there is a gap in it.
        #[test]
        fn it_equals_a_map_of_what_is_used(
            first in 0u64..100,
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            const GRAINS: u64 = 1500;
            let mut space = Space::new(first, GRAINS);
            let mut used: BTreeMap<u64, (u64, PieceId)> = BTreeMap::new();
            let mut is_clean = vec![true; GRAINS as usize];
            for step in steps {
                let mut gaps = Vec::new();
                let mut at = first;
                for (&begin, &(grains, _)) in &used {
                    gaps.push((at, begin));
                    at = begin + grains;
                }
                gaps.push((at, first + GRAINS));
                let fits = |align: u64| {
                    gaps.iter().map(|gap| gap.1.saturating_sub(gap.0.next_multiple_of(align))).max().unwrap()
                };
                prop_assert_eq!(space.largest_free(), fits(1));
                match step {
                    Step::Allocate { grains, align } => {
                        let align = 1 << align;
                        prop_assert_eq!(space.fits(align), fits(align));
                        match space.allocate(grains, align) {
                            Some((id, at)) => {
                                prop_assert!(at % align == 0 && space.grains_of(id) == grains);
                                prop_assert!(
                                    gaps.iter().any(|gap| gap.0 <= at && at + grains <= gap.1),
                                    "overlaps"
                                );
                                used.insert(at, (grains, id));
                            }
                            None => prop_assert!(fits(align) < grains, "{} would fit", fits(align)),
                        }
                    }
                    Step::Free { number } => {
                        if let Some((&at, &(grains, id))) = used.iter().nth(number % used.len().max(1)) {
                            used.remove(&at);
                            space.free(id);
                            is_clean[(at - first) as usize..(at - first + grains) as usize].fill(false);
                        }
                    }
                    Step::Clean => {
                        space.clean(|at, grains| {
                            let (at, end) = ((at - first) as usize, (at - first + grains) as usize);
                            is_clean[at..end].fill(true);
                        });
                        for gap in &gaps {
                            for at in gap.0..gap.1 {
                                assert!(is_clean[(at - first) as usize], "{at} was not cleaned");
                            }
                        }
                    }
                }
                space.check();
            }
            for (_, (_, id)) in used {
                space.free(id);
            }
            space.check();
            prop_assert!(space.is_empty() && space.largest_free() == GRAINS && space.free_grains() == GRAINS);
        }
    }
}
