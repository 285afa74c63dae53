//! One block: its exponents apart from the rest and packed, or its bytes packed, or as it was. Pure.
//!
//! ```text
//! coding                     u8
//! 0  as it is                the bytes
//! 1  packed                  the code's lengths; of each piece, the packed symbols and then, of bf16, the rest bytes
//! 2  one symbol              the symbol; of bf16, the rest bytes
//! last byte                  of bf16 with an odd number of bytes, after 1 and 2
//! ```
//!
//! A bf16 is a sign, 8 bits of exponent and 7 of mantissa. The symbol is the exponent; sign and mantissa, which have no
//! pattern, are the rest byte.

use super::Kind;
use super::huffman::{Code, LENGTHS_BYTES, PIECE_SYMBOLS, Table};

const AS_IT_IS: u8 = 0;
const PACKED: u8 = 1;
const ONE_SYMBOL: u8 = 2;

/// What unpacking needs beside the two sides.
#[derive(Default)]
pub(super) struct Scratch {
    table: Table,
    exponents: Vec<u8>,
}

/// Packs a block to the end of `out`. It takes at most a byte more than it has.
pub(super) fn pack(kind: Kind, raw: &[u8], out: &mut Vec<u8>) {
    let begin = out.len();
    let is_smaller = match kind {
        Kind::Bytes => pack_planes(raw, &[], &[], out),
        Kind::Bf16 => {
            let (pairs, last) = raw.as_chunks::<2>();
            let exponents: Vec<u8> = pairs.iter().map(|[low, high]| high << 1 | low >> 7).collect();
            let rest: Vec<u8> = pairs.iter().map(|[low, high]| high & 0x80 | low & 0x7f).collect();
            pack_planes(&exponents, &rest, last, out)
        }
    };
    if !is_smaller || out.len() - begin > raw.len() {
        out.truncate(begin);
        out.push(AS_IT_IS);
        out.extend_from_slice(raw);
    }
}

/// Packs symbols with their rest bytes, if there are any. Whether it did.
fn pack_planes(symbols: &[u8], rest: &[u8], last: &[u8], out: &mut Vec<u8>) -> bool {
    let Some(&first) = symbols.first() else { return false };
    // Into four places by turns: counting the same symbol twice in a row would wait for the first.
    let mut counts = [[0_u32; 256]; 4];
    let (fours, left) = symbols.as_chunks::<4>();
    for four in fours {
        counts.iter_mut().zip(four).for_each(|(counts, &symbol)| counts[symbol as usize] += 1);
    }
    left.iter().for_each(|&symbol| counts[0][symbol as usize] += 1);
    let counts = std::array::from_fn(|symbol| counts.iter().map(|counts| counts[symbol]).sum());
    match Code::new(&counts) {
        None => {
            out.extend([ONE_SYMBOL, first]);
            out.extend_from_slice(rest);
        }
        Some(code) => {
            out.push(PACKED);
            code.push_lengths(out);
            let mut rests = rest.chunks(PIECE_SYMBOLS);
            for piece in symbols.chunks(PIECE_SYMBOLS) {
                code.push_piece(piece, out);
                out.extend_from_slice(rests.next().unwrap_or_default());
            }
        }
    }
    out.extend_from_slice(last);
    true
}

/// Unpacks a block that has `out.len()` bytes. On an error, what is in `out` is unknown.
pub(super) fn unpack(kind: Kind, packed: &[u8], out: &mut [u8], scratch: &mut Scratch) -> Result<(), String> {
    let (&coding, mut packed) = packed.split_first().ok_or("it is empty")?;
    if coding == AS_IT_IS {
        if packed.len() != out.len() {
            return Err(format!("it has {} bytes, expected {}", packed.len(), out.len()));
        }
        out.copy_from_slice(packed);
        return Ok(());
    }
    let (symbols, last) = match kind {
        Kind::Bytes => (out, &mut [][..]),
        Kind::Bf16 => out.split_at_mut(out.len() / 2 * 2),
    };
    let piece_bytes = PIECE_SYMBOLS * kind.symbol_bytes();
    match coding {
        ONE_SYMBOL => {
            let (&symbol, rest) = packed.split_first().ok_or("it ends before its symbol")?;
            packed = rest;
            scratch.exponents.clear();
            scratch.exponents.resize(PIECE_SYMBOLS, symbol);
            for piece in symbols.chunks_mut(piece_bytes) {
                match kind {
                    Kind::Bytes => piece.fill(symbol),
                    Kind::Bf16 => packed = merge(&scratch.exponents, packed, piece)?,
                }
            }
        }
        PACKED => {
            let (lengths, rest) = packed
                .split_first_chunk::<LENGTHS_BYTES>()
                .ok_or("it ends within the lengths of its code")?;
            packed = rest;
            scratch.table.read(lengths)?;
            scratch.exponents.resize(PIECE_SYMBOLS, 0);
            for piece in symbols.chunks_mut(piece_bytes) {
                match kind {
                    Kind::Bytes => packed = &packed[scratch.table.unpack_piece(packed, piece)?..],
                    Kind::Bf16 => {
                        let exponents = &mut scratch.exponents[..piece.len() / 2];
                        packed = &packed[scratch.table.unpack_piece(packed, exponents)?..];
                        packed = merge(exponents, packed, piece)?;
                    }
                }
            }
        }
        other => return Err(format!("its coding is {other}, known are 0 to 2")),
    }
    if packed.len() != last.len() {
        return Err(format!("{} bytes are left where {} are expected", packed.len(), last.len()));
    }
    last.copy_from_slice(packed);
    Ok(())
}

/// Puts exponents and the rest bytes at the head of `packed` together. Returns what follows these. As many exponents as
/// `out` has numbers are there at least.
fn merge<'a>(exponents: &[u8], packed: &'a [u8], out: &mut [u8]) -> Result<&'a [u8], String> {
    let (pairs, _) = out.as_chunks_mut::<2>();
    let (rest, behind) = packed
        .split_at_checked(pairs.len())
        .ok_or_else(|| format!("it ends within the signs and mantissas of {} numbers", pairs.len()))?;
    for ((pair, &exponent), &rest) in pairs.iter_mut().zip(exponents).zip(rest) {
        *pair = [exponent << 7 | rest & 0x7f, rest & 0x80 | exponent >> 1];
    }
    Ok(behind)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packed::tests::weights;

    fn check(kind: Kind, raw: &[u8]) -> usize {
        let mut packed = vec![9; 3];
        pack(kind, raw, &mut packed);
        assert!(packed.len() - 3 <= raw.len() + 1);
        let mut out = vec![0xaa; raw.len()];
        unpack(kind, &packed[3..], &mut out, &mut Scratch::default()).unwrap();
        assert!(out == raw, "{kind:?} of {} bytes", raw.len());
        packed.len() - 3
    }

    #[test]
    fn every_number_comes_back() {
        // All 65536 bit patterns, not-a-numbers, infinities and subnormals among them.
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        assert_eq!(check(Kind::Bf16, &all), all.len() + 1);
        let nans: Vec<u8> =
            (0..5000_u16).flat_map(|i| (0x7f80 | (i % 128) | (i << 15)).to_le_bytes()).collect();
        assert_eq!(check(Kind::Bf16, &nans), 2 + 5000);
    }

    #[test]
    fn every_length_comes_back() {
        let raw = weights(3, 4 * PIECE_SYMBOLS + 200);
        for kind in [Kind::Bf16, Kind::Bytes] {
            for len in (0..700).chain([2, 4].into_iter().flat_map(|n| {
                let edge = n * PIECE_SYMBOLS;
                edge - 3..edge + 4
            })) {
                check(kind, &raw[..len]);
            }
        }
    }

    #[test]
    fn weights_get_smaller_by_a_third_and_noise_by_nothing() {
        let raw = weights(1, 1 << 20);
        let ratio = check(Kind::Bf16, &raw) as f64 / raw.len() as f64;
        assert!((0.655..0.67).contains(&ratio), "{ratio}");
        assert_eq!(check(Kind::Bytes, &[7; 100_000]), 2);
        let mut state = 1_u32;
        let noise = (0..100_000).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        let noise: Vec<u8> = noise.collect();
        assert_eq!(check(Kind::Bytes, &noise), noise.len() + 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_come_back(raw in prop::collection::vec(any::<u8>(), 0..4000), mask: u8) {
            for kind in [Kind::Bf16, Kind::Bytes] {
                check(kind, &raw);
                check(kind, &raw.iter().map(|byte| byte & mask).collect::<Vec<u8>>());
            }
        }
    }
}
