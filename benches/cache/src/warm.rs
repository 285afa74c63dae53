//! Reading large values from the drive, beside plain reads of plain files into one buffer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::requests::{check, make};
use crate::{Scratch, process};

/// Bytes of all values: enough to be no matter of the processor's caches.
const DATA_MEBIBYTES: usize = 512;
/// What direct I/O asks of a buffer's place.
const ALIGNMENT: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Pread,
    #[cfg(feature = "qvl")]
    Qvl,
}

#[derive(clap::Args)]
pub(crate) struct ReadArgs {
    #[arg(long, value_enum)]
    side: Side,
    /// Where the values lie; emptied first, removed at the end.
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// Of a value.
    #[arg(long, value_name = "MiB")]
    mebibytes: usize,
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Past the page cache, which is warm otherwise.
    #[arg(long)]
    direct: bool,
    /// As long as this at least.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,
}

pub(crate) fn read(args: &ReadArgs) -> Result<Value> {
    let scratch = Scratch::new(&args.folder)?;
    let bytes = args.mebibytes << 20;
    let count = (DATA_MEBIBYTES / args.mebibytes).max(args.threads) as u64;
    let time = Duration::from_secs_f64(args.seconds);
    let rate = match args.side {
        Side::Pread => {
            for key in 0..count {
                std::fs::write(scratch.0.join(key.to_string()), make(key, bytes))?;
            }
            process::sync()?;
            let files = (0..count).map(|key| {
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(if args.direct { libc::O_DIRECT } else { 0 });
                options.open(scratch.0.join(key.to_string())).context("cannot open what was just written")
            });
            let files = files.collect::<Result<Vec<File>>>()?;
            measure(args.threads, count, bytes, time, || {
                let (mut memory, files) = (vec![0; bytes + ALIGNMENT], &files);
                move |key| {
                    let from = memory.as_ptr().align_offset(ALIGNMENT);
                    let buffer = &mut memory[from..from + bytes];
                    let file = files.get(usize::try_from(key)?).context("no such file")?;
                    file.read_exact_at(buffer, 0)?;
                    check(key, bytes, buffer)
                }
            })?
        }
        #[cfg(feature = "qvl")]
        Side::Qvl => {
            let cache = crate::qvl_side::on_drive(&scratch.0, count * bytes as u64, args.direct)?;
            for key in 0..count {
                cache.insert(key, make(key, bytes))?;
            }
            cache.flush()?;
            process::sync()?;
            let rate = measure(args.threads, count, bytes, time, || {
                |key| {
                    let value = cache.get(&key)?.ok_or_else(|| anyhow!("{key} is not on the drive"))?;
                    check(key, bytes, &value)
                }
            })?;
            crate::qvl_side::came_from_the_drive(&cache)?;
            cache.close()?;
            rate
        }
    };
    Ok(json!({ "metric": "warm_read", "bytes": bytes, "threads": args.threads, "bytes_per_second": rate }))
}

/// Bytes a second of all threads together; each goes through the keys again and again, from a place of its own.
fn measure<R: FnMut(u64) -> Result<()>>(
    threads: usize,
    count: u64,
    bytes: usize,
    time: Duration,
    reader: impl Fn() -> R + Sync,
) -> Result<f64> {
    let work = |thread: u64| -> Result<f64> {
        let mut read = reader();
        let mut pass = || {
            let from = thread * count / threads as u64;
            (0..count).try_for_each(|key| read((from + key) % count))
        };
        // The first pass fills the page cache and touches the buffers.
        pass()?;
        let (start, mut passes) = (Instant::now(), 0);
        while passes == 0 || start.elapsed() < time {
            pass()?;
            passes += 1;
        }
        Ok(f64::from(passes) * count as f64 * bytes as f64 / start.elapsed().as_secs_f64())
    };
    let rates: Vec<Result<f64>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads as u64).map(|thread| scope.spawn(move || work(thread))).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, Result<f64>>| {
            handle.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
        };
        handles.into_iter().map(join).collect()
    });
    rates.into_iter().sum()
}
