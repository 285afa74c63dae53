//! Reads files with an empty page cache, by each way of reading, and prints GB/s.
//!
//! ```text
//! cargo run --release -p qvl-dataload --features io-uring --example read_cold -- FOLDER [ROUNDS] [BLOCK_KIB]
//! ```
//!
//! The files of the folder are dropped from the page cache before each reading; the ways take turns, and the best of
//! the rounds counts. A file longer than `BLOCK_KIB` (4096) is read in blocks of that size. Linux only.

#![allow(clippy::print_stdout, reason = "printing is what this example does")]

use std::error::Error;

#[cfg(not(target_os = "linux"))]
fn main() -> Result<(), Box<dyn Error>> {
    Err("the page cache can be emptied on Linux only".into())
}

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn Error>> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::error::Error;
    use std::fs::File;
    use std::time::Instant;

    use qvl_dataload::storage::{DataFile, Extent, Reader, Request, Storage, sort_by_place};
    use qvl_dataload::{Buffer, Recycled};

    pub(super) fn main() -> Result<(), Box<dyn Error>> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let folder = arguments.first().ok_or("usage: read_cold FOLDER [ROUNDS] [BLOCK_KIB]")?;
        let rounds: usize = arguments.get(1).map_or(Ok(3), |text| text.parse())?;
        let block_bytes = arguments.get(2).map_or(Ok(4096), |text| text.parse::<usize>())? << 10;
        let extents = extents(folder, block_bytes.max(1))?;
        let bytes: usize = extents.iter().map(|extent| extent.bytes).sum();
        println!("{} reads, {:.2} GB", extents.len(), bytes as f64 / 1e9);

        let mut by_place = extents.clone();
        sort_by_place(&mut by_place, |extent| extent);
        // An order that is none: steps through the list by a number that shares no factor with most lengths.
        let mixed: Vec<Extent> =
            (0..extents.len()).map(|i| extents[(i * 7919 + 13) % extents.len()].clone()).collect();
        let pool = |threads, direct| Some(Storage::Pool { threads, direct });
        let uring = |depth, direct| Some(Storage::Uring { depth, direct });
        let buffered = Some(Storage::default());
        let ways = [
            ("one after the other", None, &extents),
            ("one after the other, mixed", None, &mixed),
            ("one after the other, by place", None, &by_place),
            ("buffered, told ahead", buffered, &extents),
            ("buffered, told ahead, mixed", buffered, &mixed),
            ("4 threads", pool(4, false), &extents),
            ("16 threads", pool(16, false), &extents),
            ("4 threads, direct", pool(4, true), &extents),
            ("16 threads, direct", pool(16, true), &extents),
            ("io_uring 32", uring(32, false), &extents),
            ("io_uring 32, direct", uring(32, true), &extents),
            ("io_uring 32, direct, mixed", uring(32, true), &mixed),
        ];
        let buffers = Recycled::new(1 << 30);
        let mut best = [f64::INFINITY; 12];
        for _ in 0..rounds {
            for ((_, storage, extents), best) in ways.iter().zip(&mut best) {
                for extent in &extents[..] {
                    let file = File::open(extent.file.path())?;
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
                }
                let since = Instant::now();
                match storage {
                    None => one_by_one(extents, &buffers)?,
                    Some(storage) => ahead(*storage, extents, &buffers)?,
                }
                *best = best.min(since.elapsed().as_secs_f64());
            }
        }
        for ((name, ..), seconds) in ways.iter().zip(best) {
            println!("{name:<32} {:6.2} GB/s", bytes as f64 / 1e9 / seconds);
        }
        Ok(())
    }

    fn extents(folder: &str, block_bytes: usize) -> Result<Vec<Extent>, Box<dyn Error>> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            paths.push(entry?.path());
        }
        paths.sort();
        let mut extents = Vec::new();
        for path in paths {
            let all = Extent::whole(DataFile::once(&path))?;
            // Opened once if it is read in parts.
            let file = if all.bytes > block_bytes { DataFile::kept(&path) } else { all.file };
            for from in (0..all.bytes).step_by(block_bytes) {
                let bytes = block_bytes.min(all.bytes - from);
                extents.push(Extent { file: file.clone(), offset: from as u64, bytes });
            }
        }
        Ok(extents)
    }

    fn one_by_one(extents: &[Extent], buffers: &Recycled) -> Result<(), qvl_dataload::Error> {
        let mut reader = Reader::new(buffers);
        extents.iter().try_for_each(|extent| reader.read(extent).map(drop))
    }

    fn ahead(storage: Storage, extents: &[Extent], buffers: &Recycled) -> Result<(), qvl_dataload::Error> {
        let mut engine = storage.start()?;
        let mut in_flight = 0;
        let mut next = extents.iter();
        loop {
            while in_flight < engine.depth() {
                let Some(extent) = next.next() else { break };
                let buffer = Buffer::take(buffers, storage.room_bytes(extent))?;
                engine.submit(Request { tag: 0, extent: extent.clone(), buffer });
                in_flight += 1;
            }
            let Some(done) = engine.complete(true) else { return Ok(()) };
            in_flight -= 1;
            drop(done.result?);
        }
    }
}
