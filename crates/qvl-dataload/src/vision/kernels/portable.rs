//! The passes of a resize in plain Rust: what CPUs without vector code here run, and pictures too small for it.
//!
//! In the horizontal pass eight rows are transposed so that the same sample of all rows is adjacent; a weight then
//! multiplies 24 neighbouring bytes (eight rows of R, G, B), which the compiler turns into vectors of any CPU.

use super::GROUP;
use crate::vision::resize::taps::Taps;

/// Bytes of one pixel column of a group: eight rows of R, of G, of B.
const COLUMN: usize = 3 * GROUP;
/// Bytes of a row that go through the vertical pass together.
const LANES: usize = 64;

/// See [`Isa::horizontal`](super::Isa::horizontal).
pub(super) fn horizontal(
    taps: &Taps,
    source: &[u8],
    rows: &[usize; GROUP],
    out: &mut [u8],
    scratch: &mut Vec<u8>,
) {
    let (stride, new_stride) = (taps.size() * 3, taps.new_size() * 3);
    scratch.resize((stride + new_stride) * GROUP, 0);
    let (strip, result) = scratch.split_at_mut(stride * GROUP);
    for (r, row) in rows.iter().enumerate() {
        for (byte, lane) in source[*row..][..stride].iter().zip(strip.as_chunks_mut::<GROUP>().0) {
            lane[r] = *byte;
        }
    }
    for (i, column) in result.chunks_exact_mut(COLUMN).enumerate() {
        let (start, weights) = taps.at(i);
        let mut sums = [1i32 << (taps.shift() - 1); COLUMN];
        for (weight, samples) in weights.iter().zip(strip[start * COLUMN..].chunks_exact(COLUMN)) {
            add(&mut sums, *weight, samples);
        }
        finish(&sums, taps.shift(), column);
    }
    let room = out.len() / GROUP;
    for (r, row) in out.chunks_exact_mut(room).enumerate() {
        for (byte, lane) in row.iter_mut().zip(result.as_chunks::<GROUP>().0) {
            *byte = lane[r];
        }
    }
}

/// See [`Isa::vertical`](super::Isa::vertical).
pub(super) fn vertical(taps: &Taps, i: usize, source: &[u8], rows: &[usize], out: &mut [u8]) {
    let (_, weights) = taps.at(i);
    let mut offset = 0;
    for chunk in out.chunks_mut(LANES) {
        let mut sums = [1i32 << (taps.shift() - 1); LANES];
        for (weight, row) in weights.iter().zip(rows) {
            add(&mut sums, *weight, &source[row + offset..][..chunk.len()]);
        }
        finish(&sums, taps.shift(), chunk);
        offset += chunk.len();
    }
}

/// Sums of weight times sample. They are exact: Pillow's own are of 32 bits.
fn add(sums: &mut [i32], weight: i32, samples: &[u8]) {
    for (sum, sample) in sums.iter_mut().zip(samples) {
        *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(*sample)));
    }
}

fn finish(sums: &[i32], shift: u32, bytes: &mut [u8]) {
    for (byte, sum) in bytes.iter_mut().zip(sums) {
        *byte = (sum >> shift).clamp(0, 255) as u8;
    }
}
