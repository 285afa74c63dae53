//! Packs the traces of forward passes, says what that takes, and runs each from its plan:
//!
//!     cargo run --release --example plan_then_run [-- --write FOLDER]
//!
//! With `--write` it writes the traces into a folder: `traces` for those of this crate.

#[path = "../tests/common/forward.rs"]
mod forward;
#[path = "../tests/common/heap.rs"]
mod heap;

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use qvl_alloc::{PlannedRun, Trace, pack};

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for (name, trace) in forward::traces()? {
        if let [_, folder] = arguments.as_slice() {
            trace.save(&Path::new(folder).join(name))?;
        }
        let started = Instant::now();
        let packing = pack(&trace);
        let pack_s = started.elapsed().as_secs_f64();
        writeln!(
            out,
            "{name}: {} allocations, peak {} bytes, lower bound {}, gap {:.2} %, packed in {pack_s:.3} s",
            trace.allocations().len(),
            packing.peak_bytes(),
            packing.lower_bound_bytes(),
            packing.gap() * 100.0
        )?;
        let backing = Arc::new(heap::Heap::new(4096, usize::MAX));
        let mut run = PlannedRun::new(backing, packing)?;
        let started = Instant::now();
        for _ in 0..RUNS {
            replay(&trace, &mut run)?;
        }
        let run_ns = started.elapsed().as_nanos() / (u128::from(RUNS) * trace.allocations().len() as u128);
        writeln!(out, "    {:?}, {run_ns} ns for each allocation with its end", run.counts())?;
    }
    Ok(())
}

/// Asks for what the trace has, and drops each when it ends there.
fn replay(trace: &Trace, run: &mut PlannedRun<heap::Heap>) -> Result<(), Box<dyn Error>> {
    run.restart();
    let mut living = Vec::new();
    for allocation in trace.allocations() {
        living.retain(|(death, _)| *death > allocation.birth);
        let piece = run.next(usize::try_from(allocation.bytes)?, usize::try_from(allocation.align)?);
        living.push((allocation.death, piece));
    }
    Ok(())
}

const RUNS: u32 = 100;
