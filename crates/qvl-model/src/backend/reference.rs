//! The oracle in Rust: every operation as its formula reads, one row at a time, sums in f64, no blocking,
//! no threads. Slow; what the fast backends are compared with.

use super::{Backend, Experts, Gelu, HeadShape, KvPart, Layout, Linear, Mat, Taps, WeightPart};
use crate::checkpoint::TensorView;
use crate::error::Result;

/// The naive backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// Keys and values as they came, `[tokens, kv_width]` a layer.
#[derive(Clone, Debug)]
pub struct ReferenceKv {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    width: usize,
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// `softmax(q Kᵀ * scale) V` for one query; `keys` and `values` yield one row a key, oldest first.
fn attend<'a>(
    query: &[f32],
    keys: impl Iterator<Item = &'a [f32]>,
    values: impl Iterator<Item = &'a [f32]>,
    scale: f32,
    out: &mut [f32],
) {
    let scores: Vec<f64> = keys.map(|key| dot(query, key) * f64::from(scale)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut mixed = vec![0.0f64; out.len()];
    for (weight, value) in weights.iter().zip(values) {
        for (mixed, &value) in mixed.iter_mut().zip(value) {
            *mixed += weight / sum * f64::from(value);
        }
    }
    for (out, mixed) in out.iter_mut().zip(mixed) {
        *out = mixed as f32;
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The error function by its series near zero and by the continued fraction of `erfc` elsewhere; absolute
/// error below 1e-14.
///
/// Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.6 and 7.1.14.
pub(crate) fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a > 6.0 {
        return x.signum();
    }
    if a < 2.5 {
        // 7.1.6: 2/√π e^{-x²} Σ 2ⁿ x^{2n+1} / (1·3·…·(2n+1))
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > 1e-17 * sum {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        return x.signum() * std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum;
    }
    // 7.1.14: erfc x = e^{-x²}/√π · 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …))))
    let mut fraction = a;
    for k in (1..=60).rev() {
        fraction = a + f64::from(k) / 2.0 / fraction;
    }
    x.signum() * (1.0 - (-a * a).exp() * std::f64::consts::FRAC_2_SQRT_PI / 2.0 / fraction)
}

impl Backend for Reference {
    type Buffer = Mat;
    type Matrix = Mat;
    type Vector = Vec<f32>;
    type Kv = ReferenceKv;

    fn matrix(&self, parts: &[WeightPart]) -> Result<Mat> {
        let mut values = Vec::new();
        let cols = parts.first().map_or(0, WeightPart::inputs);
        for part in parts {
            let stored = part.tensor.to_f32();
            match part.layout {
                Layout::OutIn => {
                    values.extend_from_slice(&stored[part.outputs.start * cols..part.outputs.end * cols]);
                }
                Layout::InOut => {
                    let width = stored.len() / cols;
                    values.extend(
                        part.outputs
                            .clone()
                            .flat_map(|out| (0..cols).map(move |k| (out, k)))
                            .map(|(out, k)| stored[k * width + out]),
                    );
                }
            }
        }
        Ok(Mat { rows: values.len() / cols.max(1), cols, values: values.into() })
    }

    fn vector(&self, tensor: &TensorView) -> Result<Vec<f32>> {
        Ok(tensor.to_f32())
    }

    fn kv(&self, layers: usize, shape: HeadShape) -> ReferenceKv {
        ReferenceKv { layers: vec![(Vec::new(), Vec::new()); layers], width: shape.kv_width() }
    }

    fn buffer(&self, rows: usize, cols: usize) -> Mat {
        Mat::zeros(rows, cols)
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Mat {
        Mat::from_slice(rows, cols, values)
    }

    fn download_into(&self, x: &Mat, values: &mut Vec<f32>) {
        values.extend_from_slice(&x.values);
    }

    fn reshape(&self, x: Mat, rows: usize, cols: usize) -> Mat {
        x.reshape(rows, cols)
    }

    fn embed(&self, table: &Mat, ids: &[u32]) -> Mat {
        let values: Vec<f32> = ids.iter().flat_map(|&id| table.row(id as usize)).copied().collect();
        Mat { rows: ids.len(), cols: table.cols, values: values.into() }
    }

    fn linear(&self, linear: &Linear<Self>, x: &Mat) -> Mat {
        let mut y = Mat::zeros(x.rows, linear.weight.rows);
        self.linear_add(linear, x, &mut y);
        y
    }

    fn linear_add(&self, linear: &Linear<Self>, x: &Mat, y: &mut Mat) {
        assert_eq!((x.cols, y.cols, x.rows), (linear.weight.cols, linear.weight.rows, y.rows));
        for row in 0..x.rows {
            for out in 0..linear.weight.rows {
                let bias = linear.bias.as_ref().map_or(0.0, |bias| f64::from(bias[out]));
                y.row_mut(row)[out] += (dot(x.row(row), linear.weight.row(out)) + bias) as f32;
            }
        }
    }

    fn rms_norm(&self, x: &Mat, weight: &Vec<f32>, eps: f32) -> Mat {
        let mut y = x.clone();
        for row in 0..x.rows {
            rms_norm(y.row_mut(row), weight, eps);
        }
        y
    }

    fn layer_norm(&self, x: &Mat, weight: &Vec<f32>, bias: &Vec<f32>, eps: f32) -> Mat {
        let mut y = x.clone();
        for row in 0..x.rows {
            let row = y.row_mut(row);
            let n = row.len() as f64;
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
            let scale = 1.0 / (variance + f64::from(eps)).sqrt();
            for ((v, &weight), &bias) in row.iter_mut().zip(weight).zip(bias) {
                *v = ((f64::from(*v) - mean) * scale * f64::from(weight) + f64::from(bias)) as f32;
            }
        }
        y
    }

    fn linear_gelu(&self, linear: &Linear<Self>, x: &Mat, kind: Gelu) -> Mat {
        let mut y = self.linear(linear, x);
        for v in &mut *y.values {
            let x = f64::from(*v);
            *v = match kind {
                Gelu::Tanh => {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                    0.5 * x * (1.0 + inner.tanh())
                }
                Gelu::Erf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            } as f32;
        }
        y
    }

    fn swiglu(&self, gate: &Mat, up: &Mat, x: &Mat) -> Mat {
        let mut y = Mat::zeros(x.rows, gate.rows);
        for row in 0..x.rows {
            for (out, y) in y.row_mut(row).iter_mut().enumerate() {
                *y = (silu(dot(x.row(row), gate.row(out))) * dot(x.row(row), up.row(out))) as f32;
            }
        }
        y
    }

    fn norm_rotary(
        &self,
        qkv: &mut Mat,
        shape: HeadShape,
        norms: Option<(&Vec<f32>, &Vec<f32>, f32)>,
        rotary: &Mat,
    ) {
        let half = shape.head_dim / 2;
        for row in 0..qkv.rows {
            let (cos, sin) = rotary.row(row).split_at(half);
            let heads = qkv.row_mut(row)[..shape.q_width() + shape.kv_width()].chunks_mut(shape.head_dim);
            for (index, head) in heads.enumerate() {
                if let Some((q_norm, k_norm, eps)) = norms {
                    rms_norm(head, if index < shape.heads { q_norm } else { k_norm }, eps);
                }
                for i in 0..half {
                    let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
                    let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
                    head[i] = (a * cos - b * sin) as f32;
                    head[i + half] = (b * cos + a * sin) as f32;
                }
            }
        }
    }

    fn segment_attention(&self, qkv: &Mat, shape: HeadShape, cu_seqlens: &[usize]) -> Mat {
        let mut y = Mat::zeros(qkv.rows, shape.q_width());
        for segment in cu_seqlens.windows(2) {
            for row in segment[0]..segment[1] {
                for head in 0..shape.heads {
                    let column = head * shape.head_dim;
                    let key_column = shape.q_width() + head / shape.group() * shape.head_dim;
                    let value_column = key_column + shape.kv_width();
                    let at = |row: usize, column: usize| &qkv.row(row)[column..][..shape.head_dim];
                    attend(
                        at(row, column),
                        (segment[0]..segment[1]).map(|key| at(key, key_column)),
                        (segment[0]..segment[1]).map(|key| at(key, value_column)),
                        shape.scale(),
                        &mut y.row_mut(row)[column..][..shape.head_dim],
                    );
                }
            }
        }
        y
    }

    fn kv_attention(
        &self,
        parts: &mut [KvPart<'_, Self>],
        layer: usize,
        qkv: &Mat,
        shape: HeadShape,
        y: &mut Mat,
    ) {
        for part in parts {
            let (keys, values) = &mut part.kv.layers[layer];
            for row in part.rows.clone() {
                let (key, value) = qkv.row(row)[shape.q_width()..].split_at(shape.kv_width());
                keys.extend_from_slice(key);
                values.extend_from_slice(value);
                let tokens = keys.len() / part.kv.width;
                for head in 0..shape.heads {
                    let column = head * shape.head_dim;
                    let key_column = head / shape.group() * shape.head_dim;
                    let at = |token: usize| token * part.kv.width + key_column;
                    attend(
                        &qkv.row(row)[column..][..shape.head_dim],
                        (0..tokens).map(|token| &keys[at(token)..][..shape.head_dim]),
                        (0..tokens).map(|token| &values[at(token)..][..shape.head_dim]),
                        shape.scale(),
                        &mut y.row_mut(row)[column..][..shape.head_dim],
                    );
                }
            }
        }
    }

    fn kv_truncate(&self, kv: &mut ReferenceKv, len: usize) {
        for (keys, values) in &mut kv.layers {
            keys.truncate(len * kv.width);
            values.truncate(len * kv.width);
        }
    }

    fn moe_add(&self, moe: &Experts<Self>, x: &Mat, y: &mut Mat) {
        for row in 0..x.rows {
            let logits: Vec<f32> =
                (0..moe.experts.len()).map(|e| dot(x.row(row), moe.gate.row(e)) as f32).collect();
            let one = Mat::from_slice(1, x.cols, x.row(row));
            for (expert, weight) in crate::moe::route(&logits, moe.top_k) {
                let expert = &moe.experts[expert];
                let hidden = self.swiglu(&expert.gate_proj, &expert.up_proj, &one);
                for (out, y) in y.row_mut(row).iter_mut().enumerate() {
                    *y += (f64::from(weight) * dot(hidden.row(0), expert.down_proj.row(out))) as f32;
                }
            }
        }
    }

    fn add_interpolated(&self, x: &mut Mat, table: &Mat, taps: &[Taps]) {
        for (row, taps) in taps.iter().enumerate() {
            for column in 0..x.cols {
                let sum: f64 = (0..4)
                    .map(|k| f64::from(taps.weights[k]) * f64::from(table.row(taps.rows[k] as usize)[column]))
                    .sum();
                x.row_mut(row)[column] += sum as f32;
            }
        }
    }

    fn set_rows(&self, x: &mut Mat, rows: &[usize], source: &Mat) {
        x.set_rows(rows, source);
    }

    fn add_rows(&self, x: &mut Mat, rows: &[usize], source: &Mat) {
        x.add_rows(rows, source);
    }

    fn take_rows(&self, x: &Mat, rows: &[usize]) -> Mat {
        x.take_rows(rows)
    }
}

fn rms_norm(row: &mut [f32], weight: &[f32], eps: f32) {
    let mean_square = dot(row, row) / row.len() as f64;
    let scale = 1.0 / (mean_square + f64::from(eps)).sqrt();
    for (v, &weight) in row.iter_mut().zip(weight) {
        *v = (f64::from(*v) * scale * f64::from(weight)) as f32;
    }
}
