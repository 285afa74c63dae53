//! Every kind of unusable input is one error that names the file and says what is wrong with it, and no bytes panic.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::error::Error as _;
use std::path::{Path, PathBuf};

use common::data;
use proptest::prelude::*;
use qvl_dataload::Error;
use qvl_dataload::vision::{DecodeLimits, Format, ProcessorConfig, Still, Video};

/// Writes `bytes` as `name`, opens it, and returns the error with the text the user would see.
fn check(name: &str, bytes: &[u8], limits: &DecodeLimits) -> (Error, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    failure(&path, limits)
}

fn failure(path: &Path, limits: &DecodeLimits) -> (Error, String) {
    let error = Still::open(path, limits).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(&path.display().to_string()), "{message} does not name {}", path.display());
    assert!(!message.contains('\n'), "{message:?} is more than a line");
    (error, message)
}

fn picture(file: &str) -> Vec<u8> {
    std::fs::read(data("pixels").join(file)).unwrap()
}

fn jpeg(file: &str) -> Vec<u8> {
    std::fs::read(data("jpeg").join(file)).unwrap()
}

fn default() -> DecodeLimits {
    DecodeLimits::default()
}

/// A file of each format and kind of coding.
fn samples() -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> = [
        "rgb_63x45.bmp",
        "p_local_40x30.gif",
        "rgb_59x44.webp",
        "rgb_lossy_90x62.webp",
        "rgba_lossy_91x63.webp",
        "rgb_17x31.png",
        "p4_51x37.png",
        "p_trns_58x40.png",
        "exif_6_53x29.png",
        "exif_6_59x44.webp",
    ]
    .iter()
    .map(|f| data("pixels").join(f))
    .collect();
    for file in [
        "420_17x3.jpg",
        "grey_141x99.jpg",
        "progressive_420_141x99.jpg",
        "restart_420_141x99.jpg",
        "cmyk_93x61.jpg",
        "exif6_420_141x99.jpg",
    ] {
        files.push(data("jpeg").join(file));
    }
    files.into_iter().map(|f| (f.clone(), std::fs::read(f).unwrap())).collect()
}

#[test]
fn missing_file() {
    let folder = tempfile::tempdir().unwrap();
    let (error, message) = failure(&folder.path().join("absent.png"), &default());
    assert!(matches!(error, Error::Missing { .. }));
    assert!(message.ends_with("absent.png: no such file"), "{message}");
}

#[test]
fn folder() {
    let folder = tempfile::tempdir().unwrap();
    let (error, message) = failure(folder.path(), &default());
    assert!(matches!(error, Error::Folder { .. }));
    assert!(message.ends_with("is a folder, expected a file"), "{message}");
}

#[test]
fn empty_file() {
    let (error, message) = check("empty.jpg", b"", &default());
    assert!(matches!(error, Error::Empty { .. }));
    assert!(message.ends_with("the file is empty (0 bytes)"), "{message}");
}

#[test]
fn text_that_is_called_png() {
    let (error, message) = check("notes.png", b"Dear all,\nno picture", &default());
    assert!(matches!(error, Error::Format { .. }));
    assert!(message.ends_with("(the file starts with \"Dear all,\\nno\")"), "{message}");
}

#[test]
fn bytes_of_no_known_format() {
    let (_, message) = check("x.jpg", &[0, 1, 2, 0xFE], &default());
    assert!(message.ends_with("(the file starts with the bytes 00 01 02 fe)"), "{message}");
}

#[test]
fn format_is_taken_from_the_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("really_a_png.jpg");
    std::fs::write(&path, picture("rgb_17x31.png")).unwrap();
    assert_eq!(Still::open(path, &default()).unwrap().width(), 17);
}

#[test]
fn truncated_jpeg_at_any_length() {
    for file in ["420_141x99.jpg", "progressive_420_141x99.jpg", "grey_141x99.jpg", "restart_420_141x99.jpg"]
    {
        let bytes = jpeg(file);
        let lengths = (3..bytes.len()).step_by(61).chain(bytes.len() - 16..bytes.len());
        for length in lengths {
            let error = Still::decode(&bytes[..length], "photo.jpg", &default()).unwrap_err();
            assert_eq!(error.to_string(), "photo.jpg: damaged or truncated JPEG data", "{file} at {length}");
            assert!(error.source().is_some());
        }
    }
}

#[test]
fn truncated_png_at_any_length() {
    let bytes = picture("rgb_64x64.png");
    // Up to the end of the pixel data; behind it follow its check sum and an empty chunk.
    for length in (9..bytes.len() - 24).step_by(37).chain([bytes.len() - 24]) {
        let error = Still::decode(&bytes[..length], "scan.png", &default()).unwrap_err();
        assert_eq!(error.to_string(), "scan.png: damaged or truncated PNG data", "at {length}");
        assert!(error.source().is_some());
    }
}

#[test]
fn truncated_files_of_other_formats() {
    for (file, format) in [
        ("rgb_59x44.webp", "WebP"),
        ("rgb_lossy_90x62.webp", "WebP"),
        ("p_local_40x30.gif", "GIF"),
        ("rgb_63x45.bmp", "BMP"),
    ] {
        let bytes = picture(file);
        for length in [bytes.len() / 2, bytes.len() * 3 / 4, bytes.len() - 20] {
            let error = Still::decode(&bytes[..length], "cut", &default()).unwrap_err();
            let expected = format!("cut: damaged or truncated {format} data");
            assert_eq!(error.to_string(), expected, "{file} at {length}");
        }
    }
}

#[test]
fn huge_png_is_refused_from_its_header() {
    let mut bytes = picture("rgb_17x31.png");
    bytes[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    // The check sum of the header is wrong now: the size is looked at first.
    let (error, message) = check("bomb.png", &bytes, &default());
    assert!(matches!(error, Error::PictureSize { width: 60_000, height: 60_000, .. }));
    let expected =
        "the header announces 60000x60000 pixels, the limits are 65535 a side and 178956970 in all";
    assert!(message.ends_with(expected), "{message}");
}

#[test]
fn limits_hold_for_every_format() {
    for (path, bytes) in samples() {
        let name = path.display().to_string();
        let still = Still::decode(&bytes, &name, &default()).unwrap();
        let exact = DecodeLimits {
            max_side: still.width().max(still.height()),
            max_pixels: u64::from(still.width()) * u64::from(still.height()),
            max_file_bytes: bytes.len() as u64,
        };
        Still::decode(&bytes, &name, &exact).unwrap();
        for limits in [
            DecodeLimits { max_side: exact.max_side - 1, ..exact },
            DecodeLimits { max_pixels: exact.max_pixels - 1, ..exact },
        ] {
            let error = Still::decode(&bytes, &name, &limits).unwrap_err();
            assert!(matches!(error, Error::PictureSize { .. }), "{name}: {error}");
        }
        let short = DecodeLimits { max_file_bytes: exact.max_file_bytes - 1, ..exact };
        let (_, message) = failure(&path, &short);
        let length = bytes.len();
        let expected = format!("has {length} bytes or more, the limit is {} bytes", length - 1);
        assert!(message.ends_with(&expected), "{message}");
    }
}

#[test]
fn formats_are_recognised() {
    for (path, bytes) in samples() {
        let expected = match path.extension().unwrap().to_str().unwrap() {
            "jpg" => Format::Jpeg,
            "png" => Format::Png,
            "webp" => Format::WebP,
            "gif" => Format::Gif,
            _ => Format::Bmp,
        };
        assert_eq!(Format::of(&bytes), Some(expected));
    }
}

#[test]
fn frames_of_different_size_name_the_frame() {
    let folder = data("pixels");
    let paths = [folder.join("rgb_64x64.png"), folder.join("rgb_64x64.png"), folder.join("rgb_3x5.png")];
    let message = Video::open_frames(&paths, 2.0, &default()).unwrap_err().to_string();
    let expected = format!("{}: has 3x5 pixels, the first frame of the video has 64x64", paths[2].display());
    assert_eq!(message, expected);
    let frame = |w, h| Still::from_rgb(w, h, vec![0; (w * h * 3) as usize]).unwrap();
    let message = Video::from_frames(vec![(0, frame(2, 2)), (1, frame(2, 3))], 2.0).unwrap_err().to_string();
    assert_eq!(message, "frame 1: has 2x3 pixels, the first frame of the video has 2x2");
}

#[test]
fn videos_that_make_no_sense() {
    let pixel = || Still::from_rgb(1, 1, vec![0; 3]).unwrap();
    let message = |frames, fps| Video::from_frames(frames, fps).unwrap_err().to_string();
    assert_eq!(message(vec![], 2.0), "the video has 0 frame(s), at least 1 are needed");
    for fps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(message(vec![(0, pixel())], fps).ends_with("expected a positive finite number"));
    }
    let backwards = message(vec![(5, pixel()), (4, pixel())], 2.0);
    assert_eq!(backwards, "frame 1 of the video has source index 4, expected at least 5");
    let config = ProcessorConfig::default();
    let sparse = Video::from_frames(vec![(0, pixel()), (9, pixel())], 2.0).unwrap();
    let message = sparse.sample(&config.video).unwrap_err().to_string();
    assert_eq!(message, "frame 1 of the video has source index 9, expected 1: it has been sampled already");
    let single = Video::from_frames(vec![(0, pixel())], 2.0).unwrap();
    let message = config.video(&single).unwrap_err().to_string();
    assert_eq!(message, "the video has 1 frame(s), at least 2 are needed");
}

#[test]
fn buffers_of_the_wrong_length() {
    let config = ProcessorConfig::default();
    let still = Still::from_rgb(8, 8, vec![0; 192]).unwrap();
    let grid = config.image_grid(8, 8).unwrap();
    let mut short = vec![7.0; grid.patches() * config.image.patch_values() - 1];
    let message = config.image_into(&still, &mut short).unwrap_err().to_string();
    assert_eq!(
        message,
        "the output buffer holds 393215 values, 393216 are needed for a grid of 1x16x16 patches"
    );
    assert!(short.iter().all(|v| *v == 7.0));
    let message = Still::from_rgb(2, 2, vec![0; 11]).unwrap_err().to_string();
    assert_eq!(message, "a 2x2 RGB picture takes 12 bytes, got 11");
}

/// Decodes, and if that gives a picture, takes it through to patches.
fn survive(bytes: &[u8]) {
    let limits = DecodeLimits { max_side: 512, max_pixels: 1 << 16, max_file_bytes: 1 << 20 };
    let mut config = ProcessorConfig::default();
    (config.image.min_pixels, config.image.max_pixels) = (1024, 4096);
    if let Ok(still) = Still::decode(bytes, "mutant", &limits) {
        assert_eq!(still.rgb().len(), (still.width() * still.height() * 3) as usize);
        let _ = config.image(&still);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), magic in 0usize..6) {
        let magics: [&[u8]; 6] = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\x40\0\0\0WEBPVP8L"];
        survive(&[magics[magic], &bytes].concat());
    }

    #[test]
    fn corrupted_files_never_panic(
        sample in 0usize..16,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        early in any::<bool>(),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (_, mut bytes) = samples().swap_remove(sample);
        // Headers are where most fields are.
        let reach = if early { bytes.len().min(96) } else { bytes.len() };
        for (at, byte) in edits {
            bytes[at.index(reach)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        survive(&bytes);
    }
}
