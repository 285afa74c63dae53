//! Products of quantised activations with panels of quantised weights in tiles.
//!
//! The codes of a panel lie as the second operand of an instruction wants them; the activations of sixteen rows
//! are the first. The integer products are stored, and scaled and summed as those of the vector units are
//! (`panel_dots.rs`), so the results have the same bits.

#![expect(
    unsafe_code,
    reason = "tiles are loaded by pointer: the bounds are asserted once for a whole product"
)]

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::panel_dots::{
    Avx512, Bits4, Bits5, Bits6, Bits8, Codes, GROUPS, OneScale, Product, Row, ScaleAndMin, Scaling,
    TwoScales,
};
use super::super::panels::{BLOCK, PANEL, SCALE_BYTES};
use super::{Amx, TILE, TILE_BYTES};
use crate::quant::BlockFormat;

/// Integer products of sixteen rows with a panel, one part of the inputs after the other.
#[repr(C, align(64))]
struct Ints([i32; 2 * TILE * PANEL]);

/// Values of the scales of a block that are kept: two vectors at most.
const SCALES: usize = 2 * PANEL;

/// Computes the products. The lengths in the job must agree, as `panel_dots::product` checks.
pub(in crate::backend::cpu) fn product(amx: Amx, job: &mut Product<'_>) {
    // SAFETY: a CPU with AMX has the instructions of AVX-512 that the function is compiled for; what is read and
    // written lies inside the slices whose lengths were checked.
    unsafe {
        match job.weights.format() {
            BlockFormat::Q8_0 => panels_of::<Bits8, OneScale<8>>(amx, job),
            BlockFormat::Q4_0 => panels_of::<Bits4, OneScale<4>>(amx, job),
            BlockFormat::Q4K => panels_of::<Bits4, ScaleAndMin<4>>(amx, job),
            BlockFormat::Q5K => panels_of::<Bits5, ScaleAndMin<5>>(amx, job),
            BlockFormat::Q6K => panels_of::<Bits6, TwoScales>(amx, job),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn panels_of<C: Codes, F: Scaling>(amx: Amx, job: &mut Product<'_>) {
    const { assert!(size_of::<F::Scales<Avx512>>() <= SCALES * size_of::<f32>()) };
    let (count, rows, blocks) = (job.rows.len(), job.x.rows(), job.x.blocks());
    assert!(count.is_multiple_of(TILE) && blocks > 0, "whole tiles of some inputs");
    let tiles = amx.shapes(TILE, PANEL, BLOCK / F::PARTS);
    // A panel, unpacked: of each block the codes, signed, `[block][group][64]`, then what `Scaling` says.
    let codes_len = blocks * GROUPS * TILE_BYTES / size_of::<f32>();
    job.room.resize(codes_len + blocks * SCALES);
    let (codes, scales) = job.room.split_at_mut(codes_len);
    let (codes, scales) = (codes.as_mut_ptr().cast::<u8>(), scales.as_mut_ptr());
    for (index, panel) in job.panels.clone().enumerate() {
        // SAFETY: the panel exists, and there is room for its blocks.
        unsafe { unpack::<C, F>(job, panel, codes, scales) };
        let (panel_bytes, lines) = (job.weights.panel_bytes(), job.weights.panel_bytes() / 64);
        let next = job.weights.panel(panel).codes.as_ptr().wrapping_add(panel_bytes);
        for row in (0..count).step_by(TILE) {
            let out = &mut job.out[row * job.out_stride + index * PANEL..];
            let at = job.rows.start + row;
            // SAFETY: sixteen rows from there on exist, as the caller has checked.
            unsafe {
                let x = Row {
                    codes: job.x.codes().as_ptr().add(at * BLOCK),
                    scale: job.x.scales.as_ptr().add(at),
                    offsets: job.x.offsets.as_ptr().add(at),
                };
                // The next panel arrives meanwhile, at most a line for each block of these rows.
                let line = row / TILE * blocks;
                let ahead = (next.wrapping_add(line * 64), lines.saturating_sub(line));
                tile::<F>(x, rows, blocks, codes, scales, ahead, out, job.out_stride);
            }
        }
    }
    drop(tiles);
}

/// Unpacks a panel.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn unpack<C: Codes, F: Scaling>(job: &Product<'_>, panel: usize, codes: *mut u8, scales: *mut f32) {
    let panel = job.weights.panel(panel);
    let code_bytes = const { C::BYTES };
    for block in 0..job.x.blocks() {
        // SAFETY: the caller's: the panel has all its blocks, and so has the room.
        unsafe {
            let from = panel.codes.as_ptr().add(block * code_bytes);
            let groups = C::unpack::<Avx512>(from);
            let to = codes.add(block * GROUPS * TILE_BYTES);
            for group in 0..GROUPS {
                let signed = _mm512_sub_epi8(groups[group], _mm512_set1_epi8(F::ZERO));
                _mm512_store_si512(to.add(group * TILE_BYTES).cast(), signed);
            }
            let supers = panel.supers.as_ptr().wrapping_add(block / 8 * F::SUPER_BYTES);
            let found = F::scales::<Avx512>(panel.scales.as_ptr().add(block * SCALE_BYTES), supers, 0);
            scales.add(block * SCALES).cast::<F::Scales<Avx512>>().write(found);
        }
    }
}

/// Sixteen rows with a panel: the sums stay in registers while the blocks go by.
///
/// `x`: the first block of the first row; `rows` blocks lie between two blocks of a row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<F: Scaling>(
    x: Row,
    rows: usize,
    blocks: usize,
    codes: *const u8,
    scales: *const f32,
    (ahead, lines): (*const u8, usize),
    out: &mut [f32],
    out_stride: usize,
) {
    // Products take some fifty cycles, and a load finds what a tile has stored only when the store has left the
    // core's buffers. So the products of the block after the next are under way, in other tiles, and those of
    // the next on their way to memory, while those of this one are scaled.
    let mut ints = [const { Ints([0; 2 * TILE * PANEL]) }; 2];
    let mut sums = [_mm512_setzero_ps(); TILE];
    // SAFETY: the caller's: so many blocks of codes and of sixteen rows can be read.
    unsafe {
        let codes_of = |block: usize| codes.add(block * GROUPS * TILE_BYTES);
        let x_of = |block: usize| x.codes.add(block * rows * BLOCK);
        let scale = |sums: &mut [__m512; TILE], block: usize, ints: &Ints| {
            if block < lines {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(block * 64).cast());
            }
            let scales = scales.add(block * SCALES).cast::<F::Scales<Avx512>>().read();
            for row in 0..TILE {
                let x = Row {
                    codes: x.codes,
                    scale: x.scale.add(block * rows + row),
                    offsets: x.offsets.add(block * rows + row),
                };
                let products = F::load::<Avx512>(ints.0.as_ptr().add(row * PANEL), TILE * PANEL);
                sums[row] = F::sum::<Avx512>(x, products, scales, sums[row]);
            }
        };
        multiply::<F, 0>(x_of(0), codes_of(0));
        store::<F, 0>(&mut ints[0]);
        if blocks > 1 {
            multiply::<F, 1>(x_of(1), codes_of(1));
        }
        let mut block = 0;
        while block + 2 < blocks {
            store::<F, 1>(&mut ints[1]);
            multiply::<F, 0>(x_of(block + 2), codes_of(block + 2));
            scale(&mut sums, block, &ints[0]);
            store::<F, 0>(&mut ints[0]);
            if block + 3 < blocks {
                multiply::<F, 1>(x_of(block + 3), codes_of(block + 3));
            }
            scale(&mut sums, block + 1, &ints[1]);
            block += 2;
        }
        scale(&mut sums, block, &ints[0]);
        if block + 1 < blocks {
            store::<F, 1>(&mut ints[1]);
            scale(&mut sums, block + 1, &ints[1]);
        }
    }
    for row in 0..TILE {
        let Some(out) = out[row * out_stride..].first_chunk_mut::<PANEL>() else { unreachable!() };
        // SAFETY: there is room for sixteen values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums[row]) };
    }
}

/// The integer products of sixteen rows with a block of a panel, in the first or second pair of results.
#[inline(always)]
unsafe fn multiply<F: Scaling, const PLACE: usize>(x: *const i8, codes: *const u8) {
    macro_rules! products {
        ($($instruction:literal),*) => {
            asm!(
                $($instruction,)*
                x = in(reg) x, xs = in(reg) BLOCK, w = in(reg) codes, s = in(reg) TILE_BYTES,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly)
            )
        };
    }
    // SAFETY: the caller's: sixteen rows of a block and the block's codes are there.
    unsafe {
        match (F::PARTS, PLACE) {
            (1, 0) => products!(
                "tilezero tmm0",
                "tileloadd tmm4, [{x} + {xs}]",
                "tileloadd tmm6, [{w} + {s}]",
                "tdpbssd tmm0, tmm4, tmm6"
            ),
            (1, _) => products!(
                "tilezero tmm2",
                "tileloadd tmm5, [{x} + {xs}]",
                "tileloadd tmm7, [{w} + {s}]",
                "tdpbssd tmm2, tmm5, tmm7"
            ),
            (_, 0) => products!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tileloadd tmm4, [{x} + {xs}]",
                "tileloadd tmm6, [{w} + {s}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{x} + {xs} + 16]",
                "tileloadd tmm7, [{w} + {s} + 256]",
                "tdpbssd tmm1, tmm5, tmm7"
            ),
            (..) => products!(
                "tilezero tmm2",
                "tilezero tmm3",
                "tileloadd tmm4, [{x} + {xs}]",
                "tileloadd tmm6, [{w} + {s}]",
                "tdpbssd tmm2, tmm4, tmm6",
                "tileloadd tmm5, [{x} + {xs} + 16]",
                "tileloadd tmm7, [{w} + {s} + 256]",
                "tdpbssd tmm3, tmm5, tmm7"
            ),
        }
    }
    const { assert!(BLOCK / 2 == 16 && GROUPS / 2 * TILE_BYTES == 256) };
}

/// Stores what [`multiply`] has left in a place.
#[inline(always)]
unsafe fn store<F: Scaling, const PLACE: usize>(ints: &mut Ints) {
    macro_rules! stores {
        ($($instruction:literal),*) => {
            asm!(
                $($instruction,)*
                to = in(reg) ints.0.as_mut_ptr(), s = in(reg) TILE_BYTES,
                options(nostack, preserves_flags)
            )
        };
    }
    // SAFETY: there is room for two tiles of integers. No code but `multiply` uses tiles meanwhile.
    unsafe {
        match (F::PARTS, PLACE) {
            (1, 0) => stores!("tilestored [{to} + {s}], tmm0"),
            (1, _) => stores!("tilestored [{to} + {s}], tmm2"),
            (_, 0) => stores!("tilestored [{to} + {s}], tmm0", "tilestored [{to} + {s} + 1024], tmm1"),
            (..) => stores!("tilestored [{to} + {s}], tmm2", "tilestored [{to} + {s} + 1024], tmm3"),
        }
    }
    const { assert!(4 * TILE * PANEL == 1024) };
}
