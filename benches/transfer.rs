//! qvl-transfer: what a transfer and a chunk of it take on one worker, in memory.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::expect_used, reason = "a bench without its input has nothing to measure")]

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qvl_transfer::device::Device;
use qvl_transfer::layer_stream::plan::{Link, Segment, plan};
use qvl_transfer::source::Memory;
use qvl_transfer::{HostDevice, LayerStream, Settings, Transfer, TransferEngine};

fn engine(chunk_bytes: usize) -> TransferEngine<HostDevice> {
    let settings = Settings { chunk_bytes, depth: 1, ..Settings::default() };
    TransferEngine::new(HostDevice::new(1 << 30), settings).expect("the settings are right")
}

/// From the submission to the end, of one chunk and of many.
fn transfers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transfer/host_copy");
    for chunks in [1, 16, 256] {
        let engine = engine(4096);
        let bytes = chunks * 4096;
        let source = Arc::new(Memory::new(vec![1_u8; bytes]));
        let mut memory = Some(engine.device().allocate(bytes).expect("there is room"));
        group.throughput(Throughput::Elements(chunks as u64));
        group.bench_function(BenchmarkId::from_parameter(chunks), |bench| {
            bench.iter(|| {
                let transfer = Transfer::new(source.clone(), memory.take().expect("it came back"));
                let ticket = engine.submit(transfer).expect("it fits");
                memory = Some(ticket.wait().expect("nothing can fail").memory);
            });
        });
    }
    group.finish();
}

/// A resident segment given and let go of.
fn resident(criterion: &mut Criterion) {
    let engine = Arc::new(engine(4096));
    let sources = (0..36).map(|seed| Memory::new(vec![seed; 4096]));
    let mut stream =
        LayerStream::builder(engine, 1 << 24).segments(sources).build().expect("the budget holds all");
    for _ in 0..72 {
        drop(stream.next().expect("nothing can fail"));
    }
    criterion.bench_function("transfer/resident_segment", |bench| {
        bench.iter(|| stream.next().expect("nothing can fail").first().copied());
    });
}

/// The planning of a round.
fn planning(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transfer/plan");
    for segments in [36_usize, 100] {
        let link = Link { bytes_per_s: 1.5e9, latency_s: 1e-4 };
        let all: Vec<Segment> = (0..segments as u64)
            .map(|index| Segment::new((100 << 20) + (index % 3) * (10 << 20), &link, Some(0.05)))
            .collect();
        let budget = all.iter().map(|segment| segment.bytes).sum::<u64>() / 2;
        group.bench_function(BenchmarkId::from_parameter(segments), |bench| {
            bench.iter(|| plan(&all, budget).expect("half is enough"));
        });
    }
    group.finish();
}

criterion_group!(benches, transfers, resident, planning);
criterion_main!(benches);
