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
use qvl_dataload::{DataLoader, Manifest, Memory, Shuffle, Source, TarShards};

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

/// What the loader costs by itself: numbers from memory and no step.
fn loader(c: &mut Criterion) {
    const ITEMS: usize = 20_000;
    let numbers: std::sync::Arc<[u64]> = (0..ITEMS as u64).collect();
    let mut group = c.benchmark_group("dataload/loader");
    group.throughput(Throughput::Elements(ITEMS as u64));
    for (workers, batch) in [(0, 64), (1, 64), (2, 64), (2, 1)] {
        let name = format!("{workers} workers, batches of {batch}");
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                let builder =
                    DataLoader::builder(Memory::new(numbers.clone())).shuffle(Shuffle::All { seed: 1 });
                let loader =
                    builder.workers(workers).batch_size(batch).build().expect("the settings are good");
                loader.map(|batch| batch.expect("a number is good").items.iter().sum::<u64>()).sum::<u64>()
            });
        });
    }
    group.finish();
}

/// What opening a source of 10,000 samples costs.
fn sources(c: &mut Criterion) {
    const SAMPLES: usize = 10_000;
    let folder = tempfile::tempdir().expect("a folder");
    let shard = folder.path().join("shard.tar");
    let mut archive = Vec::new();
    for sample in 0..SAMPLES {
        // A header of the oldest form and a block of data.
        let mut header = [0u8; 512];
        let name = format!("{sample:06}.jpg");
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(b"00000000144");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(&[7; 512]);
    }
    archive.extend_from_slice(&[0; 1024]);
    std::fs::write(&shard, archive).expect("is written");
    let manifest = folder.path().join("list.jsonl");
    let line = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]}"#;
    std::fs::write(&manifest, [line, "\n"].concat().repeat(SAMPLES)).expect("is written");

    let mut group = c.benchmark_group("dataload/open");
    group.throughput(Throughput::Elements(SAMPLES as u64));
    group.bench_function("tar", |b| b.iter(|| TarShards::open([&shard]).expect("the shard is good").len()));
    group.bench_function("manifest", |b| b.iter(|| Manifest::open(&manifest).expect("it is good").len()));
    group.finish();
}

criterion_group!(benches, decode, resize, patchify, encoded, loader, sources);
criterion_main!(benches);
