//! The vision tower: patches in, visual tokens and DeepStack features out.
//!
//! Reads like docs/model.md, "Vision tower". `P`: patches, `D`: vision width, `T = P / merge²`: visual
//! tokens, `H`: decoder width. Patches come in merge order: the four patches of one visual token are
//! neighbours.

use std::sync::Arc;

use crate::backend::{Backend, Gelu, HeadShape, Linear, Taps};
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
    /// Costs `O(Σ (h w)²)` in attention.
    ///
    /// # Errors
    /// [`Error::Patches`] if the grids do not fit the values; whatever `layers` fails with.
    pub fn forward(
        &self,
        layers: &dyn LayerSource<B>,
        pixel_values: &[f32],
        grids: &[Grid],
    ) -> Result<VisionOutput<B>> {
        let config = &self.config;
        let backend = &*self.backend;
        self.check(pixel_values.len(), grids)?;
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
        Ok(VisionOutput { embeds: self.merge(&self.stem.merger, &x, patches), deepstack })
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

        let mut hidden = backend.linear(&block.linear_fc1, &self.norm(x, &block.norm2));
        backend.gelu(&mut hidden, Gelu::Tanh);
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
        let gelu = |linear: &Linear<B>, x: &B::Buffer| {
            let mut y = backend.linear(linear, x);
            backend.gelu(&mut y, Gelu::Erf);
            y
        };
        backend.linear(linear_fc2, &gelu(linear_fc1, &squares))
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
            let frame = cos_sin(grid.places(self.config.spatial_merge_size).map(|(row, column)| {
                let turned = |place: u32| self.inv_freq.iter().map(move |&freq| place as f32 * freq);
                turned(row).chain(turned(column))
            }));
            for _ in 0..grid.t {
                table.extend_from_slice(&frame);
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
