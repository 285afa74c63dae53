//! Once its memory is there, a decode step takes none: between two pages of keys and values, no step allocates,
//! for one sequence and for several, whatever the format of the weights.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{Network, open_with};
use qvl_model::decoder::{Chunk, LogitRows};
use qvl_model::{CpuOptions, Residency, WeightFormat};

#[test]
fn between_two_pages() {
    let network = Network { hidden: 256, head_dim: 32, mrope_section: [8, 4, 4], ..Network::dense() };
    let folder = network.folder();
    for weights in [WeightFormat::Stored, WeightFormat::Q8, WeightFormat::Q4] {
        for exact in [false, true] {
            // The counter sees the calling thread, which with one thread does all the work.
            let options = CpuOptions { threads: 1, weights, exact, ..CpuOptions::default() };
            let model = open_with(folder.path(), options, Residency::Resident);
            for sequences in [1, 3] {
                let mut caches: Vec<_> = (0..sequences).map(|_| model.kv_cache()).collect();
                let mut logits = Vec::new();
                let mut step = |position: u32| {
                    let (ids, positions) = ([position % 7], [[position; 3]]);
                    let mut chunks = Vec::with_capacity(sequences);
                    for cache in &mut caches {
                        let (ids, positions) = (&ids[..], &positions[..]);
                        chunks.push(Chunk { cache, ids, positions, visual: None, logits: LogitRows::Last });
                    }
                    let counted =
                        allocation_counter::measure(|| model.forward_into(&mut chunks, &mut logits).unwrap());
                    counted.count_total
                };
                let first = step(0);
                assert!(first > 0, "a first step that allocates nothing was not counted");
                step(1);
                let steady: Vec<u64> = (2..60).map(&mut step).collect();
                assert_eq!(steady, [0; 58], "{weights}, exact: {exact}, {sequences} sequences");
            }
        }
    }
}
