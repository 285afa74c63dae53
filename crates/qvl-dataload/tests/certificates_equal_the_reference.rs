//! Certificates of the test pictures have the hashes that Python made of them, and tell where two programs part.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{data, manifest};
use qvl_dataload::vision::{
    Certificate, DecodeLimits, ImageConfig, JpegScale, ProcessorConfig, Stage, certificate,
};

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of(config: &ProcessorConfig, file: &str) -> Certificate {
    let bytes = std::fs::read(data("pixels").join(file)).unwrap();
    certificate(config, &bytes, file, &DecodeLimits::default()).unwrap()
}

fn sized(min_pixels: u64, max_pixels: u64) -> ProcessorConfig {
    let image = ImageConfig { min_pixels, max_pixels, ..ImageConfig::default() };
    ProcessorConfig { image, ..ProcessorConfig::default() }
}

#[test]
fn every_picture() {
    let manifest = manifest("pixels");
    for entry in manifest["pictures"].as_array().unwrap() {
        let file = entry["file"].as_str().unwrap();
        for case in entry["cases"].as_array().unwrap() {
            let number = |key: &str| case[key].as_u64().unwrap();
            let got = of(&sized(number("min_pixels"), number("max_pixels")), file);
            assert_eq!(hex(&got.decoded), entry["rgb"], "{file}: decode");
            let size = (u64::from(got.decoded_size.0), u64::from(got.decoded_size.1));
            assert_eq!(size, (entry["width"].as_u64().unwrap(), entry["height"].as_u64().unwrap()), "{file}");
            assert_eq!(hex(&got.resized), case["resized"], "{file}: resize");
            assert_eq!(common::grid(got.grid), case["grid"], "{file}: grid");
            assert_eq!(hex(&got.pixel_values), case["pixel_values"], "{file}: patchify");
        }
    }
}

#[test]
fn the_first_difference_is_named() {
    let (file, config) = ("rgb_70x96.png", ProcessorConfig::default());
    let first = of(&config, file);
    assert_eq!(first.first_difference(&of(&config, file)), None);
    assert_eq!(first.first_difference(&of(&config, "rgb_96x70.png")), Some(Stage::Decode));
    assert_eq!(first.first_difference(&of(&sized(1024, 1 << 20), file)), Some(Stage::Resize));
    let mut other = config.clone();
    other.image.image_mean = [0.4; 3];
    assert_eq!(first.first_difference(&of(&other, file)), Some(Stage::Patchify));
    assert_eq!(Stage::Patchify.to_string(), "patchify");
}

#[test]
fn it_is_printed_in_three_lines() {
    let text = of(&sized(1024, 1 << 20), "rgb_64x64.png").to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("decoded             64x64 "), "{text}");
    assert!(lines[2].starts_with("pixel_values        1x4x4 "), "{text}");
    assert!(lines.iter().all(|line| line.len() == 26 + 64), "{text}");
}

#[test]
fn exact_is_the_default() {
    assert_eq!(JpegScale::default(), JpegScale::Exact);
    assert_eq!(ImageConfig::default().jpeg_scale, JpegScale::Exact);
}
