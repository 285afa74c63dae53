//! Settings of the image and the video processor, and the files they are read from.
//!
//! A checkpoint folder may hold three files. As in transformers 5.23:
//!
//! | settings | first of these that is there |
//! |---|---|
//! | image | `image_processor` in `processor_config.json`; `preprocessor_config.json` |
//! | video | `video_processor` in `processor_config.json`; `video_preprocessor_config.json`; `preprocessor_config.json` |
//!
//! Files are not merged: what the first one leaves out has its default, not the next file's value. Defaults are those
//! of the published Qwen3-VL checkpoints for images and those of `Qwen3VLVideoProcessor` for video.
//!
//! A key whose value changes pixels or tokens and is not implemented is an error; other keys are ignored.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

const PROCESSOR_FILE: &str = "processor_config.json";
const IMAGE_FILE: &str = "preprocessor_config.json";
const VIDEO_FILE: &str = "video_preprocessor_config.json";
/// Pillow's number for bicubic, which transformers writes.
const BICUBIC: u64 = 3;
/// Largest patch size, temporal patch size and merge size. No checkpoint comes near; with the limit below they keep a
/// settings file from asking for more memory than its pictures.
const LARGEST_PATCH: u32 = 128;
const LARGEST_TEMPORAL_PATCH: u32 = 16;
const LARGEST_MERGE: u32 = 16;
/// The largest `min_pixels`, to which small pictures are enlarged.
const LARGEST_MIN_PIXELS: u64 = 1 << 26;

/// How stills and videos are brought into the form the model reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessorConfig {
    /// Settings for stills.
    pub image: ImageConfig,
    /// Settings for videos.
    pub video: VideoConfig,
}

/// Settings for stills. The default is that of the published Qwen3-VL checkpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageConfig {
    /// Side of a patch in pixels.
    pub patch_size: u32,
    /// Frames in a temporal patch; a still fills them all.
    pub temporal_patch_size: u32,
    /// Patches a side that are merged into one visual token.
    pub merge_size: u32,
    /// The fewest pixels after resizing, `size.shortest_edge` in the file: an area in spite of that name.
    pub min_pixels: u64,
    /// The most pixels after resizing, `size.longest_edge` in the file: an area in spite of that name.
    pub max_pixels: u64,
    /// Whether to resize; without it, sides must be multiples of `patch_size * merge_size`.
    pub do_resize: bool,
    /// Whether to multiply by `rescale_factor`.
    pub do_rescale: bool,
    /// What bytes are multiplied by, 1/255 as a rule.
    pub rescale_factor: f64,
    /// Whether to subtract the mean and divide by the deviation.
    pub do_normalize: bool,
    /// Mean of R, G and B.
    pub image_mean: [f64; 3],
    /// Standard deviation of R, G and B.
    pub image_std: [f64; 3],
    /// How encoded JPEG files are decoded; not among the settings of a checkpoint. A [`Still`](crate::vision::Still)
    /// has been decoded already, so this concerns only methods that take encoded bytes.
    pub jpeg_scale: JpegScale,
}

/// At which size a JPEG is decoded that is to be made much smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum JpegScale {
    /// At its own: pixels are those of the reference.
    #[default]
    Exact,
    /// At a half, a quarter or an eighth, whichever is the smallest that is not below the target in either direction,
    /// and resized from there. **Not what the reference does**: faster, and a few levels away from it. The grid does
    /// not change. Needs the feature `libjpeg-turbo`; without it this setting is an error, never ignored.
    Inexact,
}

/// Settings for videos. The default is that of transformers' `Qwen3VLVideoProcessor`.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoConfig {
    /// Side of a patch in pixels.
    pub patch_size: u32,
    /// Frames in a temporal patch.
    pub temporal_patch_size: u32,
    /// Patches a side that are merged into one visual token.
    pub merge_size: u32,
    /// The fewest pixels after resizing, over all frames: `size.shortest_edge` in the file.
    pub min_pixels: u64,
    /// The most pixels after resizing, over all frames: `size.longest_edge` in the file.
    pub max_pixels: u64,
    /// Whether to resize; without it, sides must be multiples of `patch_size * merge_size`.
    pub do_resize: bool,
    /// Whether to multiply by `rescale_factor`.
    pub do_rescale: bool,
    /// What bytes are multiplied by, 1/255 as a rule.
    pub rescale_factor: f64,
    /// Whether to subtract the mean and divide by the deviation.
    pub do_normalize: bool,
    /// Mean of R, G and B.
    pub image_mean: [f64; 3],
    /// Standard deviation of R, G and B.
    pub image_std: [f64; 3],
    /// Whether the reference would sample frames by itself. Here sampling is a step of the caller's,
    /// [`Video::sample`](crate::vision::Video::sample), and this says whether the checkpoint asks for it.
    pub do_sample_frames: bool,
    /// Frames per second to sample.
    pub fps: f64,
    /// The fewest frames to sample.
    pub min_frames: u32,
    /// The most frames to sample.
    pub max_frames: u32,
    /// Whether each frame is limited to `max_video_tokens` and its even share of `max_pixels`, as qwen-vl-utils
    /// does. transformers 5.23 does not unless told to, and has announced that its default will change; the default
    /// here will not change within a major version.
    pub cap_pixels_per_frame: bool,
    /// The most visual tokens of one frame under `cap_pixels_per_frame`.
    pub max_video_tokens: u32,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            patch_size: 16,
            temporal_patch_size: 2,
            merge_size: 2,
            min_pixels: 65_536,
            max_pixels: 16_777_216,
            do_resize: true,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            jpeg_scale: JpegScale::Exact,
        }
    }
}

impl Default for VideoConfig {
    fn default() -> Self {
        Self {
            patch_size: 16,
            temporal_patch_size: 2,
            merge_size: 2,
            min_pixels: 131_072,
            max_pixels: 786_432,
            do_resize: true,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            do_sample_frames: true,
            fps: 2.0,
            min_frames: 4,
            max_frames: 768,
            cap_pixels_per_frame: false,
            max_video_tokens: 768,
        }
    }
}

impl ProcessorConfig {
    /// Reads the settings of a checkpoint folder; a folder without any of the files gives the defaults.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Missing`] (no such folder), [`Error::ConfigSyntax`] and [`Error::ConfigValue`], each
    /// naming the file.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        if let Err(source) = fs::read_dir(dir) {
            let name = dir.display().to_string();
            return Err(match source.kind() {
                ErrorKind::NotFound => Error::Missing { name },
                _ => Error::Read { name, source },
            });
        }
        let named = |file: &str| dir.join(file).display().to_string();
        let read = |file: &str| match fs::read_to_string(dir.join(file)) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { name: named(file), source }),
        };
        let (processor, image, video) = (read(PROCESSOR_FILE)?, read(IMAGE_FILE)?, read(VIDEO_FILE)?);
        from_named(
            (&named(PROCESSOR_FILE), processor.as_deref()),
            (&named(IMAGE_FILE), image.as_deref()),
            (&named(VIDEO_FILE), video.as_deref()),
        )
    }

    /// The same from the contents of `processor_config.json`, `preprocessor_config.json` and
    /// `video_preprocessor_config.json`, for checkpoints that are not a folder.
    ///
    /// # Errors
    /// [`Error::ConfigSyntax`] and [`Error::ConfigValue`].
    pub fn from_json(processor: Option<&str>, image: Option<&str>, video: Option<&str>) -> Result<Self> {
        from_named((PROCESSOR_FILE, processor), (IMAGE_FILE, image), (VIDEO_FILE, video))
    }
}

impl ImageConfig {
    /// Checks that the numbers make sense together; settings from files have been checked.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] naming the first field that does not.
    pub fn validate(&self) -> Result<()> {
        check_geometry("image", self.patch_size, self.temporal_patch_size, self.merge_size)?;
        check_pixels("image", self.min_pixels, self.max_pixels)?;
        check_scale("image", self.rescale_factor, &self.image_mean, &self.image_std)?;
        if self.jpeg_scale == JpegScale::Inexact && !cfg!(feature = "libjpeg-turbo") {
            let expected = "Exact, or a build of qvl-dataload with the feature libjpeg-turbo";
            return Err(value("image", "jpeg_scale", "Inexact", expected));
        }
        Ok(())
    }

    fn read(section: &Section<'_>) -> Result<Self> {
        let default = Self::default();
        section.known("image_processor_type", |kind| {
            matches!(kind, "Qwen2VLImageProcessor" | "Qwen2VLImageProcessorFast" | "Qwen2VLImageProcessorPil")
        })?;
        let common = section.common()?;
        let (mut min_pixels, mut max_pixels) =
            section.size()?.unwrap_or((default.min_pixels, default.max_pixels));
        // The older keys win over `size`, as in the reference.
        min_pixels = section.u64("min_pixels")?.unwrap_or(min_pixels);
        max_pixels = section.u64("max_pixels")?.unwrap_or(max_pixels);
        let config = Self {
            patch_size: section.u32("patch_size")?.unwrap_or(default.patch_size),
            temporal_patch_size: section.u32("temporal_patch_size")?.unwrap_or(default.temporal_patch_size),
            merge_size: section.u32("merge_size")?.unwrap_or(default.merge_size),
            min_pixels,
            max_pixels,
            do_resize: common.do_resize,
            do_rescale: common.do_rescale,
            rescale_factor: common.rescale_factor.unwrap_or(default.rescale_factor),
            do_normalize: common.do_normalize,
            image_mean: common.image_mean.unwrap_or(default.image_mean),
            image_std: common.image_std.unwrap_or(default.image_std),
            jpeg_scale: default.jpeg_scale,
        };
        config.validate().map_err(|e| section.rename(e))?;
        Ok(config)
    }
}

impl VideoConfig {
    /// Checks that the numbers make sense together; settings from files have been checked.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] naming the first field that does not.
    pub fn validate(&self) -> Result<()> {
        check_geometry("video", self.patch_size, self.temporal_patch_size, self.merge_size)?;
        check_pixels("video", self.min_pixels, self.max_pixels)?;
        check_scale("video", self.rescale_factor, &self.image_mean, &self.image_std)?;
        if !(self.fps.is_finite() && self.fps > 0.0) {
            return Err(value("video", "fps", self.fps, "a positive finite number"));
        }
        if self.max_frames == 0 {
            return Err(value("video", "max_frames", 0, "at least 1"));
        }
        Ok(())
    }

    fn read(section: &Section<'_>) -> Result<Self> {
        let default = Self::default();
        section.known("video_processor_type", |kind| kind == "Qwen3VLVideoProcessor")?;
        section.absent("num_frames", "null: frames are sampled by fps, or by the caller")?;
        let common = section.common()?;
        let (min_pixels, max_pixels) = section.size()?.unwrap_or((default.min_pixels, default.max_pixels));
        // The reference's video processor reads `size` only, so a different value here would have no effect there.
        for (key, used) in [("min_pixels", min_pixels), ("max_pixels", max_pixels)] {
            if let Some(got) = section.u64(key)?.filter(|got| *got != used) {
                let expected = format!("{used} as in size (the reference reads nothing else for videos)");
                return Err(value(&section.name, key, got, &expected));
            }
        }
        let config = Self {
            patch_size: section.u32("patch_size")?.unwrap_or(default.patch_size),
            temporal_patch_size: section.u32("temporal_patch_size")?.unwrap_or(default.temporal_patch_size),
            merge_size: section.u32("merge_size")?.unwrap_or(default.merge_size),
            min_pixels,
            max_pixels,
            do_resize: common.do_resize,
            do_rescale: common.do_rescale,
            rescale_factor: common.rescale_factor.unwrap_or(default.rescale_factor),
            do_normalize: common.do_normalize,
            image_mean: common.image_mean.unwrap_or(default.image_mean),
            image_std: common.image_std.unwrap_or(default.image_std),
            do_sample_frames: section.bool("do_sample_frames")?.unwrap_or(default.do_sample_frames),
            fps: section.f64("fps")?.unwrap_or(default.fps),
            min_frames: section.u32("min_frames")?.unwrap_or(default.min_frames),
            max_frames: section.u32("max_frames")?.unwrap_or(default.max_frames),
            cap_pixels_per_frame: section
                .bool("cap_pixels_per_frame")?
                .unwrap_or(default.cap_pixels_per_frame),
            max_video_tokens: section.u32("max_video_tokens")?.unwrap_or(default.max_video_tokens),
        };
        config.validate().map_err(|e| section.rename(e))?;
        Ok(config)
    }
}

/// A file's name and, if it is there, its text.
type Text<'a> = (&'a str, Option<&'a str>);

fn from_named(processor: Text<'_>, image: Text<'_>, video: Text<'_>) -> Result<ProcessorConfig> {
    let (nested, image_file, video_file) = (object(processor)?, object(image)?, object(video)?);
    let inner = |key: &str| -> Result<Option<Section<'_>>> {
        let Some(value) = nested.as_ref().and_then(|map| map.get(key)).filter(|v| !v.is_null()) else {
            return Ok(None);
        };
        let name = format!("{}: {key}", processor.0);
        match value {
            Value::Object(map) => Ok(Some(Section { name, map })),
            _ => Err(Error::ConfigSyntax { name, source: None }),
        }
    };
    let image_section = inner("image_processor")?.or_else(|| whole(image.0, &image_file));
    let video_section = inner("video_processor")?
        .or_else(|| whole(video.0, &video_file))
        .or_else(|| whole(image.0, &image_file));
    Ok(ProcessorConfig {
        image: image_section.map(|s| ImageConfig::read(&s)).transpose()?.unwrap_or_default(),
        video: video_section.map(|s| VideoConfig::read(&s)).transpose()?.unwrap_or_default(),
    })
}

fn whole<'a>(name: &str, map: &'a Option<Map<String, Value>>) -> Option<Section<'a>> {
    map.as_ref().map(|map| Section { name: name.to_owned(), map })
}

fn object((name, text): Text<'_>) -> Result<Option<Map<String, Value>>> {
    let Some(text) = text else { return Ok(None) };
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(Error::ConfigSyntax { name: name.to_owned(), source: None }),
        Err(e) => Err(Error::ConfigSyntax { name: name.to_owned(), source: Some(e.into()) }),
    }
}

/// One JSON object with the name it has in messages.
struct Section<'a> {
    name: String,
    map: &'a Map<String, Value>,
}

/// What image and video settings have in common.
struct Common {
    do_resize: bool,
    do_rescale: bool,
    rescale_factor: Option<f64>,
    do_normalize: bool,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
}

impl Section<'_> {
    /// The value of a key; null counts as absent, as in the reference.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, got: &Value, expected: &str) -> Error {
        value(&self.name, key, got.clone(), expected)
    }

    /// Reads a key with `read`, which returns `None` for a value of the wrong kind.
    fn typed<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(got) = self.get(key) else { return Ok(None) };
        read(got).map(Some).ok_or_else(|| self.wrong(key, got, expected))
    }

    fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a whole number", |v| v.as_u64()?.try_into().ok())
    }

    fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number", Value::as_u64)
    }

    fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A number for each of R, G and B, or one for all.
    fn channels(&self, key: &str) -> Result<Option<[f64; 3]>> {
        self.typed(key, "three numbers", |v| match v {
            Value::Array(list) => {
                let list: Vec<f64> = list.iter().map(Value::as_f64).collect::<Option<_>>()?;
                list.try_into().ok()
            }
            single => single.as_f64().map(|n| [n; 3]),
        })
    }

    /// `size.shortest_edge` and `size.longest_edge`.
    fn size(&self) -> Result<Option<(u64, u64)>> {
        let Some(size) = self.get("size") else { return Ok(None) };
        let edges = size.get("shortest_edge").and_then(Value::as_u64).zip(
            // Both or none: the reference refuses a size with one of them when it comes to resizing.
            size.get("longest_edge").and_then(Value::as_u64),
        );
        let expected = "an object with the whole numbers shortest_edge and longest_edge";
        edges.map(Some).ok_or_else(|| self.wrong("size", size, expected))
    }

    fn common(&self) -> Result<Common> {
        for key in ["do_center_crop", "do_pad"] {
            if self.bool(key)? == Some(true) {
                return Err(value(&self.name, key, true, "false: the Qwen3-VL processors do neither"));
            }
        }
        if let Some(got) = self.get("resample").filter(|v| v.as_u64() != Some(BICUBIC)) {
            return Err(self.wrong("resample", got, "3 (bicubic)"));
        }
        // Pictures are RGB from the moment they are decoded, as through transformers' `load_image`; the value is
        // checked and has no effect.
        self.bool("do_convert_rgb")?;
        Ok(Common {
            do_resize: self.bool("do_resize")?.unwrap_or(true),
            do_rescale: self.bool("do_rescale")?.unwrap_or(true),
            rescale_factor: self.f64("rescale_factor")?,
            do_normalize: self.bool("do_normalize")?.unwrap_or(true),
            image_mean: self.channels("image_mean")?,
            image_std: self.channels("image_std")?,
        })
    }

    /// Refuses another kind of processor.
    fn known(&self, key: &str, accept: impl Fn(&str) -> bool) -> Result<()> {
        match self.get(key) {
            Some(kind) if !kind.as_str().is_some_and(&accept) => {
                Err(self.wrong(key, kind, "the processor of Qwen3-VL"))
            }
            _ => Ok(()),
        }
    }

    fn absent(&self, key: &str, expected: &str) -> Result<()> {
        match self.get(key) {
            Some(got) => Err(self.wrong(key, got, expected)),
            None => Ok(()),
        }
    }

    /// Puts the file's name into an error of `validate`.
    fn rename(&self, error: Error) -> Error {
        match error {
            Error::ConfigValue { key, got, expected, .. } => {
                Error::ConfigValue { name: self.name.clone(), key, got, expected }
            }
            other => other,
        }
    }
}

fn value(name: &str, key: &str, got: impl Into<Value>, expected: &str) -> Error {
    let (key, got) = (key.to_owned(), got.into().to_string());
    Error::ConfigValue { name: name.to_owned(), key, got, expected: expected.to_owned() }
}

fn check_geometry(name: &str, patch: u32, temporal: u32, merge: u32) -> Result<()> {
    for (key, got, limit) in [
        ("patch_size", patch, LARGEST_PATCH),
        ("temporal_patch_size", temporal, LARGEST_TEMPORAL_PATCH),
        ("merge_size", merge, LARGEST_MERGE),
    ] {
        if got == 0 || got > limit {
            return Err(value(name, key, got, &format!("1 to {limit}")));
        }
    }
    Ok(())
}

fn check_pixels(name: &str, min: u64, max: u64) -> Result<()> {
    if min == 0 || min > LARGEST_MIN_PIXELS {
        let expected = format!("an area of 1 to {LARGEST_MIN_PIXELS}");
        return Err(value(name, "size.shortest_edge", min, &expected));
    }
    if max < min {
        return Err(value(name, "size.longest_edge", max, &format!("an area of at least {min}")));
    }
    Ok(())
}

fn check_scale(name: &str, factor: f64, mean: &[f64; 3], std: &[f64; 3]) -> Result<()> {
    if !(factor.is_finite() && factor > 0.0) {
        return Err(value(name, "rescale_factor", factor, "a positive finite number"));
    }
    if let Some(got) = mean.iter().find(|m| !m.is_finite()) {
        return Err(value(name, "image_mean", *got, "finite numbers"));
    }
    if let Some(got) = std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        return Err(value(name, "image_std", *got, "positive finite numbers"));
    }
    Ok(())
}
