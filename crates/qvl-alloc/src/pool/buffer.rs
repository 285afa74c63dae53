//! What a pool gives.

#![expect(unsafe_code, reason = "memory that a pool lent as a slice")]

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::inner::Taken;
use crate::Owner;
use crate::backing::{Backing, HostBacking};

/// Memory of a pool, which goes back at the drop. It keeps its owner and its pool.
///
/// With a backing of the host it is a slice; with another it is an address.
pub struct Buffer<T, B: Backing> {
    taken: ManuallyDrop<Taken<B>>,
    len: usize,
    of: PhantomData<T>,
}

// SAFETY: it alone has its memory, as a `Vec` does; the rest of it is an owner.
unsafe impl<T: Send, B: Backing> Send for Buffer<T, B> {}
// SAFETY: as above.
unsafe impl<T: Sync, B: Backing> Sync for Buffer<T, B> {}

impl<T, B: Backing> Buffer<T, B> {
    /// `taken` has `len` of `T`, aligned, and, if the host reads it, valid as such.
    #[inline]
    pub(super) fn new(taken: Taken<B>, len: usize) -> Self {
        Self { taken: ManuallyDrop::new(taken), len, of: PhantomData }
    }

    /// Where it begins: an address of the host, or of the device. Without bytes, an address that is only aligned.
    pub fn first(&self) -> NonNull<u8> {
        self.taken.first
    }

    /// How many of `T` it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Who has it.
    pub fn owner(&self) -> &Owner<B> {
        &self.taken.owner
    }
}

impl<B: HostBacking> Buffer<u8, B> {
    /// The same memory as `len` of `T`, which has as many bytes and is as aligned; all bytes are a `T`.
    pub(super) fn into_elements<T: bytemuck::Pod>(self, len: usize) -> Buffer<T, B> {
        debug_assert_eq!(self.len, len * size_of::<T>());
        let mut bytes = ManuallyDrop::new(self);
        // SAFETY: taken here only, since `bytes` is not dropped.
        Buffer::new(unsafe { ManuallyDrop::take(&mut bytes.taken) }, len)
    }
}

impl<T, B: HostBacking> Deref for Buffer<T, B> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: so many are there, initialised and aligned, as `new` was promised; the buffer alone has them.
        unsafe { std::slice::from_raw_parts(self.taken.first.as_ptr().cast(), self.len) }
    }
}

impl<T, B: HostBacking> DerefMut for Buffer<T, B> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.taken.first.as_ptr().cast(), self.len) }
    }
}

impl<T, B: Backing> Drop for Buffer<T, B> {
    #[inline]
    fn drop(&mut self) {
        self.taken.owner.pool().free(&self.taken);
        let grains = self.taken.grains();
        // SAFETY: read here only, and nothing uses it after the drop. The rest of what was taken has no drop, and is
        // not moved, since to move it all costs more than to free it.
        let owner = unsafe { std::ptr::read(&self.taken.owner) };
        owner.discharge(grains);
    }
}

impl<T, B: Backing> fmt::Debug for Buffer<T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("first", &self.taken.first)
            .field("len", &self.len)
            .field("owner", &self.taken.owner.name())
            .finish()
    }
}
