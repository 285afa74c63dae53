//! Frames, sampling and timestamps of videos are what transformers' Qwen3VLVideoProcessor and Qwen3VLProcessor make.
//!
//! Resized frames are compared with torchvision on a CPU with AVX2, whose weights have fewer bits than Pillow's.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{data, hash_bytes, hash_f32, manifest};
use qvl_dataload::vision::{DecodeLimits, ProcessorConfig, Still, Video, VideoConfig};
use serde_json::Value;

fn open(case: &Value) -> Video {
    let frames = case["frames"].as_array().unwrap();
    let indices = case["source_indices"].as_array().unwrap();
    let frames = frames.iter().zip(indices).map(|(file, index)| {
        let still =
            Still::open(data("video").join(file.as_str().unwrap()), &DecodeLimits::default()).unwrap();
        (index.as_u64().unwrap(), still)
    });
    Video::from_frames(frames.collect(), case["fps"].as_f64().unwrap()).unwrap()
}

#[test]
fn every_video() {
    let manifest = manifest("video");
    let cases = manifest["videos"].as_array().unwrap();
    assert!(cases.len() >= 10, "the manifest lists only {} videos", cases.len());
    for case in cases {
        let name = &case["name"];
        let video = open(case);
        let config = ProcessorConfig::from_json(None, Some("{}"), Some(&case["config"].to_string())).unwrap();
        let grid = config.video_grid(video.frames().len(), video.width(), video.height()).unwrap();
        assert_eq!(common::grid(grid), case["grid"], "{name}: size");
        let resized = config.resized_video(&video).unwrap();
        let rgb: Vec<u8> = resized.into_iter().flat_map(Still::into_rgb).collect();
        assert_eq!(hash_bytes(&rgb), case["resized"], "{name}: resize");
        let patches = config.video(&video).unwrap();
        assert_eq!(patches.grid, grid);
        assert_eq!(hash_f32(&patches.pixel_values), case["pixel_values"], "{name}: patchify");
        let expected: Vec<f64> =
            case["timestamps"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
        assert_eq!(patches.timestamps, expected, "{name}: timestamps");
        assert_eq!(patches.timestamps.len(), grid.t as usize);
    }
}

#[test]
fn every_sampling() {
    let manifest = manifest("video");
    let config = VideoConfig::default();
    let pixel = || Still::from_rgb(1, 1, vec![0; 3]).unwrap();
    for case in manifest["sampled"].as_array().unwrap() {
        let (total, fps) = (case["total"].as_u64().unwrap(), case["fps"].as_f64().unwrap());
        let indices = config.sample_indices(total as usize, fps).unwrap();
        let text: Vec<String> = indices.iter().map(ToString::to_string).collect();
        assert_eq!(
            hash_bytes(text.join(",").as_bytes()),
            case["indices"],
            "{total} frames at {fps}: {indices:?}"
        );
        let video = Video::from_frames((0..total).map(|i| (i, pixel())).collect(), fps).unwrap();
        let sampled = video.sample(&config).unwrap();
        let kept: Vec<usize> = sampled.frames().iter().map(|f| f.source_index() as usize).collect();
        assert_eq!(kept, indices);
        let times: Vec<u8> = sampled.timestamps(2).iter().flat_map(|t| t.to_le_bytes()).collect();
        assert_eq!(hash_bytes(&times), case["timestamps"], "{total} frames at {fps}: timestamps");
    }
}
