//! Pieces of a step are apart and aligned, a step that does not fit spills within the budget, and after a reset the
//! same step fits in one region.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "common/heap.rs"]
mod heap;

use std::sync::Arc;

use heap::Heap;
use proptest::prelude::*;
use qvl_alloc::{Arena, Error};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_step_spills_once(
        pieces in prop::collection::vec((0..3000usize, 0..14u32), 1..60),
        first in 0..5000usize,
        granularity in 4..13u32,
    ) {
        let heap = Arc::new(Heap::new(1 << granularity, usize::MAX));
        let mut arena = Arena::new(Arc::clone(&heap), first, usize::MAX).unwrap();
        let mut settled = 0;
        for step in 0..3u8 {
            let mut living = Vec::new();
            for (number, &(bytes, shift)) in pieces.iter().enumerate() {
                let piece = arena.alloc_bytes(bytes, 1 << shift).unwrap();
                prop_assert_eq!((piece.len(), piece.as_ptr().addr() % (1 << shift)), (bytes, 0));
                let value = step.wrapping_mul(60) ^ number as u8;
                piece.fill(value);
                living.push((value, piece));
            }
            for (value, piece) in &living {
                prop_assert!(piece.iter().all(|byte| byte == value));
            }
            let sum: usize = pieces.iter().map(|(bytes, _)| bytes).sum();
            prop_assert!(arena.used_bytes() >= sum);
            prop_assert_eq!(arena.used_bytes(), arena.high_water_bytes());
            arena.reset().unwrap();
            prop_assert_eq!(arena.used_bytes(), 0);
            match step {
                0 => settled = heap.maps(),
                _ => prop_assert_eq!(heap.maps(), settled),
            }
            prop_assert_eq!(heap.given_bytes(), arena.reserved_bytes());
        }
        drop(arena);
        prop_assert_eq!(heap.given_bytes(), 0);
    }
}

#[test]
fn typed_pieces_are_what_was_asked_for() {
    let heap = Arc::new(Heap::new(4096, usize::MAX));
    let mut arena = Arena::new(heap, 4096, 1 << 20).unwrap();
    let bytes = arena.alloc_copy(b"abc").unwrap();
    let floats = arena.alloc::<f64>(7).unwrap();
    floats.fill(1.5);
    let zeros = arena.alloc_zeroed::<u32>(5).unwrap();
    assert_eq!((&*bytes, &*zeros), (&b"abc"[..], &[0; 5][..]));
    assert_eq!(floats, [1.5; 7]);
    assert!(arena.alloc::<u64>(0).unwrap().is_empty());
    assert_eq!(arena.alloc::<()>(3).unwrap().len(), 3);
    // 3 bytes, 5 of padding, 56, 20.
    assert_eq!((arena.used_bytes(), arena.spills()), (84, 0));
    arena.reset().unwrap();
    // What a step has left is not zero, so a step that needs zeros asks for them.
    assert_eq!(arena.alloc_zeroed::<u8>(64).unwrap(), [0; 64]);
}

#[test]
fn beyond_the_budget_is_an_error_that_says_what_fits() {
    let heap = Arc::new(Heap::new(4096, usize::MAX));
    let mut arena = Arena::new(Arc::clone(&heap), 4096, 3 * 4096).unwrap();
    let kept = arena.alloc_bytes(4000, 64).unwrap();
    kept.fill(7);
    let Error::OutOfMemory(why) = arena.alloc_bytes(8193, 64).unwrap_err() else { panic!() };
    assert_eq!((why.bytes, why.align, why.budget_bytes, why.reserved_bytes), (8193, 64, 12288, 4096));
    assert_eq!((why.in_use_bytes, why.largest_free_bytes, why.fits_bytes), (4000, 96, 8192));
    assert_eq!(kept, [7; 4000]);
    // What it says would fit does.
    arena.alloc_bytes(8192, 64).unwrap();
    assert!(arena.alloc_bytes(1, 1).is_err());
    assert_eq!(heap.given_bytes(), 12288);
    arena.reset().unwrap();
    assert_eq!((heap.given_bytes(), heap.maps(), arena.spills()), (12288, 3, 1));
    assert_eq!(arena.trim(), 12288);
    assert_eq!((heap.given_bytes(), arena.high_water_bytes()), (0, 0));
    arena.alloc_bytes(1, 1).unwrap();
}

#[test]
fn a_system_that_refuses_is_named_and_the_arena_goes_on() {
    let heap = Arc::new(Heap::new(64, 256));
    let mut arena = Arena::new(Arc::clone(&heap), 128, 1 << 20).unwrap();
    let Error::OutOfMemory(why) = arena.alloc_bytes(200, 1).unwrap_err() else { panic!() };
    assert!(why.system.unwrap().contains("200") || heap.given_bytes() == 128);
    arena.alloc_bytes(128, 1).unwrap();
    arena.alloc_bytes(128, 1).unwrap();
    arena.reset().unwrap();
    arena.alloc_bytes(256, 1).unwrap();
}

#[test]
fn what_cannot_be_is_an_error() {
    let arena = Arena::new(Arc::new(Heap::new(64, usize::MAX)), 0, usize::MAX).unwrap();
    assert!(matches!(arena.alloc_bytes(1, 3), Err(Error::Setting { name: "align", .. })));
    assert!(matches!(arena.alloc::<u64>(usize::MAX), Err(Error::Setting { name: "len", .. })));
    assert!(arena.alloc::<u8>(usize::MAX).is_err());
    assert_eq!((arena.used_bytes(), arena.reserved_bytes()), (0, 0));
}
