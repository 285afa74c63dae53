//! Resized bytes to patches: where each value goes.
//!
//! One patch is a row of `3 * T * P * P` values in the order (channel, frame, row, column); patches come in the order
//! (grid row of merged patches, grid column of merged patches, row inside, column inside), so that the patches of one
//! visual token are adjacent. A still fills all `T` frames of its only temporal patch with the same picture. What a
//! byte is worth is said in `values` beside this file.
//!
//! A line of patches is cut at a time, so that a resize can be followed row by row while its result is in the cache.

use std::ops::Range;

use crate::vision::kernels::{Isa, Patch};
use crate::vision::values::{PatchValue, Values};

/// Patches of a picture or a video in time, height and width, before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Temporal patches; 1 for a still.
    pub t: u32,
    /// Patches from top to bottom.
    pub h: u32,
    /// Patches from left to right.
    pub w: u32,
}

impl Grid {
    /// Number of patches, which is the number of rows of `pixel_values`.
    pub fn patches(self) -> usize {
        self.t as usize * self.h as usize * self.w as usize
    }

    /// Number of visual tokens once `merge` x `merge` patches are merged into one.
    pub fn visual_tokens(self, merge: u32) -> usize {
        let merge = merge.max(1) as usize;
        self.patches() / (merge * merge)
    }
}

/// A still, cut into patches.
#[derive(Clone, Debug, PartialEq)]
pub struct Patches {
    /// How many patches in each direction.
    pub grid: Grid,
    /// `[grid.patches(), 3 * temporal_patch_size * patch_size * patch_size]`, row by row.
    pub pixel_values: Vec<f32>,
}

/// A video, cut into patches.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoPatches {
    /// How many patches in each direction.
    pub grid: Grid,
    /// `[grid.patches(), 3 * temporal_patch_size * patch_size * patch_size]`, row by row.
    pub pixel_values: Vec<f32>,
    /// Seconds from the start of the source, one for each of the `grid.t` temporal patches.
    pub timestamps: Vec<f64>,
}

/// How one temporal patch is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Patches in height and width.
    pub(crate) grid_h: usize,
    pub(crate) grid_w: usize,
    /// Pixels a side of a patch.
    pub(crate) patch: usize,
    /// Frames in a temporal patch.
    pub(crate) temporal: usize,
    /// Patches a side that are merged into one token.
    pub(crate) merge: usize,
}

impl Layout {
    /// Values of one patch.
    pub(crate) fn row_len(self) -> usize {
        3 * self.temporal * self.patch * self.patch
    }

    /// Bytes of one line of patches of one frame.
    pub(crate) fn line_len(self) -> usize {
        self.grid_w * self.patch * self.patch * 3
    }
}

/// Cuts one line of patches of one frame.
///
/// - `rgb`: the line, `[patch, grid_w * patch, 3]` bytes
/// - `patch_y`: which line it is
/// - `places`: the frames of the temporal patch that it is for: all of them for a still
/// - `out`: the whole temporal patch, `[grid_h * grid_w, row_len]`
/// - `stream`: whether the patches are so large that no cache will hold them
pub(crate) fn patchify<V: PatchValue>(
    isa: Isa,
    rgb: &[u8],
    layout: Layout,
    patch_y: usize,
    places: Range<usize>,
    values: &Values<V>,
    stream: bool,
    out: &mut [V],
) {
    let Layout { grid_h, grid_w, patch: side, temporal, merge } = layout;
    assert_eq!(rgb.len(), layout.line_len(), "a line does not have the size of its grid");
    assert_eq!(
        out.len(),
        grid_h * grid_w * layout.row_len(),
        "the output does not have the size of its grid"
    );
    let places = (places.start, places.end);
    let stride = grid_w * side * 3;
    for patch_x in 0..grid_w {
        let token = patch_y / merge * (grid_w / merge) + patch_x / merge;
        let index = token * merge * merge + patch_y % merge * merge + patch_x % merge;
        let row = &mut out[index * layout.row_len()..][..layout.row_len()];
        let patch = Patch { rgb: &rgb[patch_x * side * 3..], stride, side, temporal, places, stream };
        if !V::cut(isa, patch, values, row) {
            look_up(patch, values, row);
        }
    }
    if stream {
        isa.finish_patches();
    }
}

/// Cuts one patch by table.
fn look_up<V: PatchValue>(patch: Patch<'_>, values: &Values<V>, out: &mut [V]) {
    let Patch { rgb, stride, side, temporal, places, .. } = patch;
    let plane = side * side;
    let first = places.0 * plane;
    let (red, rest) = out.split_at_mut(temporal * plane);
    let (green, blue) = rest.split_at_mut(temporal * plane);
    for y in 0..side {
        let at = first + y * side..first + (y + 1) * side;
        let pixels = rgb[y * stride..][..side * 3].as_chunks::<3>().0;
        let line = red[at.clone()].iter_mut().zip(&mut green[at.clone()]).zip(&mut blue[at]);
        for (pixel, ((red, green), blue)) in pixels.iter().zip(line) {
            *red = values.table[0][usize::from(pixel[0])];
            *green = values.table[1][usize::from(pixel[1])];
            *blue = values.table[2][usize::from(pixel[2])];
        }
    }
    for channel in [red, green, blue] {
        for t in places.0 + 1..places.1 {
            channel.copy_within(first..first + plane, t * plane);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::vision::values::Scale;

    const BYTES: Scale = Scale { video: false, rescale: None, normalize: None };

    /// Whole frames to the whole of a temporal patch, on one level.
    fn cut<V: PatchValue>(isa: Isa, frames: &[&[u8]], layout: Layout, scale: Scale, stream: bool) -> Vec<V> {
        const GUARD: usize = 16;
        let values = Values::new(isa, scale);
        let len = layout.grid_h * layout.grid_w * layout.row_len();
        let mut out = vec![V::from_f32(-7.0); len + 2 * GUARD];
        for (t, frame) in frames.iter().enumerate() {
            let places = t..if frames.len() == 1 { layout.temporal } else { t + 1 };
            for (y, line) in frame.chunks_exact(layout.line_len()).enumerate() {
                patchify(isa, line, layout, y, places.clone(), &values, stream, &mut out[GUARD..][..len]);
            }
        }
        let guards = out[..GUARD].iter().chain(&out[GUARD + len..]);
        assert!(guards.copied().all(|v| v == V::from_f32(-7.0)), "written outside of the output");
        out[GUARD..][..len].to_vec()
    }

    /// The definition: the place of every value, and its value from the table.
    fn naive<V: PatchValue>(frames: &[&[u8]], layout: Layout, scale: Scale) -> Vec<V> {
        let Layout { grid_h, grid_w, patch, temporal, merge } = layout;
        let values = Values::<V>::new(Isa::detect(), scale);
        let mut out = Vec::new();
        for index in 0..grid_h * grid_w {
            let (token, inside) = (index / (merge * merge), index % (merge * merge));
            let patch_y = token / (grid_w / merge) * merge + inside / merge;
            let patch_x = token % (grid_w / merge) * merge + inside % merge;
            for at in 0..layout.row_len() {
                let (c, t) = (at / (temporal * patch * patch), at / (patch * patch) % temporal);
                let (y, x) = (patch_y * patch + at / patch % patch, patch_x * patch + at % patch);
                let byte = frames[t.min(frames.len() - 1)][(y * grid_w * patch + x) * 3 + c];
                out.push(values.table[c][usize::from(byte)]);
            }
        }
        out
    }

    fn check(layout: Layout, frames: usize, scale: Scale, seed: u32) {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let len = layout.line_len() * layout.grid_h;
        let frames: Vec<Vec<u8>> = (0..frames).map(|_| (0..len).map(|_| next()).collect()).collect();
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        for isa in Isa::available() {
            for stream in [false, true] {
                let got = bits(cut(isa, &frames, layout, scale, stream));
                assert!(got == bits(naive(&frames, layout, scale)), "{isa:?} {layout:?} {scale:?}");
                let got = cut::<bf16>(isa, &frames, layout, scale, stream);
                assert!(got == naive(&frames, layout, scale), "bf16, {isa:?} {layout:?} {scale:?}");
                let rounded: Vec<bf16> =
                    naive(&frames, layout, scale).into_iter().map(bf16::from_f32).collect();
                assert!(got == rounded, "bf16 is not f32 rounded, {isa:?} {layout:?} {scale:?}");
            }
        }
    }

    /// Two temporal patches' worth of one 2x2-pixel patch grid, merge 2: patches come as (0,0) (0,1) (1,0) (1,1) of
    /// the left token, then of the right one.
    #[test]
    fn patches_of_one_token_are_adjacent() {
        let layout = Layout { grid_h: 2, grid_w: 4, patch: 1, temporal: 1, merge: 2 };
        // 2 rows of 4 pixels; the red byte counts the pixels.
        let rgb: Vec<u8> = (0..8u8).flat_map(|i| [i, 100, 200]).collect();
        let out: Vec<f32> = cut(Isa::detect(), &[&rgb], layout, BYTES, false);
        let red: Vec<f32> = out.chunks_exact(3).map(|p| p[0]).collect();
        assert_eq!(red, [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        assert!(out.chunks_exact(3).all(|p| p[1..] == [100.0, 200.0]));
    }

    /// One pixel, two frames: the order inside a patch is channel, then frame.
    #[test]
    fn a_still_fills_every_frame_of_its_patch() {
        let layout = Layout { grid_h: 1, grid_w: 1, patch: 1, temporal: 2, merge: 1 };
        let cut = |frames: &[&[u8]]| cut::<f32>(Isa::detect(), frames, layout, BYTES, false);
        assert_eq!(cut(&[&[1, 2, 3]]), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
        assert_eq!(cut(&[&[1, 2, 3], &[4, 5, 6]]), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn equal_to_the_definition(
            (h, w, merge) in (1usize..3, 1usize..4, 1usize..4),
            patch in prop::sample::select(vec![1usize, 2, 8, 14, 15, 16, 17, 32]),
            temporal in 1usize..4,
            (still, video, rescale, normalize) in (any::<bool>(), any::<bool>(), any::<bool>(), 0usize..3),
            seed in any::<u32>(),
        ) {
            let layout = Layout { grid_h: h * merge, grid_w: w * merge, patch, temporal, merge };
            let scale = Scale {
                video,
                rescale: rescale.then_some(1.0 / 255.0),
                normalize: [None, Some(([0.5; 3], [0.5; 3])), Some(([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]))][normalize],
            };
            check(layout, if still { 1 } else { temporal }, scale, seed);
        }
    }
}
