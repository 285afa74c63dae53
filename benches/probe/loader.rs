//! The loader: photographs to batches of patches, its waits and its peak, and what it costs by itself.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use qvl_dataload::storage::Reader;
use qvl_dataload::{DataLoader, Files, Memory, Patchify, Prepared, Recycled, Source, Stats, Transform};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::emit;
use crate::preprocess::{digest, hex, settings};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    files: FileArgs,
    /// Threads that load.
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,
    /// Items of a batch.
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch_size: usize,
    /// Time the consumer takes for a batch, as a multiple of the time it takes to load one. It sleeps, as one does who
    /// waits for an accelerator.
    #[arg(long, value_name = "FACTOR", default_value_t = 0.0)]
    pace: f64,
    /// How often all files come.
    #[arg(long, value_name = "N", default_value_t = 1)]
    epochs: u64,
    /// The loader's bound of bytes.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    prefetch_mebibytes: usize,
}

#[derive(clap::Args)]
pub(crate) struct FileArgs {
    /// A folder of JPEG files.
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// How many of them, the first by name.
    #[arg(long, value_name = "N")]
    count: usize,
    /// Pixels after resizing, at most; the other settings are as published.
    #[arg(long, value_name = "N")]
    max_pixels: u64,
    /// Items made first, untimed; the SHA-256 is of their patches.
    #[arg(long, value_name = "N", default_value_t = 8)]
    warm_up: usize,
}

#[derive(clap::Args)]
pub(crate) struct OverheadArgs {
    /// Threads that load.
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,
    /// Items of a batch.
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch_size: usize,
    /// Items in all.
    #[arg(long, value_name = "N", default_value_t = 400_000)]
    items: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.pace >= 0.0, "--pace {}: a time cannot be negative", args.pace);
    let files = args.files.list()?;
    let first = &files[..args.files.warm_up.min(files.len())];
    let mut hash = Sha256::new();
    consume(args, first, 1, Duration::ZERO, |item| hash = digest(hash.clone(), item.values()))?;
    let pause = if args.pace > 0.0 {
        let some = &files[..MEASURED_FIRST.min(files.len())];
        let run = consume(args, some, 1, Duration::ZERO, |_| ())?;
        run.elapsed.mul_f64(args.pace / run.batches as f64)
    } else {
        Duration::ZERO
    };
    let (mut items, mut patches) = (0u64, 0);
    let run = consume(args, &files, args.epochs, pause, |item| {
        items += 1;
        patches += item.grid.patches();
    })?;
    let seconds = run.elapsed.as_secs_f64();
    emit(&json!({
        "metric": "loader",
        "workers": args.workers,
        "batch_size": args.batch_size,
        "items": items,
        "patches": patches,
        "seconds": seconds,
        "items_per_second": items as f64 / seconds,
        "pause_seconds": pause.as_secs_f64(),
        "wait_seconds": run.wait.as_secs_f64(),
        "peak_bytes": run.stats.peak_bytes + run.stats.undeclared_bytes,
        "bound_bytes": run.stats.bytes_bound,
        "peak_items": run.stats.peak_items,
        "sha256": hex(hash.finalize()),
    }))
}

/// Items of the run that finds out how long a batch takes to load.
const MEASURED_FIRST: usize = 64;

/// What one run of a loader took.
struct Run {
    elapsed: Duration,
    batches: u64,
    /// Waiting for batches, the first included, by the consumer's own clock.
    wait: Duration,
    stats: Stats,
}

/// Takes all batches, and for each as long as `pause`.
fn consume(
    args: &Args,
    files: &[PathBuf],
    epochs: u64,
    pause: Duration,
    mut look: impl FnMut(&Prepared),
) -> Result<Run> {
    let start = Instant::now();
    let mut loader = DataLoader::builder(Files::list(files)?)
        .transform(Patchify::<f32>::new(settings(args.files.max_pixels)))
        .workers(args.workers)
        .batch_size(args.batch_size)
        .epochs(epochs)
        .prefetch_bytes(args.prefetch_mebibytes << 20)
        .build()?;
    let (mut wait, mut batches) = (Duration::ZERO, 0);
    loop {
        let asked = Instant::now();
        let Some(batch) = loader.next() else { break };
        wait += asked.elapsed();
        batches += 1;
        batch?.iter().for_each(&mut look);
        std::thread::sleep(pause);
    }
    ensure!(batches > 0, "there was no batch");
    Ok(Run { elapsed: start.elapsed(), batches, wait, stats: loader.stats() })
}

/// The same work in a loop on this thread: what a worker does, with the same buffers, and no loader.
pub(crate) fn plain(args: &FileArgs) -> Result<()> {
    let step = Patchify::<f32>::new(settings(args.max_pixels));
    let files = Files::list(args.list()?)?;
    let (mut scratch, buffers) = (step.scratch(), Recycled::new(KEPT_BYTES));
    let mut work = |index: usize| -> Result<usize> {
        let sample = files.read(index, &mut Reader::new(&buffers))?;
        let name = sample.name.clone();
        Ok(step.apply(sample, &name, &mut scratch, &buffers)?.grid.patches())
    };
    (0..args.warm_up.min(files.len())).try_for_each(|index| work(index).map(drop))?;
    let start = Instant::now();
    let patches = (0..files.len()).map(&mut work).sum::<Result<usize>>()?;
    let seconds = start.elapsed().as_secs_f64();
    emit(&json!({
        "metric": "plain_loop",
        "items": files.len(),
        "patches": patches,
        "seconds_per_item": seconds / files.len() as f64,
    }))
}

/// More than the buffers of one item, so that none is given back.
const KEPT_BYTES: usize = 1 << 28;

/// Small numbers through a loader that does nothing with them.
pub(crate) fn overhead(args: &OverheadArgs) -> Result<()> {
    ensure!(args.items > 0, "--items 0: nothing to measure");
    let values: Vec<u64> = (0..args.items as u64).collect();
    let (mut seconds, mut sum) = (0.0, 0);
    // The first time is forgotten.
    for _ in 0..2 {
        let source = Memory::new(values.clone());
        let start = Instant::now();
        let loader = DataLoader::builder(source).workers(args.workers).batch_size(args.batch_size).build()?;
        sum = 0;
        for batch in loader {
            sum += batch?.iter().sum::<u64>();
        }
        seconds = start.elapsed().as_secs_f64();
    }
    ensure!(sum == values.iter().sum::<u64>(), "the loader lost items");
    emit(&json!({
        "metric": "loader_overhead",
        "workers": args.workers,
        "items": args.items,
        "microseconds_per_item": 1e6 * seconds / args.items as f64,
    }))
}

impl FileArgs {
    /// The first files by name, each read once: what is measured comes from memory, on either side.
    fn list(&self) -> Result<Vec<PathBuf>> {
        let files = first_pictures(&self.folder, self.count)?;
        for file in &files {
            std::fs::read(file).with_context(|| file.display().to_string())?;
        }
        Ok(files)
    }
}

fn first_pictures(folder: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let shown = || folder.display().to_string();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(shown)? {
        let path = entry.with_context(shown)?.path();
        files.extend(path.extension().is_some_and(|extension| extension == "jpg").then_some(path));
    }
    files.sort();
    ensure!(count > 0 && files.len() >= count, "{}: {} pictures, {count} wanted", shown(), files.len());
    files.truncate(count);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pictures_by_name_are_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["b.jpg", "a.jpg", "c.jpg", "manifest.json"] {
            std::fs::write(folder.path().join(name), "").expect("writes");
        }
        let names = first_pictures(folder.path(), 2).expect("two");
        assert_eq!(names, ["a.jpg", "b.jpg"].map(|name| folder.path().join(name)));
        assert!(first_pictures(folder.path(), 4).is_err());
        assert!(first_pictures(&folder.path().join("none"), 1).is_err());
    }
}
