//! The search for scales: which scale and minimum, and then which integers, bring the codes of a sub-block
//! closest to its values.
//!
//! Close is weighted least squares, with weights that grow with a value's magnitude. For a set of codes the
//! best scale is known in closed form; which codes is found by rounding with several scales around the one
//! that spans the values. Once the scales are integers themselves their neighbours are tried as well, since
//! the rounding of one is often better made good by the other.
//!
//! Sums are taken in [`LANES`] lanes, so that compilers can use vectors and every machine adds in one order.

/// Partial sums of every sum.
const LANES: usize = 8;

/// Adding and subtracting it leaves a number of magnitude below 2^22 rounded to the nearest integer, halves to
/// even; while added, the integer is in the low bits.
const ROUNDER: f32 = 12_582_912.0;

#[inline(always)]
pub(super) fn round_to_even(x: f32) -> f32 {
    (x + ROUNDER) - ROUNDER
}

/// The low byte of an integer: exact from -128 to 255.
#[inline(always)]
pub(super) fn small_integer(x: f32) -> u8 {
    (x + ROUNDER).to_bits() as u8
}

#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    // Not `f32::clamp`, which must hand on NaN and is not one instruction for each bound.
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

#[inline(always)]
pub(super) fn any_non_finite(values: &[f32]) -> bool {
    values.iter().fold(false, |any, value| any | !value.is_finite())
}

/// The largest magnitude; NaN counts as nothing.
#[inline(always)]
pub(super) fn max_abs<const N: usize>(values: &[f32; N]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for chunk in values.as_chunks::<LANES>().0 {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if value.abs() > *lane { value.abs() } else { *lane };
        }
    }
    lanes.iter().fold(0.0, |most, &lane| if lane > most { lane } else { most })
}

/// Index of the first value of largest magnitude.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if value.abs() > values[best].abs() {
            best = index;
        }
    }
    best
}

#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    lanes.iter().sum()
}

/// How far a search goes.
#[derive(Debug)]
pub(super) struct Search {
    /// Largest code.
    pub(super) top: f32,
    /// The first scale tried makes the span of the values this many codes more than `top`.
    first: f32,
    /// Each further one as many more codes.
    step: f32,
    /// How many are tried.
    count: usize,
}

/// For `Q4_K`.
pub(super) const Q4_SEARCH: Search = Search { top: 15.0, first: -1.0, step: 0.1, count: 21 };
/// For `Q5_K`.
pub(super) const Q5_SEARCH: Search = Search { top: 31.0, first: -0.5, step: 0.1, count: 16 };

/// A value is `scale * code - min`; both are not negative.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Affine {
    pub(super) scale: f32,
    pub(super) min: f32,
}

/// What an error at each value counts: its magnitude plus that of all.
#[inline(always)]
pub(super) fn weights(x: &[f32; 32]) -> [f32; 32] {
    let mut squares = [0.0; LANES];
    for chunk in x.as_chunks::<LANES>().0 {
        for (lane, value) in squares.iter_mut().zip(chunk) {
            *lane += value * value;
        }
    }
    let all = (total(squares) / 32.0).sqrt();
    x.map(|value| all + value.abs())
}

/// The best scale and minimum of 32 values.
pub(super) fn affine(x: &[f32; 32], w: &[f32; 32], search: &Search) -> Affine {
    let low = x.iter().fold(0.0f32, |low, &value| if value < low { value } else { low });
    let high = x.iter().fold(x[0], |high, &value| if value > high { value } else { high });
    if high <= low {
        return Affine { scale: 0.0, min: -low };
    }
    let span = high - low;
    let mut best = Affine { scale: span / search.top, min: -low };
    let mut most = f64::NEG_INFINITY;
    let (mut sum_w, mut sum_wx) = ([0.0; LANES], [0.0; LANES]);
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for j in 0..LANES {
            sum_w[j] += w[j];
            sum_wx[j] += w[j] * x[j];
        }
    }
    let (sum_w, sum_wx) = (f64::from(total(sum_w)), f64::from(total(sum_wx)));
    for trial in 0..search.count {
        let inverse = (search.top + search.first + search.step * trial as f32) / span;
        let (mut sum_wl, mut sum_wll, mut sum_wlx) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
            for j in 0..LANES {
                let code = clamp(round_to_even((x[j] - low) * inverse), 0.0, search.top);
                let weighted = w[j] * code;
                sum_wl[j] += weighted;
                sum_wll[j] += weighted * code;
                sum_wlx[j] += weighted * x[j];
            }
        }
        let (sum_wl, sum_wll, sum_wlx) =
            (f64::from(total(sum_wl)), f64::from(total(sum_wll)), f64::from(total(sum_wlx)));
        let determinant = sum_w * sum_wll - sum_wl * sum_wl;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_wlx - sum_wx * sum_wl) / determinant;
        let mut min = (sum_wl * sum_wlx - sum_wll * sum_wx) / determinant;
        if min < 0.0 {
            (scale, min) = (sum_wlx / sum_wll, 0.0);
        }
        // The weighted squared error, less the part that is the same for every trial, times -1.
        let gain = 2.0 * (scale * sum_wlx - min * sum_wx) - scale * scale * sum_wll - min * min * sum_w
            + 2.0 * scale * min * sum_wl;
        if gain > most && scale > 0.0 {
            most = gain;
            best = Affine { scale: scale as f32, min: min as f32 };
        }
    }
    best
}

/// The best integer scale and minimum in steps of `d` and `dmin`, and the codes that go with them.
pub(super) fn on_grid(
    x: &[f32; 32],
    w: &[f32; 32],
    fit: Affine,
    (d, dmin): (f32, f32),
    search: &Search,
    codes: &mut [u8; 32],
) -> (u8, u8) {
    let steps = |value: f32, step: f32| if step > 0.0 { round_to_even(value / step) } else { 0.0 };
    let (scale_steps, min_steps) = (steps(fit.scale, d), steps(fit.min, dmin));
    let mut best = (f32::INFINITY, 0.0, 0.0);
    for scale_steps in [scale_steps, scale_steps - 1.0, scale_steps + 1.0] {
        for min_steps in [min_steps, min_steps - 1.0, min_steps + 1.0] {
            if !(0.0..=63.0).contains(&scale_steps) || !(0.0..=63.0).contains(&min_steps) {
                continue;
            }
            let error = affine_error(x, w, d * scale_steps, dmin * min_steps, search.top);
            if error < best.0 {
                best = (error, scale_steps, min_steps);
            }
        }
    }
    let (_, scale_steps, min_steps) = best;
    let (scale, min) = (d * scale_steps, dmin * min_steps);
    let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
    *codes = x.map(|value| small_integer(clamp((value + min) * inverse, 0.0, search.top)));
    (small_integer(scale_steps), small_integer(min_steps))
}

/// The weighted squared error of the best codes for a scale and a minimum.
#[inline(always)]
fn affine_error(x: &[f32; 32], w: &[f32; 32], scale: f32, min: f32, top: f32) -> f32 {
    let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
    let mut error = [0.0; LANES];
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for j in 0..LANES {
            let shifted = x[j] + min;
            let code = clamp(round_to_even(shifted * inverse), 0.0, top);
            let off = shifted - scale * code;
            error[j] += w[j] * off * off;
        }
    }
    total(error)
}

/// Lowest and highest code of `Q6_K`, around zero.
const SIX_BITS: (f32, f32) = (-32.0, 31.0);

/// The best scale of 16 values with codes from -32 to 31; often negative, since the value of largest magnitude
/// has the code -32.
pub(super) fn symmetric(x: &[f32; 16]) -> f32 {
    let peak = x[largest(x)];
    if peak == 0.0 {
        return 0.0;
    }
    let mut best = peak / SIX_BITS.0;
    let mut most = 0.0;
    for trial in -9..=9i8 {
        let inverse = (SIX_BITS.0 + 0.1 * f32::from(trial)) / peak;
        let (mut sum_wll, mut sum_wlx) = ([0.0; LANES], [0.0; LANES]);
        for x in x.as_chunks::<LANES>().0 {
            for j in 0..LANES {
                let code = clamp(round_to_even(x[j] * inverse), SIX_BITS.0, SIX_BITS.1);
                let weighted = x[j] * x[j] * code;
                sum_wll[j] += weighted * code;
                sum_wlx[j] += weighted * x[j];
            }
        }
        let (sum_wll, sum_wlx) = (f64::from(total(sum_wll)), f64::from(total(sum_wlx)));
        if sum_wll > 0.0 && sum_wlx * sum_wlx > most * sum_wll {
            most = sum_wlx * sum_wlx / sum_wll;
            best = (sum_wlx / sum_wll) as f32;
        }
    }
    best
}

/// The best integer scale in steps of `d`, and the codes that go with it, 32 more than they mean.
pub(super) fn symmetric_on_grid(x: &[f32; 16], fit: f32, d: f32, codes: &mut [u8; 16]) -> i8 {
    if d == 0.0 {
        *codes = [32; 16];
        return 0;
    }
    let steps = clamp(round_to_even(fit / d), -128.0, 127.0);
    let inverse_of = |scale: f32| if scale == 0.0 { 0.0 } else { scale.recip() };
    let mut best = (f32::INFINITY, steps);
    for steps in [steps, steps - 1.0, steps + 1.0] {
        if !(-128.0..=127.0).contains(&steps) {
            continue;
        }
        let scale = d * steps;
        let inverse = inverse_of(scale);
        let mut error = [0.0; LANES];
        for x in x.as_chunks::<LANES>().0 {
            for j in 0..LANES {
                let off = x[j] - scale * clamp(round_to_even(x[j] * inverse), SIX_BITS.0, SIX_BITS.1);
                error[j] += x[j] * x[j] * off * off;
            }
        }
        let error = total(error);
        if error < best.0 {
            best = (error, steps);
        }
    }
    let steps = best.1;
    let inverse = inverse_of(d * steps);
    *codes = x.map(|value| small_integer(clamp(value * inverse, SIX_BITS.0, SIX_BITS.1) - SIX_BITS.0));
    small_integer(steps).cast_signed()
}
