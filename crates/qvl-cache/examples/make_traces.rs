//! Makes the traces that come with the source, and turns what strace recorded into one:
//!
//! ```text
//! cargo run --release -p qvl-cache --example make_traces -- FOLDER
//! strace -f -y -e trace=openat -o LOG PROGRAM...
//! cargo run --release -p qvl-cache --example make_traces -- FOLDER NAME LOG
//! ```
//!
//! The second form makes FOLDER/NAME.trace: each regular file that was opened is a request, its size now is the size, a
//! file opened for writing is stored. The files must still be there. No path gets into the trace.

#![allow(clippy::print_stdout, reason = "printing is what this example does")]

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use qvl_cache::trace::{Request, Trace};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [folder] => {
            for (name, trace) in generated() {
                save(Path::new(folder), name, &trace)?;
            }
        }
        [folder, name, log] => save(Path::new(folder), name, &opened(&fs::read_to_string(log)?))?,
        _ => return Err("usage: make_traces FOLDER [NAME LOG]".into()),
    }
    Ok(())
}

/// The generated ones; `traces/README.md` says what each is for.
fn generated() -> [(&'static str, Trace); 9] {
    [
        ("zipf", Trace::zipf(1, 1500, 0.9, 12_000)),
        ("zipf-flat", Trace::zipf(2, 1500, 0.6, 9_000)),
        ("zipf-sizes", Trace::zipf(3, 1500, 0.9, 12_000).with_sizes(3)),
        ("loop", Trace::cycle(1000, 12_000)),
        ("scans-in-zipf", Trace::scans_in_zipf(5, 1000, 0.9, 8_000, 400, 200)),
        ("phases", Trace::phases(6, 1500, 1.0, 14_000, 8)),
        ("recency", Trace::recency(7, 1500, 1.1, 14_000)),
        ("streamed-weights", Trace::streamed_weights(8, 36, 6, 60, 24_000)),
        ("chat", Trace::recency(9, 800, 1.2, 10_000).with_sizes(9)),
    ]
}

fn save(folder: &Path, name: &str, trace: &Trace) -> Result<(), Box<dyn Error>> {
    let path = folder.join(name).with_extension("trace");
    trace.write(&path)?;
    println!("{}: {} requests, {} bytes", path.display(), trace.requests.len(), fs::metadata(&path)?.len());
    Ok(())
}

/// The files of the lines `PID openat(…, "…", FLAGS…) = FD</path>`.
fn opened(log: &str) -> Trace {
    let mut files: HashMap<&str, Option<(u64, u64)>> = HashMap::new();
    let mut requests = Vec::new();
    for line in log.lines().filter(|line| line.contains("openat")) {
        let Some((call, path)) =
            line.rsplit_once(" = ").and_then(|(call, end)| Some((call, end.split_once('<')?.1)))
        else {
            continue;
        };
        let path = path.trim_end_matches('>');
        let next = files.len() as u64;
        let file = *files.entry(path).or_insert_with(|| {
            let data = fs::metadata(path).ok().filter(|data| data.is_file() && data.len() > 0)?;
            Some((next, data.len()))
        });
        let Some((id, bytes)) = file else { continue };
        // A seek of 0.1 ms, and 1 GiB/s.
        let cost_micros = u32::try_from(100 + bytes / 1074).unwrap_or(u32::MAX);
        let write = call.contains("O_WRONLY") || call.contains("O_RDWR");
        requests.push(Request { id, bytes, cost_micros, write });
    }
    Trace { requests }
}
