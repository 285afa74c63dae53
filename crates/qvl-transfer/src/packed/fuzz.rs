//! Any bytes as a packed file.

use super::format::{HEAD_BYTES, Head};
use super::{PackedSource, block};
use crate::Result;
use crate::source::{Memory, Source};

/// Unpacks a packed file: as it is, and once more with right checksums, which changes made at random would hardly ever
/// hit. Returns whether it was accepted as it is.
pub fn fuzzed(bytes: &[u8]) -> bool {
    // What has right checksums may be unpacked or not, but not fail otherwise.
    let _ = unpack(right(bytes));
    unpack(bytes.to_vec()).is_ok()
}

fn unpack(bytes: Vec<u8>) -> Result<()> {
    let source = PackedSource::open(Memory::new(bytes))?;
    let block_bytes = source.granularity();
    let mut out = vec![0xaa; block_bytes];
    for at in (0..source.len()).step_by(block_bytes) {
        let bytes = (source.len() - at).min(block_bytes as u64) as usize;
        source.fill(at, &mut out[..bytes])?;
        // What was unpacked is packed to something that gives the same.
        let (mut again, mut packed) = (vec![0; bytes], Vec::new());
        block::pack(source.kind(), &out[..bytes], &mut packed);
        let unpacked = block::unpack(source.kind(), &packed, &mut again, &mut block::Scratch::default());
        assert!(unpacked.is_ok() && again == out[..bytes], "a block does not come back");
    }
    Ok(())
}

/// The same with right checksums, as far as there are any.
fn right(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let len = bytes.len() as u64;
    let Some((head, rest)) = bytes.split_first_chunk_mut::<HEAD_BYTES>() else { return bytes };
    let crc32 = crc32fast::hash(&head[..HEAD_BYTES - 4]);
    head[HEAD_BYTES - 4..].copy_from_slice(&crc32.to_le_bytes());
    let Ok(head) = Head::decode(head, len) else { return bytes };
    let index_bytes = usize::try_from(head.index_bytes()).ok();
    let Some((index, mut blocks)) = index_bytes.and_then(|bytes| rest.split_at_mut_checked(bytes)) else {
        return bytes;
    };
    let Some((entries, checksum)) = index.split_last_chunk_mut::<4>() else { return bytes };
    for [a, b, c, d, crc32 @ ..] in entries.as_chunks_mut::<8>().0 {
        let len = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let Some((block, rest)) = std::mem::take(&mut blocks).split_at_mut_checked(len) else { break };
        *crc32 = crc32fast::hash(block).to_le_bytes();
        blocks = rest;
    }
    *checksum = crc32fast::hash(entries).to_le_bytes();
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::packed::tests::weights;
    use crate::packed::{Kind, pack};

    /// Some thousand inputs, damaged at random from whole ones: what the fuzzer does for longer.
    #[test]
    fn damaged_bytes_are_refused_without_a_panic() {
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for (kind, raw) in [
            (Kind::Bf16, weights(1, 9001)),
            (Kind::Bf16, vec![3; 5000]),
            (Kind::Bytes, weights(2, 9000)),
            (Kind::Bytes, vec![0; 4097]),
        ] {
            let (file, _) = pack(&raw[..], raw.len() as u64, Cursor::new(Vec::new()), kind, 4096).unwrap();
            let whole = file.into_inner();
            assert!(fuzzed(&whole) && right(&whole) == whole);
            for _ in 0..3000 {
                let mut bytes = whole.clone();
                for _ in 0..1 + random(4) {
                    // Every other one in the head, the list of blocks, or the first code's lengths.
                    let at = if random(2) == 0 { random(bytes.len()) } else { random(200.min(bytes.len())) };
                    bytes[at] = random(256) as u8;
                }
                bytes.truncate(bytes.len() - random(3) * random(bytes.len()) / 4);
                assert_eq!(fuzzed(&bytes), bytes == whole);
            }
        }
    }
}
