//! qvl-model: each kernel of the 2B shape, by rows, by format of the weights or by length, and the embedded
//! checkpoint from picture to answer.
#![allow(
    missing_docs,
    clippy::expect_used,
    reason = "criterion's macros; a bench that cannot start must say so"
)]

use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qvl_benches::{DECODER_HEADS, noise, tensor};
use qvl_model::backend::cpu::CpuMatrix;
use qvl_model::backend::{Backend, HeadShape, KvPart, Linear, Mat, Role, WeightPart};
use qvl_model::{Cpu, CpuOptions, GenerateOptions, WeightFormat};
use qvl_runtime::{Conversation, Engine};

/// Width of the 2B shape and of its MLP.
const WIDTH: usize = 2048;
const INNER: usize = 6144;

/// Rows of one sequence being decoded, and of a piece of a prompt.
const STEP_AND_PROMPT: [usize; 2] = [1, 256];

/// Linear layers and SwiGLU in each form that weights are held in.
fn products(c: &mut Criterion) {
    let stored = tensor(INNER, WIDTH).expect("the tensor is one");
    for (name, weights) in [("bf16", WeightFormat::Bf16), ("q8", WeightFormat::Q8), ("q4", WeightFormat::Q4)]
    {
        let cpu = Cpu::with(CpuOptions { weights, ..CpuOptions::default() }).expect("threads start");
        let matrix = || {
            let part = WeightPart::whole(stored.clone(), Role::Decoder);
            cpu.matrix(&[part]).expect("the CPU takes it")
        };
        // One row waits for the weights to be read, more rows for arithmetic: multiplications and additions.
        let throughput = |rows: usize, matrices: &[&CpuMatrix]| match rows {
            1 => Throughput::Bytes(matrices.iter().map(|matrix| matrix.bytes() as u64).sum()),
            _ => Throughput::Elements((2 * rows * WIDTH * INNER * matrices.len()) as u64),
        };
        let layer = Linear { weight: matrix(), bias: None };
        let mut group = c.benchmark_group(format!("model/linear_2048x6144_{name}"));
        for rows in [1, 2, 8, 64, 256] {
            let x = cpu.upload(rows, WIDTH, &noise(rows * WIDTH));
            group.throughput(throughput(rows, &[&layer.weight]));
            group.bench_with_input(BenchmarkId::from_parameter(rows), &x, |b, x| {
                b.iter(|| black_box(cpu.linear(&layer, x)));
            });
        }
        group.finish();
        let (gate, up) = (layer.weight, matrix());
        let mut group = c.benchmark_group(format!("model/swiglu_2048x6144_{name}"));
        for rows in [1, 64] {
            let x = cpu.upload(rows, WIDTH, &noise(rows * WIDTH));
            group.throughput(throughput(rows, &[&gate, &up]));
            group.bench_with_input(BenchmarkId::from_parameter(rows), &x, |b, x| {
                b.iter(|| black_box(cpu.swiglu(&gate, &up, x)));
            });
        }
        group.finish();
    }
}

/// Attention of the decoder: one new row behind a context, its own row counted, and a prompt from nothing.
fn causal_attention(c: &mut Criterion) {
    let cpu = Cpu::new(0).expect("threads start");
    let shape = DECODER_HEADS;
    let contexts = [64, 1024, 4096];
    let mut kv = cpu.kv(1, shape);
    let mut attend = |cached: usize, qkv: &Mat, y: &mut Mat, rows: usize| {
        cpu.kv_truncate(&mut kv, cached);
        cpu.kv_attention(&mut [KvPart { kv: &mut kv, rows: 0..rows }], 0, qkv, shape, y);
    };
    let mut group = c.benchmark_group("model/causal_attention_16x128");
    // Filled to its greatest length once; what is shorter forgets the rest, so the longest comes first.
    let all = contexts[2] - 1;
    let qkv = cpu.upload(all, shape.qkv_width(), &noise(all * shape.qkv_width()));
    attend(0, &qkv, &mut cpu.buffer(all, shape.q_width()), all);
    let steps = contexts.iter().rev().map(|&context| ("step", context, context - 1, 1));
    for (name, context, cached, rows) in steps.chain([("prefill", 256, 0, 256)]) {
        let qkv = cpu.upload(rows, shape.qkv_width(), &noise(rows * shape.qkv_width()));
        let mut y = cpu.buffer(rows, shape.q_width());
        // What row r sees, its own row included; multiplications and additions of scores and of sums.
        let seen: usize = (1..=rows).map(|row| cached + row).sum();
        group.throughput(Throughput::Elements((4 * seen * shape.q_width()) as u64));
        group.bench_with_input(BenchmarkId::new(name, context), &qkv, |b, qkv| {
            b.iter(|| attend(cached, qkv, &mut y, rows));
        });
    }
    group.finish();
}

/// What works on each row by itself; values a second.
fn rows(c: &mut Criterion) {
    let cpu = Cpu::new(0).expect("threads start");
    let (weight, bias, shape) = (noise(WIDTH), noise(WIDTH), DECODER_HEADS);
    // In place, again and again: weights of 1 and true rotations leave the values in their range.
    let head_weight = vec![1.0; shape.head_dim];
    let mut group = c.benchmark_group("model/rows");
    for rows in STEP_AND_PROMPT {
        let x = cpu.upload(rows, WIDTH, &noise(rows * WIDTH));
        group.throughput(Throughput::Elements((rows * WIDTH) as u64));
        group.bench_with_input(BenchmarkId::new("rms_norm_2048", rows), &x, |b, x| {
            b.iter(|| black_box(cpu.rms_norm(x, &weight, 1e-6)));
        });
        group.bench_with_input(BenchmarkId::new("layer_norm_2048", rows), &x, |b, x| {
            b.iter(|| black_box(cpu.layer_norm(x, &weight, &bias, 1e-6)));
        });
        let angles = noise(rows * shape.head_dim / 2);
        let rotary: Vec<f32> = angles
            .chunks(shape.head_dim / 2)
            .flat_map(|row| row.iter().map(|angle| angle.cos()).chain(row.iter().map(|angle| angle.sin())))
            .collect();
        let rotary = cpu.upload(rows, shape.head_dim, &rotary);
        let mut qkv = cpu.upload(rows, shape.qkv_width(), &noise(rows * shape.qkv_width()));
        group.throughput(Throughput::Elements((rows * (shape.q_width() + shape.kv_width())) as u64));
        group.bench_with_input(BenchmarkId::new("norm_rotary_24x128", rows), &rotary, |b, rotary| {
            let norms = Some((&head_weight, &head_weight, 1e-6));
            b.iter(|| cpu.norm_rotary(&mut qkv, shape, norms, rotary));
        });
    }
    group.finish();
}

fn vision_attention(c: &mut Criterion) {
    let cpu = Cpu::new(0).expect("threads start");
    let shape = HeadShape { heads: 16, kv_heads: 16, head_dim: 64 };
    let mut group = c.benchmark_group("model/vision_attention_16x64");
    for patches in [64, 784, 1024] {
        let qkv = cpu.upload(patches, shape.qkv_width(), &noise(patches * shape.qkv_width()));
        group.throughput(Throughput::Elements((4 * patches * patches * shape.q_width()) as u64));
        group.bench_with_input(BenchmarkId::from_parameter(patches), &qkv, |b, qkv| {
            b.iter(|| black_box(cpu.segment_attention(qkv, shape, &[0, patches])));
        });
    }
    group.finish();
}

fn embedded(c: &mut Criterion) {
    let engine = Engine::embedded(0).expect("the embedded checkpoint loads");
    let sample =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/qvl-runtime/assets/samples/shapes-1.png");
    let conversation = Conversation::question([sample], "Describe the image.");
    let options = GenerateOptions::default();
    c.bench_function("model/embedded_picture_to_answer", |b| {
        b.iter(|| engine.answer(&conversation, &options, |_| ControlFlow::Continue(())).expect("an answer"));
    });
}

criterion_group!(benches, products, vision_attention, causal_attention, rows, embedded);
criterion_main!(benches);
