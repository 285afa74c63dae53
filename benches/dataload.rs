//! qvl-dataload: what a picture costs from its bytes to its patches, step by step, on one thread.
//!
//! Throughput is counted in pixels that go in, so that the steps can be compared with each other.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::expect_used, reason = "a bench without its input has nothing to measure")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qvl_dataload::vision::{DecodeLimits, ImageConfig, ProcessorConfig, Still, resize_bicubic};

/// Shading with edges and grain, of the kind that filters and coders see in photographs.
fn picture(width: u32, height: u32) -> Still {
    let mut rgb = Vec::with_capacity((width * height * 3) as usize);
    let mut noise = 1u32;
    for y in 0..height {
        for x in 0..width {
            let edge = if (x / 61 + y / 47) % 3 == 0 { 70 } else { 0 };
            for channel in 0..3 {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let shade = (x * (channel + 1) / 9 + y / 5) % 160;
                rgb.push((shade + edge + (noise >> 28)) as u8);
            }
        }
    }
    Still::from_rgb(width, height, rgb).expect("the buffer has the size of the picture")
}

/// Settings that leave 768 x 576 as it is and shrink 1024 x 768 to it.
fn settings() -> ProcessorConfig {
    let image = ImageConfig { min_pixels: 1024, max_pixels: 768 * 576, ..ImageConfig::default() };
    ProcessorConfig { image, ..ProcessorConfig::default() }
}

fn decode(c: &mut Criterion) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/qvl-dataload/tests/data");
    let mut group = c.benchmark_group("dataload/decode");
    for file in
        ["jpeg/444_141x99.jpg", "jpeg/420_141x99.jpg", "pixels/rgb_1280x720.png", "pixels/rgb_2000x1500.png"]
    {
        let bytes = std::fs::read(format!("{folder}/{file}")).expect("the picture is committed");
        let limits = DecodeLimits::default();
        let still = Still::decode(&bytes, file, &limits).expect("the picture is good");
        group.throughput(Throughput::Elements(u64::from(still.width()) * u64::from(still.height())));
        group.bench_with_input(BenchmarkId::from_parameter(file), &bytes, |b, bytes| {
            b.iter(|| Still::decode(black_box(bytes), file, &limits));
        });
    }
    group.finish();
}

fn resize(c: &mut Criterion) {
    let mut group = c.benchmark_group("dataload/resize");
    for (from, to) in [
        ((1024, 768), (768, 576)),
        ((1920, 1080), (784, 448)),
        ((4032, 3024), (1024, 768)),
        ((320, 240), (640, 480)),
    ] {
        let still = picture(from.0, from.1);
        group.throughput(Throughput::Elements(u64::from(from.0) * u64::from(from.1)));
        let name = format!("{}x{} to {}x{}", from.0, from.1, to.0, to.1);
        group.bench_with_input(BenchmarkId::from_parameter(name), &still, |b, still| {
            b.iter(|| resize_bicubic(black_box(still), to.0, to.1));
        });
    }
    group.finish();
}

fn patchify(c: &mut Criterion) {
    let config = settings();
    let mut group = c.benchmark_group("dataload/patchify");
    // 768 x 576 is its own target: nothing is resized.
    for (name, still) in
        [("768x576 as it is", picture(768, 576)), ("1024x768 with resize", picture(1024, 768))]
    {
        let grid = config.image_grid(still.width(), still.height()).expect("the size is ordinary");
        let mut out = vec![0.0; grid.patches() * config.image.patch_values()];
        group.throughput(Throughput::Elements(u64::from(still.width()) * u64::from(still.height())));
        group.bench_with_input(BenchmarkId::from_parameter(name), &still, |b, still| {
            b.iter(|| config.image_into(black_box(still), &mut out));
        });
    }
    group.finish();
}

criterion_group!(benches, decode, resize, patchify);
criterion_main!(benches);
