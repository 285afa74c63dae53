//! A transfer of many chunks allocates as often as one of few.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qvl_transfer::device::Device;
use qvl_transfer::device::link::LinkSettings;
use qvl_transfer::source::{Fill, Source};
use qvl_transfer::{HostDevice, LinkDevice, Settings, Transfer, TransferEngine};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, with a count beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn source(chunks: usize) -> Arc<dyn Source> {
    Arc::new(Fill::new("zeros", chunks as u64 * 4096, |_, into: &mut [u8]| {
        into.fill(0);
        Ok(())
    }))
}

fn check<D: Device>(device: D) {
    let settings = Settings { chunk_bytes: 4096, staging_bytes: 65_536, depth: 3, ..Settings::default() };
    let engine = TransferEngine::new(device, settings).unwrap();
    let mut counts = Vec::new();
    for chunks in [2000, 2000, 20, 20_000] {
        let source = source(chunks);
        let memory = engine.device().allocate(chunks * 4096).unwrap();
        let before = COUNT.load(Ordering::Relaxed);
        let done = engine.submit(Transfer::new(source, memory)).unwrap().wait().unwrap();
        counts.push(COUNT.load(Ordering::Relaxed) - before);
        assert_eq!(done.report.chunks, chunks as u64);
    }
    // The first made the staging buffers, and threads the structures that they park with.
    let [_, _, few, many] = counts[..] else { panic!("{counts:?}") };
    assert!(many <= few + 8, "{few} allocations for 20 chunks, {many} for 20,000");
}

#[test]
fn on_the_host_and_over_a_link() {
    check(HostDevice::new(1 << 30));
    check(LinkDevice::new(LinkSettings { bytes_per_s: 20e9, ..LinkSettings::default() }).unwrap());
}
