//! The inner loops, written once in plain Rust and compiled for each instruction set.
//!
//! Every body is an `inline(always)` function over fixed-size arrays that the compiler turns into vectors;
//! the `dispatched!` macro instantiates it under the target features of each level. The arithmetic is the
//! same at every level (no fused multiply-add, 16 lanes whatever the register width), so the results are
//! equal bit for bit on every machine; `tests` below checks that.

#![expect(unsafe_code, reason = "calling a function compiled for an instruction set that was detected")]

/// Partial sums in a dot product: one AVX-512 register, two AVX2 registers.
pub(super) const LANES: usize = 16;

/// Proof of what this CPU can do; only made by detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The best level of this CPU. The answer does not change while the program runs.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                return Self(Level::Avx512);
            }
            if is_x86_feature_detected!("avx2") {
                return Self(Level::Avx2);
            }
        }
        Self(Level::Portable)
    }

    /// Every level this CPU has, worst first.
    pub fn available() -> Vec<Self> {
        let best = Self::detect();
        let levels = [
            Level::Portable,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512,
        ];
        levels.into_iter().filter(|level| *level <= best.0).map(Self).collect()
    }

    /// `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }
}

/// Compiles `$body` for each level as `$name(isa, ...)`.
macro_rules! dispatched {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $portable:expr, $avx2:expr, $avx512:expr) => {
        $(#[$doc])*
        pub(super) fn $name(isa: Isa, $($arg: $type),*) {
            match isa.0 {
                Level::Portable => $portable($($arg),*),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => {
                    #[target_feature(enable = "avx2")]
                    fn compiled($($arg: $type),*) {
                        $avx2($($arg),*);
                    }
                    // SAFETY: a value of this level is only made after the feature was detected.
                    unsafe { compiled($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => {
                    #[target_feature(enable = "avx512f,avx512vl")]
                    fn compiled($($arg: $type),*) {
                        $avx512($($arg),*);
                    }
                    // SAFETY: a value of this level is only made after both features were detected.
                    unsafe { compiled($($arg),*) }
                }
            }
        }
    };
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:expr) => {
        dispatched!($(#[$doc])* fn $name($($arg: $type),*) = $body, $body, $body);
    };
}

dispatched!(
    /// `out[m * out_stride + n] = x_m · w_n`. `x`: `[x_rows, k]`; `w`: `[w_rows, k]`, at most `out_stride`
    /// rows.
    fn dots(x: &[f32], w: &[f32], k: usize, out: &mut [f32], out_stride: usize)
        = dots_body::<2, 2>, dots_body::<2, 2>, dots_body::<4, 4>
);
dispatched!(
    /// `scores[m][..16] = q_m · panel` for a panel of 16 keys stored `[head_dim][16]`.
    fn panel_scores(q: &[f32], head_dim: usize, panel: &[f32], scores: &mut [f32], stride: usize)
        = panel_scores_body::<4>, panel_scores_body::<4>, panel_scores_body::<8>
);
dispatched!(
    /// `out[m] = Σ_j weights[m][j] * values[j]` over `values`: `[keys, width]`, width a multiple of 16; the
    /// first `visible[m]` weights of a row count, the rest must be 0.
    fn mix(weights: &[f32], stride: usize, values: &[f32], width: usize, keys: usize, out: &mut [f32])
        = mix_body::<4>, mix_body::<4>, mix_body::<8>
);
dispatched!(
    /// `row = exp(scale * row - max)`, the part of `row` from `visible` on set to 0; `sum[0]` gets the sum.
    fn softmax(row: &mut [f32], visible: usize, scale: f32, sum: &mut f32) = softmax_body
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
dispatched!(
    /// bfloat16, little-endian bytes, to f32.
    fn unpack_bf16(bytes: &[u8], out: &mut [f32]) = unpack_bf16_body
);

#[inline(always)]
fn add_lanes(acc: &mut [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) {
    for lane in 0..LANES {
        acc[lane] += a[lane] * b[lane];
    }
}

/// Sums the lanes in halves: 16, 8, 4, 2, 1.
#[inline(always)]
fn reduce(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// A copy of the 16 values at `start`; fewer at the end are followed by zeros.
#[inline(always)]
fn lanes_at(row: &[f32], start: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    let rest = &row[start..];
    let count = rest.len().min(LANES);
    lanes[..count].copy_from_slice(&rest[..count]);
    lanes
}

/// For each pair of rows: lane `l` sums the products at `k ≡ l (mod 16)` in ascending order, then the lanes
/// are summed in halves. MR x NR pairs at a time so that a loaded vector is used MR or NR times; pairs that
/// fill no tile are done one by one, in the same order.
#[inline(always)]
fn dots_body<const MR: usize, const NR: usize>(
    x: &[f32],
    w: &[f32],
    k: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let (x_rows, w_rows) = (x.len() / k, w.len() / k);
    let mut m = 0;
    while m < x_rows {
        let mr = if m + MR <= x_rows { MR } else { 1 };
        let mut n = 0;
        while n < w_rows {
            let nr = if n + NR <= w_rows { NR } else { 1 };
            let (x, w) = (&x[m * k..][..mr * k], &w[n * k..][..nr * k]);
            let out = &mut out[m * out_stride + n..];
            if mr == MR && nr == NR {
                dot_tile::<MR, NR>(x, w, k, out, out_stride);
            } else if nr == NR {
                dot_tile::<1, NR>(x, w, k, out, out_stride);
            } else if mr == MR {
                dot_tile::<MR, 1>(x, w, k, out, out_stride);
            } else {
                dot_tile::<1, 1>(x, w, k, out, out_stride);
            }
            n += nr;
        }
        m += mr;
    }
}

#[inline(always)]
fn dot_tile<const MR: usize, const NR: usize>(
    x: &[f32],
    w: &[f32],
    k: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let mut acc = [[[0.0f32; LANES]; NR]; MR];
    let x: [&[f32]; MR] = std::array::from_fn(|m| &x[m * k..][..k]);
    let w: [&[f32]; NR] = std::array::from_fn(|n| &w[n * k..][..k]);
    let whole = k / LANES * LANES;
    let mut at = 0;
    while at < whole {
        let wv: [[f32; LANES]; NR] = std::array::from_fn(|n| load(w[n], at));
        for m in 0..MR {
            let xv = load(x[m], at);
            for n in 0..NR {
                add_lanes(&mut acc[m][n], &xv, &wv[n]);
            }
        }
        at += LANES;
    }
    if whole < k {
        for m in 0..MR {
            for n in 0..NR {
                add_lanes(&mut acc[m][n], &lanes_at(x[m], whole), &lanes_at(w[n], whole));
            }
        }
    }
    for m in 0..MR {
        for n in 0..NR {
            out[m * out_stride + n] = reduce(acc[m][n]);
        }
    }
}

#[inline(always)]
fn load(row: &[f32], at: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&row[at..at + LANES]);
    lanes
}

/// A score is summed over the head's dimensions in ascending order, one rounding each.
#[inline(always)]
fn panel_scores_body<const MR: usize>(
    q: &[f32],
    head_dim: usize,
    panel: &[f32],
    scores: &mut [f32],
    stride: usize,
) {
    let rows = q.len() / head_dim;
    let mut m = 0;
    while m + MR <= rows {
        panel_scores_tile::<MR>(&q[m * head_dim..], head_dim, panel, &mut scores[m * stride..], stride);
        m += MR;
    }
    while m < rows {
        panel_scores_tile::<1>(&q[m * head_dim..], head_dim, panel, &mut scores[m * stride..], stride);
        m += 1;
    }
}

#[inline(always)]
fn panel_scores_tile<const MR: usize>(
    q: &[f32],
    head_dim: usize,
    panel: &[f32],
    scores: &mut [f32],
    stride: usize,
) {
    let mut acc = [[0.0f32; LANES]; MR];
    let q: [&[f32]; MR] = std::array::from_fn(|m| &q[m * head_dim..][..head_dim]);
    for (d, key) in panel.chunks_exact(LANES).take(head_dim).enumerate() {
        let key = load(key, 0);
        for m in 0..MR {
            add_lanes(&mut acc[m], &[q[m][d]; LANES], &key);
        }
    }
    for m in 0..MR {
        scores[m * stride..][..LANES].copy_from_slice(&acc[m]);
    }
}

/// An output is summed over the keys in ascending order, one rounding each.
#[inline(always)]
fn mix_body<const MR: usize>(
    weights: &[f32],
    stride: usize,
    values: &[f32],
    width: usize,
    keys: usize,
    out: &mut [f32],
) {
    let rows = out.len() / width;
    let mut m = 0;
    while m + MR <= rows {
        mix_tile::<MR>(&weights[m * stride..], stride, values, width, keys, &mut out[m * width..]);
        m += MR;
    }
    while m < rows {
        mix_tile::<1>(&weights[m * stride..], stride, values, width, keys, &mut out[m * width..]);
        m += 1;
    }
}

#[inline(always)]
fn mix_tile<const MR: usize>(
    weights: &[f32],
    stride: usize,
    values: &[f32],
    width: usize,
    keys: usize,
    out: &mut [f32],
) {
    let weights: [&[f32]; MR] = std::array::from_fn(|m| &weights[m * stride..][..keys]);
    for column in (0..width).step_by(LANES) {
        let mut acc = [[0.0f32; LANES]; MR];
        for (j, value) in values.chunks_exact(width).take(keys).enumerate() {
            let value = load(value, column);
            for m in 0..MR {
                add_lanes(&mut acc[m], &[weights[m][j]; LANES], &value);
            }
        }
        for m in 0..MR {
            out[m * width + column..][..LANES].copy_from_slice(&acc[m]);
        }
    }
}

#[inline(always)]
fn softmax_body(row: &mut [f32], visible: usize, scale: f32, sum: &mut f32) {
    let (seen, hidden) = row.split_at_mut(visible);
    hidden.fill(0.0);
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for chunk in seen.chunks(LANES) {
        for (max, &score) in maxima.iter_mut().zip(chunk) {
            *max = if score > *max { score } else { *max };
        }
    }
    let max = maxima.into_iter().fold(f32::NEG_INFINITY, f32::max) * scale;
    let mut sums = [0.0f32; LANES];
    for chunk in seen.chunks_mut(LANES) {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp(*score * scale - max);
            *sum += *score;
        }
    }
    *sum = reduce(sums);
}

#[inline(always)]
fn sum_of_squares(row: &[f32], shift: f32) -> f32 {
    let mut acc = [0.0f32; LANES];
    for chunk in row.chunks(LANES) {
        for (acc, &v) in acc.iter_mut().zip(chunk) {
            *acc += (v - shift) * (v - shift);
        }
    }
    reduce(acc)
}

#[inline(always)]
fn rms_norm_body(row: &mut [f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (sum_of_squares(row, 0.0) / row.len() as f32 + eps).sqrt();
    for (v, &weight) in row.iter_mut().zip(weight) {
        *v = *v * scale * weight;
    }
}

#[inline(always)]
fn layer_norm_body(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let count = row.len() as f32;
    let mut sums = [0.0f32; LANES];
    for chunk in row.chunks(LANES) {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += v;
        }
    }
    let mean = reduce(sums) / count;
    let scale = 1.0 / (sum_of_squares(row, mean) / count + eps).sqrt();
    for ((v, &weight), &bias) in row.iter_mut().zip(weight).zip(bias) {
        *v = (*v - mean) * scale * weight + bias;
    }
}

/// `0.5 (1 + tanh u) = 1 / (1 + exp(-2u))`, so one exponential serves.
#[inline(always)]
fn gelu_tanh_body(row: &mut [f32]) {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    for v in row {
        let x = *v;
        *v = x / (1.0 + exp(-TWICE_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)));
    }
}

#[inline(always)]
fn swiglu_body(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

#[inline(always)]
fn rotate_body(head: &mut [f32], rotary: &[f32]) {
    let half = head.len() / 2;
    let (first, second) = head.split_at_mut(half);
    let (cos, sin) = rotary.split_at(half);
    for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[inline(always)]
fn unpack_bf16_body(bytes: &[u8], out: &mut [f32]) {
    for (out, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
    }
}

/// `e^x`, relative error below 2e-7; 0 below -87.3, infinity above 88.7, NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, `ln 2` in two parts so that `r` is exact, a polynomial of degree
/// 6 in `r` (the Taylor series: its remainder at `ln 2 / 2` is 1.2e-7 relative), and `2ⁿ` by the exponent
/// bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding it rounds to an integer: 1.5 * 2^23.
    const ROUNDER: f32 = 12_582_912.0;
    let clamped = if x < -87.3 { -87.3 } else { x };
    let clamped = if clamped > 88.7 { 88.7 } else { clamped };
    let n = (clamped * std::f32::consts::LOG2_E + ROUNDER) - ROUNDER;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    // In two steps, since 2^128 is not a finite number.
    let half = (n * 0.5 + ROUNDER) - ROUNDER;
    let power = |n: f32| f32::from_bits(((n + ROUNDER).to_bits().wrapping_add(127) & 0xff) << 23);
    let value = p * power(half) * power(n - half);
    let value = if x < -87.3 { 0.0 } else { value };
    let value = if x > 88.7 { f32::INFINITY } else { value };
    if x.is_nan() { x } else { value }
}

#[cfg(test)]
mod tests {
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
        let expected = f(Isa(Level::Portable));
        for isa in Isa::available() {
            let got = f(isa);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&expected), "{what} at level {}", isa.name());
        }
        expected
    }

    #[test]
    fn dots_equal_the_sum_in_f64_at_every_size_and_level() {
        for k in SIZES {
            for rows in [1, 3, 4, 9] {
                for out_rows in [1, 3, 4, 8] {
                    let (x, w) = (noise(rows * k, 1), noise(out_rows * k, 2));
                    let got = same_at_every_level("dots", |isa| {
                        let mut out = vec![f32::NAN; rows * 8];
                        dots(isa, &x, &w, k, &mut out, 8);
                        out
                    });
                    for m in 0..rows {
                        for n in 0..8 {
                            let got = got[m * 8 + n];
                            if n >= out_rows {
                                assert!(got.is_nan(), "wrote outside its rows");
                                continue;
                            }
                            let expected: f64 =
                                (0..k).map(|i| f64::from(x[m * k + i]) * f64::from(w[n * k + i])).sum();
                            assert!(
                                (f64::from(got) - expected).abs() < 1e-5,
                                "k {k} [{m}, {n}]: {got} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_dots_alone_and_among_others() {
        for k in SIZES {
            let (x, w) = (noise(7 * k, 3), noise(8 * k, 4));
            for isa in Isa::available() {
                let mut together = vec![0.0; 7 * 8];
                dots(isa, &x, &w, k, &mut together, 8);
                for m in 0..7 {
                    let mut alone = vec![0.0; 8];
                    dots(isa, &x[m * k..][..k], &w, k, &mut alone, 8);
                    assert_eq!(alone, together[m * 8..][..8], "k {k}, row {m}, level {}", isa.name());
                }
            }
        }
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
            same_at_every_level("softmax", |isa| {
                let mut row = row.clone();
                let mut sum = 0.0;
                softmax(isa, &mut row, size.div_ceil(2), 3.0, &mut sum);
                row.push(sum);
                row
            });
        }
    }

    #[test]
    fn softmax_hides_what_is_not_visible() {
        let mut row = [1.0, 2.0, 9.0, f32::NAN];
        let mut sum = 0.0;
        softmax(Isa::detect(), &mut row, 2, 1.0, &mut sum);
        assert_eq!(row[2..], [0.0, 0.0]);
        assert!((sum - (1.0 + (-1.0f32).exp())).abs() < 1e-6);
    }
}
