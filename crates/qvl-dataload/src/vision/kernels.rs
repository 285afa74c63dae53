//! The inner loops on pixels, once for every CPU and again for the vector instructions of x86.
//!
//! Separate from what they compute, because only here may there be unsafe code. [`Isa`] is the proof that this CPU has
//! the instructions of a level; it is made by detection only, and the safe functions on it check every length and
//! offset before they hand pointers on. All levels give the same bits, which the tests of [`resize`](super::resize)
//! and [`patchify`](super::patchify) check for each.

pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_patches;

use half::bf16;

use crate::vision::resize::taps::Taps;
use crate::vision::values::Formula;

/// Rows that go through the horizontal pass together.
pub(crate) const GROUP: usize = 8;

/// Bytes that a row read by the horizontal pass may be overrun by, and a row it writes.
pub(crate) const SLACK: usize = 16;

/// Proof of what this CPU can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isa(Level);

/// Instruction sets, worst first. Each can do what the one before can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Portable,
    /// Products of 16-bit numbers, two at a time, and additions.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Products and additions in one: VNNI of laptops without AVX-512.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// Products of 8-bit numbers, four at a time, and additions in one.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

/// How integer weights are cut for the products of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// 16 low bits for products of pairs, 8 high bits for products of bytes.
    Halves,
    /// Three signed digits of 8 bits.
    Bytes,
}

impl Isa {
    /// The best level of this CPU. The answer does not change while the program runs.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
                return Self(Level::Portable);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                return Self(Level::Avx512Vnni);
            }
            if is_x86_feature_detected!("avxvnni") {
                return Self(Level::AvxVnni);
            }
            Self(Level::Avx2)
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self(Level::Portable)
    }

    /// Every level this CPU has, worst first.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let best = Self::detect().0;
            let mut levels = vec![Level::Portable, Level::Avx2, Level::AvxVnni, Level::Avx512Vnni];
            // AVX-512 does not imply the other encoding.
            levels.retain(|l| *l <= best && (*l != Level::AvxVnni || is_x86_feature_detected!("avxvnni")));
            levels.into_iter().map(Self).collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![Self(Level::Portable)]
    }

    /// How this level wants weights, if it has vectors for them.
    pub(crate) fn cut(self) -> Option<Cut> {
        match self.0 {
            Level::Portable => None,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::AvxVnni => Some(Cut::Halves),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => Some(Cut::Bytes),
        }
    }

    /// Resizes [`GROUP`] rows of RGB in width.
    ///
    /// - `rows`: where each row starts in `source`; after the last one there are [`SLACK`] bytes
    /// - `out`: `[GROUP, stride]`, each row with at least [`SLACK`] bytes more than it has samples
    /// - `scratch`: anything; grows to what is needed
    pub(crate) fn horizontal(
        self,
        taps: &Taps,
        source: &[u8],
        rows: &[usize; GROUP],
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) {
        let (width, new_width) = (taps.size(), taps.new_size());
        let stride = out.len() / GROUP;
        let last = rows.iter().copied().max().unwrap_or(0);
        assert!(last + width * 3 + SLACK <= source.len(), "a row ends outside of the source");
        assert!(new_width * 3 + SLACK <= stride, "a row of the result has no room");
        match (self.0, taps.vectors()) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, Some(v)) => {
                // SAFETY: `self` proves AVX2; the rows and the result have the room asserted above.
                unsafe { x86::avx2::horizontal(v, taps.shift(), source, rows, out, stride) }
            }
            #[cfg(target_arch = "x86_64")]
            (Level::AvxVnni, Some(v)) => {
                // SAFETY: `self` proves AVX-VNNI; the rows and the result have the room asserted above.
                unsafe { x86::avx_vnni::horizontal(v, taps.shift(), source, rows, out, stride) }
            }
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Vnni, Some(v)) => {
                // SAFETY: `self` proves AVX-512 VNNI; the rows and the result have the room asserted above.
                unsafe { x86::avx512_vnni::horizontal(v, taps.shift(), source, rows, out, stride) }
            }
            _ => portable::horizontal(taps, source, rows, out, scratch),
        }
    }

    /// One row of the result of the vertical pass.
    ///
    /// - `i`: which row; `rows`: where the rows it is made of start in `source`, as many as
    ///   [`Taps::row_count`] says
    pub(crate) fn vertical(self, taps: &Taps, i: usize, source: &[u8], rows: &[usize], out: &mut [u8]) {
        let last = rows.iter().copied().max().unwrap_or(0);
        assert!(last + out.len() <= source.len(), "a row ends outside of the source");
        assert_eq!(rows.len(), taps.row_count(i), "a row for each weight");
        let vectors = taps.vectors().filter(|_| out.len() >= LANES);
        match (self.0, vectors) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, Some(v)) => {
                // SAFETY: `self` proves AVX2; rows and result have the lengths asserted above.
                unsafe { x86::avx2::vertical(v, i, taps.shift(), source, rows, out) }
            }
            #[cfg(target_arch = "x86_64")]
            (Level::AvxVnni, Some(v)) => {
                // SAFETY: `self` proves AVX-VNNI; rows and result have the lengths asserted above.
                unsafe { x86::avx_vnni::vertical(v, i, taps.shift(), source, rows, out) }
            }
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Vnni, Some(v)) => {
                // SAFETY: `self` proves AVX-512 VNNI; rows and result have the lengths asserted above.
                unsafe { x86::avx512_vnni::vertical(v, i, taps.shift(), source, rows, out) }
            }
            _ => portable::vertical(taps, i, source, rows, out),
        }
    }

    /// Cuts one patch of f32; `false`, and nothing done, if there are no vectors for it.
    pub(crate) fn patch_f32(self, patch: Patch<'_>, formula: Option<&Formula>, out: &mut [f32]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if let Some(formula) = self.formula(patch, formula) {
            let patch = patch.checked(out);
            // SAFETY: levels with formulas have AVX2 and FMA; lengths and alignment have just been checked.
            unsafe { x86_patches::patch_f32(patch, formula, out) };
            return true;
        }
        let _ = (patch, formula, out);
        false
    }

    /// Cuts one patch of bf16; `false`, and nothing done, if there are no vectors for it.
    pub(crate) fn patch_bf16(self, patch: Patch<'_>, formula: Option<&Formula>, out: &mut [bf16]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if let Some(formula) = self.formula(patch, formula) {
            let patch = patch.checked(out);
            // SAFETY: levels with formulas have AVX2 and FMA; lengths and alignment have just been checked.
            unsafe { x86_patches::patch_bf16(patch, formula, out) };
            return true;
        }
        let _ = (patch, formula, out);
        false
    }

    /// The formula, if it can be computed in vectors for patches of that side.
    #[cfg(target_arch = "x86_64")]
    fn formula<'a>(self, patch: Patch<'_>, formula: Option<&'a Formula>) -> Option<&'a Formula> {
        let whole = patch.side.is_multiple_of(x86_patches::PIXELS);
        formula.filter(|_| self.0 >= Level::Avx2 && whole)
    }

    /// Ends a run of patches that may have been stored past the caches.
    pub(crate) fn finish_patches(self) {
        #[cfg(target_arch = "x86_64")]
        if self.0 >= Level::Avx2 {
            x86_patches::fence();
        }
    }
}

/// One patch of one frame, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patch<'a> {
    /// From the first byte of the patch to the last or beyond.
    pub(crate) rgb: &'a [u8],
    /// Bytes from one line to the next.
    pub(crate) stride: usize,
    /// Pixels a side.
    pub(crate) side: usize,
    /// Frames in the patch.
    pub(crate) temporal: usize,
    /// The first frame it is for, and the one behind the last.
    pub(crate) places: (usize, usize),
    /// Whether to store past the caches; without effect on a buffer that is not aligned to 32 bytes.
    pub(crate) stream: bool,
}

impl Patch<'_> {
    /// Checks the lengths, and takes back what cannot be.
    #[cfg(target_arch = "x86_64")]
    fn checked<V>(mut self, out: &[V]) -> Self {
        let plane = self.side * self.side;
        assert!(self.rgb.len() >= (self.side - 1) * self.stride + self.side * 3, "the patch is cut off");
        assert!(self.places.1 <= self.temporal, "there are fewer frames than that");
        assert_eq!(out.len(), 3 * self.temporal * plane, "the output does not have the size of the patch");
        self.stream &= out.as_ptr().addr().is_multiple_of(32);
        self
    }
}

/// Bytes of a row that go through the vertical pass together.
pub(crate) const LANES: usize = 32;
