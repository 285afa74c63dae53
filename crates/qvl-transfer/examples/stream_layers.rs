//! Streams a file as layers with room for half of them, computes with each for about as long as it takes to read, and
//! says how much of the reading was hidden.
//!
//!     cargo run --release --example stream_layers -- FILE [LAYERS]

#![allow(clippy::print_stdout, reason = "it is for people to read")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qvl_transfer::device::Device;
use qvl_transfer::{DriveFile, HostDevice, LayerStream, Settings, Trace, TransferEngine};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path =
        args.next().ok_or("which file? cargo run --release --example stream_layers -- FILE [LAYERS]")?;
    let layers: u64 = args.next().map_or(Ok(16), |text| text.parse())?;
    let file = DriveFile::open(&path)?;
    let bytes = file.len().div_ceil(layers.max(1)).next_multiple_of(4096).max(4096);
    let ranges = (0..file.len().div_ceil(bytes))
        .map(|layer| file.range(layer * bytes, bytes.min(file.len() - layer * bytes)))
        .collect::<Result<Vec<_>, _>>()?;
    let (count, trace) = (ranges.len(), Trace::new(1 << 16));
    let device = HostDevice::new(u64::MAX);
    let budget = (device.charge(bytes as usize) * count.div_ceil(2).max(2)) as u64;
    let engine = TransferEngine::new(device, Settings { trace: Some(trace.clone()), ..Settings::default() })?;
    println!("{path}: {count} layers of {} MiB, {}", bytes >> 20, file.explain());
    println!("reads by {}", engine.stats().io);
    let mut stream =
        LayerStream::builder(Arc::new(engine), budget).segments(ranges).trace(trace.clone()).build()?;
    let mut layer_time = Duration::ZERO;
    for round in 0..3 {
        let start = Instant::now();
        for _ in 0..count {
            let layer = stream.next()?;
            // Where a model would compute.
            let sum = layer.iter().step_by(64).fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            std::hint::black_box(sum);
            std::thread::sleep(layer_time);
        }
        let took = start.elapsed();
        let rate = file.len() as f64 / took.as_secs_f64() / 1e9;
        println!("round {round}: {took:.2?}, {rate:.2} GB/s of layers; {}", stream.plan().why);
        if round == 0 {
            layer_time = took / count.max(1) as u32;
        }
    }
    let stats = stream.stats();
    println!(
        "waited {:.2} s, computed {:.2} s, read {} MiB, held {} of {} MiB at most, {:.0} % of the reading hidden",
        stats.wait_seconds,
        stats.compute_seconds,
        stats.streamed_bytes >> 20,
        stats.held_bytes_max >> 20,
        stats.budget_bytes >> 20,
        100.0 * trace.overlap_ratio(),
    );
    Ok(())
}
