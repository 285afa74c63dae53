//! The search for scales: which scale and minimum, and then which integers, bring the codes of a sub-block
//! closest to its values.
//!
//! Close is weighted least squares, with weights that grow with a value's magnitude. For a set of codes the
//! best scale is known in closed form; which codes is found by rounding with several scales around the one
//! that spans the values. Once the scales are integers themselves their neighbours are tried as well, since
//! the rounding of one is often better made good by the other.
//!
//! Trials stand side by side, [`TRIALS`] in an array, and every value is given to all of them: compilers use
//! vectors for that, nothing is summed across a vector, and every machine adds in the order of the values.

/// Trials of one pass.
const TRIALS: usize = 8;

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
    let mut lanes = [0.0f32; TRIALS];
    for chunk in values.as_chunks::<TRIALS>().0 {
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

/// How far a search for scale and minimum goes.
#[derive(Debug)]
pub(super) struct Search {
    /// Largest code.
    pub(super) top: f32,
    /// The first trial lets the values span this many codes more than `top`, each further one [`SPAN_STEP`] more.
    first: f32,
}

/// Codes between the spans of two trials.
const SPAN_STEP: f32 = 0.2;

/// For `Q4_K`.
pub(super) const Q4_SEARCH: Search = Search { top: 15.0, first: -1.0 };
/// For `Q5_K`.
pub(super) const Q5_SEARCH: Search = Search { top: 31.0, first: -0.6 };

/// A value is `scale * code - min`; both are not negative.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Affine {
    pub(super) scale: f32,
    pub(super) min: f32,
}

/// What an error at each value counts: its magnitude plus that of all.
#[inline(always)]
pub(super) fn weights(x: &[f32; 32]) -> [f32; 32] {
    let all = (x.iter().map(|value| value * value).sum::<f32>() / 32.0).sqrt();
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
    let (mut sum_w, mut sum_wx) = (0.0f32, 0.0f32);
    for (x, w) in x.iter().zip(w) {
        sum_w += w;
        sum_wx += w * x;
    }
    let (sum_w, sum_wx) = (f64::from(sum_w), f64::from(sum_wx));
    let inverse: [f32; TRIALS] =
        std::array::from_fn(|trial| (search.top + search.first + SPAN_STEP * trial as f32) / span);
    let (mut sum_wl, mut sum_wll, mut sum_wlx) = ([0.0; TRIALS], [0.0; TRIALS], [0.0; TRIALS]);
    for (&x, &w) in x.iter().zip(w) {
        for j in 0..TRIALS {
            let code = clamp(round_to_even((x - low) * inverse[j]), 0.0, search.top);
            let weighted = w * code;
            sum_wl[j] += weighted;
            sum_wll[j] += weighted * code;
            sum_wlx[j] += weighted * x;
        }
    }
    for j in 0..TRIALS {
        let (sum_wl, sum_wll, sum_wlx) = (f64::from(sum_wl[j]), f64::from(sum_wll[j]), f64::from(sum_wlx[j]));
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

/// Steps of scale and minimum around the rounded ones. Both grow together: a larger scale with a smaller minimum
/// moves all values one way, and is hardly ever better.
const NEIGHBOURS: [(f32, f32); TRIALS] =
    [(0.0, 0.0), (1.0, 1.0), (-1.0, -1.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (1.0, 2.0)];

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
    let scale_steps = NEIGHBOURS.map(|(scale, _)| clamp(scale_steps + scale, 0.0, 63.0));
    let min_steps = NEIGHBOURS.map(|(_, min)| clamp(min_steps + min, 0.0, 63.0));
    let scale = scale_steps.map(|steps| d * steps);
    let inverse = scale.map(reciprocal);
    let min = min_steps.map(|steps| dmin * steps);
    let mut error = [0.0; TRIALS];
    for (&x, &w) in x.iter().zip(w) {
        for j in 0..TRIALS {
            let shifted = x + min[j];
            let code = clamp(round_to_even(shifted * inverse[j]), 0.0, search.top);
            let off = shifted - scale[j] * code;
            error[j] += w * off * off;
        }
    }
    let best = least(&error);
    *codes = x.map(|x| small_integer(clamp((x + min[best]) * inverse[best], 0.0, search.top)));
    (small_integer(scale_steps[best]), small_integer(min_steps[best]))
}

#[inline(always)]
fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { scale.recip() }
}

/// Index of the first least error.
#[inline(always)]
fn least(error: &[f32; TRIALS]) -> usize {
    let mut best = 0;
    for (index, candidate) in error.iter().enumerate() {
        if *candidate < error[best] {
            best = index;
        }
    }
    best
}

/// Lowest and highest code of `Q6_K`, around zero.
const SIX_BITS: (f32, f32) = (-32.0, 31.0);

/// Codes that the value of largest magnitude is tried at.
const PEAKS: [f32; TRIALS] = [-32.0, -31.1, -31.4, -31.7, -32.3, -32.6, -32.9, -30.8];

/// The best scale of 16 values with codes from -32 to 31; often negative, since the value of largest magnitude
/// has the code -32.
pub(super) fn symmetric(x: &[f32; 16]) -> f32 {
    let peak = x[largest(x)];
    if peak == 0.0 {
        return 0.0;
    }
    let mut best = peak / SIX_BITS.0;
    let mut most = 0.0;
    let inverse = PEAKS.map(|code| code / peak);
    let (mut sum_wll, mut sum_wlx) = ([0.0; TRIALS], [0.0; TRIALS]);
    for &x in x {
        for j in 0..TRIALS {
            let code = clamp(round_to_even(x * inverse[j]), SIX_BITS.0, SIX_BITS.1);
            let weighted = x * x * code;
            sum_wll[j] += weighted * code;
            sum_wlx[j] += weighted * x;
        }
    }
    for j in 0..TRIALS {
        let (sum_wll, sum_wlx) = (f64::from(sum_wll[j]), f64::from(sum_wlx[j]));
        if sum_wll > 0.0 && sum_wlx * sum_wlx > most * sum_wll {
            most = sum_wlx * sum_wlx / sum_wll;
            best = (sum_wlx / sum_wll) as f32;
        }
    }
    best
}

/// The best integer scale in steps of `d`, and the codes that go with it, 32 more than they mean.
pub(super) fn symmetric_on_grid(x: &[f32; 16], fit: f32, d: f32, codes: &mut [u8; 16]) -> i8 {
    let nearest = if d == 0.0 { 0.0 } else { round_to_even(fit / d) };
    let steps: [f32; TRIALS] =
        [0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0].map(|away| clamp(nearest + away, -128.0, 127.0));
    let scale = steps.map(|steps| d * steps);
    let inverse = scale.map(reciprocal);
    let mut error = [0.0; TRIALS];
    for &x in x {
        for j in 0..TRIALS {
            let off = x - scale[j] * clamp(round_to_even(x * inverse[j]), SIX_BITS.0, SIX_BITS.1);
            error[j] += x * x * off * off;
        }
    }
    let best = least(&error);
    *codes = x.map(|x| small_integer(clamp(x * inverse[best], SIX_BITS.0, SIX_BITS.1) - SIX_BITS.0));
    small_integer(steps[best]).cast_signed()
}
