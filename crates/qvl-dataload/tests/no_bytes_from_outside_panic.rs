//! The functions that are fuzzed take some thousands of changed pictures, archives and lines without a panic, each in
//! a time and a memory that do not depend on what the bytes announce.
//!
//! The changes are the same in every run. Longer runs of the same functions: `cargo fuzz run picture` (`tar`,
//! `manifest_line`) in the folder of this crate, with a nightly compiler.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/archives.rs"]
mod archives;
mod common;

use archives::archive;
use common::data;
use qvl_dataload::fuzzing;

/// A small generator, so that the changes are the same everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

/// Changes bytes in some of the ways that break parsers.
fn change(random: &mut Random, original: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'9', b'/'][random.below(8)],
            3 => {
                let end = (at + random.below(9)).min(bytes.len());
                bytes[at.min(end)..end].fill([0, 0xff, b'7'][random.below(3)]);
            }
            4 => {
                let end = (at + random.below(64)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            5 => {
                let end = (at + random.below(64)).min(bytes.len());
                let again = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, again);
            }
            6 => {
                let from = random.below(other.len());
                let end = (from + random.below(600)).min(other.len());
                let at = at.min(bytes.len());
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            _ => {
                let (from, value) = (random.below(bytes.len()), random.below(256) as u8);
                if let Some(byte) = bytes.get_mut(from) {
                    *byte = value;
                }
            }
        }
    }
    bytes
}

/// Runs so many changes of each seed; every seed itself is accepted.
fn check(seeds: &[Vec<u8>], changes: usize, accepts: fn(&[u8]) -> bool) {
    let mut random = Random(0x5eed);
    for (number, seed) in seeds.iter().enumerate() {
        assert!(accepts(seed), "seed {number} is not accepted");
        let other = &seeds[(number + 1) % seeds.len()];
        for _ in 0..changes {
            accepts(&change(&mut random, seed, other));
        }
    }
}

#[test]
fn changed_pictures() {
    let seeds: Vec<Vec<u8>> = ["jpeg", "pixels"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(data(folder)).unwrap())
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .filter(|bytes| bytes.len() < 100_000 && fuzzing::picture(bytes))
        .collect();
    assert!(seeds.len() > 10, "only {} pictures are small enough", seeds.len());
    check(&seeds, 3_000 / seeds.len(), fuzzing::picture);
}

#[test]
fn changed_archives() {
    let long = format!("{}/{}.jpg", "d".repeat(120), "n".repeat(60));
    let mut pax = tar::Builder::new(Vec::new());
    pax.append_pax_extensions([("path", long.as_bytes()), ("size", b"3")]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("a.jpg").unwrap();
    header.set_size(3);
    header.set_cksum();
    pax.append(&header, &b"123"[..]).unwrap();
    let mut seeds = vec![
        archive(&[("a.jpg", &[1; 600]), ("a.json", b"{}")]),
        archive(&[(&long, b"1"), ("b.jpg", b"")]),
        pax.into_inner().unwrap(),
    ];
    check(&seeds, 1_000, fuzzing::tar);
    // A change of a header is caught by its checksum, so headers with the right checksum are changed as well.
    let mut random = Random(7);
    for seed in &mut seeds {
        for _ in 0..1_000 {
            let mut bytes = seed.clone();
            let block = random.below(bytes.len() / 512) * 512;
            for _ in 0..3 {
                let at = block + [0, 124, 124 + random.below(12), 156, 257, 345][random.below(6)];
                bytes[at] = [0, b'0', b'7', b'x', b'L', b'K', b'g', b'S', 0x80, 0xff][random.below(10)];
            }
            let mut header = tar::Header::from_byte_slice(&bytes[block..block + 512]).clone();
            header.set_cksum();
            bytes[block..block + 512].copy_from_slice(header.as_bytes());
            fuzzing::tar(&bytes);
        }
    }
}

#[test]
fn changed_lines() {
    let seeds = [
        r#"{"image": "a.jpg", "text": "\u00e9\n"}"#,
        r#"{"images": ["a", {"path": "b"}, "data:image/png;base64,AQID"], "n": 1e300}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}], "image": "file:///a%20b"}"#,
        r#"{"messages": [{"content": [{"type": "image_url", "image_url": {"url": "a"}}, {"type": "video", "video": ["a", "b"], "fps": 2}]}]}"#,
        r#"{"videos": ["v", {"video": "w", "fps": 29.97}], "fps": 25, "image": null}"#,
    ];
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|line| line.as_bytes().to_vec()).collect();
    check(&seeds, 2_000, fuzzing::manifest_line);
}
