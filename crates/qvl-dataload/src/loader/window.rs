//! The prefetch window: which items are being made, are ready, and may be begun, within a bound of items and a bound
//! of bytes. No threads, no clock: the queue around it has those.
//!
//! Items are numbered from 0 in the order in which the consumer gets them. The window holds the next of them:
//!
//! ```text
//!            taken │ done  done  working  done  fetched  fetching │ not begun
//!                  ▲              ▲                                ▲
//!                first          head                              end
//! ```
//!
//! The *head* is the first item that is not done; the consumer will wait for it. Bytes are reserved before they are
//! used, item by item:
//!
//! - the head may take all that the bound leaves;
//! - any other item must leave `item_bytes_max` free for the head.
//!
//! So the sum never exceeds the bound, and the head can always be made: what the others hold leaves it the most that
//! one item may take, and what is done before it is taken by the consumer. Nobody waits for each other in a circle.

use std::collections::VecDeque;

/// What a window may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Items begun and not taken, at least 1.
    pub(crate) items: usize,
    /// Bytes reserved in all.
    pub(crate) bytes: usize,
    /// Bytes of one item, at most `bytes`.
    pub(crate) item_bytes_max: usize,
}

/// `F`: what was fetched for an item. `T`: what was made of it.
#[derive(Debug)]
pub(crate) struct Window<F, T> {
    bounds: Bounds,
    /// Number of `slots[0]`.
    first: u64,
    slots: VecDeque<Slot<F, T>>,
    /// Place in `slots` of the head.
    head: usize,
    /// Place in `slots` of the first item that no worker has claimed.
    unclaimed: usize,
    /// Items in all; the window ends there.
    total: u64,
    used: usize,
    /// Bytes taken by the consumer side and not handed over yet; part of `used`.
    kept: usize,
    peak_bytes: usize,
    peak_items: usize,
}

#[derive(Debug)]
struct Slot<F, T> {
    reserved: usize,
    stage: Stage<F, T>,
}

#[derive(Debug)]
enum Stage<F, T> {
    /// Begun: its bytes are being read, or nothing is read for it.
    Begun,
    /// Read, and not claimed by a worker.
    Fetched(F),
    /// In the hands of a worker.
    Working,
    /// Ready for the consumer.
    Done(T),
}

/// An answer to a request for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// They are reserved.
    Granted,
    /// Not now.
    Wait,
    /// Never: the item would be larger than an item may be.
    TooLarge,
}

impl<F, T> Window<F, T> {
    /// An empty window whose next item has the number `first`, over `total` items in all.
    pub(crate) fn new(bounds: Bounds, first: u64, total: u64) -> Self {
        Self {
            bounds,
            first,
            slots: VecDeque::new(),
            head: 0,
            unclaimed: 0,
            total,
            used: 0,
            kept: 0,
            peak_bytes: 0,
            peak_items: 0,
        }
    }

    /// Changes how many items may be begun. What is begun already stays.
    pub(crate) fn set_items(&mut self, items: usize) {
        self.bounds.items = items.max(1);
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Whether the consumer has taken everything.
    pub(crate) fn is_over(&self) -> bool {
        self.first >= self.total
    }

    /// Whether nothing is left to be begun.
    pub(crate) fn is_begun(&self) -> bool {
        self.first + self.slots.len() as u64 >= self.total
    }

    /// Whether workers have claimed everything there is.
    pub(crate) fn is_claimed(&self) -> bool {
        self.is_begun() && self.unclaimed == self.slots.len()
    }

    pub(crate) fn used_bytes(&self) -> usize {
        self.used
    }

    pub(crate) fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    pub(crate) fn peak_items(&self) -> usize {
        self.peak_items
    }

    /// Items that are ready from the front on, without a gap.
    pub(crate) fn ready(&self) -> usize {
        self.head
    }

    /// Begins the next item, for somebody who fetches for it; `None` if the window is full or at its end.
    pub(crate) fn begin(&mut self) -> Option<u64> {
        if self.is_begun() || self.slots.len() >= self.bounds.items {
            return None;
        }
        let number = self.first + self.slots.len() as u64;
        self.slots.push_back(Slot { reserved: 0, stage: Stage::Begun });
        self.peak_items = self.peak_items.max(self.slots.len());
        Some(number)
    }

    /// What was read for an item that was begun.
    pub(crate) fn fetched(&mut self, number: u64, fetched: F) {
        if let Some(slot) = self.slot(number) {
            slot.stage = Stage::Fetched(fetched);
        }
    }

    /// The next item that was fetched, for a worker.
    pub(crate) fn claim_fetched(&mut self) -> Option<(u64, F)> {
        let slot = self.slots.get_mut(self.unclaimed)?;
        match std::mem::replace(&mut slot.stage, Stage::Working) {
            Stage::Fetched(fetched) => {
                self.unclaimed += 1;
                Some((self.first + self.unclaimed as u64 - 1, fetched))
            }
            other => {
                slot.stage = other;
                None
            }
        }
    }

    /// Begins and claims up to `most` items in a row: the number of the first and how many there are.
    pub(crate) fn claim(&mut self, most: usize) -> Option<(u64, usize)> {
        let number = self.first + self.slots.len() as u64;
        let mut count = 0;
        while count < most && self.begin().is_some() {
            if let Some(slot) = self.slots.back_mut() {
                slot.stage = Stage::Working;
            }
            count += 1;
        }
        self.unclaimed += count;
        (count > 0).then_some((number, count))
    }

    /// Reserves more bytes for an item that is being made.
    pub(crate) fn reserve(&mut self, number: u64, bytes: usize) -> Grant {
        let place = (number - self.first) as usize;
        let Some(own) = self.slots.get(place).map(|slot| slot.reserved) else { return Grant::Wait };
        if own.saturating_add(bytes) > self.bounds.item_bytes_max {
            return Grant::TooLarge;
        }
        // What the head may still ask for.
        let set_aside = if place == self.head {
            0
        } else {
            let head = self.slots.get(self.head).map_or(0, |slot| slot.reserved);
            self.bounds.item_bytes_max - head
        };
        if self.used.saturating_add(bytes).saturating_add(set_aside) > self.bounds.bytes {
            return Grant::Wait;
        }
        self.used += bytes;
        self.peak_bytes = self.peak_bytes.max(self.used);
        if let Some(slot) = self.slots.get_mut(place) {
            slot.reserved += bytes;
        }
        Grant::Granted
    }

    /// An item is ready and takes `bytes` from now on, at most what was reserved for it.
    pub(crate) fn finish(&mut self, number: u64, bytes: usize, value: T) {
        let Some(slot) = self.slot(number) else { return };
        debug_assert!(bytes <= slot.reserved, "item {number}: {bytes} bytes of {} reserved", slot.reserved);
        let bytes = bytes.min(slot.reserved);
        let freed = slot.reserved - bytes;
        slot.reserved = bytes;
        slot.stage = Stage::Done(value);
        self.used -= freed;
        while matches!(self.slots.get(self.head), Some(Slot { stage: Stage::Done(_), .. })) {
            self.head += 1;
        }
    }

    /// The next item, if it is ready. With `keep` its bytes stay counted until they are released.
    pub(crate) fn take(&mut self, keep: bool) -> Option<T> {
        if self.head == 0 {
            return None;
        }
        let Slot { reserved, stage: Stage::Done(value) } = self.slots.pop_front()? else { return None };
        self.first += 1;
        self.head -= 1;
        self.unclaimed -= 1;
        if keep {
            self.kept += reserved;
        } else {
            self.used -= reserved;
        }
        Some(value)
    }

    /// What was kept is the consumer's from now on.
    pub(crate) fn release(&mut self) {
        self.used -= std::mem::take(&mut self.kept);
    }

    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept
    }

    /// Whether this item is the one the consumer waits for.
    pub(crate) fn is_head(&self, number: u64) -> bool {
        number == self.first + self.head as u64
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot<F, T>> {
        self.slots.get_mut(number.checked_sub(self.first)? as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Plain = Window<(), u64>;

    const BOUNDS: Bounds = Bounds { items: 4, bytes: 100, item_bytes_max: 40 };

    /// done 0 │ head 1 working │ 2 done: the head may take 40 of the 100 bytes, the others 60 between them.
    #[test]
    fn others_leave_room_for_the_head() {
        let mut window = Plain::new(BOUNDS, 0, 10);
        assert_eq!(window.claim(3), Some((0, 3)));
        assert_eq!(window.reserve(1, 41), Grant::TooLarge);
        assert_eq!(window.reserve(1, 40), Grant::Granted);
        assert_eq!(window.reserve(2, 21), Grant::Wait);
        assert_eq!(window.reserve(2, 20), Grant::Granted);
        assert_eq!(window.reserve(2, 1), Grant::Wait, "60 are used, 40 are set aside");
        assert_eq!(window.reserve(0, 40), Grant::Granted, "the head takes what was set aside");
        assert_eq!(window.used_bytes(), 100);
        window.finish(0, 30, 0);
        // 1 is the head and has all it may; 2 may have what 0 gave back.
        assert!(window.is_head(1));
        assert_eq!(window.reserve(2, 10), Grant::Granted);
        assert_eq!(window.reserve(2, 1), Grant::Wait);
        assert_eq!(window.take(false), Some(0));
        assert_eq!((window.used_bytes(), window.peak_bytes()), (70, 100));
        assert_eq!(window.take(false), None);
    }

    #[test]
    fn an_item_that_was_taken_may_stay_counted() {
        let mut window = Plain::new(BOUNDS, 0, 2);
        window.claim(1);
        window.reserve(0, 40);
        window.finish(0, 40, 7);
        assert_eq!(window.take(true), Some(7));
        assert_eq!((window.used_bytes(), window.kept_bytes()), (40, 40));
        window.release();
        assert_eq!((window.used_bytes(), window.kept_bytes()), (0, 0));
    }

    #[test]
    fn fetched_items_are_claimed_in_order() {
        let mut window = Window::<&str, u64>::new(BOUNDS, 5, 7);
        assert_eq!((window.begin(), window.begin(), window.begin()), (Some(5), Some(6), None));
        window.fetched(6, "six");
        assert_eq!(window.claim_fetched(), None, "5 comes first");
        window.fetched(5, "five");
        assert_eq!(window.claim_fetched(), Some((5, "five")));
        assert_eq!(window.claim_fetched(), Some((6, "six")));
        assert_eq!(window.claim_fetched(), None);
        window.finish(6, 0, 6);
        assert_eq!(window.take(false), None);
        window.finish(5, 0, 5);
        assert_eq!((window.take(false), window.take(false)), (Some(5), Some(6)));
        assert!(window.is_over());
    }

    proptest! {
        /// Workers that take any turn, with items of any size: the bounds hold at every moment, the order is right,
        /// and there is always somebody who can go on.
        #[test]
        fn bounds_hold_and_nobody_waits_in_a_circle(
            items in 1usize..9,
            workers in 1usize..5,
            run in 1usize..4,
            sizes in prop::collection::vec((0usize..30, 0usize..30), 1..40),
            turns in prop::collection::vec(any::<u8>(), 64),
            bytes in 60usize..200,
            keep: bool,
        ) {
            let bounds = Bounds { items, bytes, item_bytes_max: 60 };
            let total = sizes.len() as u64;
            let mut window = Plain::new(bounds, 0, total);
            // Each worker: its run, and how far it is with the first item of it (0 nothing, 1 read, 2 all reserved).
            let mut hands: Vec<(VecDeque<u64>, u8)> = vec![(VecDeque::new(), 0); workers];
            let (mut taken, mut turn, mut idle) = (0, 0, 0);
            while taken < total {
                let choice = usize::from(turns[turn % turns.len()]).wrapping_add(turn / turns.len()) % (workers + 1);
                turn += 1;
                let mut moved = false;
                if choice == workers {
                    if let Some(value) = window.take(keep) {
                        prop_assert_eq!(value, taken);
                        taken += 1;
                        moved = true;
                    } else if window.kept_bytes() > 0 {
                        window.release();
                        moved = true;
                    }
                } else {
                    let (own, stage) = &mut hands[choice];
                    match own.front().copied() {
                        None => {
                            if let Some((first, count)) = window.claim(run) {
                                own.extend(first..first + count as u64);
                                moved = true;
                            }
                        }
                        Some(number) => {
                            let (read, made) = sizes[number as usize];
                            if *stage < 2 {
                                let want = if *stage == 0 { read } else { made };
                                let grant = window.reserve(number, want);
                                prop_assert_ne!(grant, Grant::TooLarge);
                                if grant == Grant::Granted {
                                    *stage += 1;
                                    moved = true;
                                }
                            } else {
                                window.finish(number, made, number);
                                own.pop_front();
                                *stage = 0;
                                moved = true;
                            }
                        }
                    }
                }
                prop_assert!(window.used_bytes() <= bytes);
                prop_assert!(window.peak_items() <= items);
                idle = if moved { 0 } else { idle + 1 };
                // Every turn comes up within one pass over `turns` for each shift.
                prop_assert!(idle < turns.len() * (workers + 2) * 4, "everybody waits");
            }
            window.release();
            prop_assert_eq!(window.used_bytes(), 0);
        }
    }
}
