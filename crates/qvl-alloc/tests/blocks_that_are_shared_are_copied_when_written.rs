//! What is written in a block stays for each of its holders, blocks are never given twice, and all come back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "common/heap.rs"]
mod heap;

use std::collections::BTreeMap;
use std::sync::Arc;

use heap::Heap;
use proptest::prelude::*;
use qvl_alloc::{Block, BlockPool, Error};

const BLOCKS: usize = 10;
const BYTES: usize = 40;

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The model is a list of holders with what each should read.
    #[test]
    fn the_pool_is_a_list_of_values(
        steps in prop::collection::vec((0..6u8, any::<usize>(), any::<u8>()), 1..200),
        region_blocks in 1..BLOCKS + 2,
    ) {
        let heap = Arc::new(Heap::new(64, usize::MAX));
        let pool = BlockPool::with_regions(Arc::clone(&heap), BYTES, BLOCKS, 16, region_blocks).unwrap();
        let mut model: Vec<(Block<Heap>, u8)> = Vec::new();
        let mut peak = 0;
        for (step, which, value) in steps {
            let full = pool.in_use() == BLOCKS;
            let at = which % model.len().max(1);
            match (step, model.is_empty()) {
                (0, _) | (_, true) => match pool.take() {
                    Ok(mut block) => {
                        block.write().unwrap().fill(value);
                        model.push((block, value));
                    }
                    Err(_) => prop_assert!(full),
                },
                (1 | 2, _) => {
                    let shared = model[at].0.share();
                    prop_assert_eq!(shared.index(), model[at].0.index());
                    let value = model[at].1;
                    model.push((shared, value));
                }
                (3, _) => {
                    let shared = model[at].0.is_shared();
                    let (index, was) = (model[at].0.index(), model[at].1);
                    match model[at].0.write() {
                        Ok(bytes) => {
                            prop_assert!(bytes.iter().all(|&byte| byte == was));
                            model[at].0.write().unwrap().fill(value);
                            model[at].1 = value;
                            prop_assert_eq!(model[at].0.index() != index, shared);
                        }
                        Err(_) => prop_assert!(full && shared),
                    }
                }
                (4, _) => _ = model.swap_remove(at),
                _ => {
                    let given = pool.trim();
                    prop_assert!(given <= BLOCKS * 64);
                }
            }
            let mut holders: BTreeMap<usize, usize> = BTreeMap::new();
            for (block, value) in &model {
                *holders.entry(block.index()).or_default() += 1;
                let bytes = block.read().unwrap();
                prop_assert_eq!((bytes.len(), bytes.as_ptr().addr() % 16), (BYTES, 0));
                prop_assert!(bytes.iter().all(|byte| byte == value));
            }
            for (block, _) in &model {
                prop_assert_eq!(block.is_shared(), holders[&block.index()] > 1);
            }
            peak = peak.max(holders.len());
            prop_assert!(holders.keys().all(|&index| index < BLOCKS));
            prop_assert_eq!((pool.in_use(), pool.free()), (holders.len(), BLOCKS - holders.len()));
            prop_assert_eq!(pool.shared(), holders.values().filter(|&&count| count > 1).count());
            // A copy can be made before the last holder of the old block is gone.
            prop_assert!(pool.peak() >= peak && pool.peak() <= BLOCKS);
            prop_assert_eq!(pool.reserved_bytes(), heap.given_bytes());
        }
        drop(model);
        prop_assert_eq!(pool.in_use(), 0);
        pool.trim();
        prop_assert_eq!(heap.given_bytes(), 0);
    }
}

#[test]
fn a_pool_that_is_full_says_how_many_are_in_use_and_shared() {
    let pool = BlockPool::new(Arc::new(Heap::new(4096, usize::MAX)), 1024, 3, 64).unwrap();
    let mut blocks: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
    let shared = blocks[1].share();
    let error = pool.take().unwrap_err();
    assert!(error.to_string().contains("3 of 3 blocks are in use, 1 of them shared"), "{error}");
    let Error::OutOfMemory(why) = error else { panic!() };
    assert_eq!((why.bytes, why.in_use_bytes, why.budget_bytes), (1024, 3072, 3072));
    assert_eq!((why.owners[0].in_use_bytes, why.owners[1].in_use_bytes), (2048, 1024));
    // There is no block for a copy, and the holder keeps what it has.
    assert!(matches!(blocks[1].write(), Err(Error::OutOfMemory(_))));
    assert_eq!(blocks[1].index(), shared.index());
    drop(shared);
    blocks[1].write().unwrap();
}

#[test]
fn regions_that_are_free_go_back_and_come_again() {
    let heap = Arc::new(Heap::new(4096, usize::MAX));
    let pool = BlockPool::with_regions(Arc::clone(&heap), 4096, 8, 4096, 2).unwrap();
    assert_eq!(heap.given_bytes(), 0);
    let mut blocks: Vec<_> = (0..8).map(|_| pool.take().unwrap()).collect();
    assert_eq!((heap.given_bytes(), heap.maps()), (8 * 4096, 4));
    blocks.truncate(3);
    assert_eq!(pool.trim(), 4 * 4096);
    assert_eq!(heap.given_bytes(), 4 * 4096);
    blocks.extend((0..5).map(|_| pool.take().unwrap()));
    let mut indices: Vec<_> = blocks.iter().map(Block::index).collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..8).collect::<Vec<_>>());
    // Blocks outlive their pool.
    drop(pool);
    blocks[7].write().unwrap().fill(9);
    drop(blocks);
    assert_eq!(heap.given_bytes(), 0);
}

#[test]
fn a_system_that_refuses_is_named() {
    let pool = BlockPool::with_regions(Arc::new(Heap::new(64, 128)), 64, 8, 64, 1).unwrap();
    let _blocks = [pool.take().unwrap(), pool.take().unwrap()];
    let Error::OutOfMemory(why) = pool.take().unwrap_err() else { panic!() };
    assert!(why.system.unwrap().contains("64 bytes"));
}

#[test]
fn settings_that_cannot_be_are_errors() {
    let heap = Arc::new(Heap::new(64, usize::MAX));
    for (block_bytes, blocks, align, field) in [
        (0, 1, 1, "block_bytes"),
        (1, 0, 1, "blocks"),
        (1, 1, 3, "align"),
        (1 << 40, 1 << 40, 1, "blocks"),
        (usize::MAX, 1, 64, "blocks"),
    ] {
        let error = BlockPool::new(Arc::clone(&heap), block_bytes, blocks, align).unwrap_err();
        assert!(matches!(error, Error::Setting { name, .. } if name == field), "{error}");
    }
}

/// Four threads share, write and drop holders of the same blocks; each reads only what it should.
#[test]
fn threads_share_a_pool() {
    let pool = BlockPool::with_regions(Arc::new(Heap::new(64, usize::MAX)), 256, 64, 64, 4).unwrap();
    let mut first = pool.take().unwrap();
    first.write().unwrap().fill(255);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (pool, first) = (pool.clone(), first.share());
            scope.spawn(move || {
                for _ in 0..2000 {
                    let mut mine = first.share();
                    mine.write().unwrap().fill(thread);
                    let mut again = mine.share();
                    drop(mine);
                    assert!(again.write().unwrap().iter().all(|&byte| byte == thread));
                    assert!(first.read().unwrap().iter().all(|&byte| byte == 255));
                    let fresh = pool.take().unwrap();
                    assert_ne!((fresh.index(), again.is_shared()), (again.index(), true));
                }
            });
        }
    });
    assert_eq!((pool.in_use(), pool.shared(), first.is_shared()), (1, 0, false));
}
