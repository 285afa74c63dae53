//! Copies in host memory.
//!
//! What is copied here is used by somebody else later, when it would have left the caches anyway. Stores past them
//! spare the memory the reading of what is overwritten, and leave in the caches what was there.

#![expect(unsafe_code, reason = "copies between raw parts of memory, with stores past the caches")]

/// Copies `bytes` bytes. Large copies are stored past the caches.
///
/// # Safety
/// `from` can be read and `to` written for `bytes` bytes, and they do not overlap.
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    if bytes >= STREAM_BYTES_MIN
        && let Some(avx2) = avx2::Avx2::detect()
    {
        // SAFETY: the caller's promise.
        return unsafe { avx2.copy(from, to, bytes) };
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
}

/// From here on copies are stored past the caches.
///
/// GB/s on an AMD EPYC of the family 25 (2 processors, 32 MiB of cache), one thread, to and from 256 MiB of large pages,
/// parts taken out of order, the best of 9 interleaved rounds; "warm" has all parts from the same memory, as what a
/// drive has just written is:
///
/// | bytes of a part | `copy_nonoverlapping` | past the caches | warm: the first | warm: the second |
/// |---|---|---|---|---|
/// | 64 KiB | 7.0 | 11.6 | 8.7 | 19.5 |
/// | 256 KiB | 7.3 | 11.9 | 8.6 | 19.9 |
/// | 1 MiB | 6.5 | 12.2 | 7.7 | 18.8 |
/// | 4 MiB | 6.0 | 11.3 | 8.8 | 18.7 |
///
/// Smaller ones, though faster that way as well, may be looked at while the caches have them still. Fetching ahead in software changed nothing.
#[cfg(target_arch = "x86_64")]
const STREAM_BYTES_MIN: usize = 64 << 10;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{__m256i, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256};

    /// Proof that this processor has AVX2.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    impl Avx2 {
        /// Looked up once, and the same over the life of the program.
        pub(super) fn detect() -> Option<Self> {
            std::is_x86_feature_detected!("avx2").then_some(Self(()))
        }

        /// Copies, stored past the caches.
        ///
        /// # Safety
        /// As [`copy`](super::copy).
        pub(super) unsafe fn copy(self, from: *const u8, to: *mut u8, bytes: usize) {
            // SAFETY: `self` proves AVX2; the rest is the caller's promise.
            unsafe { stream(from, to, bytes) }
        }
    }

    /// A head up to where the destination is aligned, lines of 4 vectors, and a tail.
    ///
    /// # Safety
    /// As [`copy`](super::copy).
    #[target_feature(enable = "avx2")]
    unsafe fn stream(from: *const u8, to: *mut u8, bytes: usize) {
        let head = to.align_offset(VECTOR).min(bytes);
        // SAFETY: `head` is at most `bytes`, for which the caller promises this.
        unsafe { std::ptr::copy_nonoverlapping(from, to, head) };
        let lines = (bytes - head) / LINE;
        for line in 0..lines {
            let at = head + line * LINE;
            // SAFETY: `at + LINE` is at most `bytes`.
            let (from, to) = unsafe { (from.add(at).cast::<__m256i>(), to.add(at).cast::<__m256i>()) };
            // SAFETY: 4 vectors from there can be read, as above; the load needs no alignment.
            let vectors = unsafe { [0, 1, 2, 3].map(|i| _mm256_loadu_si256(from.add(i))) };
            for (i, vector) in vectors.into_iter().enumerate() {
                // SAFETY: it can be written, as above, and is aligned, since `to + head` is and a line is whole
                // vectors.
                unsafe { _mm256_stream_si256(to.add(i), vector) };
            }
        }
        // Such stores are not ordered with others: without this, who is told that the bytes are there might not see
        // them.
        _mm_sfence();
        let tail = head + lines * LINE;
        // SAFETY: `tail` is at most `bytes`, for which the caller promises this.
        unsafe { std::ptr::copy_nonoverlapping(from.add(tail), to.add(tail), bytes - tail) };
    }

    const VECTOR: usize = size_of::<__m256i>();
    const LINE: usize = 4 * VECTOR;
}

#[cfg(test)]
mod tests {
    use super::*;

    type Copy = unsafe fn(*const u8, *mut u8, usize);

    /// What is run here: the dispatch, and each style that the processor has.
    fn styles() -> Vec<(&'static str, Copy)> {
        let mut styles: Vec<(&'static str, Copy)> = vec![("dispatched", copy)];
        #[cfg(target_arch = "x86_64")]
        if avx2::Avx2::detect().is_some() {
            // SAFETY: detected; the rest is the promise of `check`.
            styles.push(("AVX2", |from, to, bytes| unsafe {
                if let Some(avx2) = avx2::Avx2::detect() {
                    avx2.copy(from, to, bytes);
                }
            }));
        }
        styles
    }

    fn check(name: &str, copy: Copy, from: usize, to: usize, bytes: usize) {
        let source: Vec<u8> = (0..from + bytes + 64).map(|i| (i % 251) as u8).collect();
        let mut target = vec![0xa5; to + bytes + 256];
        // SAFETY: both are longer than this, and different.
        unsafe { copy(source.as_ptr().add(from), target.as_mut_ptr().add(to), bytes) };
        let what = format!("{name}: {bytes} bytes from {from} to {to}");
        assert!(target[to..to + bytes] == source[from..from + bytes], "{what}");
        assert!(target[..to].iter().all(|&byte| byte == 0xa5), "{what}: before");
        assert!(target[to + bytes..].iter().all(|&byte| byte == 0xa5), "{what}: behind");
    }

    #[test]
    fn all_misalignments_of_both_sides() {
        for (name, copy) in styles() {
            for from in 0..64 {
                for to in 0..64 {
                    for bytes in [0, 1, 200, 1000] {
                        check(name, copy, from, to, bytes);
                    }
                }
            }
        }
    }

    #[test]
    fn lengths_around_what_is_done_at_once() {
        for (name, copy) in styles() {
            for near in [0usize, 32, 64, 128, 256, 4096, 65_536, 100_000] {
                for bytes in near.saturating_sub(33)..near + 34 {
                    for (from, to) in [(0, 0), (1, 0), (0, 1), (31, 33), (8, 16)] {
                        check(name, copy, from, to, bytes);
                    }
                }
            }
        }
    }
}
