//! Three-axis positions and their rotation against a second implementation that follows transformers' code
//! (`get_rope_index`, `apply_interleaved_mrope`) step by step instead of counting.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use proptest::prelude::*;
use qvl_model::config::TextConfig;
use qvl_model::mrope::{Mrope, Position, Span, positions};

/// Each span starts one behind the largest position on any axis so far.
fn naive(spans: &[Span]) -> (Vec<Position>, i64) {
    let mut all: Vec<Position> = Vec::new();
    for span in spans {
        let start = all.iter().flatten().max().map_or(0, |largest| largest + 1);
        match *span {
            Span::Text(count) => all.extend((0..count as u32).map(|index| [start + index; 3])),
            Span::Visual { h, w } => {
                let (mut heights, mut widths) = (Vec::new(), Vec::new());
                for row in 0..h {
                    for column in 0..w {
                        heights.push(row);
                        widths.push(column);
                    }
                }
                all.extend(heights.iter().zip(&widths).map(|(h, w)| [start, start + h, start + w]));
            }
        }
    }
    let next = all.iter().flatten().max().map_or(0, |largest| i64::from(*largest) + 1);
    let delta = next - all.len() as i64;
    (all, delta)
}

/// Starts with time everywhere, then overwrites every third frequency with height and with width.
fn naive_angles(position: Position, theta: f64, section: [usize; 3], head_dim: usize) -> Vec<f64> {
    let half = head_dim / 2;
    let frequency = |index: usize| 1.0 / theta.powf(2.0 * index as f64 / head_dim as f64);
    let mut angles: Vec<f64> = (0..half).map(|index| f64::from(position[0]) * frequency(index)).collect();
    for axis in [1, 2] {
        let mut index = axis;
        while index < section[axis] * 3 && index < half {
            angles[index] = f64::from(position[axis]) * frequency(index);
            index += 3;
        }
    }
    angles
}

fn span() -> impl Strategy<Value = Span> {
    prop_oneof![(0usize..9).prop_map(Span::Text), (1u32..7, 1u32..7).prop_map(|(h, w)| Span::Visual { h, w }),]
}

proptest! {
    #[test]
    fn of_any_text_and_pictures(spans in prop::collection::vec(span(), 0..12)) {
        prop_assert_eq!(positions(spans.iter().copied()), naive(&spans));
    }

    #[test]
    fn and_rotate_by_their_own_axis(
        position in prop::array::uniform3(0u32..3000),
        section in prop::array::uniform3(1usize..9),
        theta in prop::sample::select(vec![1e4, 1e6, 5e6]),
    ) {
        let head_dim = 2 * section.iter().sum::<usize>();
        let config = TextConfig {
            vocab_size: 1,
            hidden_size: 1,
            intermediate_size: 1,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim,
            max_position_embeddings: 1,
            rms_norm_eps: 1e-6,
            rope_theta: theta,
            mrope_section: section,
            moe: None,
        };
        let mut table = Vec::new();
        Mrope::new(&config).table_into(&[[0; 3], position], &mut table);
        prop_assert_eq!(table.len(), 2 * head_dim);
        let (cosines, sines) = table[head_dim..].split_at(head_dim / 2);
        for (index, angle) in naive_angles(position, theta, section, head_dim).into_iter().enumerate() {
            // As in the reference the exponent of the frequency is an f32: an error of 2^-25 of it is one of up to
            // 15 * 2^-25 of the frequency, 15 being the logarithm of the largest theta. Then four roundings to f32.
            let tolerance = 1e-6 + angle * 2.0f64.powi(-20);
            prop_assert!((f64::from(cosines[index]) - angle.cos()).abs() < tolerance, "cos of {index}");
            prop_assert!((f64::from(sines[index]) - angle.sin()).abs() < tolerance, "sin of {index}");
        }
        // Nothing turns at position 0.
        prop_assert!(table[..head_dim / 2].iter().all(|&cosine| cosine == 1.0));
    }
}
