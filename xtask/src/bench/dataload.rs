//! The suite `dataload`: from picture files to batches of patches, beside transformers, torch's DataLoader and the
//! resizers of others.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::evidence::{Evidence, read, text};
use super::plan::{Group, Job, Metric, NOT_THE_SAME, Plan, Reference, Sides};
use super::probe::{Call, Setup, figure};
use super::{Args, DataloadArgs, process};

/// Pixels after resizing, at most, as published: 16,384 visual tokens.
const PUBLISHED_MAX_PIXELS: u64 = 16_777_216;
/// 1,024 visual tokens: what a picture in a conversation is given.
const SMALL_MAX_PIXELS: u64 = 1024 * 32 * 32;
/// What the resize is measured on.
const RESIZE: [(&str, &str); 2] = [("--from", "4032x3024"), ("--to", "1024x1024")];
/// Threads that load, on both sides.
const WORKERS: u32 = 2;
/// Items of a batch, on both sides.
const BATCH: u32 = 4;
/// A peer that takes longer is stopped.
const PEER_LIMIT: Duration = Duration::from_secs(600);
/// Time a consumer computes on a batch, as a multiple of the time two workers need for one.
const PACES: [(&str, f64); 3] = [("fast", 0.0), ("medium", 1.0), ("slow", 3.0)];
/// The same where compute exceeds loading.
const COMPUTING: f64 = 1.5;

/// Files that the loaders read.
pub(crate) fn files(args: &Args) -> u64 {
    args.dataload.files.unwrap_or(if args.quick { 96 } else { 2000 })
}

pub(crate) fn metrics() -> Vec<Metric> {
    let processor = "transformers{transformers}: Qwen2VLImageProcessorPil and load_image, Pillow{pillow}";
    let mut metrics = Vec::new();
    for (name, size, tokens) in [
        ("preprocess_12mp_vs_transformers", "12mp", "up to 16,384"),
        ("preprocess_12mp_1024_vs_transformers", "1024", "up to 1,024"),
    ] {
        metrics.push(Metric {
            sides: Sides::Times,
            ..metric(
                name,
                &format!(
                    "a JPEG of 4032 x 3024 to patches in f32, {tokens} visual tokens, one thread, seconds"
                ),
                &format!("qvl preprocess {size}"),
                &format!("transformers preprocess {size}"),
                processor,
                Some(2.0),
            )
        });
    }
    metrics.push(metric(
        "loader2_vs_pytorch",
        "photographs to batches of patches, up to 1,024 visual tokens each, two workers, items/s",
        "qvl loader",
        "torch loader",
        "torch{torch} DataLoader, two workers, the same by transformers{transformers} and Pillow{pillow}",
        Some(2.0),
    ));
    metrics.push(Metric {
        unit: "share",
        ..metric(
            "loader2_efficiency",
            "the same, items/s",
            "qvl loader",
            "qvl loop x2",
            "two over the seconds of an item in a plain loop on one thread",
            Some(0.90),
        )
    });
    metrics.push(Metric {
        unit: "share",
        ..costs(
            "consumer_wait_share",
            &format!(
                "wait for batches, the consumer computing {COMPUTING} times as long as a batch takes to load, seconds"
            ),
            "qvl wait",
            "qvl run",
            "the run, from building the loader to its end",
            Some(0.01),
        )
    });
    let resize = "bicubic resize of 4032 x 3024 to 1024 x 1024, one thread, seconds";
    let exact = ["Pillow", "Pillow-SIMD", "llama.cpp"].map(exact);
    metrics.push(Metric {
        reference: vec![Reference::FastestOf(exact.to_vec())],
        ..costs(
            "resize_vs_best",
            resize,
            "qvl resize",
            "",
            "the fastest with the bits of Pillow: Pillow{pillow}, Pillow-SIMD{pillow_simd}, llama.cpp{llama}",
            Some(1.2),
        )
    });
    for (name, peer, reference_name) in [
        ("resize_vs_pillow", "Pillow", "Pillow{pillow}"),
        ("resize_vs_pillow_simd", "Pillow-SIMD", "Pillow-SIMD{pillow_simd}"),
        ("resize_vs_llamacpp", "llama.cpp", "llama.cpp{llama}: resize_pillow of mtmd"),
    ] {
        metrics.push(costs(name, resize, "qvl resize", &format!("{peer} resize"), reference_name, None));
    }
    metrics.push(Metric {
        ours: PACES.map(|(pace, _)| format!("qvl peak {pace}")).to_vec(),
        reference: PACES.iter().map(|(pace, _)| Reference::Series(format!("qvl bound {pace}"))).collect(),
        ..costs(
            "peak_bytes_over_bound",
            "bytes the loader held at most, the worst of a fast, a medium and a slow consumer",
            "",
            "",
            "its bound",
            Some(1.0),
        )
    });
    metrics.push(Metric {
        unit: "us/item",
        reference: Vec::new(),
        sides: Sides::Alone,
        ..costs(
            "overhead_us_per_item",
            "small items from memory and a transform that does nothing, two workers, microseconds an item",
            "qvl overhead",
            "",
            "none",
            Some(2.0),
        )
    });
    metrics
}

/// A metric of two rates, higher is better; the others differ by fields.
fn metric(
    name: &'static str,
    what: &str,
    ours: &str,
    reference: &str,
    reference_name: &str,
    target: Option<f64>,
) -> Metric {
    Metric::rates("dataload", name, what, ours, reference, reference_name, target)
}

/// A metric of two costs, lower is better.
fn costs(
    name: &'static str,
    what: &str,
    ours: &str,
    reference: &str,
    reference_name: &str,
    target: Option<f64>,
) -> Metric {
    metric(name, what, ours, reference, reference_name, target).of_costs()
}

/// The series of a resizer that counts only if it makes Pillow's bits.
fn exact(peer: &str) -> String {
    format!("{peer} resize, if exact")
}

pub(crate) fn plan<'a>(args: &'a Args, setup: &'a Setup, evidence: &'a Evidence) -> Plan<'a> {
    let runs = Runs { setup, args: &args.dataload, files: files(args), evidence };
    let rounds = |full: u32, quick: u32| if setup.quick { quick } else { full };
    let group = |rounds, jobs| Group { rounds, jobs, ..Group::default() };
    let groups = vec![
        group(rounds(7, 3), runs.preprocess()),
        group(rounds(7, 3), runs.resize()),
        group(rounds(3, 2), runs.loaders()),
        group(rounds(3, 2), vec![runs.waiting()]),
        group(2, runs.peaks()),
        group(rounds(7, 3), vec![runs.overhead()]),
    ];
    Plan { groups }
}

/// The processes of this suite, by what they measure.
struct Runs<'a> {
    setup: &'a Setup,
    args: &'a DataloadArgs,
    files: u64,
    evidence: &'a Evidence,
}

impl<'a> Runs<'a> {
    fn preprocess(&self) -> Vec<Job<'a>> {
        let (setup, evidence) = (self.setup, self.evidence);
        let picture = setup.pictures().join("12mp.jpg").display().to_string();
        let mut jobs = Vec::new();
        for (size, max_pixels) in [("12mp", PUBLISHED_MAX_PIXELS), ("1024", SMALL_MAX_PIXELS)] {
            let what = format!("patches of up to {max_pixels} pixels");
            let shared = [("--picture", picture.clone()), ("--max-pixels", max_pixels.to_string())];
            let (made, arguments) = (what.clone(), shared.clone());
            let ours = self.with_pillows_decoder().map(|()| {
                move || {
                    let line = with_all(setup.plain_probe("preprocess"), &arguments).one()?;
                    evidence.same(&made, "qvl", text(&line, "sha256")?.as_bytes())?;
                    Ok(vec![figure(&line, "seconds")?])
                }
            });
            let script = self.script("bench_preprocess.py", &shared);
            let theirs = script.map(|script| {
                move || {
                    let line = script()?;
                    evidence.same(&what, "transformers", text(&line, "sha256")?.as_bytes())?;
                    Ok(vec![figure(&line, "seconds")?])
                }
            });
            jobs.push(Job::new(&[format!("qvl preprocess {size}")], ours));
            jobs.push(Job::new(&[format!("transformers preprocess {size}")], theirs));
        }
        jobs
    }

    /// Pillow goes first: what it makes is what counts.
    fn resize(&self) -> Vec<Job<'a>> {
        let (setup, evidence) = (self.setup, self.evidence);
        let arguments = |side: &str| {
            let out = setup.scratch(&format!("resized-{side}.rgb"));
            let rgb = setup.pictures().join("12mp.rgb").display().to_string();
            let files = [("--rgb", rgb), ("--out", out.display().to_string())];
            let sizes = RESIZE.map(|(name, size)| (name, size.to_owned()));
            ([files, sizes].concat(), out)
        };
        let (pillows, out) = arguments("pillow");
        let pillow = self.script("bench_resize.py", &pillows).map(|script| {
            move || {
                let line = script()?;
                evidence.same(RESIZED, "Pillow", &read(&out)?)?;
                let seconds = figure(&line, "seconds")?;
                Ok(vec![seconds, seconds])
            }
        });
        let (ours, out) = arguments("qvl");
        let ours = move || {
            let line = with_all(setup.plain_probe("resize"), &ours).one()?;
            evidence.same(RESIZED, "qvl", &read(&out)?)?;
            Ok(vec![figure(&line, "seconds")?])
        };
        // One of another's: its time, and its time as that of a candidate.
        let candidate = move |line: &Value, out: &Path, peer: &str, version: &str| {
            let seconds = figure(line, "seconds")?;
            let differs = evidence.differs(RESIZED, &read(out)?)?;
            let bits = match differs {
                None => "same bits".to_owned(),
                Some(share) => format!("{share:.2} of 1,000 bytes differ"),
            };
            evidence.remark(peer, format!("{version} ({bits})").trim_start());
            Ok(vec![seconds, if differs.is_none() { seconds } else { NOT_THE_SAME }])
        };
        let (theirs, out) = arguments("pillow-simd");
        let simd = given(&self.args.pillow_simd_python, "--pillow-simd-python PATH").map(|python| {
            let script = script_with(python, "bench_resize.py", &theirs);
            move || {
                let line = script()?;
                let version = line["versions"]["pillow"].as_str().unwrap_or_default();
                candidate(&line, &out, "pillow_simd", version)
            }
        });
        let (theirs, out) = arguments("llama");
        let llama = given(&self.args.llama_resize, "--llama-resize PATH").map(|program| {
            move || {
                let mut command = Command::new(program);
                command.args(flat(&theirs));
                candidate(&last_line(&mut command)?, &out, "llama", "")
            }
        });
        vec![
            Job::new(&["Pillow resize".to_owned(), exact("Pillow")], pillow),
            Job::new(&["qvl resize"], Ok(ours)),
            Job::new(&["Pillow-SIMD resize".to_owned(), exact("Pillow-SIMD")], simd),
            Job::new(&["llama.cpp resize".to_owned(), exact("llama.cpp")], llama),
        ]
    }

    /// The folder through both loaders, and through a plain loop.
    fn loaders(&self) -> Vec<Job<'a>> {
        let (setup, evidence) = (self.setup, self.evidence);
        let what = "patches of the first photographs";
        let shared = self.loading();
        let ours = self.with_pillows_decoder().map(|()| {
            let shared = shared.clone();
            move || {
                let line = with_all(setup.plain_probe("loader"), &shared).one()?;
                evidence.same(what, "qvl", text(&line, "sha256")?.as_bytes())?;
                Ok(vec![figure(&line, "items_per_second")?])
            }
        });
        let theirs = self.script("bench_torch_loader.py", &shared).map(|script| {
            move || {
                let line = script()?;
                evidence.same(what, "torch", text(&line, "sha256")?.as_bytes())?;
                Ok(vec![figure(&line, "items_per_second")?])
            }
        });
        // One thread and no batches.
        let mut alone = shared.clone();
        alone.retain(|(name, _)| !["--workers", "--batch-size"].contains(name));
        let alone = self.with_pillows_decoder().map(|()| {
            move || {
                let line = with_all(setup.plain_probe("plain-loop"), &alone).one()?;
                Ok(vec![f64::from(WORKERS) / figure(&line, "seconds_per_item")?])
            }
        });
        vec![
            Job::new(&["qvl loader"], ours),
            Job::new(&["torch loader"], theirs),
            Job::new(&["qvl loop x2"], alone),
        ]
    }

    fn waiting(&self) -> Job<'a> {
        let (setup, shared) = (self.setup, self.loading());
        let epochs = WAITING_ITEMS.div_ceil(self.files);
        let work = move || {
            let call = with_all(setup.plain_probe("loader"), &shared).with("--pace", COMPUTING);
            let call = call.with("--epochs", epochs);
            let line = call.one()?;
            Ok(vec![figure(&line, "wait_seconds")?, figure(&line, "seconds")?])
        };
        Job::new(&["qvl wait", "qvl run"], Ok(work))
    }

    fn peaks(&self) -> Vec<Job<'a>> {
        let job = |(name, pace): (&str, f64)| {
            let (setup, shared) = (self.setup, self.loading());
            let work = move || {
                let call = with_all(setup.plain_probe("loader"), &shared).with("--pace", pace);
                let line = call.with("--prefetch-mebibytes", PEAK_MEBIBYTES).one()?;
                Ok(vec![figure(&line, "peak_bytes")?, figure(&line, "bound_bytes")?])
            };
            Job::new(&[format!("qvl peak {name}"), format!("qvl bound {name}")], Ok(work))
        };
        PACES.into_iter().map(job).collect()
    }

    fn overhead(&self) -> Job<'a> {
        let setup = self.setup;
        let work = move || {
            let line = setup.plain_probe("loader-overhead").with("--workers", WORKERS).one()?;
            Ok(vec![figure(&line, "microseconds_per_item")?])
        };
        Job::new(&["qvl overhead"], Ok(work))
    }

    /// What both loaders are told.
    fn loading(&self) -> Vec<(&'static str, String)> {
        vec![
            ("--folder", self.setup.pictures().join("photographs").display().to_string()),
            ("--count", self.files.to_string()),
            ("--workers", WORKERS.to_string()),
            ("--batch-size", BATCH.to_string()),
            ("--max-pixels", SMALL_MAX_PIXELS.to_string()),
        ]
    }

    /// Where JPEG is decoded in another way than Pillow's, both sides do not do the same.
    fn with_pillows_decoder(&self) -> Result<(), String> {
        if self.setup.libjpeg_turbo {
            return Ok(());
        }
        Err("the probe has no libjpeg-turbo, Pillow's decoder: cmake or nasm is missing (cargo xtask setup)"
            .to_owned())
    }

    /// A call of a script with the Python that has transformers.
    fn script(
        &self,
        name: &str,
        arguments: &[(&'static str, String)],
    ) -> Result<impl Fn() -> Result<Value> + 'a, String> {
        let python = given(&self.args.transformers_python, "--transformers-python PATH")?;
        let (script, evidence) = (script_with(python, name, arguments), self.evidence);
        Ok(move || {
            let line = script()?;
            evidence.versions(&line);
            Ok(line)
        })
    }
}

/// Of the run that says how long the consumer waits, at least: with few the first batch, which nobody can have loaded
/// before, would be all of it.
const WAITING_ITEMS: u64 = 1024;
/// What the resizers make.
const RESIZED: &str = "the resized picture";
/// Less than a few items of full size, so that the bound is met.
const PEAK_MEBIBYTES: u32 = 128;

fn given<'a>(path: &'a Option<PathBuf>, flag: &str) -> Result<&'a Path, String> {
    path.as_deref().ok_or_else(|| format!("{flag} was not given"))
}

/// A call of a script of this package; its last line.
fn script_with<'a>(
    python: &'a Path,
    name: &str,
    arguments: &[(&'static str, String)],
) -> impl Fn() -> Result<Value> + 'a {
    let script = crate::run::root().join("xtask/python").join(name);
    let arguments = arguments.to_vec();
    move || {
        let mut command = Command::new(python);
        // Libraries of arithmetic would take all cores.
        command.arg(&script).env("OMP_NUM_THREADS", "1").env("PYTHONDONTWRITEBYTECODE", "1");
        command.args(flat(&arguments));
        last_line(&mut command)
    }
}

/// The measurement that a program of others printed last; libraries may print lines of their own.
fn last_line(command: &mut Command) -> Result<Value> {
    let done = process::run(command, PEER_LIMIT)?;
    if done.timed_out() {
        bail!("it did not end within {} s", PEER_LIMIT.as_secs());
    }
    parse_last(&done.stdout)
}

fn parse_last(stdout: &str) -> Result<Value> {
    let mut lines = stdout.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find(Value::is_object).context("it printed no measurement")
}

fn flat<'a>(arguments: &'a [(&'static str, String)]) -> impl Iterator<Item = &'a str> {
    arguments.iter().flat_map(|(name, value)| [*name, value])
}

fn with_all(call: Call, arguments: &[(&'static str, String)]) -> Call {
    arguments.iter().fold(call, |call, (name, value)| call.with(name, value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;

    use super::*;
    use crate::bench::stats::Better;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn jobs<'a>(plan: &'a Plan<'a>) -> impl Iterator<Item = &'a Job<'a>> {
        plan.groups.iter().flat_map(|group| &group.jobs)
    }

    #[test]
    fn every_metric_has_runs_that_measure_it() {
        let args = Cli::parse_from(["bench", "dataload"]).args;
        let (setup, evidence, metrics) = (Setup::nowhere(false), Evidence::default(), metrics());
        let plan = plan(&args, &setup, &evidence);
        let measured: BTreeSet<&str> = jobs(&plan).flat_map(|job| &job.series).map(String::as_str).collect();
        let needed: BTreeSet<&str> = metrics.iter().flat_map(Metric::series).collect();
        assert_eq!(measured, needed);
        // Without any flag our side is measured, and each peer names the flag that is missing.
        for job in jobs(&plan) {
            let is_ours = job.series.iter().all(|name| name.starts_with("qvl "));
            match &job.work {
                Ok(_) => assert!(is_ours, "{:?}", job.series),
                Err(why) => assert!(!is_ours && why.starts_with("--"), "{:?}: {why}", job.series),
            }
        }
    }

    #[test]
    fn without_pillows_decoder_nothing_is_compared_with_it() {
        let args = Cli::parse_from(["bench", "dataload", "--quick"]).args;
        let (mut setup, evidence) = (Setup::nowhere(true), Evidence::default());
        setup.libjpeg_turbo = false;
        let plan = plan(&args, &setup, &evidence);
        let refused: Vec<&str> = jobs(&plan)
            .filter(|job| matches!(&job.work, Err(why) if why.contains("libjpeg-turbo")))
            .flat_map(|job| &job.series)
            .map(String::as_str)
            .collect();
        assert_eq!(refused, ["qvl preprocess 12mp", "qvl preprocess 1024", "qvl loader", "qvl loop x2"]);
    }

    #[test]
    fn names_and_targets_are_those_that_were_promised() {
        let metrics = metrics();
        let judged: Vec<(&str, f64, Better)> =
            metrics.iter().filter_map(|metric| Some((metric.name, metric.target?, metric.better))).collect();
        let promised = [
            ("preprocess_12mp_vs_transformers", 2.0, Better::Higher),
            ("preprocess_12mp_1024_vs_transformers", 2.0, Better::Higher),
            ("loader2_vs_pytorch", 2.0, Better::Higher),
            ("loader2_efficiency", 0.90, Better::Higher),
            ("consumer_wait_share", 0.01, Better::Lower),
            ("resize_vs_best", 1.2, Better::Lower),
            ("peak_bytes_over_bound", 1.0, Better::Lower),
            ("overhead_us_per_item", 2.0, Better::Lower),
        ];
        assert_eq!(judged, promised);
    }

    #[test]
    fn the_last_measurement_is_found_among_other_lines() {
        let said =
            "warning: x\n{\"metric\": \"a\", \"seconds\": 1}\n{\"metric\": \"b\", \"seconds\": 2}\n3\nbye\n";
        let line = parse_last(said).expect("a line");
        assert_eq!(figure(&line, "seconds").expect("a figure"), 2.0);
        assert_eq!(text(&line, "metric").expect("a text"), "b");
        assert!(parse_last("no\n").is_err() && text(&line, "sha256").is_err());
    }
}
