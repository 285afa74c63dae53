//! What was packed comes back bit by bit, from memory and from a drive through an engine; what is damaged or cut is an
//! error that says where, without a panic and without memory for what is not there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![expect(unsafe_code, reason = "an allocator that notes the largest request down")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Cursor, Write};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use qvl_transfer::packed::{BLOCK_BYTES, Choice, Kind, PackedSource, PackedWriter, pack};
use qvl_transfer::source::{Fill, Memory};
use qvl_transfer::{Device, DriveFile, Error, HostDevice, Settings, Source, Transfer, TransferEngine};

/// The system's allocator, and the largest request of each thread.
struct Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// Numbers as weights have them: exponents that are mostly alike.
fn weights(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let numbers = (0..bytes.div_ceil(2)).flat_map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let exponent = 121 - ((state >> 40) as u32 | 1 << 20).trailing_zeros() as u16;
        ((state >> 20) as u16 & 0x807f | exponent << 7).to_le_bytes()
    });
    numbers.take(bytes).collect()
}

fn packed(raw: &[u8], kind: Kind, block_bytes: usize) -> Vec<u8> {
    let (file, summary) = pack(raw, raw.len() as u64, Cursor::new(Vec::new()), kind, block_bytes).unwrap();
    let file = file.into_inner();
    assert_eq!((summary.packed_bytes, summary.unpacked_bytes), (file.len() as u64, raw.len() as u64));
    file
}

fn unpacked(file: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Vec<u8>, Error> {
    let source = PackedSource::open(Memory::new(file))?;
    let mut out = vec![0xaa; source.len() as usize];
    source.fill(0, &mut out)?;
    Ok(out)
}

fn on_drive(bytes: &[u8]) -> (tempfile::NamedTempFile, DriveFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file.as_file().sync_all().unwrap();
    let opened = DriveFile::open(file.path()).unwrap();
    (file, opened)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_in_any_parts(
        raw in prop::collection::vec(any::<u8>(), 0..20_000),
        mask: u8,
        weigh: bool,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let raw = if weigh { weights(mask.into(), raw.len()) } else { raw.iter().map(|b| b & mask).collect() };
        for kind in [Kind::Bf16, Kind::Bytes] {
            let source = PackedSource::open(Memory::new(packed(&raw, kind, 4096))).unwrap();
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(raw.len() + 1)).collect();
            ends.extend([0, raw.len()]);
            ends.sort_unstable();
            for pair in ends.windows(2) {
                let mut out = vec![0xaa; pair[1] - pair[0]];
                source.fill(pair[0] as u64, &mut out).unwrap();
                prop_assert!(out == raw[pair[0]..pair[1]]);
            }
            let beyond = source.fill(1, &mut vec![0; raw.len()]).unwrap_err();
            prop_assert!(matches!(beyond, Error::Range { .. }), "{beyond}");
        }
    }
}

#[test]
fn through_an_engine_from_a_drive_and_from_what_is_neither() {
    let raw = weights(5, 5 * BLOCK_BYTES + 12_345);
    let file = packed(&raw, Kind::Bf16, BLOCK_BYTES);
    assert!(file.len() < raw.len() * 7 / 10, "{} of {}", file.len(), raw.len());
    let engine = TransferEngine::new(HostDevice::new(64 << 20), Settings::default()).unwrap();
    let arrive = |source: Arc<dyn Source>| {
        let memory = engine.device().allocate(source.len() as usize).unwrap();
        let expected = crc32fast::hash(&raw);
        engine.submit(Transfer::new(source, memory).expect_crc32(expected)).unwrap().wait().unwrap().memory
    };
    // Within a larger file, at an odd place.
    let (_kept, drive) = on_drive(&[&[1; 777][..], &file, &[2; 99]].concat());
    let range = drive.range(777, file.len() as u64).unwrap();
    let source = PackedSource::open(range).unwrap();
    assert_eq!(source.kind(), Kind::Bf16);
    assert_eq!(source.summary().raw_blocks, 0);
    assert!(arrive(Arc::new(source))[..] == raw);

    let bytes = file.clone();
    let fill = Fill::new("a socket", file.len() as u64, move |at, into: &mut [u8]| {
        into.copy_from_slice(&bytes[at as usize..][..into.len()]);
        Ok(())
    });
    assert!(arrive(Arc::new(PackedSource::open(fill).unwrap()))[..] == raw);
}

#[test]
fn a_block_that_does_not_get_smaller_stays_as_it_is() {
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..3 * 4096)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    let raw = [&noise[..], &[0; 4096]].concat();
    let file = packed(&raw, Kind::Bf16, 4096);
    let source = PackedSource::open(Memory::new(file.clone())).unwrap();
    assert_eq!((source.summary().blocks, source.summary().raw_blocks), (4, 3));
    assert!(unpacked(file).unwrap() == raw);
}

#[test]
fn every_byte_matters_and_every_cut_is_seen() {
    let raw = weights(3, 9_001);
    let file = packed(&raw, Kind::Bf16, 4096);
    for at in 0..file.len() {
        for change in [1, 0x80, 0xff] {
            let mut damaged = file.clone();
            damaged[at] ^= change;
            LARGEST.set(0);
            let error = unpacked(damaged).unwrap_err();
            assert!(matches!(error, Error::Packed { .. }), "byte {at}: {error}");
            assert!(LARGEST.get() <= 64 << 10, "byte {at}: {} bytes at once", LARGEST.get());
        }
    }
    for len in 0..file.len() {
        LARGEST.set(0);
        let error = unpacked(file[..len].to_vec()).unwrap_err();
        assert!(matches!(error, Error::Packed { .. }), "cut at {len}: {error}");
        assert!(LARGEST.get() <= 64 << 10, "cut at {len}: {} bytes at once", LARGEST.get());
    }
    let longer = [&file[..], &[0]].concat();
    assert!(unpacked(longer).unwrap_err().to_string().contains("belong to it"));
}

#[test]
fn a_head_that_promises_much_gets_no_memory() {
    let raw = weights(3, 9_001);
    let file = packed(&raw, Kind::Bf16, 4096);
    // 4 Gi blocks, consistently, with the right checksum.
    let mut bomb = file;
    bomb[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    bomb[24..32].copy_from_slice(&(4096 * u64::from(u32::MAX)).to_le_bytes());
    bomb[32..40].copy_from_slice(&(1_u64 << 50).to_le_bytes());
    let crc32 = crc32fast::hash(&bomb[..40]).to_le_bytes();
    bomb[40..44].copy_from_slice(&crc32);
    LARGEST.set(0);
    let error = unpacked(bomb).unwrap_err();
    assert!(error.to_string().contains("its head says 1125899906842624"), "{error}");
    assert!(LARGEST.get() <= 64 << 10, "{} bytes at once", LARGEST.get());
}

#[test]
fn errors_name_the_file_and_the_block() {
    let raw = weights(3, 3 * 4096);
    let mut file = packed(&raw, Kind::Bf16, 4096);
    let last = file.len() - 1;
    file[last] ^= 1;
    let (kept, drive) = on_drive(&file);
    let source = PackedSource::open(drive.whole()).unwrap();
    let error = source.fill(0, &mut vec![0; raw.len()]).unwrap_err().to_string();
    assert!(error.contains(&format!("{}, block 2", kept.path().display())), "{error}");
    source.fill(0, &mut vec![0; 2 * 4096]).unwrap();

    let cut = drive.range(0, last as u64).unwrap();
    let error = PackedSource::open(cut).unwrap_err();
    assert!(
        matches!(error, Error::Truncated { bytes, len, .. } if (bytes, len) == (last as u64 + 1, last as u64))
    );
    let other = drive.range(1, 200).unwrap();
    let error = PackedSource::open(other).unwrap_err().to_string();
    assert!(error.contains("does not begin with \"qvlpackd\""), "{error}");
}

#[test]
fn a_file_that_was_not_finished_is_none() {
    let raw = weights(3, 9_000);
    let mut to = Cursor::new(Vec::new());
    let mut writer = PackedWriter::new(&mut to, raw.len() as u64, Kind::Bf16, 4096).unwrap();
    writer.push(&raw[..8_999]).unwrap();
    let error = writer.push(&raw[..2]).unwrap_err();
    assert!(matches!(error, Error::Range { .. }), "{error}");
    let error = writer.finish().unwrap_err();
    assert!(error.to_string().contains("8999 bytes came, 9000 were expected"), "{error}");
    assert!(unpacked(to.into_inner()).is_err());

    let error = pack(&raw[..], 9_001, Cursor::new(Vec::new()), Kind::Bf16, 4096).unwrap_err();
    assert!(matches!(error, Error::Source { at: 8192, .. }), "{error}");
    for wrong in [0, 4095, 16 << 20] {
        let error = pack(&raw[..], 9_000, Cursor::new(Vec::new()), Kind::Bf16, wrong).unwrap_err();
        assert!(matches!(error, Error::Setting { name: "block_bytes", .. }), "{error}");
    }
}

#[test]
fn which_is_faster_is_measured_on_the_same_bytes() {
    let raw = weights(9, 3 * BLOCK_BYTES + 100);
    let (_kept, as_it_is) = on_drive(&raw);
    let (_kept, drive) = on_drive(&packed(&raw, Kind::Bf16, BLOCK_BYTES));
    let source = Arc::new(PackedSource::open(drive.whole()).unwrap());
    let engine = TransferEngine::new(HostDevice::new(64 << 20), Settings::default()).unwrap();
    let time = Duration::from_millis(20);
    let choice = Choice::measure(&engine, &as_it_is.whole(), &source, 2 * BLOCK_BYTES, time).unwrap();
    assert!(choice.raw.samples >= 3 && choice.packed.samples >= 3, "{choice:?}");
    assert_eq!(choice, Choice::of(choice.raw, choice.packed));
    let shorter = as_it_is.range(0, raw.len() as u64 - 1).unwrap();
    let error = Choice::measure(&engine, &shorter, &source, BLOCK_BYTES, time).unwrap_err();
    assert!(matches!(error, Error::Setting { name: "packed", .. }), "{error}");
}
