//! Prints what a drive can do and how to read from it.
//!
//! ```text
//! cargo run --release -p qvl-dataload --features io-uring --example probe_drive -- PATH [SECONDS] [SCRATCH_MIB]
//! ```
//!
//! `PATH` is a file, or a folder with the files that are to be read. With `SCRATCH_MIB` a file of that size is
//! written into the folder, measured and removed: for a drive with no files yet.

#![allow(clippy::print_stdout, reason = "printing is what this example does")]

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use qvl_dataload::storage::Drive;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: probe_drive PATH [SECONDS] [SCRATCH_MIB]";
    let path = Path::new(arguments.first().ok_or(usage)?);
    let seconds: f64 = arguments.get(1).map_or(Ok(5.0), |text| text.parse())?;
    let limit = Duration::try_from_secs_f64(seconds)?;
    let drive = match arguments.get(2) {
        None => Drive::probe(path, limit)?,
        Some(mib) => Drive::probe_scratch(path, mib.parse::<u64>()? << 20, limit)?,
    };
    println!("{drive}");
    Ok(())
}
