//! Which sample comes when: shuffling, sharding and epochs, as arithmetic.
//!
//! The place of a sample in an epoch is computed, not looked up: no list of the length of the data is made, an epoch
//! begins at once, and a run can be resumed anywhere. The order depends on the seed, the number of the epoch and the
//! number of samples only, never on how many threads load them. It is part of this crate's interface: a release that
//! changes it says so.

/// How the samples of an epoch are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Shuffle {
    /// In the order of the source.
    Off,
    /// Every order as likely as any other, as far as a keyed permutation gives that; another one in each epoch.
    All {
        /// Equal seeds give equal orders.
        seed: u64,
    },
    /// Runs of neighbours are shuffled, and the samples within each: what is read together lies together, as a drive
    /// with heads or a shard on a network prefers it.
    Blocks {
        /// Equal seeds give equal orders.
        seed: u64,
        /// Samples in a run, at least 1.
        block: usize,
    },
}

/// The order of one process's share of all epochs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampler {
    pub(crate) len: usize,
    pub(crate) shuffle: Shuffle,
    pub(crate) rank: usize,
    pub(crate) world: usize,
    /// Every rank gets as many samples as the rank with the fewest.
    pub(crate) even: bool,
}

impl Sampler {
    /// Samples of this rank in an epoch.
    pub(crate) fn epoch_len(&self) -> usize {
        if self.even {
            return self.len / self.world;
        }
        self.len.saturating_sub(self.rank).div_ceil(self.world)
    }

    /// Index in the source of what comes at a place of this rank's epoch, from 0.
    pub(crate) fn index(&self, epoch: u64, place: usize) -> usize {
        let place = (place * self.world + self.rank) as u64;
        let len = self.len as u64;
        let index = match self.shuffle {
            Shuffle::Off => place,
            Shuffle::All { seed } => Permutation::new(len, key(seed, epoch, 0)).at(place),
            Shuffle::Blocks { seed, block } => blocks(len, block as u64, seed, epoch, place),
        };
        index as usize
    }
}

/// Runs of `block` in a permuted order, and each permuted in itself. The last run may be shorter than the others.
fn blocks(len: u64, block: u64, seed: u64, epoch: u64, place: u64) -> u64 {
    let count = len.div_ceil(block);
    let short = count * block - len;
    let order = Permutation::new(count, key(seed, epoch, 0));
    // Where the short run has come to lie: what follows begins earlier by what it lacks.
    let turn = place / block;
    let (turn, inside) = if order.before(count - 1, turn) {
        ((place + short) / block, (place + short) % block)
    } else {
        (turn, place % block)
    };
    let (turn, inside) = match order.at(turn) == count - 1 && inside >= block - short {
        true => (turn + 1, inside - (block - short)),
        false => (turn, inside),
    };
    let which = order.at(turn);
    let size = if which == count - 1 { block - short } else { block };
    which * block + Permutation::new(size, key(seed, epoch, which + 1)).at(inside)
}

/// A key for one permutation of one epoch.
fn key(seed: u64, epoch: u64, which: u64) -> u64 {
    mix(mix(mix(seed) ^ epoch) ^ which)
}

/// A bijection of `0..len`, by a Feistel network over the next power of two. What falls outside is sent through again
/// until it falls inside ("cycle walking", Black and Rogaway 2002): two times on average at most, more often for lists
/// shorter than 64.
#[derive(Clone, Copy, Debug)]
struct Permutation {
    len: u64,
    key: u64,
    /// Bits of the two halves.
    low_bits: u32,
    high_bits: u32,
}

/// Rounds of the network. With six the mean frequencies of the tests below cannot be told from chance.
const ROUNDS: u64 = 6;
/// Halves of one or two bits have too few functions for every order to come up.
const LEAST_BITS: u32 = 7;

impl Permutation {
    fn new(len: u64, key: u64) -> Self {
        let bits = (u64::BITS - len.saturating_sub(1).leading_zeros()).max(LEAST_BITS);
        Self { len, key, low_bits: bits / 2, high_bits: bits - bits / 2 }
    }

    fn at(&self, place: u64) -> u64 {
        let mut value = place;
        loop {
            value = self.network(value);
            if value < self.len {
                return value;
            }
        }
    }

    /// Whether `value` comes before `place`.
    fn before(&self, value: u64, place: u64) -> bool {
        self.place_of(value) < place
    }

    fn place_of(&self, value: u64) -> u64 {
        let mut place = value;
        loop {
            place = self.inverse(place);
            if place < self.len {
                return place;
            }
        }
    }

    fn network(&self, value: u64) -> u64 {
        let (mut high, mut low) = (value >> self.low_bits, value & mask(self.low_bits));
        for round in 0..ROUNDS {
            // The halves may differ by a bit, so they take turns instead of changing places.
            match round % 2 {
                0 => high ^= self.round(round, low) & mask(self.high_bits),
                _ => low ^= self.round(round, high) & mask(self.low_bits),
            }
        }
        high << self.low_bits | low
    }

    fn inverse(&self, value: u64) -> u64 {
        let (mut high, mut low) = (value >> self.low_bits, value & mask(self.low_bits));
        for round in (0..ROUNDS).rev() {
            match round % 2 {
                0 => high ^= self.round(round, low) & mask(self.high_bits),
                _ => low ^= self.round(round, high) & mask(self.low_bits),
            }
        }
        high << self.low_bits | low
    }

    fn round(&self, round: u64, half: u64) -> u64 {
        mix(self.key ^ mix(half ^ round << 56)) >> 20
    }
}

fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014) after one step of its counter.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn sampler(len: usize, shuffle: Shuffle) -> Sampler {
        Sampler { len, shuffle, rank: 0, world: 1, even: false }
    }

    fn epoch(sampler: &Sampler, epoch: u64) -> Vec<usize> {
        (0..sampler.epoch_len()).map(|place| sampler.index(epoch, place)).collect()
    }

    #[test]
    fn every_order_of_few_is_as_likely() {
        for len in [2usize, 3, 4, 5] {
            let mut seen = BTreeMap::<Vec<usize>, u32>::new();
            let orders: usize = (1..=len).product();
            let each = 400;
            for seed in 0..(orders * each) as u64 {
                *seen.entry(epoch(&sampler(len, Shuffle::All { seed }), 0)).or_default() += 1;
            }
            assert_eq!(seen.len(), orders, "of {len}: some order never comes");
            // Chi-square with (orders - 1) degrees of freedom: mean + 5 standard deviations.
            let expected = each as f64;
            let chi: f64 = seen.values().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
            let freedom = (orders - 1) as f64;
            assert!(chi < freedom + 5.0 * (2.0 * freedom).sqrt(), "of {len}: chi-square {chi} of {freedom}");
        }
    }

    #[test]
    fn every_place_of_many_is_as_likely() {
        // Where sample 0 comes to lie, in sixteenths of the epoch, and how often a neighbour stays a neighbour.
        let (len, trials) = (1000, 8000);
        let mut places = [0f64; 16];
        let mut neighbours = 0;
        for seed in 0..trials {
            let order = Permutation::new(len, key(seed, 3, 0));
            let place = order.place_of(0);
            places[(place * 16 / len) as usize] += 1.0;
            neighbours += u32::from(order.at((place + 1) % len) == 1);
        }
        let expected = trials as f64 / 16.0;
        let chi: f64 = places.iter().map(|n| (n - expected).powi(2) / expected).sum();
        assert!(chi < 15.0 + 5.0 * 30f64.sqrt(), "chi-square {chi} of 15");
        assert!(neighbours <= 8 + 5 * 3, "{neighbours} of {trials}, expected 8");
    }

    #[test]
    fn the_order_is_the_same_in_every_release() {
        let order = |shuffle, number| epoch(&sampler(10, shuffle), number);
        assert_eq!(order(Shuffle::Off, 5), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let all = Shuffle::All { seed: 42 };
        let blocks = Shuffle::Blocks { seed: 42, block: 4 };
        assert_eq!([order(all, 0), order(all, 1), order(blocks, 0)], FIXED.map(|o| o.to_vec()));
    }

    /// Changing these is a change of the interface.
    const FIXED: [[usize; 10]; 3] =
        [[2, 4, 9, 7, 0, 8, 3, 1, 5, 6], [5, 4, 6, 3, 9, 8, 7, 1, 2, 0], [9, 8, 3, 0, 2, 1, 6, 4, 5, 7]];

    proptest! {
        #[test]
        fn ranks_share_every_epoch(
            len in 0usize..300, world in 1usize..7, seed: u64, number in 0u64..4, kind in 0..3, block in 1usize..40,
        ) {
            let shuffle = match kind {
                0 => Shuffle::Off,
                1 => Shuffle::All { seed },
                _ => Shuffle::Blocks { seed, block },
            };
            let share = |rank, even| Sampler { rank, world, even, ..sampler(len, shuffle) };
            let mut all: Vec<usize> = (0..world).flat_map(|rank| epoch(&share(rank, false), number)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..len).collect::<Vec<_>>());
            for rank in 0..world {
                let (own, even) = (epoch(&share(rank, false), number), epoch(&share(rank, true), number));
                prop_assert_eq!(even.len(), len / world);
                prop_assert_eq!(&own[..even.len()], &even[..]);
            }
        }

        #[test]
        fn blocks_stay_together(len in 1usize..300, block in 1usize..40, seed: u64) {
            let order = epoch(&sampler(len, Shuffle::Blocks { seed, block }), 0);
            let mut runs: Vec<usize> = order.iter().map(|index| index / block).collect();
            runs.dedup();
            prop_assert_eq!(runs.len(), len.div_ceil(block));
        }

        #[test]
        fn large_lists_too(len in 1u64..u64::from(u32::MAX), key: u64, place: u64) {
            let order = Permutation::new(len, key);
            let place = place % len;
            let value = order.at(place);
            prop_assert!(value < len);
            prop_assert_eq!(order.place_of(value), place);
        }
    }
}
