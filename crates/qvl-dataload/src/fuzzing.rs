//! What reads bytes from outside, as functions of bytes alone: for fuzzing, and for tests of the same inputs.
//!
//! Not part of the interface; it changes without notice. Each returns whether the bytes were accepted.

use std::io::Cursor;

use crate::source::manifest::Line;
use crate::source::tar::member::Scan;
use crate::vision::{DecodeLimits, Still};

/// Decodes a picture of at most 256 pixels a side, so that a run is short and needs little memory.
pub fn picture(bytes: &[u8]) -> bool {
    let limits = DecodeLimits { max_side: 256, max_pixels: 1 << 14, max_file_bytes: 1 << 20 };
    match Still::decode(bytes, "input", &limits) {
        Ok(still) => {
            let pixels = still.width() as usize * still.height() as usize;
            assert!(pixels > 0 && pixels <= 1 << 14, "a picture over the limits");
            assert_eq!(still.rgb().len(), pixels * 3, "a picture without all its pixels");
            true
        }
        Err(error) => says_one_line(&error),
    }
}

/// Scans a tar archive: as it is, and once more with a right checksum in each block, which changes made at random
/// would hardly ever hit.
pub fn tar(bytes: &[u8]) -> bool {
    let mut summed = bytes.to_vec();
    for block in summed.as_chunks_mut::<512>().0.iter_mut().filter(|block| block[0] != 0) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    scan(&summed);
    scan(bytes)
}

fn scan(bytes: &[u8]) -> bool {
    let length = bytes.len() as u64;
    let Ok(scan) = Scan::of(Cursor::new(bytes), length) else { return false };
    let mut end = 0;
    for member in &scan.members {
        assert!(member.offset >= end + 512, "a member in another one's place");
        end = member.offset + member.bytes;
        assert!(end <= length, "a member that ends after the archive");
    }
    if let Some(flaw) = &scan.damage {
        assert!(flaw.offset <= length && flaw.offset >= end, "damage in the place of a member");
        assert!(!flaw.what.contains('\n'), "{:?} is more than a line", flaw.what);
    }
    scan.damage.is_none()
}

/// Parses a line of a manifest that names at most 64 pictures.
pub fn manifest_line(bytes: &[u8]) -> bool {
    match Line::parse(bytes, 64) {
        Ok(line) => {
            assert!(line.media.len() <= 128, "more pictures and videos than the limit");
            true
        }
        Err(wrong) => {
            assert!(!wrong.what.contains('\n'), "{:?} is more than a line", wrong.what);
            false
        }
    }
}

fn says_one_line(error: &crate::Error) -> bool {
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message:?} is more than a line");
    false
}
