//! What the system counts of this process.

use std::fs::read_to_string;
use std::process::Command;

use anyhow::{Context, Result};

/// Bytes this process caused to be written to drives so far, as Linux counts them: when a page becomes dirty, or with
/// direct I/O when it is written.
pub(crate) fn bytes_written() -> Result<u64> {
    number("/proc/self/io", "write_bytes:")
}

/// Most bytes of memory it had at once.
pub(crate) fn peak_bytes() -> Result<u64> {
    Ok(number("/proc/self/status", "VmHWM:")? * 1024)
}

/// Puts everything on the drives that waits to be written, so that it does not disturb what is measured next.
pub(crate) fn sync() -> Result<()> {
    let status = Command::new("sync").status().context("cannot start sync")?;
    anyhow::ensure!(status.success(), "sync failed ({status})");
    Ok(())
}

fn number(file: &str, name: &str) -> Result<u64> {
    let text = read_to_string(file).with_context(|| file.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("{file} has no {name}"))
}
