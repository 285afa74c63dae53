//! An allocator that counts: what is large, and what is alive.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(unsafe_code, reason = "an allocator is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Only allocations of this many bytes and more are counted: a ninth of the picture that is decoded. Decoders have
/// tables and windows of less.
pub(crate) const LARGE: usize = 1 << 20;

/// How many there were.
pub(crate) static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Bytes of those that are alive.
pub(crate) static ALIVE: AtomicUsize = AtomicUsize::new(0);
/// The most that ever were.
pub(crate) static PEAK: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct Counting;

impl Counting {
    fn add(bytes: usize) {
        if bytes >= LARGE {
            COUNT.fetch_add(1, Ordering::SeqCst);
            let alive = ALIVE.fetch_add(bytes, Ordering::SeqCst) + bytes;
            PEAK.fetch_max(alive, Ordering::SeqCst);
        }
    }

    fn remove(bytes: usize) {
        if bytes >= LARGE {
            ALIVE.fetch_sub(bytes, Ordering::SeqCst);
        }
    }
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::remove(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::remove(layout.size());
        Self::add(bytes);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}
