//! The host itself as a device: memory under a budget, which a drive writes to without a copy between.
//!
//! This is how a machine without a card streams a model larger than its memory. Copies from other memory are made by
//! the workers of the engine.

#![expect(unsafe_code, reason = "implements the copies of `Device`")]

use std::fmt;
use std::sync::Arc;

use super::{Device, HostWindow, Reached, Usage};
use crate::memory::Shelf;
use crate::{HostMemory, Result, copy};

/// Host memory under a budget. Clones share it.
#[derive(Clone)]
pub struct HostDevice {
    memory: Arc<Shelf>,
    staging: Arc<Shelf>,
}

impl HostDevice {
    /// A device that gives at most `budget_bytes` bytes, with what it keeps of dropped memory for the next one.
    /// Staging memory is not among them: the engine has a budget of its own for it.
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            memory: Arc::new(Shelf::new("the host's memory for transfers", budget_bytes)),
            staging: Arc::new(Shelf::new("the host's staging memory", u64::MAX)),
        }
    }

    /// What is used of the budget.
    pub fn usage(&self) -> Usage {
        self.memory.usage()
    }

    /// Gives memory that nobody uses back to the system.
    pub fn trim(&self) {
        self.memory.trim();
        self.staging.trim();
    }
}

impl fmt::Debug for HostDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostDevice").field("usage", &self.usage()).finish()
    }
}

// SAFETY: a region is mapped until its `HostMemory` is dropped, at the same address; copies end before they return.
unsafe impl Device for HostDevice {
    type Memory = HostMemory;
    type Staging = HostMemory;
    type Fence = Reached;

    fn name(&self) -> &str {
        "host"
    }

    fn allocate(&self, bytes: usize) -> Result<HostMemory> {
        self.memory.take(bytes)
    }

    fn bytes(&self, memory: &HostMemory) -> usize {
        memory.window().len
    }

    fn charge(&self, bytes: usize) -> usize {
        HostMemory::charge(bytes)
    }

    fn staging(&self, bytes: usize) -> Result<HostMemory> {
        self.staging.take_bare(bytes)
    }

    fn copies_from(&self, _: &[u8]) -> bool {
        true
    }

    unsafe fn copy_in(&self, from: *const u8, bytes: usize, to: &HostMemory, at: usize) -> Result<Reached> {
        // SAFETY: the caller promises that `at..at + bytes` is inside `to` and nobody else's.
        let to = unsafe { to.window().first.as_ptr().add(at) };
        // SAFETY: the caller promises that `from` can be read; the two are different memory, since nobody else has
        // this part of `to`.
        unsafe { copy::copy(from, to, bytes) };
        Ok(Reached)
    }

    unsafe fn copy_out(&self, from: &HostMemory, at: usize, to: *mut u8, bytes: usize) -> Result<Reached> {
        // SAFETY: the caller promises that `at..at + bytes` is inside `from`.
        let from = unsafe { from.window().first.as_ptr().add(at) };
        // SAFETY: the caller promises that `to` can be written and is nobody else's.
        unsafe { copy::copy(from, to, bytes) };
        Ok(Reached)
    }

    fn window(&self, memory: &HostMemory) -> Option<HostWindow> {
        Some(memory.window())
    }

    fn align_like(&self, memory: &mut HostMemory, offset: u64) {
        memory.align_like(offset);
    }
}
