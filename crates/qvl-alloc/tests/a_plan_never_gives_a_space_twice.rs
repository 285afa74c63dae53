//! Packings are free of overlaps, small traces are packed as well as is possible, and a run never gives a space that
//! something has, whatever it is asked for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "common/heap.rs"]
mod heap;

use std::path::Path;
use std::sync::Arc;

use heap::Heap;
use proptest::prelude::*;
use qvl_alloc::plan::{Allocation, Deviation, Effort, Piece, pack_with};
use qvl_alloc::{Error, Packing, PlannedRun, Recorder, Trace, pack};

/// Traces of at most so many allocations of 1 to `bytes`.
fn traces(most: usize, bytes: u64) -> impl Strategy<Value = Trace> {
    let one = (1..=bytes, 0..5u32, 0..3u64, 1..12u64);
    prop::collection::vec(one, 0..=most).prop_map(|allocations| {
        let mut birth = 0;
        let make = |(id, (bytes, shift, later, life)): (usize, (u64, u32, u64, u64))| {
            birth += later;
            Allocation { id: id as u32, bytes, align: 1 << shift, birth, death: birth + life }
        };
        Trace::new(allocations.into_iter().enumerate().map(make).collect()).unwrap()
    })
}

/// By every pair, what `check` does by a sweep.
fn overlaps(packing: &Packing) -> bool {
    let placed: Vec<_> = packing.trace().allocations().iter().zip(packing.offsets()).collect();
    placed.iter().enumerate().any(|(index, (one, from))| {
        placed[..index].iter().any(|(other, other_from)| {
            let together = one.birth < other.death && other.birth < one.death;
            together && **from < **other_from + other.bytes && **other_from < **from + one.bytes
        })
    })
}

/// Whether all from `index` on can lie below `peak`, by trying every offset.
fn possible(allocations: &[Allocation], offsets: &mut Vec<u64>, peak: u64) -> bool {
    let Some(one) = allocations.get(offsets.len()) else { return true };
    (0..=peak.saturating_sub(one.bytes)).filter(|offset| offset % one.align == 0).any(|offset| {
        if offset + one.bytes > peak {
            return false;
        }
        let clear = allocations.iter().zip(offsets.iter()).all(|(other, &other_offset)| {
            !one.meets(other) || offset + one.bytes <= other_offset || other_offset + other.bytes <= offset
        });
        offsets.push(offset);
        let fits = clear && possible(allocations, offsets, peak);
        offsets.pop();
        fits
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_traces_are_packed_without_overlaps(trace in traces(60, 300)) {
        let effort = Effort { attempts: 50, comparisons: 1_000_000 };
        let packing = pack_with(&trace, effort);
        packing.check().unwrap();
        prop_assert!(!overlaps(&packing));
        prop_assert!(packing.peak_bytes() >= packing.lower_bound_bytes());
        let read = Trace::parse(Path::new("trace"), &trace.to_string()).unwrap();
        prop_assert_eq!(read, trace);
    }

    #[test]
    fn a_check_sees_what_overlaps(
        trace in traces(8, 20),
        offsets in prop::collection::vec(0..6u64, 8),
    ) {
        let steps = trace.allocations().iter().zip(offsets);
        let offsets: Vec<u64> = steps.map(|(one, step)| step * one.align.max(8)).collect();
        let live: Vec<_> = trace.allocations().iter().zip(&offsets).collect();
        let clash = live.iter().enumerate().any(|(index, (one, from))| {
            live[..index].iter().any(|(other, other_from)| {
                one.meets(other) && **from < **other_from + other.bytes && **other_from < **from + one.bytes
            })
        });
        prop_assert_eq!(Packing::new(trace.clone(), offsets.clone()).is_err(), clash);
    }

    #[test]
    fn small_traces_are_packed_as_well_as_can_be(trace in traces(5, 6)) {
        let packing = pack(&trace);
        packing.check().unwrap();
        let unit = trace.allocations().iter().map(|one| one.align).min().unwrap_or(1);
        let mut best = 0;
        while !possible(trace.allocations(), &mut Vec::new(), best) {
            best += 1;
        }
        prop_assert_eq!(packing.peak_bytes(), best.next_multiple_of(unit));
    }

    /// Asks for anything, keeps pieces for any time, and looks whether what it wrote in one is what it reads.
    #[test]
    fn no_two_living_pieces_share_a_byte(
        trace in traces(30, 100),
        steps in prop::collection::vec((0..40usize, any::<bool>(), 0..6usize), 1..120),
    ) {
        let heap = Arc::new(Heap::new(16, usize::MAX));
        let mut run = PlannedRun::new(Arc::clone(&heap), pack_with(&trace, Effort { attempts: 5, comparisons: 1000 })).unwrap();
        let mut living: Vec<(u8, qvl_alloc::plan::PlannedPiece<Heap>)> = Vec::new();
        for (number, (which, restart, drops)) in steps.into_iter().enumerate() {
            if restart && which == 0 {
                run.restart();
            }
            let (bytes, align) = match trace.allocations().get(which) {
                Some(one) => (one.bytes as usize, one.align as usize),
                None => (which, 1),
            };
            if let Some(mut piece) = run.next(bytes, align).planned() {
                prop_assert_eq!((piece.bytes(), piece.address().as_ptr().addr() % align), (bytes, 0));
                piece.as_mut_slice().unwrap().fill(number as u8);
                living.push((number as u8, piece));
            }
            for _ in 0..drops.min(living.len()) / 2 {
                living.swap_remove(which % living.len());
            }
            for (value, piece) in &living {
                prop_assert!(piece.as_slice().unwrap().iter().all(|byte| byte == value));
            }
        }
        drop(run);
        drop(living);
        prop_assert_eq!(heap.given_bytes(), 0);
    }
}

fn recorded() -> Trace {
    let mut recorder = Recorder::new();
    let first = recorder.begin(100, 64);
    let second = recorder.begin(50, 64);
    recorder.end(first);
    let third = recorder.begin(100, 64);
    recorder.end(second);
    recorder.end(third);
    let _to_the_end = recorder.begin(10, 64);
    recorder.finish().unwrap()
}

#[test]
fn a_run_that_deviates_is_told_so_and_comes_back() {
    let packing = pack(&recorded());
    assert_eq!((packing.peak_bytes(), packing.gap()), (192, 0.0));
    let heap = Arc::new(Heap::new(4096, usize::MAX));
    let mut run = PlannedRun::new(Arc::clone(&heap), packing).unwrap();
    let why = |piece| match piece {
        Piece::NotPlanned { why } => why,
        Piece::Planned(piece) => panic!("{piece:?}"),
    };

    let first = run.next(100, 64).planned().unwrap();
    let deviation = why(run.next(60, 64));
    assert_eq!(
        deviation.to_string(),
        "60 bytes aligned to 64 were asked for where the plan has allocation 1 with 50 bytes aligned to 64"
    );
    assert!(matches!(why(run.next(50, 32)), Deviation::Different { align: 32, .. }));
    let second = run.next(50, 64).planned().unwrap();
    // The first still lives, so its space is not given to the third.
    assert_eq!(why(run.next(100, 64)), Deviation::Occupied { id: 2, by_offset: first.offset() as u64 });
    drop(first);
    run.next(10, 64).planned().unwrap();
    assert_eq!(why(run.next(10, 64)), Deviation::Ended { allocations: 4 });
    assert_eq!((run.counts().planned, run.counts().not_planned, run.counts().skipped), (3, 4, 0));

    drop(second);
    run.restart();
    // The second is left out.
    run.next(100, 64).planned().unwrap();
    run.next(100, 64).planned().unwrap();
    run.next(10, 64).planned().unwrap();
    assert_eq!((run.counts().planned, run.counts().skipped), (6, 1));
    assert_eq!(heap.maps(), 1);
}

#[test]
fn two_recordings_of_a_program_are_the_same_trace() {
    let (one, mut other) = (recorded(), recorded().allocations().to_vec());
    assert_eq!(one.first_difference(&recorded()), None);
    other[2].bytes = 101;
    let other = Trace::new(other).unwrap();
    let difference = one.first_difference(&other).unwrap();
    assert_eq!(difference.to_string(), "allocation 2: \"2 100 64 2 3\" here, \"2 101 64 2 3\" there");
    let shorter = Trace::new(other.allocations()[..2].to_vec()).unwrap();
    assert_eq!(shorter.first_difference(&other).unwrap().here, None);
}

#[test]
fn an_id_of_another_recorder_is_an_error() {
    let mut one = Recorder::new();
    let _first = one.begin(1, 1);
    let second = one.begin(1, 1);
    let mut other = Recorder::new();
    other.end(second);
    assert!(matches!(other.finish(), Err(Error::Setting { name: "id", .. })));
    let mut zero = Recorder::new();
    let _zero = zero.begin(0, 1);
    assert!(zero.finish().unwrap_err().to_string().contains("bytes is 0"));
}

#[test]
fn a_wrong_line_is_named() {
    for (text, expected) in [
        ("", "t:1: header is \"\", \"qvl-trace 1\" was expected"),
        ("qvl-trace 2\n", "t:1: header is \"qvl-trace 2\", \"qvl-trace 1\" was expected"),
        ("qvl-trace 1\n0 1 1 0 1\n", "t:3: end is \"\", \"end\" and the number of allocations was expected"),
        (
            "qvl-trace 1\n0 1 1 0 1\nend 2\n",
            "t:3: end is \"2\", 1, the number of allocations before was expected",
        ),
        (
            "qvl-trace 1\nend 0\n0 1 1 0 1\n",
            "t:3: end is \"0 1 1 0 1\", nothing after the line \"end\" was expected",
        ),
        ("qvl-trace 1\n0 x 1 0 1\n", "t:2: bytes is \"x\", a number below 2^64 was expected"),
        ("qvl-trace 1\n-1 1 1 0 1\n", "t:2: id is \"-1\", a number below 2^32 was expected"),
        ("qvl-trace 1\n0 1 1 0\n", "t:2: death is \"0 1 1 0\", five numbers was expected"),
        ("qvl-trace 1\n0 1 1 0 1 9\n", "t:2: allocation is \"9\", nothing after five numbers was expected"),
        ("qvl-trace 1\n0 0 1 0 1\n", "t:2: bytes is \"0\", 1 to 2^44 was expected"),
        ("qvl-trace 1\n0 1 3 0 1\n", "t:2: align is \"3\", a power of two up to 2^30 was expected"),
        ("qvl-trace 1\n0 1 1 1 1\n", "t:2: death is \"1\", more than its birth, which is 1 was expected"),
        (
            "qvl-trace 1\n0 1 1 5 6\n\n1 1 1 4 6\n",
            "t:4: birth is \"4\", at least 5, when the one before is born was expected",
        ),
        ("qvl-trace 1\n0 1 1 0 1\n0 1 1 0 1\n", "t:3: id is \"0\", no other allocation has it was expected"),
    ] {
        assert_eq!(Trace::parse(Path::new("t"), text).unwrap_err().to_string(), expected);
    }
    assert!(matches!(Trace::load(Path::new("no such trace")), Err(Error::File { .. })));
}

#[test]
fn a_run_without_memory_says_what_the_system_says() {
    let heap = Arc::new(Heap::new(64, 64));
    let refused = PlannedRun::new(Arc::clone(&heap), pack(&recorded())).unwrap_err();
    assert!(matches!(refused, Error::System { .. }), "{refused}");
}

/// Ten thousand of random sizes and lives; 7.4 % above the bound when this was written.
#[test]
fn a_large_trace_is_packed() {
    let mut state = 1u64;
    let mut random = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let make = |id: u64| Allocation {
        id: id as u32,
        bytes: 1 + random(1 << 20),
        align: 64,
        birth: id,
        death: id + 1 + random(200),
    };
    let trace = Trace::new((0..10_000).map(make).collect()).unwrap();
    let started = std::time::Instant::now();
    let packing = pack(&trace);
    println!("{:?}, gap {:.2} %", started.elapsed(), packing.gap() * 100.0);
    packing.check().unwrap();
    assert!(packing.gap() < 0.08, "{}", packing.gap());
}
