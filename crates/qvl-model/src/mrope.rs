//! Where each token stands, on three axes, and the rotation that follows from it.
//!
//! Interleaved M-RoPE: of the `head_dim / 2` frequencies, those at `3i + 1` turn with the height and those at
//! `3i + 2` with the width, as many as `mrope_section` says; all others turn with time.
//!
//! Source: docs/model.md, "Positions" and "Interleaved M-RoPE" (transformers, `get_rope_index`,
//! `Qwen3VLTextRotaryEmbedding`).

use crate::config::TextConfig;
use crate::vision::Grid;

/// A run of tokens in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// That many text tokens.
    Text(usize),
    /// The visual tokens of one still, or of one temporal patch of a video: `h x w` of them, after merging.
    Visual {
        /// Rows of visual tokens.
        h: u32,
        /// Visual tokens in a row.
        w: u32,
    },
}

/// Position of one token: time, height, width.
pub type Position = [u32; 3];

/// The positions of a prompt, `[L]`, and the rope delta: what must be added to the index of a token that
/// follows to get its position on all three axes.
///
/// Text advances all axes together. The visual tokens of a grid share one time; height and width count from
/// the same start; what follows starts after the longer side.
pub fn positions(spans: impl IntoIterator<Item = Span>) -> (Vec<Position>, i64) {
    let mut positions = Vec::new();
    let mut next = 0u32;
    for span in spans {
        match span {
            Span::Text(count) => {
                positions.extend((0..count as u32).map(|i| [next + i; 3]));
                next += count as u32;
            }
            Span::Visual { h, w } => {
                for row in 0..h {
                    positions.extend((0..w).map(|column| [next, next + row, next + column]));
                }
                next += h.max(w);
            }
        }
    }
    let delta = i64::from(next) - positions.len() as i64;
    (positions, delta)
}

/// The span of one temporal patch of an input with the given grid.
pub fn visual_span(grid: Grid, spatial_merge_size: usize) -> Span {
    let merge = spatial_merge_size as u32;
    Span::Visual { h: grid.h / merge, w: grid.w / merge }
}

/// Frequencies and axes of the decoder's rotation.
#[derive(Clone, Debug)]
pub struct Mrope {
    /// `[head_dim / 2]`
    inv_freq: Vec<f32>,
    /// `[head_dim / 2]`: 0 time, 1 height, 2 width.
    axes: Vec<usize>,
}

impl Mrope {
    /// Frequency `i` is `rope_theta^(-2i / head_dim)`.
    pub fn new(config: &TextConfig) -> Self {
        let half = config.head_dim / 2;
        let axes = (0..half)
            .map(|i| match i % 3 {
                axis @ 1..=2 if i < 3 * config.mrope_section[axis] => axis,
                _ => 0,
            })
            .collect();
        Self { inv_freq: inverse_frequencies(config.rope_theta, half), axes }
    }

    /// Appends cosines, then sines, of each token's angles: `[T, head_dim]`.
    pub fn table_into(&self, positions: &[Position], table: &mut impl Extend<f32>) {
        let angles = |position: &Position| {
            let position = *position;
            self.inv_freq.iter().zip(&self.axes).map(move |(&freq, &axis)| position[axis] as f32 * freq)
        };
        cos_sin(positions.iter().map(angles), table);
    }
}

/// `theta^(-i / count)` for `i` in `0..count`.
pub(crate) fn inverse_frequencies(theta: f64, count: usize) -> Vec<f32> {
    // The reference rounds the power to f32 before it takes the reciprocal.
    (0..count).map(|i| 1.0 / theta.powf(f64::from(i as f32 / count as f32)) as f32).collect()
}

/// Appends one row of cosines followed by sines for each row of angles. The angles are f32, as the reference's are;
/// their cosines are taken in f64.
pub(crate) fn cos_sin<R: Iterator<Item = f32> + Clone>(
    rows: impl Iterator<Item = R>,
    table: &mut impl Extend<f32>,
) {
    for angles in rows {
        table.extend(angles.clone().map(|angle| f64::from(angle).cos() as f32));
        table.extend(angles.map(|angle| f64::from(angle).sin() as f32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_after_a_picture_starts_behind_its_longer_side() {
        let (positions, delta) = positions([Span::Text(2), Span::Visual { h: 2, w: 3 }, Span::Text(2)]);
        assert_eq!(
            positions,
            [
                [0, 0, 0],
                [1, 1, 1],
                [2, 2, 2],
                [2, 2, 3],
                [2, 2, 4],
                [2, 3, 2],
                [2, 3, 3],
                [2, 3, 4],
                [5, 5, 5],
                [6, 6, 6]
            ]
        );
        assert_eq!(delta, -3);
        assert_eq!(positions.len() as i64 + delta, 7);
    }

    #[test]
    fn a_thin_picture_can_move_the_text_ahead_of_its_index() {
        assert_eq!(positions([Span::Visual { h: 1, w: 4 }, Span::Text(1)]).1, 0);
        assert_eq!(positions([Span::Visual { h: 4, w: 4 }]).1, 4 - 16);
    }

    #[test]
    fn axes_interleave_and_the_remainder_is_time() {
        let config = TextConfig {
            vocab_size: 1,
            hidden_size: 1,
            intermediate_size: 1,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim: 32,
            max_position_embeddings: 1,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            mrope_section: [6, 5, 5],
            moe: None,
        };
        let mrope = Mrope::new(&config);
        assert_eq!(mrope.axes, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0]);
        // The published section leaves four frequencies of time at the end.
        let published = Mrope::new(&TextConfig { head_dim: 128, mrope_section: [24, 20, 20], ..config });
        assert_eq!(published.axes[57..], [0, 1, 2, 0, 0, 0, 0]);
        assert_eq!(published.axes.iter().filter(|&&axis| axis == 1).count(), 20);
    }
}
