//! How fast the card that is there takes bytes from each kind of memory, and gives them back.
//!
//! ```text
//! cargo run --release -p qvl-transfer --example cuda_copy --features cuda -- [CARD] [MIB]
//! ```
//!
//! Without a card it says what is missing.

#![allow(clippy::print_stdout, reason = "a program that shows what it measured")]

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qvl_transfer::device::cuda::{CudaMemory, CudaSettings, PinnedKind};
use qvl_transfer::source::Memory;
use qvl_transfer::{CudaDevice, Device, Priority, Settings, Source, Transfer, TransferEngine};

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let card: usize = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let mib: usize = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let bytes = mib << 20;

    let settings = CudaSettings { pinned_bytes: 4 * bytes as u64 + (64 << 20), ..CudaSettings::default() };
    let device = CudaDevice::new(card, settings)?;
    println!("{}, driver of CUDA {}", device.name(), device.driver_version());
    println!("{} of {} MiB are free", device.free_bytes()? >> 20, device.total_bytes()? >> 20);
    let settings = Settings { chunk_bytes: 4 << 20, staging_bytes: 64 << 20, ..Settings::default() };
    let engine = TransferEngine::new(device.clone(), settings)?;
    let data = Arc::new((0..bytes).map(|at| (at % 251) as u8).collect::<Vec<u8>>());
    let mut memory = device.allocate(bytes)?;

    // cudarc's own copy: the driver moves pageable memory through a buffer of its own.
    let stream = device.context().new_stream()?;
    let mut slice = stream.alloc_zeros::<u8>(bytes)?;
    let driver = best(|| {
        stream.memcpy_htod(&*data, &mut slice)?;
        Ok(stream.synchronize()?)
    })?;
    drop(slice);
    show("in, pageable, by the driver", bytes, driver);

    let source = Arc::new(Memory::new(data.to_vec()));
    let staged = best(|| copied(&engine, source.clone(), &mut memory))?;
    show("in, pageable, through staging", bytes, staged);

    for (kind, name) in [
        (PinnedKind::Cached, "in, page-locked"),
        (PinnedKind::WriteCombined, "in, page-locked, write-combined"),
    ] {
        let mut pinned = device.pinned(bytes, kind)?;
        pinned.copy_from_slice(&data);
        let source = Arc::new(Memory::new(pinned));
        let time = best(|| copied(&engine, source.clone(), &mut memory))?;
        show(name, bytes, time);
    }

    let registered = device.register(data.clone());
    let since = Instant::now();
    let locked = registered.lock(0..bytes)?;
    show("locking pages", bytes, since.elapsed());
    let source = Arc::new(Memory::new(locked));
    let time = best(|| copied(&engine, source.clone(), &mut memory))?;
    show("in, registered", bytes, time);

    let mut host = Some(device.staging(bytes)?);
    let mut there = Some(memory);
    let time = best(|| {
        let (Some(from), Some(to)) = (there.take(), host.take()) else {
            return Err("it failed before".into());
        };
        let done = engine.fetch(from, 0, to, Priority::Normal)?.wait()?;
        (there, host) = (Some(done.memory.0), Some(done.memory.1));
        Ok(())
    })?;
    show("out, page-locked", bytes, time);
    let same = host.is_some_and(|host| host[..] == data[..]);
    println!("{}", if same { "the bytes came back as they went" } else { "the bytes CHANGED on their way" });
    Ok(())
}

/// Brings a source to `memory`.
fn copied(
    engine: &TransferEngine<CudaDevice>,
    source: impl Source,
    memory: &mut CudaMemory,
) -> Result<(), Box<dyn Error>> {
    let nothing = engine.device().allocate(0)?;
    let to = std::mem::replace(memory, nothing);
    *memory = engine.submit(Transfer::new(source, to))?.wait()?.memory;
    Ok(())
}

/// The best of five times.
fn best(mut work: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let since = Instant::now();
        work()?;
        best = best.min(since.elapsed());
    }
    Ok(best)
}

fn show(name: &str, bytes: usize, time: Duration) {
    println!("{name:<34} {:>7.2} GB/s", bytes as f64 / time.as_secs_f64() / 1e9);
}
