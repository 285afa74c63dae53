//! Target sizes are those of transformers, over a table of its own results and by their defining properties.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::data;
use proptest::prelude::*;
use qvl_dataload::vision::{MAX_ASPECT_RATIO, ProcessorConfig, smart_resize, smart_resize_video};

#[test]
fn every_row_of_the_table() {
    let table = std::fs::read_to_string(data("sizes.txt")).unwrap();
    let mut rows = 0;
    for line in table.lines() {
        let (input, expected) = line.split_once(" = ").unwrap();
        let mut words = input.split(' ');
        let kind = words.next().unwrap();
        let n: Vec<u64> = words.map(|w| w.parse().unwrap()).collect();
        let small: Vec<u32> = n.iter().map(|n| u32::try_from(*n).unwrap_or(u32::MAX)).collect();
        let got = match kind {
            "i" => smart_resize(small[0], small[1], small[2], n[3], n[4]),
            _ => smart_resize_video(n[0] as usize, small[1], small[2], small[3], small[4], n[5], n[6]),
        };
        let got = got.map_or("-".to_owned(), |(h, w)| format!("{h} {w}"));
        assert_eq!(got, expected, "{line}");
        rows += 1;
    }
    assert!(rows >= 2000, "the table has only {rows} rows");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stills_come_out_as_multiples_within_their_limits(
        height in 1u32..20_000,
        width in 1u32..20_000,
        factor in 1u32..64,
        min_patches in 1u64..1000,
        more in 1u64..100,
    ) {
        let (min, max) = (min_patches * 1024, min_patches * 1024 * (more + 4));
        let ratio = f64::from(height.max(width)) / f64::from(height.min(width));
        match smart_resize(height, width, factor, min, max) {
            Ok((h, w)) => {
                prop_assert!(ratio <= MAX_ASPECT_RATIO);
                prop_assert!(h > 0 && w > 0 && h % factor == 0 && w % factor == 0);
                let area = u64::from(h) * u64::from(w);
                // One factor a side may be left over in either direction.
                prop_assert!(area >= min || h == factor || w == factor || area + u64::from((h + w) * factor) > min);
                prop_assert!(area <= max || h == factor || w == factor);
            }
            Err(_) => prop_assert!(ratio > MAX_ASPECT_RATIO),
        }
    }

    #[test]
    fn swapping_the_sides_swaps_the_result(height in 1u32..5000, width in 1u32..5000) {
        let one = smart_resize(height, width, 32, 65_536, 16_777_216).ok();
        let other = smart_resize(width, height, 32, 65_536, 16_777_216).ok();
        prop_assert_eq!(one, other.map(|(w, h)| (h, w)));
    }

    #[test]
    fn the_grid_of_a_video_counts_its_frames(frames in 2usize..900, height in 8u32..2000, width in 8u32..2000) {
        let config = ProcessorConfig::default();
        if let Ok(grid) = config.video_grid(frames, width, height) {
            prop_assert_eq!(grid.t as usize, frames.div_ceil(2));
            prop_assert!(grid.h % 2 == 0 && grid.w % 2 == 0 && grid.patches() > 0);
            prop_assert_eq!(grid.visual_tokens(2) * 4, grid.patches());
        }
    }

    #[test]
    fn no_input_panics(
        height: u32, width: u32, factor: u32, min: u64, max: u64, frames: usize, temporal: u32,
    ) {
        let _ = smart_resize(height, width, factor, min, max);
        let _ = smart_resize_video(frames, height, width, temporal, factor, min, max);
    }
}
