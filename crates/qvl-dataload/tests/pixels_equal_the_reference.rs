//! Every stage of a still picture, decode, resize and patchify, is what transformers on Pillow 12 makes of it.
//!
//! The pictures and the expected hashes come from `xtask/python/make_pixel_cases.py`. A failure names the first stage
//! that differs: everything after it differs in consequence.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{data, hash_bytes, hash_f32, manifest};
use qvl_dataload::vision::{DecodeLimits, ImageConfig, ProcessorConfig, Still};
use serde_json::Value;

/// The first difference between a picture and its entry in the manifest.
fn check(entry: &Value) -> Result<(), String> {
    let file = entry["file"].as_str().unwrap();
    let still =
        Still::open(data("pixels").join(file), &DecodeLimits::default()).map_err(|e| e.to_string())?;
    let size = (u64::from(still.width()), u64::from(still.height()));
    let expected = (entry["width"].as_u64().unwrap(), entry["height"].as_u64().unwrap());
    if size != expected {
        return Err(format!("decode: size {size:?}, expected {expected:?}"));
    }
    if hash_bytes(still.rgb()) != entry["rgb"] {
        return Err("decode: the RGB differs".to_owned());
    }
    for case in entry["cases"].as_array().unwrap() {
        let (min_pixels, max_pixels) =
            (case["min_pixels"].as_u64().unwrap(), case["max_pixels"].as_u64().unwrap());
        let config = ProcessorConfig {
            image: ImageConfig { min_pixels, max_pixels, ..ImageConfig::default() },
            ..ProcessorConfig::default()
        };
        let stage = |stage: &str| format!("{stage}, at {min_pixels} to {max_pixels} pixels");
        let grid = config.image_grid(still.width(), still.height()).map_err(|e| e.to_string())?;
        if common::grid(grid) != case["grid"] {
            return Err(format!("{}: {grid:?}, expected {}", stage("size"), case["grid"]));
        }
        let resized = config.resized_image(&still).map_err(|e| e.to_string())?;
        if hash_bytes(resized.rgb()) != case["resized"] {
            return Err(format!("{}: the RGB differs", stage("resize")));
        }
        let patches = config.image(&still).map_err(|e| e.to_string())?;
        assert_eq!(patches.grid, grid);
        if hash_f32(&patches.pixel_values) != case["pixel_values"] {
            return Err(format!("{}: pixel_values differ", stage("patchify")));
        }
    }
    Ok(())
}

#[test]
fn every_stage_of_every_picture() {
    let manifest = manifest("pixels");
    let pictures = manifest["pictures"].as_array().unwrap();
    assert!(pictures.len() >= 36, "the manifest lists only {} pictures", pictures.len());
    let failures: Vec<String> = pictures
        .iter()
        .filter_map(|p| check(p).err().map(|e| format!("{} ({}): {e}", p["file"], p["what"])))
        .collect();
    assert!(failures.is_empty(), "{} of {} differ:\n{}", failures.len(), pictures.len(), failures.join("\n"));
}

#[test]
fn every_setting_of_the_processor() {
    let manifest = manifest("pixels");
    let settings = &manifest["settings"];
    let path = data("pixels").join(settings["file"].as_str().unwrap());
    let still = Still::open(path, &DecodeLimits::default()).unwrap();
    for case in settings["cases"].as_array().unwrap() {
        // What transformers writes for its processor is what this crate reads.
        let config = ProcessorConfig::from_json(None, Some(&case["config"].to_string()), Some("{}")).unwrap();
        let patches = config.image(&still).unwrap();
        assert_eq!(common::grid(patches.grid), case["grid"], "{}", case["config"]);
        assert_eq!(hash_f32(&patches.pixel_values), case["pixel_values"], "{}", case["config"]);
    }
}
