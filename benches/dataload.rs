//! qvl-dataload: what a picture costs from its bytes to its patches, step by step, on one thread.
//!
//! Throughput is counted in pixels that go in, so that the steps can be compared with each other.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::expect_used, reason = "a bench without its input has nothing to measure")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use qvl_dataload::vision::{
    DecodeLimits, Header, ImageConfig, PatchValue, ProcessorConfig, Still, Workspace, resize_bicubic,
};

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

/// The same as a JPEG of a camera: chroma at half the resolution, quality 90.
fn photograph(width: u16, height: u16) -> Vec<u8> {
    let still = picture(u32::from(width), u32::from(height));
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 90);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode(still.rgb(), width, height, ColorType::Rgb).expect("a vector takes what it is given");
    bytes
}

/// Settings that shrink what has more than `max_pixels`.
fn settings(max_pixels: u64) -> ProcessorConfig {
    let image = ImageConfig { min_pixels: 1024, max_pixels, ..ImageConfig::default() };
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
        ((4032, 3024), (1024, 1024)),
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
    let mut group = c.benchmark_group("dataload/patchify");
    // The first two are their own target: nothing is resized.
    for (name, still, max_pixels) in [
        ("768x576 as it is", picture(768, 576), 768 * 576),
        ("1024x1024 as it is", picture(1024, 1024), 1024 * 1024),
        ("1024x768 with resize", picture(1024, 768), 768 * 576),
        ("4032x3024 with resize", picture(4032, 3024), 1024 * 1024),
    ] {
        group.throughput(Throughput::Elements(u64::from(still.width()) * u64::from(still.height())));
        let config = settings(max_pixels);
        let grid = config.image_grid(still.width(), still.height()).expect("the size is ordinary");
        let len = grid.patches() * config.image.patch_values();
        fn run<V: PatchValue>(config: &ProcessorConfig, still: &Still, out: &mut [V]) {
            config.image_into(black_box(still), out).expect("the buffer has the size of the grid");
        }
        let (mut floats, mut halves) = (vec![0.0f32; len], vec![bf16::ZERO; len]);
        group.bench_function(BenchmarkId::new("f32", name), |b| b.iter(|| run(&config, &still, &mut floats)));
        group
            .bench_function(BenchmarkId::new("bf16", name), |b| b.iter(|| run(&config, &still, &mut halves)));
    }
    group.finish();
}

/// A photograph of 12 megapixels from its bytes to its patches, and what can be had from the bytes alone.
fn encoded(c: &mut Criterion) {
    let (bytes, config, limits) = (photograph(4032, 3024), settings(1024 * 1024), DecodeLimits::default());
    let mut group = c.benchmark_group("dataload/encoded 4032x3024");
    group.sample_size(20);
    let grid = config.encoded_grid(&bytes, "photograph", &limits).expect("the file is good");
    let mut out = vec![0.0f32; grid.patches() * config.image.patch_values()];
    let mut workspace = Workspace::new();
    group.throughput(Throughput::Elements(4032 * 3024));
    group.bench_function("encoded_into, warm", |b| {
        b.iter(|| config.encoded_into(black_box(&bytes), "photograph", &limits, &mut workspace, &mut out));
    });
    group.bench_function("decode and image_into, fresh", |b| {
        b.iter(|| {
            let still = Still::decode(black_box(&bytes), "photograph", &limits).expect("the file is good");
            config.image_into(&still, &mut out)
        });
    });
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("header", |b| b.iter(|| Header::read(black_box(&bytes), "photograph", &limits)));
    group.bench_function("content_hash", |b| b.iter(|| config.content_hash(black_box(&bytes))));
    group.finish();
}

criterion_group!(benches, decode, resize, patchify, encoded);
criterion_main!(benches);
