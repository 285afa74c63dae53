//! Which file wins, what is assumed where a file is silent, and what is refused.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use proptest::prelude::*;
use qvl_dataload::vision::{ImageConfig, ProcessorConfig, VideoConfig};

const SIZE: &str = r#"{"size": {"shortest_edge": 4096, "longest_edge": 8192}}"#;

fn image(json: &str) -> ImageConfig {
    ProcessorConfig::from_json(None, Some(json), Some("{}")).unwrap().image
}

fn video(json: &str) -> VideoConfig {
    ProcessorConfig::from_json(None, None, Some(json)).unwrap().video
}

/// The message for a `preprocessor_config.json` that is refused.
fn refused(json: &str) -> String {
    ProcessorConfig::from_json(None, Some(json), Some("{}")).unwrap_err().to_string()
}

#[test]
fn silence_means_the_published_settings() {
    let config = ProcessorConfig::from_json(None, None, None).unwrap();
    assert_eq!(config, ProcessorConfig::default());
    assert_eq!((config.image.min_pixels, config.image.max_pixels), (65_536, 16_777_216));
    assert_eq!((config.video.min_pixels, config.video.max_pixels), (131_072, 786_432));
    assert_eq!((config.video.fps, config.video.min_frames, config.video.max_frames), (2.0, 4, 768));
    assert!(!config.video.cap_pixels_per_frame);
    assert_eq!(ProcessorConfig::from_dir(tempfile::tempdir().unwrap().path()).unwrap(), config);
}

#[test]
fn nested_settings_win_over_files_and_files_are_not_merged() {
    let nested = format!(r#"{{"image_processor": {SIZE}, "video_processor": {SIZE}}}"#);
    let file = r#"{"size": {"shortest_edge": 1, "longest_edge": 2}, "merge_size": 4}"#;
    let config = ProcessorConfig::from_json(Some(&nested), Some(file), Some(file)).unwrap();
    assert_eq!((config.image.min_pixels, config.image.merge_size), (4096, 2));
    assert_eq!((config.video.min_pixels, config.video.merge_size), (4096, 2));
    let config =
        ProcessorConfig::from_json(Some(r#"{"processor_class": "x"}"#), Some(file), Some(SIZE)).unwrap();
    assert_eq!((config.image.min_pixels, config.image.merge_size), (1, 4));
    assert_eq!((config.video.min_pixels, config.video.merge_size), (4096, 2));
}

#[test]
fn video_falls_back_to_the_image_file() {
    let config = ProcessorConfig::from_json(None, Some(SIZE), None).unwrap();
    assert_eq!((config.video.min_pixels, config.video.max_pixels), (4096, 8192));
}

#[test]
fn older_pixel_limits_win_over_size() {
    let config = image(r#"{"min_pixels": 5000, "size": {"shortest_edge": 4096, "longest_edge": 8192}}"#);
    assert_eq!((config.min_pixels, config.max_pixels), (5000, 8192));
    let config = image(r#"{"min_pixels": 5000, "max_pixels": 6000}"#);
    assert_eq!((config.min_pixels, config.max_pixels), (5000, 6000));
}

#[test]
fn video_limits_without_effect_are_refused() {
    let error =
        ProcessorConfig::from_json(None, None, Some(r#"{"max_pixels": 6000}"#)).unwrap_err().to_string();
    let expected = "video_preprocessor_config.json: max_pixels is 6000, expected 786432 as in size (the reference \
                    reads nothing else for videos)";
    assert_eq!(error, expected);
    assert_eq!(video(r#"{"max_pixels": 786432}"#).max_pixels, 786_432);
}

#[test]
fn published_files_are_read() {
    let config = image(
        r#"{"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2,
            "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"}"#,
    );
    assert_eq!(config, ImageConfig::default());
    let config = video(
        r#"{"size": {"longest_edge": 25165824, "shortest_edge": 4096}, "patch_size": 16, "temporal_patch_size": 2,
            "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            "processor_class": "Qwen3VLProcessor", "video_processor_type": "Qwen3VLVideoProcessor"}"#,
    );
    let expected = VideoConfig { min_pixels: 4096, max_pixels: 25_165_824, ..VideoConfig::default() };
    assert_eq!(config, expected);
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    for (json, expected) in [
        (r#"{"resample": 2}"#, "resample is 2, expected 3 (bicubic)"),
        (r#"{"do_pad": true}"#, "do_pad is true, expected false: the Qwen3-VL processors do neither"),
        (r#"{"do_resize": "no"}"#, "do_resize is \"no\", expected true or false"),
        (r#"{"patch_size": 0}"#, "patch_size is 0, expected 1 to 128"),
        (r#"{"patch_size": -16}"#, "patch_size is -16, expected a whole number"),
        (r#"{"merge_size": 100}"#, "merge_size is 100, expected 1 to 16"),
        (r#"{"image_std": [0.5, 0, 0.5]}"#, "image_std is 0.0, expected positive finite numbers"),
        (r#"{"image_mean": [0.5]}"#, "image_mean is [0.5], expected three numbers"),
        (r#"{"rescale_factor": 0}"#, "rescale_factor is 0.0, expected a positive finite number"),
        (r#"{"min_pixels": 0}"#, "size.shortest_edge is 0, expected an area of 1 to 67108864"),
        (
            r#"{"size": {"shortest_edge": 9}}"#,
            "size is {\"shortest_edge\":9}, expected an object with the whole numbers shortest_edge and longest_edge",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor"}"#,
            "image_processor_type is \"CLIPImageProcessor\", expected the processor of Qwen3-VL",
        ),
    ] {
        assert_eq!(refused(json), format!("preprocessor_config.json: {expected}"));
    }
    assert_eq!(refused("[1]"), "preprocessor_config.json: not a JSON object");
    assert_eq!(refused("{"), "preprocessor_config.json: not a JSON object");
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent");
    let message = ProcessorConfig::from_dir(&path).unwrap_err().to_string();
    assert_eq!(message, format!("{}: no such file", path.display()));
}

#[test]
fn errors_name_the_file_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("processor_config.json");
    std::fs::write(&path, r#"{"video_processor": {"num_frames": 8}}"#).unwrap();
    let message = ProcessorConfig::from_dir(folder.path()).unwrap_err().to_string();
    let expected = format!(
        "{}: video_processor: num_frames is 8, expected null: frames are sampled by fps, or by the caller",
        path.display()
    );
    assert_eq!(message, expected);
}

#[test]
fn without_resizing_sides_must_be_whole_patches() {
    let mut config = ProcessorConfig::default();
    config.image.do_resize = false;
    config.video.do_resize = false;
    assert_eq!(config.image_grid(96, 64).unwrap().w, 6);
    let message = config.image_grid(100, 64).unwrap_err().to_string();
    assert_eq!(message, "do_resize is false and 100x64 is not a multiple of 32 in both directions");
    assert_eq!(config.video_grid(3, 96, 64).unwrap().t, 2);
}

/// JSON of the kind these files have, with values of every type in every place.
fn settings() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "size",
        "min_pixels",
        "max_pixels",
        "patch_size",
        "merge_size",
        "temporal_patch_size",
        "resample",
        "do_resize",
        "do_rescale",
        "do_pad",
        "rescale_factor",
        "image_mean",
        "image_std",
        "fps",
        "max_frames",
        "cap_pixels_per_frame",
        "max_video_tokens",
        "image_processor_type",
        "other",
    ]);
    let value = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        (0u64..70).prop_map(|n| n.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("JSON has no infinity", |n| n.is_finite()).prop_map(|n| n.to_string()),
        Just("[0.5, 0.5, 0.5]".to_owned()),
        Just("{}".to_owned()),
        (any::<u64>(), any::<u64>())
            .prop_map(|(a, b)| format!(r#"{{"shortest_edge": {a}, "longest_edge": {b}}}"#)),
        (1u64..5000, 5000u64..90_000)
            .prop_map(|(a, b)| format!(r#"{{"shortest_edge": {a}, "longest_edge": {b}}}"#)),
    ];
    proptest::collection::vec((key, value), 0..5).prop_map(|pairs| {
        let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key:?}: {value}")).collect();
        format!("{{{}}}", pairs.join(", "))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn settings_that_are_accepted_give_grids_or_errors(image in settings(), video in settings(), side in 1u32..3000) {
        if let Ok(config) = ProcessorConfig::from_json(None, Some(&image), Some(&video)) {
            // No settings enlarge a small picture beyond bounds; a patch is at least a pixel, and sides are rounded up.
            let most = 2 * ((1 << 26) + 1024 * 1024) + u64::from(side) * 100;
            for grid in [config.image_grid(side, 100), config.video_grid(side as usize % 9, side, 100)] {
                let patches = grid.map_or(0, |grid| u64::from(grid.h) * u64::from(grid.w));
                prop_assert!(patches <= most, "{patches} patches");
            }
            let _ = config.video.sample_indices(side as usize, 25.0);
        }
    }
}
