//! Reads a file as fast as this machine can, and the same file with a plain loop of `pread`.
//!
//! ```text
//! cargo run --release --example read_fast -- /models/weights.safetensors [times]
//! ```
#![allow(clippy::print_stdout, missing_docs)]

use std::error::Error;
use std::fs::File;
use std::time::Instant;

use qvl_transfer::drive::DriveFile;
use qvl_transfer::drive::probe::{Drive, Effort, choose};
use qvl_transfer::source::Source;
use qvl_transfer::{Device, HostDevice, Transfer, TransferEngine};

/// What is read at once into memory that is used again, as a model is that is streamed layer by layer.
const SEGMENT_BYTES: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which file?")?;
    let times: usize = arguments.next().map_or(Ok(3), |times| times.parse())?;

    let measured = Drive::probe(&path, &Effort::default())?;
    let choice = choose(&measured);
    println!("{measured}chosen: {}\n", choice.why);

    let file = DriveFile::with_mode(&path, choice.mode)?;
    println!("the file is read {}", file.explain());
    let engine = TransferEngine::new(HostDevice::new(4 * SEGMENT_BYTES), choice.settings(16 << 20))?;
    // Twice, so that memory is there and touched; only then does the clock run.
    for run in 0..=times {
        let begun = Instant::now();
        stream(&engine, &file)?;
        if run > 0 {
            say("the engine", file.len(), begun);
        }
    }
    for _ in 0..times {
        let begun = Instant::now();
        plain(&path)?;
        say("a loop of pread", file.len(), begun);
    }
    Ok(())
}

/// All of the file, two segments at once.
fn stream(engine: &TransferEngine<HostDevice>, file: &DriveFile) -> Result<(), Box<dyn Error>> {
    let mut ahead = None;
    for offset in (0..file.len()).step_by(SEGMENT_BYTES as usize) {
        let range = file.range(offset, SEGMENT_BYTES.min(file.len() - offset))?;
        let memory = engine.device().allocate(range.len() as usize)?;
        let next = engine.submit(Transfer::new(range, memory))?;
        if let Some(ticket) = ahead.replace(next) {
            // Here the bytes would be computed with.
            drop(ticket.wait()?);
        }
    }
    if let Some(ticket) = ahead {
        drop(ticket.wait()?);
    }
    Ok(())
}

/// One read after the other, through the page cache.
fn plain(path: &str) -> Result<(), Box<dyn Error>> {
    let file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let bytes = read_at(&file, &mut buffer, offset)?;
        if bytes == 0 {
            return Ok(());
        }
        offset += bytes as u64;
    }
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

fn say(who: &str, bytes: u64, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!("{who}: {:.2} GB/s", bytes as f64 / seconds / 1e9);
}
