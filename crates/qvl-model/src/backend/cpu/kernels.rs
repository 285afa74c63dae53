//! The inner loops, written once in plain Rust and compiled for each instruction set.
//!
//! Every body is an `inline(always)` function over fixed-size arrays that the compiler turns into vectors;
//! the `dispatched!` macro instantiates it under the target features of each level. The arithmetic is the
//! same at every level (no fused multiply-add, 16 lanes whatever the register width), so the results are
//! equal bit for bit at every level; `tests` below checks that. Where speed asks for fused instructions, in the
//! dot products and in attention, bodies are generic over [`Lanes`] and levels differ in rounding.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calling a function compiled for an instruction set that was detected")
)]

use super::isa::dispatched;

/// Partial sums in a dot product: one AVX-512 register, two AVX2 registers.
pub(super) const LANES: usize = 16;

dispatched!(
    /// `y = products + bias`, or `y += products + bias`.
    fn finish(y: &mut [f32], products: &[f32], bias: Option<&[f32]>, add: bool) = finish_body
);
dispatched!(
    /// RMSNorm in place.
    fn rms_norm(row: &mut [f32], weight: &[f32], eps: f32) = rms_norm_body
);
dispatched!(
    /// LayerNorm in place.
    fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) = layer_norm_body
);
dispatched!(
    /// GELU by tanh, in place.
    fn gelu_tanh(row: &mut [f32]) = gelu_tanh_body
);
dispatched!(
    /// `out = silu(gate) * up`
    fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) = swiglu_body
);
dispatched!(
    /// Rotates the pairs `(head[i], head[i + half])`; `rotary`: `half` cosines, then `half` sines.
    fn rotate(head: &mut [f32], rotary: &[f32]) = rotate_body
);
/// Sixteen partial sums. The compiler vectorises plain loops over arrays along the wrong axis as soon as
/// several tiles are in flight (seen in a prefill of the 2B shape: gathers into xmm registers), so the registers are named.
///
/// Invariant: the two implementations with intrinsics are only used by bodies that `dispatched!` compiles
/// for their instruction set.
pub(super) trait Lanes: Copy {
    fn zero() -> Self;
    fn load(values: &[f32; LANES]) -> Self;
    fn splat(value: f32) -> Self;
    /// `self + a * b`: rounded once where there are fused instructions, twice in the portable code.
    fn add_product(self, a: Self, b: Self) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    /// Lane by lane the larger one; `other` where `self` is not a number.
    fn max(self, other: Self) -> Self;
    /// The largest lane.
    fn largest(self) -> f32;
    /// `e^x` of values that are not positive, as [`exp`] but for the rounding of fused instructions.
    fn exp(self) -> Self;
    fn values(self) -> [f32; LANES];
}

#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Lanes for Portable {
    #[inline(always)]
    fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        Self(*values)
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + a.0[lane] * b.0[lane]))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] - other.0[lane]))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        Self(std::array::from_fn(|lane| larger(self.0[lane], other.0[lane])))
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        let mut largest = f32::NEG_INFINITY;
        for lane in 0..LANES {
            largest = if self.0[lane] > largest { self.0[lane] } else { largest };
        }
        largest
    }

    #[inline(always)]
    fn exp(self) -> Self {
        let mut values = self.0;
        for lane in 0..LANES {
            values[lane] = exp(values[lane]);
        }
        Self(values)
    }

    #[inline(always)]
    fn values(self) -> [f32; LANES] {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, LN2_HIGH, LN2_LOW, Lanes, SMALLEST, TAYLOR};

    #[derive(Clone, Copy)]
    pub(in crate::backend::cpu) struct Avx2(__m256, __m256);

    impl Lanes for Avx2 {
        #[inline(always)]
        fn zero() -> Self {
            Self::splat(0.0)
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            // SAFETY: 16 values lie there; AVX2 by the invariant of `Lanes`.
            unsafe { Self(_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))) }
        }

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: AVX2 by the invariant of `Lanes`.
            let half = unsafe { _mm256_set1_ps(value) };
            Self(half, half)
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: AVX2 by the invariant of `Lanes`.
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: AVX2 by the invariant of `Lanes`.
            unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: AVX2 by the invariant of `Lanes`.
            unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: AVX2 by the invariant of `Lanes`.
            unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
        }

        #[inline(always)]
        fn largest(self) -> f32 {
            // SAFETY: AVX2 by the invariant of `Lanes`.
            unsafe {
                let eight = _mm256_max_ps(self.0, self.1);
                let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        fn exp(self) -> Self {
            #[inline(always)]
            fn half(x: __m256) -> __m256 {
                // SAFETY: AVX2 and FMA by the invariant of `Lanes`.
                unsafe {
                    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
                        _mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E)),
                    );
                    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_HIGH), x);
                    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_LOW), r);
                    let mut p = _mm256_set1_ps(TAYLOR[0]);
                    for coefficient in &TAYLOR[1..] {
                        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*coefficient));
                    }
                    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                    let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent));
                    let seen = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(SMALLEST));
                    _mm256_and_ps(_mm256_mul_ps(p, power), seen)
                }
            }
            Self(half(self.0), half(self.1))
        }

        #[inline(always)]
        fn values(self) -> [f32; LANES] {
            let mut values = [0.0; LANES];
            // SAFETY: there is room for 16 values; AVX2 by the invariant of `Lanes`.
            unsafe {
                _mm256_storeu_ps(values.as_mut_ptr(), self.0);
                _mm256_storeu_ps(values.as_mut_ptr().add(8), self.1);
            }
            values
        }
    }

    #[derive(Clone, Copy)]
    pub(in crate::backend::cpu) struct Avx512(__m512);

    impl Lanes for Avx512 {
        #[inline(always)]
        fn zero() -> Self {
            Self::splat(0.0)
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            // SAFETY: 16 values lie there; AVX-512F by the invariant of `Lanes`.
            Self(unsafe { _mm512_loadu_ps(values.as_ptr()) })
        }

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: AVX-512F by the invariant of `Lanes`.
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: AVX-512F by the invariant of `Lanes`.
            Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: AVX-512F by the invariant of `Lanes`.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: AVX-512F by the invariant of `Lanes`.
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: AVX-512F by the invariant of `Lanes`.
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn largest(self) -> f32 {
            // SAFETY: AVX-512F by the invariant of `Lanes`.
            unsafe { _mm512_reduce_max_ps(self.0) }
        }

        #[inline(always)]
        fn exp(self) -> Self {
            let x = self.0;
            // SAFETY: AVX-512F by the invariant of `Lanes`.
            unsafe {
                let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
                    _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)),
                );
                let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
                let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
                let mut p = _mm512_set1_ps(TAYLOR[0]);
                for coefficient in &TAYLOR[1..] {
                    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*coefficient));
                }
                let seen = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(SMALLEST));
                Self(_mm512_maskz_scalef_ps(seen, p, n))
            }
        }

        #[inline(always)]
        fn values(self) -> [f32; LANES] {
            let mut values = [0.0; LANES];
            // SAFETY: there is room for 16 values; AVX-512F by the invariant of `Lanes`.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), self.0) };
            values
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// Sums the lanes in halves: 16, 8, 4, 2, 1.
#[inline(always)]
pub(super) fn reduce(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

// Plain indices from here on: iterator adaptors are not reliably inlined into functions compiled for other
// target features (seen in `unpack_bf16`, where calls took most of a decode step).

/// `Σ (v - shift)^power`, power 1 or 2, lane by lane.
#[inline(always)]
fn sum_of_powers<const POWER: u32>(row: &[f32], shift: f32) -> f32 {
    let term = |v: f32| if POWER == 1 { v - shift } else { (v - shift) * (v - shift) };
    let (whole, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for at in 0..whole.len() {
        for lane in 0..LANES {
            sums[lane] += term(whole[at][lane]);
        }
    }
    for lane in 0..rest.len() {
        sums[lane] += term(rest[lane]);
    }
    reduce(sums)
}

#[inline(always)]
fn rms_norm_body(row: &mut [f32], weight: &[f32], eps: f32) {
    let count = row.len();
    let weight = &weight[..count];
    let scale = 1.0 / (sum_of_powers::<2>(row, 0.0) / count as f32 + eps).sqrt();
    for i in 0..count {
        row[i] = row[i] * scale * weight[i];
    }
}

#[inline(always)]
fn layer_norm_body(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let count = row.len();
    let (weight, bias) = (&weight[..count], &bias[..count]);
    let mean = sum_of_powers::<1>(row, 0.0) / count as f32;
    let scale = 1.0 / (sum_of_powers::<2>(row, mean) / count as f32 + eps).sqrt();
    for i in 0..count {
        row[i] = (row[i] - mean) * scale * weight[i] + bias[i];
    }
}

/// `0.5 (1 + tanh u) = 1 / (1 + exp(-2u))`, so one exponential serves.
#[inline(always)]
fn gelu_tanh_body(row: &mut [f32]) {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    for i in 0..row.len() {
        let x = row[i];
        row[i] = x / (1.0 + exp(-TWICE_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)));
    }
}

#[inline(always)]
fn swiglu_body(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let count = out.len();
    let (gate, up) = (&gate[..count], &up[..count]);
    for i in 0..count {
        out[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
    }
}

#[inline(always)]
fn finish_body(y: &mut [f32], products: &[f32], bias: Option<&[f32]>, add: bool) {
    let count = y.len();
    let products = &products[..count];
    match (bias.map(|bias| &bias[..count]), add) {
        (None, false) => y.copy_from_slice(products),
        (None, true) => {
            for i in 0..count {
                y[i] += products[i];
            }
        }
        (Some(bias), false) => {
            for i in 0..count {
                y[i] = products[i] + bias[i];
            }
        }
        (Some(bias), true) => {
            for i in 0..count {
                y[i] += products[i] + bias[i];
            }
        }
    }
}

#[inline(always)]
fn rotate_body(head: &mut [f32], rotary: &[f32]) {
    let half = head.len() / 2;
    let (first, second) = head.split_at_mut(half);
    let (cos, sin) = (&rotary[..half], &rotary[half..2 * half]);
    let second = &mut second[..half];
    for i in 0..half {
        let (a, b) = (first[i], second[i]);
        first[i] = a * cos[i] - b * sin[i];
        second[i] = b * cos[i] + a * sin[i];
    }
}

/// `ln 2` in two parts: the upper one has few bits, so that an integer times it is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// The Taylor polynomial of `e^r`, highest power first; its remainder at `ln 2 / 2` is 5e-9.
const TAYLOR: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// Below it `e^x` is taken as 0: no result is subnormal, which would be slow to compute with.
const SMALLEST: f32 = -87.3;

/// `e^x`, relative error below 3e-7; 0 below -87.3, infinity above 88.7, NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, a polynomial in `r`, and `2ⁿ` by the exponent bits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer: 1.5 * 2^23.
    const ROUNDER: f32 = 12_582_912.0;
    let clamped = if x < SMALLEST { SMALLEST } else { x };
    let clamped = if clamped > 88.7 { 88.7 } else { clamped };
    let n = (clamped * std::f32::consts::LOG2_E + ROUNDER) - ROUNDER;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = TAYLOR[0];
    for at in 1..TAYLOR.len() {
        p = p * r + TAYLOR[at];
    }
    // In two steps, since 2^128 is not a finite number.
    let half = (n * 0.5 + ROUNDER) - ROUNDER;
    let power = |n: f32| f32::from_bits(((n + ROUNDER).to_bits().wrapping_add(127) & 0xff) << 23);
    let value = p * power(half) * power(n - half);
    let value = if x < SMALLEST { 0.0 } else { value };
    let value = if x > 88.7 { f32::INFINITY } else { value };
    if x.is_nan() { x } else { value }
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::*;

    /// Values without pattern in [-1, 1), the same on every machine.
    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Edges of lanes, tiles and blocks.
    const SIZES: [usize; 9] = [1, 2, 15, 16, 17, 31, 33, 64, 72];

    /// Runs `f` at every level and requires the bits of the first.
    fn same_at_every_level(what: &str, f: impl Fn(Isa) -> Vec<f32>) -> Vec<f32> {
        let expected = f(Isa::available()[0]);
        for isa in Isa::available() {
            let got = f(isa);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&expected), "{what} at level {}", isa.name());
        }
        expected
    }

    #[test]
    fn exp_is_close_to_the_libm_one_over_its_whole_range() {
        let mut worst = 0.0f64;
        for step in 0..200_000 {
            let x = -87.0 + f32::from(u16::try_from(step % 60_000).unwrap()) * (175.0 / 60_000.0);
            let x = if x > 88.5 { 88.5 } else { x };
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / expected - 1.0).abs());
        }
        assert!(worst < 3e-7, "relative error {worst:e}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    dispatched!(
        fn exp_of_lanes(x: &mut [f32; LANES]) = exp_body::<Portable>, exp_body::<Avx2>, exp_body::<Avx512>
    );

    #[inline(always)]
    fn exp_body<V: Lanes>(x: &mut [f32; LANES]) {
        *x = V::load(x).exp().values();
    }

    #[test]
    fn exp_of_lanes_is_close_to_the_libm_one_at_every_level() {
        for isa in Isa::available() {
            let mut worst = 0.0f64;
            for step in 0..6_000u16 {
                let x: [f32; LANES] =
                    std::array::from_fn(|lane| -(f32::from(step) + lane as f32 / 16.0) * (87.2 / 6_000.0));
                let mut got = x;
                exp_of_lanes(isa, &mut got);
                for (x, got) in x.into_iter().zip(got) {
                    worst = worst.max((f64::from(got) / f64::from(x).exp() - 1.0).abs());
                }
            }
            assert!(worst < 3e-7, "relative error {worst:e} at level {}", isa.name());
            let mut edges = [0.0; LANES];
            edges[..3].copy_from_slice(&[f32::NEG_INFINITY, -100.0, f32::NAN]);
            exp_of_lanes(isa, &mut edges);
            assert_eq!((edges[0], edges[1], edges[3]), (0.0, 0.0, 1.0), "at level {}", isa.name());
            assert!(edges[2].is_nan(), "at level {}", isa.name());
        }
    }

    #[test]
    fn norms_and_activations_are_the_same_at_every_level() {
        for size in SIZES {
            let (row, weight, bias) = (noise(size, 5), noise(size, 6), noise(size, 7));
            same_at_every_level("rms_norm", |isa| {
                let mut row = row.clone();
                rms_norm(isa, &mut row, &weight, 1e-6);
                row
            });
            same_at_every_level("layer_norm", |isa| {
                let mut row = row.clone();
                layer_norm(isa, &mut row, &weight, &bias, 1e-6);
                row
            });
            same_at_every_level("gelu_tanh", |isa| {
                let mut row = row.clone();
                gelu_tanh(isa, &mut row);
                row
            });
            same_at_every_level("swiglu", |isa| {
                let mut out = vec![0.0; size];
                swiglu(isa, &row, &weight, &mut out);
                out
            });
        }
    }
}
