//! Decoding a JPEG at a fraction of its size changes no grid, changes pixels a little, and is an error where the decoder
//! cannot do it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::data;
use qvl_dataload::vision::{DecodeLimits, ImageConfig, JpegScale, ProcessorConfig};

fn config(max_pixels: u64, jpeg_scale: JpegScale) -> ProcessorConfig {
    let image = ImageConfig { min_pixels: 1024, max_pixels, jpeg_scale, ..ImageConfig::default() };
    ProcessorConfig { image, ..ProcessorConfig::default() }
}

#[cfg(not(feature = "libjpeg-turbo"))]
#[test]
fn without_the_feature_it_is_an_error() {
    let bytes = std::fs::read(data("jpeg").join("420_141x99.jpg")).unwrap();
    let config = config(64 * 64, JpegScale::Inexact);
    let error = config.encoded_grid(&bytes, "x.jpg", &DecodeLimits::default()).unwrap_err().to_string();
    let expected = "image: jpeg_scale is \"Inexact\", expected Exact, or a build of qvl-dataload with the feature libjpeg-turbo";
    assert_eq!(error, expected);
}

#[cfg(feature = "libjpeg-turbo")]
mod with_the_feature {
    use qvl_dataload::vision::{Certificate, Stage, Workspace, certificate};

    use super::*;

    fn values(config: &ProcessorConfig, bytes: &[u8]) -> Vec<f32> {
        let limits = DecodeLimits::default();
        let grid = config.encoded_grid(bytes, "x.jpg", &limits).unwrap();
        let mut out = vec![0.0f32; grid.patches() * config.image.patch_values()];
        config.encoded_into(bytes, "x.jpg", &limits, &mut Workspace::new(), &mut out).unwrap();
        out
    }

    fn of(config: &ProcessorConfig, bytes: &[u8]) -> Certificate {
        certificate(config, bytes, "x.jpg", &DecodeLimits::default()).unwrap()
    }

    /// Shading, edges that are not aligned to blocks, and a little grain, as in photographs.
    fn photograph(width: u16, height: u16) -> Vec<u8> {
        let (mut rgb, mut noise) = (Vec::new(), 1u32);
        for y in 0..u32::from(height) {
            for x in 0..u32::from(width) {
                let edge = if (x / 61 + y / 47) % 3 == 0 { 60 } else { 0 };
                for channel in 0..3 {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let shade = (x * (channel + 1) / 13 + y / 5) % 512;
                    rgb.push((shade.min(511 - shade) * 150 / 256 + edge + (noise >> 29)) as u8);
                }
            }
        }
        let mut jpeg = Vec::new();
        let image = turbojpeg::Image {
            pixels: &rgb[..],
            width: width.into(),
            pitch: usize::from(width) * 3,
            height: height.into(),
            format: turbojpeg::PixelFormat::RGB,
        };
        jpeg.extend_from_slice(&turbojpeg::compress(image, 92, turbojpeg::Subsamp::Sub2x2).unwrap());
        jpeg
    }

    /// Levels out of 255: the default settings spread them over -1 to 1.
    #[test]
    fn pixels_are_close() {
        let jpeg = photograph(1600, 1200);
        for (max_pixels, divisor) in [(800 * 600, 2), (400 * 300, 4), (200 * 150, 8)] {
            let (exact, inexact) =
                (config(max_pixels, JpegScale::Exact), config(max_pixels, JpegScale::Inexact));
            let (a, b) = (of(&exact, &jpeg), of(&inexact, &jpeg));
            assert_eq!(b.decoded_size, (1600 / divisor, 1200 / divisor));
            assert_eq!((a.grid, a.resized_size), (b.grid, b.resized_size));
            assert_eq!(a.first_difference(&b), Some(Stage::Decode));
            let (a, b) = (values(&exact, &jpeg), values(&inexact, &jpeg));
            let levels: Vec<f32> = a.iter().zip(&b).map(|(a, b)| (a - b).abs() * 127.5).collect();
            let largest = levels.iter().copied().fold(0.0, f32::max);
            let mean = levels.iter().sum::<f32>() / levels.len() as f32;
            println!("1/{divisor}: largest {largest:.0} levels, mean {mean:.2}");
            assert!(mean < 2.0 && largest < 64.0, "1/{divisor}: largest {largest}, mean {mean}");
        }
    }

    #[test]
    fn what_is_not_much_larger_than_its_target_is_decoded_exactly() {
        let jpeg = photograph(320, 240);
        let (exact, inexact) = (config(256 * 192, JpegScale::Exact), config(256 * 192, JpegScale::Inexact));
        assert_eq!(of(&exact, &jpeg), of(&inexact, &jpeg));
    }

    /// Sides are swapped before they are compared with the target; other formats do not care.
    #[test]
    fn turned_pictures_and_other_formats() {
        let turned = std::fs::read(data("jpeg").join("exif6_420_141x99.jpg")).unwrap();
        let (exact, inexact) = (config(32 * 64, JpegScale::Exact), config(32 * 64, JpegScale::Inexact));
        let (a, b) = (of(&exact, &turned), of(&inexact, &turned));
        assert_eq!((a.decoded_size, b.decoded_size), ((99, 141), (50, 71)));
        assert_eq!(a.grid, b.grid);
        let png = std::fs::read(data("pixels").join("rgb_1280x720.png")).unwrap();
        assert_eq!(of(&exact, &png), of(&inexact, &png));
    }
}
