//! JPEG pixels differ from Pillow's by a few levels with the default decoder and not at all with libjpeg-turbo.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::data;
use qvl_dataload::vision::{DecodeLimits, Still};

/// How far two pictures of one size are apart.
struct Distance {
    /// The largest difference in levels.
    largest: u8,
    /// Mean difference in levels.
    mean: f64,
    /// Share of bytes that differ.
    share: f64,
}

fn distance(ours: &Still, theirs: &Still) -> Distance {
    assert_eq!((ours.width(), ours.height()), (theirs.width(), theirs.height()));
    let gaps: Vec<u8> = ours.rgb().iter().zip(theirs.rgb()).map(|(a, b)| a.abs_diff(*b)).collect();
    let count = gaps.len() as f64;
    Distance {
        largest: gaps.iter().copied().max().unwrap(),
        mean: gaps.iter().map(|g| f64::from(*g)).sum::<f64>() / count,
        share: gaps.iter().filter(|g| **g > 0).count() as f64 / count,
    }
}

#[test]
fn every_kind_of_jpeg() {
    let mut files: Vec<_> = std::fs::read_dir(data("jpeg")).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "jpg"));
    files.sort();
    assert!(files.len() >= 10);
    for path in files {
        let open = |path: &std::path::Path| Still::open(path, &DecodeLimits::default()).unwrap();
        let Distance { largest, mean, share } = distance(&open(&path), &open(&path.with_extension("png")));
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        println!("{name:28} largest {largest}, mean {mean:.4}, share {share:.4}");
        if cfg!(feature = "libjpeg-turbo") {
            assert_eq!(largest, 0, "{name}: {share} of the bytes differ");
        } else {
            // Chroma upsampling differs most; full-resolution chroma is within rounding of the inverse transform.
            let (most, most_mean) = if name.contains("42") { (5, 0.3) } else { (3, 0.02) };
            assert!(largest <= most && mean <= most_mean, "{name}: largest {largest}, mean {mean}");
        }
    }
}
