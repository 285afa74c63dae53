//! qvl-model: linear layers of the 2B shape by rows, attention by length, and the embedded checkpoint from
//! picture to answer.
#![allow(
    missing_docs,
    clippy::expect_used,
    reason = "criterion's macros; a bench that cannot start must say so"
)]

use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qvl_model::backend::{Backend, HeadShape, Linear, Role, WeightPart};
use qvl_model::checkpoint::SafetensorsFile;
use qvl_model::{Cpu, GenerateOptions};
use qvl_runtime::{Conversation, Engine};

/// Width of the 2B shape and of its MLP.
const WIDTH: usize = 2048;
const INNER: usize = 6144;

fn noise(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A bf16 matrix as a checkpoint stores it.
fn matrix(cpu: &Cpu, rows: usize, cols: usize) -> Linear<Cpu> {
    let header = format!(
        r#"{{"w":{{"dtype":"BF16","shape":[{rows},{cols}],"data_offsets":[0,{}]}}}}"#,
        2 * rows * cols
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend(noise(rows * cols).iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()));
    let file = SafetensorsFile::from_static("bench", bytes.leak()).expect("the header is right");
    let view = file.get("w").expect("the tensor is there");
    let part = WeightPart::whole(view, Role::Decoder);
    Linear { weight: cpu.matrix(&[part]).expect("the CPU takes it"), bias: None }
}

fn linear(c: &mut Criterion) {
    let cpu = Cpu::new(0).expect("threads start");
    let weights = matrix(&cpu, INNER, WIDTH);
    let mut group = c.benchmark_group("model/linear_2048x6144_bf16");
    for rows in [1, 2, 8, 64, 256] {
        let x = cpu.upload(rows, WIDTH, &noise(rows * WIDTH));
        // Multiplications and additions.
        group.throughput(Throughput::Elements((2 * rows * WIDTH * INNER) as u64));
        group.bench_with_input(BenchmarkId::from_parameter(rows), &x, |b, x| {
            b.iter(|| black_box(cpu.linear(&weights, x)));
        });
    }
    group.finish();
}

fn attention(c: &mut Criterion) {
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

criterion_group!(benches, linear, attention, embedded);
criterion_main!(benches);
