//! Quantised weights, packed once for the vector units.
//!
//! A panel holds 16 outputs (columns). Its codes come first, 32 inputs after 32 inputs: for each group of four
//! inputs, 16 columns x 4 bytes, the order in which the instructions for dot products of bytes take them.
//! Codes below 8 bits are split into planes:
//!
//! - 8 bits: eight groups of 64 bytes, the code plus 128;
//! - the low 4 bits of 4-, 5- and 6-bit codes: four vectors of 64 bytes, group `g` in the low nibbles of vector
//!   `g`, group `g + 4` in the high ones;
//! - the fifth bit: one vector, bit `g` for group `g`;
//! - the fifth and sixth bit: two vectors, bits `2 (g % 4)` and above of vector `g / 4` for group `g`.
//!
//! The scales follow: for each 32 inputs 32 bytes (16 IEEE halves; or 16 scales and 16 minima; or twice 16
//! scales), then, for the formats with blocks of 256, for each of those 16 halves (Q6_K) or twice 16 (Q4_K,
//! Q5_K). So Q4_K takes 4.625 bits a weight instead of 4.5, and nothing has to be taken apart.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;
use memmap2::{Advice, MmapMut};

use super::team::Team;
use crate::quant::{BlockFormat, KBlock, Q4Block, Q6Block, Q8Block};

/// Outputs of a panel.
pub(super) const PANEL: usize = 16;

/// Inputs that share a scale of the activations; each format's sub-blocks divide them.
pub(super) const BLOCK: usize = 32;

/// Inputs of a block of the larger formats.
const SUPER: usize = 256;

/// Bytes of scales of 32 inputs.
pub(super) const SCALE_BYTES: usize = 32;

/// From where the blocks of a large matrix lie in huge pages.
const HUGE_FROM: usize = 4 << 20;

/// A quantised matrix `[rows (out), cols (in)]`.
pub(super) struct Panels {
    format: BlockFormat,
    rows: usize,
    cols: usize,
    bytes: MmapMut,
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Panels")
            .field("format", &self.format)
            .field("rows", &self.rows)
            .field("cols", &self.cols)
            .finish_non_exhaustive()
    }
}

/// The parts of a panel.
pub(super) struct Panel<'a> {
    /// Codes, `cols / 32` times [`code_bytes`].
    pub(super) codes: &'a [u8],
    /// Scales, `cols / 32` times [`SCALE_BYTES`].
    pub(super) scales: &'a [u8],
    /// Scales of the scales, `cols / 256` times [`super_bytes`].
    pub(super) supers: &'a [u8],
}

/// Bytes of the codes of 16 columns and 32 inputs.
pub(super) const fn code_bytes(format: BlockFormat) -> usize {
    match format {
        BlockFormat::Q8_0 => 512,
        BlockFormat::Q4_0 | BlockFormat::Q4K => 256,
        BlockFormat::Q5K => 320,
        BlockFormat::Q6K => 384,
    }
}

/// Bytes of the scales of the scales of 16 columns and 256 inputs.
pub(super) const fn super_bytes(format: BlockFormat) -> usize {
    match format {
        BlockFormat::Q8_0 | BlockFormat::Q4_0 => 0,
        BlockFormat::Q4K | BlockFormat::Q5K => 64,
        BlockFormat::Q6K => 32,
    }
}

/// Bytes of a panel, a whole number of cache lines.
fn panel_bytes(format: BlockFormat, cols: usize) -> usize {
    let blocks = cols / BLOCK * (code_bytes(format) + SCALE_BYTES);
    (blocks + cols / SUPER * super_bytes(format)).next_multiple_of(64)
}

/// Why a matrix could not be packed.
#[derive(Debug)]
pub(super) enum PackError<E> {
    /// There is no memory for it.
    Memory(std::io::Error),
    /// The source failed.
    Source(E),
}

impl Panels {
    /// Packs `rows` rows of `cols` inputs, a multiple of the format's block. `source` writes the blocks of some
    /// rows, up to 16 at a time. Of several errors the one of the first row is returned.
    pub(super) fn pack<E: Send>(
        team: &Team,
        format: BlockFormat,
        rows: usize,
        cols: usize,
        source: impl Fn(Range<usize>, &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<Self, PackError<E>> {
        assert!(rows > 0 && cols.is_multiple_of(format.block_len()), "rows of whole blocks");
        let panel_bytes = panel_bytes(format, cols);
        let row_bytes = cols / format.block_len() * format.block_bytes();
        let mut bytes = MmapMut::map_anon(rows.div_ceil(PANEL) * panel_bytes).map_err(PackError::Memory)?;
        if bytes.len() >= HUGE_FROM {
            // Only advice: a system without huge pages refuses, and everything works as well.
            bytes.advise(Advice::HugePage).ok();
        }
        let mut panels: Vec<(&mut [u8], Option<E>)> =
            bytes.chunks_mut(panel_bytes).map(|panel| (panel, None)).collect();
        let failed = AtomicBool::new(false);
        team.for_each_mut(&mut panels, |index, (panel, error)| {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let first = index * PANEL;
            let count = PANEL.min(rows - first);
            let mut stored = vec![0u8; count * row_bytes];
            match source(first..first + count, &mut stored) {
                Ok(()) => {
                    for (column, row) in stored.chunks_exact(row_bytes).enumerate() {
                        pack_column(format, cols, row, column, panel);
                    }
                }
                Err(found) => {
                    *error = Some(found);
                    failed.store(true, Ordering::Relaxed);
                }
            }
        });
        match panels.into_iter().find_map(|(_, error)| error) {
            Some(error) => Err(PackError::Source(error)),
            None => Ok(Self { format, rows, cols, bytes }),
        }
    }

    /// How the weights are stored.
    pub(super) fn format(&self) -> BlockFormat {
        self.format
    }

    /// Inputs.
    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// From one panel to the next.
    pub(super) fn panel_bytes(&self) -> usize {
        panel_bytes(self.format, self.cols)
    }

    /// Panel `index`.
    pub(super) fn panel(&self, index: usize) -> Panel<'_> {
        let size = panel_bytes(self.format, self.cols);
        let (codes, rest) =
            self.bytes[index * size..][..size].split_at(self.cols / BLOCK * code_bytes(self.format));
        let (scales, supers) = rest.split_at(self.cols / BLOCK * SCALE_BYTES);
        Panel { codes, scales, supers }
    }

    /// One row's weights: bit for bit what the format's own decoding gives.
    pub(super) fn unpack_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "a row and room for it");
        let (panel, column) = (self.panel(row / PANEL), row % PANEL);
        let half = |bytes: &[u8], index: usize| f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]);
        let format = self.format;
        match format {
            BlockFormat::Q8_0 | BlockFormat::Q4_0 => {
                for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                    let mut codes = [0; BLOCK];
                    get_codes(format, panel.codes, block, column, &mut codes);
                    let d = half(&panel.scales[block * SCALE_BYTES..], column);
                    *out = if format == BlockFormat::Q8_0 {
                        Q8Block { d, codes: codes.map(|code| (code ^ 0x80).cast_signed()) }.values()
                    } else {
                        Q4Block { d, codes }.values()
                    };
                }
            }
            BlockFormat::Q4K | BlockFormat::Q5K | BlockFormat::Q6K => {
                for (index, out) in out.as_chunks_mut::<SUPER>().0.iter_mut().enumerate() {
                    let mut codes = [0; SUPER];
                    for (block, codes) in codes.chunks_exact_mut(BLOCK).enumerate() {
                        get_codes(format, panel.codes, index * 8 + block, column, codes);
                    }
                    let scales = &panel.scales[index * 8 * SCALE_BYTES..];
                    let supers = &panel.supers[index * super_bytes(format)..];
                    let d = half(supers, column);
                    if format == BlockFormat::Q6K {
                        let scales = std::array::from_fn(|s| scales[s * PANEL + column].cast_signed());
                        Q6Block { d, scales, codes }.write_values(out);
                    } else {
                        let at =
                            |block: usize, kind: usize| scales[block * SCALE_BYTES + kind * PANEL + column];
                        let dmin = half(supers, PANEL + column);
                        let (scales, mins) =
                            (std::array::from_fn(|s| at(s, 0)), std::array::from_fn(|s| at(s, 1)));
                        KBlock { d, dmin, scales, mins, codes }.write_values(out);
                    }
                }
            }
        }
    }
}

/// Places the blocks of one row as column `column` of a panel that is 0 there.
fn pack_column(format: BlockFormat, cols: usize, row: &[u8], column: usize, panel: &mut [u8]) {
    let (codes, rest) = panel.split_at_mut(cols / BLOCK * code_bytes(format));
    let (scales, supers) = rest.split_at_mut(cols / BLOCK * SCALE_BYTES);
    let put_half = |bytes: &mut [u8], index: usize, value: f16| {
        bytes[2 * index..][..2].copy_from_slice(&value.to_le_bytes());
    };
    for (index, stored) in row.chunks_exact(format.block_bytes()).enumerate() {
        let here = &mut scales[index * format.block_len() / BLOCK * SCALE_BYTES..];
        match format {
            BlockFormat::Q8_0 => {
                let Some(block) = stored.first_chunk().map(Q8Block::unpack) else { unreachable!() };
                put_codes(format, codes, index, column, &block.codes.map(|code| code.cast_unsigned() ^ 0x80));
                put_half(here, column, block.d);
            }
            BlockFormat::Q4_0 => {
                let Some(block) = stored.first_chunk().map(Q4Block::unpack) else { unreachable!() };
                put_codes(format, codes, index, column, &block.codes);
                put_half(here, column, block.d);
            }
            BlockFormat::Q4K | BlockFormat::Q5K => {
                let block = match format {
                    BlockFormat::Q4K => stored.first_chunk().map(KBlock::unpack_q4),
                    _ => stored.first_chunk().map(KBlock::unpack_q5),
                };
                let Some(block) = block else { unreachable!() };
                for (part, chunk) in block.codes.as_chunks::<BLOCK>().0.iter().enumerate() {
                    put_codes(format, codes, index * 8 + part, column, chunk);
                    here[part * SCALE_BYTES + column] = block.scales[part];
                    here[part * SCALE_BYTES + PANEL + column] = block.mins[part];
                }
                let supers = &mut supers[index * super_bytes(format)..];
                put_half(supers, column, block.d);
                put_half(supers, PANEL + column, block.dmin);
            }
            BlockFormat::Q6K => {
                let Some(block) = stored.first_chunk().map(Q6Block::unpack) else { unreachable!() };
                for (part, chunk) in block.codes.as_chunks::<BLOCK>().0.iter().enumerate() {
                    put_codes(format, codes, index * 8 + part, column, chunk);
                }
                for (part, scale) in block.scales.iter().enumerate() {
                    here[part * PANEL + column] = scale.cast_unsigned();
                }
                put_half(&mut supers[index * super_bytes(format)..], column, block.d);
            }
        }
    }
}

fn put_codes(format: BlockFormat, bytes: &mut [u8], block: usize, column: usize, codes: &[u8; BLOCK]) {
    let bytes = &mut bytes[block * code_bytes(format)..][..code_bytes(format)];
    for (k, &code) in codes.iter().enumerate() {
        let (group, at) = (k / 4, column * 4 + k % 4);
        if format == BlockFormat::Q8_0 {
            bytes[group * 64 + at] = code;
            continue;
        }
        bytes[group % 4 * 64 + at] |= (code & 15) << (group / 4 * 4);
        match format {
            BlockFormat::Q5K => bytes[256 + at] |= (code >> 4) << group,
            BlockFormat::Q6K => bytes[256 + group / 4 * 64 + at] |= (code >> 4) << (group % 4 * 2),
            _ => {}
        }
    }
}

fn get_codes(format: BlockFormat, bytes: &[u8], block: usize, column: usize, codes: &mut [u8]) {
    let bytes = &bytes[block * code_bytes(format)..][..code_bytes(format)];
    for (k, code) in codes.iter_mut().enumerate() {
        let (group, at) = (k / 4, column * 4 + k % 4);
        let low = |bytes: &[u8]| (bytes[group % 4 * 64 + at] >> (group / 4 * 4)) & 15;
        *code = match format {
            BlockFormat::Q8_0 => bytes[group * 64 + at],
            BlockFormat::Q4_0 | BlockFormat::Q4K => low(bytes),
            BlockFormat::Q5K => low(bytes) | (bytes[256 + at] >> group & 1) << 4,
            BlockFormat::Q6K => low(bytes) | (bytes[256 + group / 4 * 64 + at] >> (group % 4 * 2) & 3) << 4,
        };
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Values without pattern, the same on every machine.
    pub(in super::super) fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// A matrix in blocks, row after row.
    pub(in super::super) fn blocks(format: BlockFormat, rows: usize, cols: usize, seed: u32) -> Vec<u8> {
        let values = noise(rows * cols, seed);
        let mut bytes = vec![0; format.bytes_of(values.len()).unwrap()];
        format.quantize(&values, &mut bytes).unwrap();
        bytes
    }

    pub(in super::super) fn pack(format: BlockFormat, rows: usize, cols: usize, stored: &[u8]) -> Panels {
        let row_bytes = stored.len() / rows;
        Panels::pack(&Team::new(2).unwrap(), format, rows, cols, |range: Range<usize>, out: &mut [u8]| {
            out.copy_from_slice(&stored[range.start * row_bytes..range.end * row_bytes]);
            Ok::<(), ()>(())
        })
        .unwrap()
    }

    #[test]
    fn a_row_comes_back_bit_for_bit() {
        for format in BlockFormat::ALL {
            for rows in [1, 15, 16, 17, 33] {
                for blocks_in_row in [1, 3] {
                    let cols = blocks_in_row * format.block_len();
                    // Codes at both ends of their range too: any bytes are blocks.
                    for wild in [false, true] {
                        let mut stored = blocks(format, rows, cols, 7);
                        if wild {
                            let mut state = 9u32;
                            for byte in &mut stored {
                                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                                *byte = (state >> 24) as u8;
                            }
                        }
                        let panels = pack(format, rows, cols, &stored);
                        let mut expected = vec![0.0; rows * cols];
                        format.dequantize(&stored, &mut expected);
                        for row in 0..rows {
                            let mut got = vec![0.0; cols];
                            panels.unpack_row(row, &mut got);
                            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                            assert_eq!(
                                bits(&got),
                                bits(&expected[row * cols..][..cols]),
                                "{format}, row {row}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_source_says_is_what_the_packer_says() {
        let failing = Panels::pack(
            &Team::new(2).unwrap(),
            BlockFormat::Q8_0,
            40,
            32,
            |range: Range<usize>, _: &mut [u8]| {
                if range.contains(&33) { Err("row 33") } else { Ok(()) }
            },
        );
        assert!(matches!(failing, Err(PackError::Source("row 33"))));
    }

    #[test]
    fn a_weight_takes_what_the_documentation_says() {
        let bits = |format| 8.0 * panel_bytes(format, 2048) as f64 / (16.0 * 2048.0);
        assert_eq!(bits(BlockFormat::Q8_0), 8.5);
        assert_eq!(bits(BlockFormat::Q4_0), 4.5);
        assert_eq!(bits(BlockFormat::Q4K), 4.625);
        assert_eq!(bits(BlockFormat::Q5K), 5.625);
        assert_eq!(bits(BlockFormat::Q6K), 6.5625);
    }
}
