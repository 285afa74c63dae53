//! Prints what each policy does with a trace, beside what could be done by one that knows the future:
//!
//! ```text
//! cargo run --release -p qvl-cache --example replay -- [TRACE...]
//! ```
//!
//! Without a trace it takes those that come with the source.

#![allow(clippy::print_stdout, reason = "printing is what this example does")]

use std::error::Error;
use std::path::{Path, PathBuf};

use qvl_cache::policy::PolicyName;
use qvl_cache::policy::belady::{budgets, replay};
use qvl_cache::trace::Trace;

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if paths.is_empty() {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("traces"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "trace") {
                paths.push(path);
            }
        }
        paths.sort();
    }
    for path in paths {
        let trace = Trace::read(&path)?;
        let report = replay(&trace, &budgets(&trace));
        let footprint = trace.footprint_bytes();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let known = if report.exact { "belady" } else { "greedy" };
        println!(
            "\n{name}: {} requests, {:.1} MiB of different values",
            trace.requests.len(),
            mib(footprint)
        );
        println!(
            "{:>12} {:>12} {:>8} {:>8} {:>8} {known:>8} {:>8}",
            "budget", "policy", "hits", "bytes", "time", "bound"
        );
        for row in &report.rows {
            println!(
                "{:>8.1} MiB {:>12} {:>7.2}% {:>7.2}% {:>7.2}% {:>7.2}% {:>7.2}%",
                mib(row.budget),
                row.policy.name(),
                100.0 * row.outcome.hit_rate(),
                100.0 * row.outcome.byte_hit_rate(),
                100.0 * row.outcome.saved_rate(),
                100.0 * row.belady.saved_rate(),
                100.0 * row.bound,
            );
        }
        println!(
            "best: {}{}",
            report.best(),
            if report.best() == PolicyName::Auto { "" } else { " (not the default)" }
        );
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
