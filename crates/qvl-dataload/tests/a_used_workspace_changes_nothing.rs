//! Encoded bytes to patches in a workspace that has seen other pictures are the same bits as without one, for every
//! file there is, whole or damaged; and a workspace that has seen a picture does not grow when it sees it again.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::PathBuf;

use common::data;
use half::bf16;
use proptest::prelude::*;
use qvl_dataload::Error;
use qvl_dataload::vision::{DecodeLimits, Format, Header, ImageConfig, ProcessorConfig, Still, Workspace};

/// Every picture of the test data, small ones first.
fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let folders = ["pixels", "jpeg"];
    let paths = folders.iter().flat_map(|f| std::fs::read_dir(data(f)).unwrap().map(|e| e.unwrap().path()));
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|e| e != "json"))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort_by_key(|(path, bytes)| (bytes.len(), path.clone()));
    assert!(files.len() > 80);
    files
}

/// Settings under which no picture of the test data is large.
fn config() -> ProcessorConfig {
    let image = ImageConfig { min_pixels: 64 * 64, max_pixels: 256 * 256, ..ImageConfig::default() };
    ProcessorConfig { image, ..ProcessorConfig::default() }
}

/// The result of the old way, which begins with nothing: bits, or the text of the error.
fn fresh(config: &ProcessorConfig, bytes: &[u8]) -> Result<Vec<u32>, String> {
    let patches = Still::decode(bytes, "x", &DecodeLimits::default()).and_then(|still| config.image(&still));
    patches.map(|p| p.pixel_values.iter().map(|v| v.to_bits()).collect()).map_err(|e| e.to_string())
}

fn used(config: &ProcessorConfig, bytes: &[u8], workspace: &mut Workspace) -> Result<Vec<u32>, Error> {
    let limits = DecodeLimits::default();
    let grid = config.encoded_grid(bytes, "x", &limits)?;
    let mut out = vec![0.0f32; grid.patches() * config.image.patch_values()];
    assert_eq!(config.encoded_into(bytes, "x", &limits, workspace, &mut out)?, grid);
    Ok(out.iter().map(|v| v.to_bits()).collect())
}

#[test]
fn every_file_in_any_order() {
    let (config, files, limits) = (config(), files(), DecodeLimits::default());
    let mut workspace = Workspace::new();
    let mut most = 0;
    // Small pictures in memory of large ones, and the other way round.
    for (path, bytes) in files.iter().chain(files.iter().rev()) {
        let expected = fresh(&config, bytes).unwrap();
        assert!(used(&config, bytes, &mut workspace).unwrap() == expected, "{}", path.display());
        let mut out = vec![bf16::ZERO; expected.len()];
        config.encoded_into(bytes, "x", &limits, &mut workspace, &mut out).unwrap();
        most = most.max(workspace.bytes());
        let rounded = expected.iter().map(|bits| bf16::from_f32(f32::from_bits(*bits)));
        assert!(out.into_iter().eq(rounded), "{} as bf16", path.display());
    }
    assert!(most >= 2000 * 1500 * 3, "the largest picture is not held in {most} bytes");
    // Where pictures are turned, two buffers change places, and both come to have the size of the largest picture.
    for (path, bytes) in files.iter().chain(&files) {
        used(&config, bytes, &mut workspace).unwrap();
        assert!(workspace.bytes() <= most + 2000 * 1500 * 3, "{} made it grow", path.display());
    }
}

#[test]
fn headers_say_what_decoding_finds() {
    let limits = DecodeLimits::default();
    for (path, bytes) in files() {
        let (header, still) =
            (Header::read(&bytes, "x", &limits).unwrap(), Still::decode(&bytes, "x", &limits).unwrap());
        assert_eq!((header.width, header.height), (still.width(), still.height()), "{}", path.display());
        assert_eq!(header.decoded_bytes, still.rgb().len() as u64);
        assert_eq!(Some(header.format), Format::of(&bytes));
        // What needs the header only has the same error as what needs everything.
        let small =
            DecodeLimits { max_pixels: u64::from(header.width) * u64::from(header.height) - 1, ..limits };
        let narrow = DecodeLimits { max_side: header.width.max(header.height) - 1, ..limits };
        let short = DecodeLimits { max_file_bytes: bytes.len() as u64 - 1, ..limits };
        for limits in [small, narrow, short] {
            let expected = Still::decode(&bytes, "x", &limits).unwrap_err().to_string();
            assert_eq!(Header::read(&bytes, "x", &limits).unwrap_err().to_string(), expected);
        }
    }
    for bytes in [&b""[..], b"no picture"] {
        let expected = Still::decode(bytes, "x", &limits).unwrap_err().to_string();
        assert_eq!(Header::read(bytes, "x", &limits).unwrap_err().to_string(), expected);
    }
}

#[test]
fn buffers_are_checked_before_anything_is_decoded() {
    let (config, limits) = (config(), DecodeLimits::default());
    let mut bytes = std::fs::read(data("jpeg").join("420_141x99.jpg")).unwrap();
    // The header is whole, the pixels are not.
    bytes.truncate(bytes.len() / 2);
    let mut out = [7.0f32; 5];
    let mut workspace = Workspace::new();
    let error = config.encoded_into(&bytes, "x", &limits, &mut workspace, &mut out).unwrap_err();
    assert!(matches!(error, Error::OutputLength { got: 5, .. }), "{error}");
    assert_eq!((out, workspace.bytes()), ([7.0; 5], 0));
}

/// A baseline file that lacks a scan decodes to something; that must not be the last picture.
#[test]
fn what_a_file_lacks_is_not_filled_with_the_last_picture() {
    let config = config();
    let other = std::fs::read(data("pixels").join("rgb_1280x720.png")).unwrap();
    for file in ["420_141x99.jpg", "444_141x99.jpg", "progressive_420_141x99.jpg", "grey_141x99.jpg"] {
        let whole = std::fs::read(data("jpeg").join(file)).unwrap();
        for extra in [
            &b"\xFF\xDA"[..],
            b"\xFF\xFE\0\x04ab",
            b"\xFF\xD9",
            b"\xFF\xDA\0\x0C\x03\x01\0\x02\x11\x03\x11\0\x3F\0",
        ] {
            for at in (whole.len() / 4..whole.len()).step_by(97) {
                let bytes = [&whole[..at], extra, b"\xFF\xD9"].concat();
                let mut workspace = Workspace::new();
                used(&config, &other, &mut workspace).unwrap();
                let got = used(&config, &bytes, &mut workspace).map_err(|e| e.to_string());
                assert!(got == fresh(&config, &bytes), "{file}, {extra:?} at {at}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files(
        file in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let config = config();
        let files = files();
        let (path, mut bytes) = files[file.index(files.len() - 8)].clone();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let limits = DecodeLimits { max_pixels: 1 << 20, ..DecodeLimits::default() };
        if Header::read(&bytes, "x", &limits).is_ok() {
            let mut workspace = Workspace::new();
            used(&config, &files[files.len() - 9].1, &mut workspace).unwrap();
            let got = used(&config, &bytes, &mut workspace).map_err(|e| e.to_string());
            prop_assert!(got == fresh(&config, &bytes), "{}", path.display());
        }
    }
}
