//! A name for what the model sees of a picture, to recognise a repeat before anything is decoded.
//!
//! The same bytes under the same settings give the same patches, so their hash may stand for them as the key of a cache.
//! Two files of one picture, a photograph saved twice say, have different names; that costs a hit and nothing else.

use std::fmt;
use std::str::FromStr;

use crate::Error;
use crate::vision::certificate::Hex;
use crate::vision::{ImageConfig, JpegScale, ProcessorConfig};

/// Changes whenever any picture of any file does, so that keys of older versions are not found any more.
const PIXEL_VERSION: u32 = 1;

/// Keeps these hashes apart from all others: see the documentation of BLAKE3's `derive_key`.
const CONTEXT: &str = "qvl-dataload 2026-11 content hash of a still and its processor settings";

/// Names the patches of a still: BLAKE3 of its encoded bytes, the settings that change patches, the decoder and the
/// version of this crate's pixels. The type of the values (`f32` or `bf16`) is not part of it.
///
/// Printed and read as 64 hexadecimal digits. It can be used as a key that nobody will find another picture for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for ContentHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

impl FromStr for ContentHash {
    type Err = Error;

    /// # Errors
    /// [`Error::ContentHashSyntax`] unless there are exactly 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::ContentHashSyntax { got: text.chars().take(80).collect() };
        let mut bytes = [0; 32];
        let digits = text.as_bytes().as_chunks::<2>().0;
        if text.len() != 64 {
            return Err(wrong());
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(wrong);
        for (byte, [high, low]) in bytes.iter_mut().zip(digits) {
            *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
        }
        Ok(Self(bytes))
    }
}

impl ProcessorConfig {
    /// The name of the patches of an encoded still under these settings. Decodes nothing and looks at every byte: about
    /// a nanosecond for one, less with AVX2.
    ///
    /// Settings for videos are no part of it.
    pub fn content_hash(&self, bytes: &[u8]) -> ContentHash {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&PIXEL_VERSION.to_le_bytes());
        hasher.update(&[u8::from(cfg!(feature = "libjpeg-turbo"))]);
        settings(&self.image, |bytes| {
            hasher.update(bytes);
        });
        hasher.update(bytes);
        ContentHash(hasher.finalize().into())
    }
}

/// Every setting that changes patches, in a fixed order and each with a fixed length; what is switched off counts as
/// absent. A new field of the settings does not compile until it is decided on here.
fn settings(config: &ImageConfig, mut add: impl FnMut(&[u8])) {
    let ImageConfig {
        patch_size,
        temporal_patch_size,
        merge_size,
        min_pixels,
        max_pixels,
        do_resize,
        do_rescale,
        rescale_factor,
        do_normalize,
        image_mean,
        image_std,
        jpeg_scale,
    } = config;
    for number in [patch_size, temporal_patch_size, merge_size] {
        add(&number.to_le_bytes());
    }
    add(&[u8::from(*do_resize), u8::from(*do_rescale), u8::from(*do_normalize)]);
    add(&[u8::from(*jpeg_scale == JpegScale::Inexact)]);
    for limit in [min_pixels, max_pixels] {
        add(&if *do_resize { *limit } else { 0 }.to_le_bytes());
    }
    add(&if *do_rescale { *rescale_factor } else { 0.0 }.to_le_bytes());
    for constant in image_mean.iter().chain(image_std) {
        add(&if *do_normalize { *constant } else { 0.0 }.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(change: impl Fn(&mut ImageConfig)) -> ContentHash {
        let mut config = ProcessorConfig::default();
        change(&mut config.image);
        config.content_hash(b"a picture")
    }

    #[test]
    fn every_setting_that_changes_patches_changes_the_name() {
        let changes: [fn(&mut ImageConfig); 14] = [
            |_| {},
            |c| c.patch_size = 14,
            |c| c.temporal_patch_size = 1,
            |c| c.merge_size = 1,
            |c| c.min_pixels = 1,
            |c| c.max_pixels = 1 << 20,
            |c| c.do_resize = false,
            |c| c.do_rescale = false,
            |c| c.rescale_factor = 1.0 / 256.0,
            |c| c.do_normalize = false,
            |c| c.image_mean[2] = 0.4,
            |c| c.image_std[0] = 0.4,
            |c| c.jpeg_scale = JpegScale::Inexact,
            |c| (c.min_pixels, c.max_pixels) = (c.max_pixels, c.min_pixels),
        ];
        let mut hashes: Vec<ContentHash> = changes.iter().map(hash).collect();
        assert_eq!(hashes, changes.iter().map(hash).collect::<Vec<_>>());
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), changes.len());
    }

    #[test]
    fn settings_that_change_nothing_change_nothing() {
        let without = |change: fn(&mut ImageConfig)| {
            hash(|c| {
                (c.do_resize, c.do_rescale, c.do_normalize) = (false, false, false);
                change(c);
            })
        };
        let plain = without(|_| {});
        assert_eq!(plain, without(|c| c.max_pixels = 99));
        assert_eq!(plain, without(|c| c.rescale_factor = 2.0));
        assert_eq!(plain, without(|c| c.image_mean[0] = 2.0));
        let mut config = ProcessorConfig::default();
        config.video.fps = 7.0;
        assert_eq!(config.content_hash(b"a picture"), hash(|_| {}));
        assert_ne!(config.content_hash(b"a picturf"), hash(|_| {}));
        assert_ne!(config.content_hash(b""), hash(|_| {}));
    }

    #[test]
    fn a_name_is_64_digits() {
        let name = hash(|_| {});
        assert_eq!(name.to_string().parse::<ContentHash>().unwrap(), name);
        assert_eq!(name.to_string().to_uppercase().parse::<ContentHash>().unwrap(), name);
        assert_eq!(ContentHash::from(*name.as_bytes()), name);
        let short = &name.to_string()[1..];
        for wrong in ["", "0", short, &format!("{short}g"), &format!("+{short}"), &"\u{e4}".repeat(32)] {
            let message = wrong.parse::<ContentHash>().unwrap_err().to_string();
            assert!(message.ends_with("expected 64 hexadecimal digits"), "{message}");
        }
    }
}
