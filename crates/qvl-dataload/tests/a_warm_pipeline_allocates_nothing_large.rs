//! Once a worker has seen a picture of some size, nothing of that size is allocated again: not by decoding, resizing
//! and cutting, and not by the loader, whose buffers come back.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::sync::atomic::Ordering;

use qvl_dataload::vision::{DecodeLimits, ImageConfig, ProcessorConfig, Workspace};
use qvl_dataload::{DataLoader, Files, Patchify};

#[path = "common/counting.rs"]
mod counting;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

fn large_ones() -> usize {
    counting::COUNT.load(Ordering::SeqCst)
}

/// One test for both, since all tests of a program share its allocator.
#[test]
fn one_by_one_and_through_the_loader() {
    let folder = format!("{}/tests/data/pixels", env!("CARGO_MANIFEST_DIR"));
    let picture = fs::read(format!("{folder}/rgb_2000x1500.png")).unwrap();
    let image = ImageConfig { max_pixels: 1024 * 1024, ..ImageConfig::default() };
    let config = ProcessorConfig { image, ..ProcessorConfig::default() };
    let limits = DecodeLimits::default();

    let mut workspace = Workspace::new();
    let grid = config.encoded_grid(&picture, "p", &limits).unwrap();
    let mut out = vec![0f32; grid.patches() * config.image.patch_values()];
    let mut run = || {
        let before = large_ones();
        config.encoded_into(&picture, "p", &limits, &mut workspace, &mut out).unwrap();
        large_ones() - before
    };
    assert!(run() > 0, "the first time it does: the test can count");
    assert_eq!([run(), run()], [0, 0]);

    let dir = tempfile::tempdir().unwrap();
    for number in 0..24 {
        fs::write(dir.path().join(format!("{number}.png")), &picture).unwrap();
    }
    // Workers begin with an empty workspace each, and as many buffers are made as are in use at once.
    let mut loader = DataLoader::builder(Files::folder(dir.path()).unwrap())
        .transform(Patchify::<f32>::new(config))
        .workers(2)
        .prefetch_items(4)
        .epochs(6)
        .build()
        .unwrap();
    for _ in 0..24 {
        loader.next().unwrap().unwrap();
    }
    let before = large_ones();
    let rest = loader.by_ref().map(|batch| batch.unwrap().len()).sum::<usize>();
    assert_eq!(rest, 24 * 5);
    let made = large_ones() - before;
    // A moment at which more are in use than ever before may come late; five for each item would be 600.
    assert!(made <= 12, "{made} large allocations for 120 pictures");
}
