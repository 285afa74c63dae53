//! The suite `transfer`: a drive streamed through segments, overlap with computing, a memory limit, links, overhead.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::evidence::Evidence;
use super::plan::{Group, Job, Metric, Plan, Reference};
use super::probe::{Call, Setup, figure};
use super::process;
use super::stats::Better;
use crate::run::say;

/// Plain loops of direct reads that stand for what the drive gives, as (threads, KiB of a read).
const READS: [(usize, usize); 6] = [(2, 1024), (3, 1024), (4, 1024), (8, 1024), (16, 1024), (4, 4096)];
/// Memory that the stream has, in segments, and that plain loops have which read into as much.
const WINDOW_SEGMENTS: u64 = 4;
const SEGMENTS: u64 = 36;
/// Speeds of links, in GB/s, with their metrics.
const LINKS: [(u32, &str); 3] = [(1, "link_share_1gbs"), (3, "link_share_3gbs"), (12, "link_share_12gbs")];

pub(crate) fn metrics() -> Vec<Metric> {
    let mut reads: Vec<String> = READS.iter().map(|&read| read_series(read)).collect();
    if has_fio() {
        reads.push("fio".to_owned());
    }
    let seen: Vec<String> = reads.iter().map(|read| format!("{read}:{{{read}}}")).collect();
    let mut metrics = vec![
        Metric {
            reference: vec![Reference::BestOf(reads)],
            ..rates(
                "stream_vs_drive",
                "a file of 36 segments through LayerStream, direct reads, memory for 4 segments: bytes/s",
                "stream",
                "",
                &format!(
                    "the best of plain loops of direct reads into one buffer a thread: {};{{stream}}",
                    seen.join(", ")
                ),
                Some(0.92),
            )
        },
        Metric {
            reference: vec![Reference::BestOf(
                READS.iter().map(|&read| format!("{} over the window", read_series(read))).collect(),
            )],
            ..rates(
                "stream_vs_drive_same_memory",
                "the same against loops that read into as much memory as the stream, one place after another",
                "stream",
                "",
                "the best of plain loops of direct reads into the memory of 4 segments",
                None,
            )
        },
        Metric {
            reference: vec![Reference::BestOf(READS.iter().map(|&read| read_series(read)).collect())],
            ..rates(
                "stream_small_vs_drive",
                "a file of 1,024 segments of 4 MiB, memory for 8: bytes/s",
                "stream small",
                "",
                "the best of plain loops of direct reads into one buffer a thread",
                None,
            )
        },
        rates(
            "overlap_gain",
            "the same with as much computing as reading: bytes/s",
            "ahead",
            "blocking",
            "each segment read at full depth, then computed with",
            Some(1.8),
        ),
        alone(
            "overlap_ratio",
            "share",
            "the same: time in which both go on, over the shorter of the two",
            "ahead ratio",
            Some(0.9),
            Better::Higher,
        ),
        alone(
            "blocking_overlap_ratio",
            "share",
            "the blocking path's",
            "blocking ratio",
            None,
            Better::Lower,
        ),
        rates(
            "constrained_vs_mmap",
            "a file walked in a circle with memory for half of it, all bytes summed up: bytes/s",
            "walk streamed",
            "walk mapped",
            "the file mapped, with advice to read ahead;{walk mapped}",
            Some(1.5),
        ),
        alone(
            "constrained_peak_over_budget_mib",
            "MiB",
            "the same: resident memory at its peak, over the budget of the segments",
            "walk streamed peak",
            Some(64.0),
            Better::Lower,
        ),
        alone(
            "overhead_us_per_chunk",
            "µs",
            "a chunk of 4 KiB that a closure makes, by one worker, without the making, µs",
            "overhead",
            Some(5.0),
            Better::Lower,
        ),
    ];
    for (gigabytes, name) in LINKS {
        metrics.push(alone(
            name,
            "share",
            &format!("copies of 1 MiB from memory over a link of {gigabytes} GB/s: share of that speed"),
            &format!("link {gigabytes}"),
            Some(0.97),
            Better::Higher,
        ));
    }
    metrics
}

fn read_series((threads, kibibytes): (usize, usize)) -> String {
    format!("{threads} threads of {kibibytes} KiB")
}

/// A metric of two rates, higher is better.
fn rates(
    name: &'static str,
    what: &str,
    ours: &str,
    reference: &str,
    reference_name: &str,
    target: Option<f64>,
) -> Metric {
    Metric::rates("transfer", name, what, ours, reference, reference_name, target)
}

/// An amount that is compared with nothing.
fn alone(
    name: &'static str,
    unit: &'static str,
    what: &str,
    ours: &str,
    target: Option<f64>,
    better: Better,
) -> Metric {
    Metric::alone("transfer", name, unit, what, ours, target, better)
}

pub(crate) fn plan<'a>(setup: &'a Setup, evidence: &'a Evidence) -> Plan<'a> {
    let runs = Runs { setup, evidence };
    let rounds = |full: u32, quick: u32| if setup.quick { quick } else { full };
    let group = |rounds, jobs| Group { rounds, jobs, ..Group::default() };
    Plan {
        groups: vec![
            group(rounds(5, 2), runs.drive()),
            group(rounds(5, 2), runs.overlap()),
            group(rounds(3, 2), runs.walks()),
            group(rounds(5, 3), vec![runs.overhead()]),
            group(rounds(5, 3), runs.links()),
        ],
    }
}

/// The processes of this suite, by what they measure.
struct Runs<'a> {
    setup: &'a Setup,
    evidence: &'a Evidence,
}

/// The file that is read.
pub(crate) fn file(setup: &Setup) -> PathBuf {
    setup.scratch(&format!("transfer-{}.bin", mebibytes(setup)))
}

/// Its length: that of a 2B checkpoint in bf16.
fn mebibytes(setup: &Setup) -> u64 {
    if setup.quick { 1024 } else { 4096 }
}

/// Writes the file, once.
pub(crate) fn prepare(setup: &Setup) -> Result<()> {
    let path = file(setup);
    if !path.exists() {
        say(&format!("writing {} MiB to read (once)", mebibytes(setup)));
    }
    let call = setup.plain_probe("transfer-file").with("--file", path.display());
    call.with("--mebibytes", mebibytes(setup)).run().map(drop)
}

impl<'a> Runs<'a> {
    fn on_file(&self, command: &str) -> Call {
        self.setup.plain_probe(command).with("--file", file(self.setup).display())
    }

    fn drive(&self) -> Vec<Job<'a>> {
        let Self { setup, evidence } = *self;
        let window_mebibytes = mebibytes(setup) * WINDOW_SEGMENTS / SEGMENTS;
        let read = |(threads, kibibytes): (usize, usize), over_the_window: bool| {
            let read = read_series((threads, kibibytes));
            let series = if over_the_window { format!("{read} over the window") } else { read };
            let name = series.clone();
            let work = move || {
                let call = Runs { setup, evidence }.on_file("drive-read").with("--depth", threads);
                let memory = if over_the_window { window_mebibytes } else { 0 };
                let call = call.with("--kibibytes", kibibytes).with("--memory-mebibytes", memory);
                let rate = figure(&call.one()?, "bytes_per_s")?;
                evidence.remark(&name, &format!(" {:.2} GB/s", rate / 1e9));
                Ok(vec![rate])
            };
            Job::new(&[series], Ok(work))
        };
        let mut jobs: Vec<Job<'a>> = [false, true]
            .into_iter()
            .flat_map(|over_the_window| READS.map(|with| read(with, over_the_window)))
            .collect();
        if has_fio() {
            let work = move || {
                let rate = fio(setup)?;
                evidence.remark("fio", &format!(" {:.2} GB/s", rate / 1e9));
                Ok(vec![rate])
            };
            jobs.push(Job::new(&["fio"], Ok(work)));
        }
        let work = move || {
            let call = Runs { setup, evidence }.on_file("drive-stream").with("--segments", SEGMENTS);
            let line = call.with("--window", WINDOW_SEGMENTS).one()?;
            evidence.remark("stream", &format!(" ours: {}", line["io"].as_str().unwrap_or_default()));
            Ok(vec![figure(&line, "bytes_per_s")?])
        };
        jobs.push(Job::new(&["stream"], Ok(work)));
        let work = move || {
            let call = Runs { setup, evidence }.on_file("drive-stream").with("--segments", 1024);
            Ok(vec![figure(&call.with("--window", 8).one()?, "bytes_per_s")?])
        };
        jobs.push(Job::new(&["stream small"], Ok(work)));
        jobs
    }

    fn overlap(&self) -> Vec<Job<'a>> {
        let Self { setup, evidence } = *self;
        let work = move || {
            let line = Runs { setup, evidence }.on_file("drive-overlap").one()?;
            let of = |what: &str| figure(&line, what);
            Ok(vec![
                of("ahead_bytes_per_s")?,
                of("ahead_overlap_ratio")?,
                of("blocking_bytes_per_s")?,
                of("blocking_overlap_ratio")?,
            ])
        };
        vec![Job::new(&["ahead", "ahead ratio", "blocking", "blocking ratio"].map(str::to_owned), Ok(work))]
    }

    fn walks(&self) -> Vec<Job<'a>> {
        let Self { setup, evidence } = *self;
        let limit = mebibytes(setup) / 2;
        let job = |side: &'static str| {
            let work = move || {
                let call = Runs { setup, evidence }.on_file("drive-walk").with("--limit-mebibytes", limit);
                let call = call.with("--budget-mebibytes", limit - WALK_SPARE_MIB);
                let line = (if side == "mapped" { call.flag("--mapped") } else { call }).one()?;
                evidence.same("the walk", side, line["sum"].to_string().as_bytes())?;
                let kind = line["limit"].as_str().unwrap_or_default();
                evidence.remark(&format!("walk {side}"), &format!(" limited by a {kind}"));
                Ok(vec![figure(&line, "bytes_per_s")?, figure(&line, "peak_over_budget_mib")?])
            };
            Job::new(&[format!("walk {side}"), format!("walk {side} peak")], Ok(work))
        };
        ["mapped", "streamed"].map(job).into()
    }

    fn overhead(&self) -> Job<'a> {
        let setup = self.setup;
        let work = move || Ok(vec![figure(&setup.plain_probe("chunk-overhead").one()?, "microseconds")?]);
        Job::new(&["overhead"], Ok(work))
    }

    fn links(&self) -> Vec<Job<'a>> {
        let setup = self.setup;
        let job = |(gigabytes, _): (u32, &str)| {
            let work = move || {
                Ok(vec![figure(
                    &setup.plain_probe("link-rate").with("--gigabytes", gigabytes).one()?,
                    "share",
                )?])
            };
            Job::new(&[format!("link {gigabytes}")], Ok(work))
        };
        LINKS.map(job).into()
    }
}

fn has_fio() -> bool {
    let mut command = Command::new("fio");
    command.arg("--version");
    crate::run::output(&mut command).is_ok()
}

/// fio on the same file: sequential direct reads of 1 MiB through io_uring at depth 16.
fn fio(setup: &Setup) -> Result<f64> {
    let mut command = Command::new("fio");
    command.args([
        "--name=read",
        "--rw=read",
        "--direct=1",
        "--bs=1M",
        "--iodepth=16",
        "--ioengine=io_uring",
    ]);
    command.args(["--readonly", "--output-format=json", "--filename"]).arg(file(setup));
    let done = process::run(&mut command, Duration::from_secs(600))?;
    // It warns before the object.
    let object = done.stdout.find('{').map_or("", |start| &done.stdout[start..]);
    let report: Value = serde_json::from_str(object).context("fio's report")?;
    report["jobs"][0]["read"]["bw_bytes"].as_f64().context("fio's report has no bw_bytes")
}

/// Of the limit, what the budget of the segments leaves for the rest of the process.
const WALK_SPARE_MIB: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_series() {
        let (setup, evidence) = (Setup::nowhere(false), Evidence::default());
        plan(&setup, &evidence).assert_gives(&metrics());
    }
}
