//! The vision tower: patches in, visual tokens and DeepStack features out.
//!
//! Reads like docs/model.md, "Vision tower". `P`: patches, `D`: vision width, `T = P / merge²`: visual
//! tokens, `H`: decoder width. Patches come in merge order: the four patches of one visual token are
//! neighbours.

use std::sync::Arc;

use crate::backend::{Backend, Gelu, HeadShape, Taps};
use crate::config::VisionConfig;
use crate::error::{Error, Result};
use crate::mrope::{cos_sin, inverse_frequencies};
use crate::weights::{LayerNorm, LayerSource, Merger, VisionBlock, VisionStem};

/// Added to the variance in every LayerNorm of the tower; not in the configuration.
const LAYER_NORM_EPS: f32 = 1e-6;

/// Size of a still or a video in patches, before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Temporal patches; 1 for a still.
    pub t: u32,
    /// Rows of patches.
    pub h: u32,
    /// Patches in a row.
    pub w: u32,
}

impl Grid {
    /// Patches in all.
    pub fn patches(self) -> usize {
        self.t as usize * self.h as usize * self.w as usize
    }

    /// Visual tokens in all.
    pub fn visual_tokens(self, spatial_merge_size: usize) -> usize {
        self.patches() / (spatial_merge_size * spatial_merge_size)
    }

    /// Row and column of each patch of one frame, in merge order.
    fn places(self, spatial_merge_size: usize) -> impl Iterator<Item = (u32, u32)> {
        let merge = spatial_merge_size as u32;
        (0..self.h / merge).flat_map(move |block_row| {
            (0..self.w / merge).flat_map(move |block_column| {
                (0..merge).flat_map(move |row| {
                    (0..merge).map(move |column| (block_row * merge + row, block_column * merge + column))
                })
            })
        })
    }
}

/// What the tower makes of its patches.
#[derive(Debug)]
pub struct VisionOutput<B: Backend> {
    /// `[T, H]`: in place of the placeholders' embeddings.
    pub embeds: B::Buffer,
    /// `[T, H]` each: added behind the first decoder layers.
    pub deepstack: Vec<B::Buffer>,
    /// `T`: visual tokens.
    pub tokens: usize,
}

/// The vision tower of a checkpoint.
pub struct VisionTower<B: Backend> {
    config: VisionConfig,
    backend: Arc<B>,
    stem: VisionStem<B>,
    /// `[head_dim / 4]`: the same frequencies for both axes.
    inv_freq: Vec<f32>,
}

impl<B: Backend> VisionTower<B> {
    /// A tower with the given weights besides its blocks.
    pub fn new(config: VisionConfig, backend: Arc<B>, stem: VisionStem<B>) -> Self {
        let inv_freq = inverse_frequencies(config.rope_theta, config.head_dim() / 4);
        Self { config, backend, stem, inv_freq }
    }

    /// Encodes the patches of all `grids`, one after the other.
    ///
    /// - `pixel_values`: `[P, patch_values]`, in merge order
    ///
    /// Attention stays inside a frame, so stills and videos encoded together equal each encoded alone.
    /// Costs `O(Σ t (h w)²)` in attention.
    ///
    /// # Errors
    /// [`Error::Patches`] if the grids do not fit the values; whatever `layers` fails with.
    pub fn forward(
        &self,
        layers: &dyn LayerSource<B>,
        pixel_values: &[f32],
        grids: &[Grid],
    ) -> Result<VisionOutput<B>> {
        self.check(pixel_values.len(), grids)?;
        let config = &self.config;
        let backend = &*self.backend;
        let patches: usize = grids.iter().map(|grid| grid.patches()).sum();

        let pixels = backend.upload(patches, config.patch_values(), pixel_values);
        let mut x = backend.linear(&self.stem.patch_embed, &pixels);
        drop(pixels);
        backend.add_interpolated(&mut x, &self.stem.pos_embed, &self.position_taps(grids));

        let rotary = backend.upload(patches, config.head_dim(), &self.rotary_table(grids));
        let mut cu_seqlens = vec![0];
        for grid in grids {
            for _ in 0..grid.t {
                cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + (grid.h * grid.w) as usize);
            }
        }

        let mut deepstack = Vec::with_capacity(config.deepstack_visual_indexes.len());
        for index in 0..config.depth {
            let block = layers.vision_block(index)?;
            self.block(&block, &mut x, &rotary, &cu_seqlens);
            if let Some(tap) = config.deepstack_visual_indexes.iter().position(|&tapped| tapped == index) {
                deepstack.push(self.deepstack_merge(&self.stem.deepstack_merger_list[tap], &x, patches));
            }
        }
        Ok(VisionOutput {
            embeds: self.merge(&self.stem.merger, &x, patches),
            deepstack,
            tokens: patches / config.merge_unit(),
        })
    }

    /// `x += proj(attention(qkv(norm1(x))))`, then `x += fc2(gelu(fc1(norm2(x))))`.
    fn block(&self, block: &VisionBlock<B>, x: &mut B::Buffer, rotary: &B::Buffer, cu_seqlens: &[usize]) {
        let backend = &*self.backend;
        let heads = self.config.num_heads;
        let shape = HeadShape { heads, kv_heads: heads, head_dim: self.config.head_dim() };

        let mut qkv = backend.linear(&block.qkv, &self.norm(x, &block.norm1));
        backend.norm_rotary(&mut qkv, shape, None, rotary);
        let attended = backend.segment_attention(&qkv, shape, cu_seqlens);
        drop(qkv);
        backend.linear_add(&block.proj, &attended, x);

        let hidden = backend.linear_gelu(&block.linear_fc1, &self.norm(x, &block.norm2), Gelu::Tanh);
        backend.linear_add(&block.linear_fc2, &hidden, x);
    }

    /// The last merger: norm of each patch, then four patches side by side, then the MLP.
    fn merge(&self, merger: &Merger<B>, x: &B::Buffer, patches: usize) -> B::Buffer {
        self.merger_mlp(merger, self.norm(x, &merger.norm), patches)
    }

    /// A DeepStack merger: four patches side by side, then the norm over all of them, then the MLP.
    fn deepstack_merge(&self, merger: &Merger<B>, x: &B::Buffer, patches: usize) -> B::Buffer {
        let backend = &*self.backend;
        let (unit, width) = (self.config.merge_unit(), self.config.hidden_size);
        let every: Vec<usize> = (0..patches).collect();
        let squares = backend.reshape(backend.take_rows(x, &every), patches / unit, unit * width);
        self.merger_mlp(merger, self.norm(&squares, &merger.norm), patches)
    }

    fn merger_mlp(&self, merger: &Merger<B>, normed: B::Buffer, patches: usize) -> B::Buffer {
        let backend = &*self.backend;
        let (unit, width) = (self.config.merge_unit(), self.config.hidden_size);
        let squares = backend.reshape(normed, patches / unit, unit * width);
        let Merger { linear_fc1, linear_fc2, .. } = merger;
        backend.linear(linear_fc2, &backend.linear_gelu(linear_fc1, &squares, Gelu::Erf))
    }

    fn norm(&self, x: &B::Buffer, norm: &LayerNorm<B>) -> B::Buffer {
        self.backend.layer_norm(x, &norm.weight, &norm.bias, LAYER_NORM_EPS)
    }

    /// Bilinear taps in the square of learned positions, corners aligned: the first row of patches takes the
    /// first row of the square and the last takes the last, whatever the size.
    fn position_taps(&self, grids: &[Grid]) -> Vec<Taps> {
        let side = self.config.positions_per_side() as u32;
        let mut taps = Vec::new();
        for grid in grids {
            let axis = |index: u32, size: u32| {
                let place = index as f32 * (side - 1) as f32 / (size - 1).max(1) as f32;
                let low = (place.floor() as u32).min(side - 1);
                let high = (low + 1).min(side - 1);
                let fraction = place - place.floor();
                ([low, high], [1.0 - fraction, fraction])
            };
            let frame = grid.places(self.config.spatial_merge_size).map(|(row, column)| {
                let ([top, bottom], [above, below]) = axis(row, grid.h);
                let ([left, right], [before, after]) = axis(column, grid.w);
                Taps {
                    rows: [
                        top * side + left,
                        top * side + right,
                        bottom * side + left,
                        bottom * side + right,
                    ],
                    weights: [above * before, above * after, below * before, below * after],
                }
            });
            let frame: Vec<Taps> = frame.collect();
            for _ in 0..grid.t {
                taps.extend_from_slice(&frame);
            }
        }
        taps
    }

    /// Two-axis rotation: of the `head_dim / 2` angles the first half turns with the row, the second with the
    /// column. `[P, head_dim]`.
    fn rotary_table(&self, grids: &[Grid]) -> Vec<f32> {
        let mut table = Vec::new();
        for grid in grids {
            let rows = grid.places(self.config.spatial_merge_size).map(|(row, column)| {
                let turned = |place: u32| self.inv_freq.iter().map(move |&freq| place as f32 * freq);
                turned(row).chain(turned(column))
            });
            let start = table.len();
            cos_sin(rows, &mut table);
            let frame = start..table.len();
            for _ in 1..grid.t {
                table.extend_from_within(frame.clone());
            }
        }
        table
    }

    fn check(&self, values: usize, grids: &[Grid]) -> Result<()> {
        let fail = |what: String, reason: String| Err(Error::Patches { what, reason });
        let merge = self.config.spatial_merge_size as u32;
        let mut patches = 0usize;
        for (index, grid) in grids.iter().enumerate() {
            let what = format!("visual input {index}");
            if grid.t == 0 || grid.h == 0 || grid.w == 0 || grid.h % merge != 0 || grid.w % merge != 0 {
                return fail(
                    what,
                    format!(
                        "its grid is {} x {} x {}, expected positive sides, height and width multiples of \
                         spatial_merge_size {merge}",
                        grid.t, grid.h, grid.w
                    ),
                );
            }
            let sides = [grid.t, grid.h, grid.w].map(|side| side as usize);
            let count = sides.into_iter().try_fold(1usize, usize::checked_mul);
            patches = match count.and_then(|count| patches.checked_add(count)).filter(|&p| p < 1 << 31) {
                Some(patches) => patches,
                None => return fail(what, format!("its grid {sides:?} is too large")),
            };
        }
        let expected = patches * self.config.patch_values();
        if values != expected {
            return fail(
                "pixel_values".to_owned(),
                format!(
                    "{values} values, but the grids need {patches} patches of {} = {expected}; does the image \
                     processor's patch_size fit this checkpoint?",
                    self.config.patch_values()
                ),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::reference::Reference;
    use crate::backend::{Linear, Mat};

    /// A tower of which only the dimensions are used: heads of `head_dim`, `side * side` learned positions.
    fn tower(head_dim: usize, side: usize) -> VisionTower<Reference> {
        let config = VisionConfig {
            depth: 1,
            hidden_size: head_dim,
            intermediate_size: 1,
            num_heads: 1,
            in_channels: 3,
            patch_size: 1,
            temporal_patch_size: 1,
            spatial_merge_size: 2,
            out_hidden_size: 1,
            num_position_embeddings: side * side,
            deepstack_visual_indexes: Vec::new(),
            rope_theta: 10_000.0,
        };
        let linear = || Linear { weight: Mat::zeros(0, 0), bias: None };
        let stem = VisionStem {
            patch_embed: linear(),
            pos_embed: Mat::zeros(0, 0),
            merger: Merger {
                norm: LayerNorm { weight: Vec::new(), bias: Vec::new() },
                linear_fc1: linear(),
                linear_fc2: linear(),
            },
            deepstack_merger_list: Vec::new(),
        };
        VisionTower::new(config, Arc::new(Reference), stem)
    }

    #[test]
    fn patches_come_square_by_square() {
        let places: Vec<(u32, u32)> = Grid { t: 1, h: 4, w: 6 }.places(2).collect();
        assert_eq!(places[..8], [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]);
        assert_eq!(places[12..16], [(2, 0), (2, 1), (3, 0), (3, 1)]);
        assert_eq!(places.len(), 24);
        let rows: Vec<(u32, u32)> = Grid { t: 1, h: 2, w: 3 }.places(1).collect();
        assert_eq!(rows, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    }

    /// What the taps of a patch add up to, by row of the table; weights of 0 are left out.
    fn mixture(taps: &Taps) -> Vec<(u32, f32)> {
        let mut mixture: Vec<(u32, f32)> = Vec::new();
        for (row, weight) in taps.rows.into_iter().zip(taps.weights).filter(|(_, weight)| *weight != 0.0) {
            match mixture.iter_mut().find(|(known, _)| *known == row) {
                Some((_, sum)) => *sum += weight,
                None => mixture.push((row, weight)),
            }
        }
        mixture.sort_by_key(|(row, _)| *row);
        mixture
    }

    #[test]
    fn corner_patches_take_corner_positions_and_the_centre_mixes_four() {
        // 6 x 4 patches over 4 x 4 positions: rows at 0, 0.6, ..., 3, columns at 0, 1, 2, 3.
        let grid = Grid { t: 1, h: 6, w: 4 };
        let taps = tower(4, 4).position_taps(&[grid]);
        let at = |row: u32, column: u32| {
            let place = grid.places(2).position(|place| place == (row, column)).unwrap();
            mixture(&taps[place])
        };
        assert_eq!(at(0, 0), [(0, 1.0)]);
        assert_eq!(at(0, 3), [(3, 1.0)]);
        assert_eq!(at(5, 0), [(12, 1.0)]);
        assert_eq!(at(5, 3), [(15, 1.0)]);
        let [(5, above), (9, below)] = at(2, 1)[..] else { panic!("{:?}", at(2, 1)) };
        assert!((above - 0.8).abs() < 1e-6 && (below - 0.2).abs() < 1e-6, "{above} {below}");

        // 4 x 4 patches over 3 x 3 positions: a step is 2/3.
        let taps = tower(4, 3).position_taps(&[Grid { t: 1, h: 4, w: 4 }]);
        let centre = mixture(&taps[3]);
        assert_eq!(centre.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [0, 1, 3, 4]);
        for ((_, weight), expected) in centre.iter().zip([1.0 / 9.0, 2.0 / 9.0, 2.0 / 9.0, 4.0 / 9.0]) {
            assert!((weight - expected).abs() < 1e-6, "{centre:?}");
        }
    }

    #[test]
    fn as_many_patches_as_positions_take_each_its_own() {
        let grid = Grid { t: 1, h: 8, w: 8 };
        let taps = tower(4, 8).position_taps(&[grid]);
        for (taps, (row, column)) in taps.iter().zip(grid.places(2)) {
            assert_eq!(mixture(taps), [(row * 8 + column, 1.0)]);
        }
    }

    #[test]
    fn weights_sum_to_one_and_rows_exist_for_any_grid() {
        let tower = tower(4, 5);
        let grids = [(1, 2, 2), (2, 2, 40), (1, 62, 2), (3, 10, 14)].map(|(t, h, w)| Grid { t, h, w });
        let taps = tower.position_taps(&grids);
        assert_eq!(taps.len(), grids.iter().map(|grid| grid.patches()).sum::<usize>());
        for taps in &taps {
            assert!((taps.weights.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{taps:?}");
            assert!(taps.weights.iter().all(|weight| (0.0..=1.0).contains(weight)), "{taps:?}");
            assert!(taps.rows.iter().all(|&row| row < 25), "{taps:?}");
        }
        // Every frame of a video takes the same positions.
        let (first, second) = taps[4..4 + 160].split_at(80);
        assert_eq!(first, second);
    }

    #[test]
    fn the_first_half_of_the_angles_turns_with_the_row_and_the_second_with_the_column() {
        let grid = Grid { t: 2, h: 2, w: 4 };
        let table = tower(8, 2).rotary_table(&[grid]);
        assert_eq!(table.len(), grid.patches() * 8);
        for (index, (row, column)) in grid.places(2).chain(grid.places(2)).enumerate() {
            // Frequencies 1 and 10000^(-1/2).
            let angles = [row as f32, row as f32 * 0.01, column as f32, column as f32 * 0.01];
            let (cos, sin) = table[index * 8..][..8].split_at(4);
            for (i, angle) in angles.into_iter().enumerate() {
                assert!((cos[i] - angle.cos()).abs() < 1e-6, "patch {index}, cos {i}");
                assert!((sin[i] - angle.sin()).abs() < 1e-6, "patch {index}, sin {i}");
            }
        }
    }
}
