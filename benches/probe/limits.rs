//! What the machine can do: the ceilings that the engine's figures are held against.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use memmap2::MmapMut;
use serde_json::json;

use crate::emit;
use crate::kernels::{self, Arithmetic};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Threads of the parallel measurements; 0 takes all cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Bytes streamed through, in MiB; 0 takes four times the last-level cache, at least 1,024 and at most 4,096.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    mebibytes: usize,
    /// Passes; the best and the median are given.
    #[arg(long, value_name = "N", default_value_t = 9)]
    repetitions: usize,
    /// Only this: memory_read, memcpy, or a kind of arithmetic (f32_avx2, f32_avx512, i8_avx2, i8_avx_vnni,
    /// i8_avx512_vnni).
    #[arg(long, value_name = "WHAT")]
    only: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.repetitions > 0, "nothing to measure");
    let threads = match args.threads {
        0 => std::thread::available_parallelism()?.get(),
        threads => threads,
    };
    let mut counts = vec![1, threads];
    counts.dedup();
    let wanted = |what: &str| args.only.as_deref().is_none_or(|only| only == what);
    if wanted("memory_read") {
        memory_read(args, &counts)?;
    }
    if wanted("memcpy") {
        memcpy(args, &counts)?;
    }
    for kind in Arithmetic::ALL.into_iter().filter(|kind| wanted(kind.name()) && kind.is_available()) {
        for &threads in &counts {
            let operations = kind.operations(ARITHMETIC_ROUNDS) * threads as f64;
            let rates = rates(threads, args.repetitions, operations, vec![(); threads], |()| {
                black_box(kind.run(ARITHMETIC_ROUNDS));
            });
            say("arithmetic", kind.name(), threads, "operations/s", &rates)?;
        }
    }
    Ok(())
}

/// With less, some of it would still be in the cache when it is read again.
fn bytes(args: &Args) -> usize {
    let mebibytes = match args.mebibytes {
        0 => ((4 * last_level_cache().unwrap_or(0)) >> 20).clamp(1 << 10, 1 << 12),
        mebibytes => mebibytes,
    };
    mebibytes << 20
}

/// Bytes of the largest cache, where Linux says so.
fn last_level_cache() -> Option<usize> {
    let size = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let size = std::fs::read_to_string(path).ok()?;
        Some(size.trim().strip_suffix('K')?.parse::<usize>().ok()? << 10)
    };
    (0..5).filter_map(size).max()
}

fn memory_read(args: &Args, counts: &[usize]) -> Result<()> {
    let bytes = bytes(args);
    let mut source = buffer(bytes)?;
    source.fill(1);
    for &threads in counts {
        let rates = rates(threads, args.repetitions, bytes as f64, share(&source, threads), |part| {
            black_box(kernels::read(part));
        });
        say("memory_read", "", threads, "bytes/s", &rates)?;
    }
    Ok(())
}

/// Bytes copied; the memory sees each at least twice.
fn memcpy(args: &Args, counts: &[usize]) -> Result<()> {
    let bytes = bytes(args);
    let (mut source, mut target) = (buffer(bytes)?, buffer(bytes)?);
    source.fill(1);
    target.fill(2);
    for &threads in counts {
        let length = bytes.div_ceil(threads);
        let pairs = share(&source, threads).into_iter().zip(target.chunks_mut(length)).collect();
        let rates = rates(threads, args.repetitions, bytes as f64, pairs, |(source, target)| {
            target.copy_from_slice(source);
        });
        say("memcpy", "", threads, "bytes/s", &rates)?;
    }
    Ok(())
}

/// Some 40 ms: long enough for the clock to settle.
const ARITHMETIC_ROUNDS: u64 = 20_000_000;

/// Zeroed memory in huge pages where the system gives them: with small ones the page walks are measured too.
pub(crate) fn buffer(bytes: usize) -> Result<MmapMut> {
    let map = MmapMut::map_anon(bytes).with_context(|| format!("{bytes} bytes of memory"))?;
    #[cfg(target_os = "linux")]
    // A system without them refuses; then it is measured as it is.
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

fn share(bytes: &[u8], threads: usize) -> Vec<&[u8]> {
    bytes.chunks(bytes.len().div_ceil(threads)).collect()
}

/// Amount per second of each repetition, ascending; all threads start together, the last to end counts. One
/// pass more goes first, untimed.
fn rates<T: Send>(
    threads: usize,
    repetitions: usize,
    amount: f64,
    parts: Vec<T>,
    work: impl Fn(&mut T) + Sync,
) -> Vec<f64> {
    let barrier = Barrier::new(threads + 1);
    let mut rates: Vec<f64> = std::thread::scope(|scope| {
        for mut part in parts {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                for _ in 0..=repetitions {
                    barrier.wait();
                    work(&mut part);
                    barrier.wait();
                }
            });
        }
        (0..=repetitions)
            .map(|_| {
                barrier.wait();
                let start = Instant::now();
                barrier.wait();
                amount / start.elapsed().as_secs_f64()
            })
            .skip(1)
            .collect()
    });
    rates.sort_by(f64::total_cmp);
    rates
}

fn say(metric: &str, kind: &str, threads: usize, unit: &str, rates: &[f64]) -> Result<()> {
    emit(&json!({
        "metric": metric,
        "kind": kind,
        "threads": threads,
        "unit": unit,
        "best": rates.last(),
        "median": rates[rates.len() / 2],
    }))
}
