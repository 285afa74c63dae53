//! Once a worker has seen a picture of some size, nothing of that size is allocated again: not by decoding, resizing
//! and cutting, and not by the loader, whose buffers come back.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use qvl_dataload::vision::{DecodeLimits, ImageConfig, ProcessorConfig, Workspace};
use qvl_dataload::{DataLoader, Files, Patchify};

/// Allocations of this many bytes and more: a ninth of the decoded picture. Decoders have tables and windows of less.
const LARGE: usize = 1 << 20;
static LARGE_ONES: AtomicUsize = AtomicUsize::new(0);

struct Counting;

impl Counting {
    fn count(bytes: usize) {
        LARGE_ONES.fetch_add(usize::from(bytes >= LARGE), Ordering::SeqCst);
    }
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::count(bytes);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
        let before = LARGE_ONES.load(Ordering::SeqCst);
        config.encoded_into(&picture, "p", &limits, &mut workspace, &mut out).unwrap();
        LARGE_ONES.load(Ordering::SeqCst) - before
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
    let before = LARGE_ONES.load(Ordering::SeqCst);
    let rest = loader.by_ref().map(|batch| batch.unwrap().len()).sum::<usize>();
    assert_eq!(rest, 24 * 5);
    let made = LARGE_ONES.load(Ordering::SeqCst) - before;
    // A moment at which more are in use than ever before may come late; five for each item would be 600.
    assert!(made <= 12, "{made} large allocations for 120 pictures");
}
