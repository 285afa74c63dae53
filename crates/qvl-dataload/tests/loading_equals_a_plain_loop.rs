//! Whatever the number of workers, the bounds, the shard and the place to resume from: the batches are those of a
//! plain loop over the samples.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use proptest::prelude::*;
use qvl_dataload::storage::Reader;
use qvl_dataload::{Batch, Buffers, DataLoader, Error, OnError, Result, Shuffle, Source, State};

/// Samples of different sizes, of which some cannot be read and some not transformed.
#[derive(Clone, Debug)]
struct Samples {
    sizes: Vec<usize>,
    unreadable: Vec<bool>,
}

impl Source for Samples {
    type Sample = (usize, Vec<u8>);

    fn len(&self) -> usize {
        self.sizes.len()
    }

    fn name(&self, index: usize) -> String {
        format!("sample {index}")
    }

    fn sample_bytes(&self, index: usize, _: &dyn Buffers) -> Result<usize> {
        Ok(self.sizes[index] + 64)
    }

    fn read(&self, index: usize, _: &mut Reader<'_>) -> Result<Self::Sample> {
        if self.unreadable[index] {
            return Err(Error::Missing { name: self.name(index) });
        }
        // Neighbours take turns in being slow, so that workers overtake each other.
        if index.is_multiple_of(3) {
            std::thread::sleep(Duration::from_micros(30));
        }
        Ok((index, vec![index as u8; self.sizes[index]]))
    }
}

/// What is done with a sample.
fn step((index, bytes): (usize, Vec<u8>)) -> Result<(usize, Vec<u8>), String> {
    if index % 11 == 10 {
        return Err(format!("{index} is not liked"));
    }
    Ok((index, bytes.iter().map(|byte| byte.wrapping_mul(3)).collect()))
}

#[derive(Clone, Debug)]
struct Run {
    samples: Samples,
    workers: usize,
    prefetch_items: usize,
    prefetch_bytes: usize,
    batch_size: usize,
    shuffle: Shuffle,
    epochs: u64,
    rank: usize,
    world: usize,
    drop_last: bool,
}

type Item = (usize, Vec<u8>);

impl Run {
    fn loader(&self, resume: Option<State>) -> DataLoader<Item> {
        let builder = DataLoader::builder(self.samples.clone())
            .map(step)
            .workers(self.workers)
            .prefetch_items(self.prefetch_items)
            .prefetch_bytes(self.prefetch_bytes)
            .item_bytes_max(self.prefetch_bytes / 3)
            .batch_size(self.batch_size)
            .shuffle(self.shuffle)
            .epochs(self.epochs)
            .shard(self.rank, self.world)
            .drop_last(self.drop_last)
            .on_error(OnError::SKIP);
        match resume {
            Some(state) => builder.resume(state),
            None => builder,
        }
        .build()
        .unwrap()
    }

    /// The plain loop, from the order that one worker gives to a source of numbers.
    fn expected(&self) -> Vec<(u64, Vec<Item>)> {
        let mut batches = Vec::new();
        for epoch in 0..self.epochs {
            let mut open = Vec::new();
            for index in self.order(epoch) {
                if self.samples.unreadable[index] {
                    continue;
                }
                let Ok(item) = step((index, vec![index as u8; self.samples.sizes[index]])) else { continue };
                open.push(item);
                if open.len() == self.batch_size {
                    batches.push((epoch, std::mem::take(&mut open)));
                }
            }
            if !open.is_empty() && !self.drop_last {
                batches.push((epoch, open));
            }
        }
        batches
    }

    /// Indices of one epoch: those of all ranks together are a permutation, which is tested where the order is made.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let numbers: Vec<usize> = (0..self.samples.len()).collect();
        let loader = DataLoader::builder(qvl_dataload::Memory::new(numbers))
            .workers(0)
            .shuffle(self.shuffle)
            .epochs(epoch + 1)
            .shard(self.rank, self.world)
            .drop_last(self.drop_last)
            .build()
            .unwrap();
        loader
            .map(Result::unwrap)
            .filter(|batch| batch.epoch == epoch)
            .flat_map(|batch| batch.items)
            .collect()
    }
}

fn runs() -> impl Strategy<Value = Run> {
    let samples = prop::collection::vec((0usize..3000, prop::bool::weighted(0.1)), 1..40);
    let shuffle = (any::<u64>(), 0..3u8, 1usize..9).prop_map(|(seed, kind, block)| match kind {
        0 => Shuffle::Off,
        1 => Shuffle::All { seed },
        _ => Shuffle::Blocks { seed, block },
    });
    let sizes = (0usize..5, 1usize..20, 30_000usize..60_000, 1usize..6);
    (samples, sizes, shuffle, 1u64..4, 1usize..4, 0usize..3, any::<bool>()).prop_map(
        |(
            samples,
            (workers, prefetch_items, prefetch_bytes, batch_size),
            shuffle,
            epochs,
            world,
            rank,
            drop_last,
        )| {
            let (sizes, unreadable) = samples.into_iter().unzip();
            let samples = Samples { sizes, unreadable };
            let rank = rank % world;
            Run {
                samples,
                workers,
                prefetch_items,
                prefetch_bytes,
                batch_size,
                shuffle,
                epochs,
                rank,
                world,
                drop_last,
            }
        },
    )
}

fn plain(batch: Batch<Item>) -> (u64, Vec<Item>) {
    (batch.epoch, batch.items)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn batches_are_those_of_the_loop(run in runs()) {
        let expected = run.expected();
        let mut loader = run.loader(None);
        let mut got = Vec::new();
        for batch in &mut loader {
            match batch {
                Ok(batch) => got.push(plain(batch)),
                // An epoch's worth of bad samples in a row.
                Err(Error::TooManySkipped { .. }) => break,
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
        let stats = loader.stats();
        prop_assert!(stats.peak_bytes <= stats.bytes_bound, "{} over {}", stats.peak_bytes, stats.bytes_bound);
        prop_assert!(stats.peak_items <= run.prefetch_items);
        let all_good = got.len() == expected.len();
        prop_assert_eq!(&got[..], &expected[..got.len()]);
        prop_assert!(all_good || stats.skipped >= loader.epoch_len() as u64);
    }

    #[test]
    fn a_run_goes_on_where_it_was(run in runs(), stop in 0usize..20, workers in 0usize..4) {
        let expected = run.expected();
        let mut first = run.loader(None);
        let mut got: Vec<_> = first.by_ref().take(stop).map_while(Result::ok).map(plain).collect();
        let state = first.state();
        drop(first);
        let text = serde_json::to_string(&state).unwrap();
        let other = Run { workers, prefetch_items: run.prefetch_items + 1, ..run.clone() };
        let second = other.loader(Some(serde_json::from_str(&text).unwrap()));
        got.extend(second.map_while(Result::ok).map(plain));
        prop_assert_eq!(&got[..], &expected[..got.len()]);
        let bad_in_a_row = run.samples.unreadable.iter().filter(|bad| **bad).count() + run.samples.len() / 11;
        prop_assert!(got.len() == expected.len() || bad_in_a_row * run.world >= run.samples.len() / run.world);
    }

    #[test]
    fn the_state_in_a_batch_is_the_place_after_it(run in runs(), keep in 0usize..6) {
        let mut expected = run.loader(None).map_while(Result::ok);
        let Some(batch) = expected.by_ref().nth(keep) else { return Ok(()) };
        let rest: Vec<_> = expected.map(plain).collect();
        let resumed: Vec<_> = run.loader(Some(batch.state)).map_while(Result::ok).map(plain).collect();
        prop_assert_eq!(resumed, rest);
    }
}
