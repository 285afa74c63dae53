//! The suite `model`: the metrics with their targets, and the runs that give their samples.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Args;
use super::peers::{Llama, llama_program, parse_llama_bench, parse_mtmd, parse_openvino};
use super::plan::{Group, Job, Metric, Plan, Reference, Sides};
use super::probe::{Setup, figure};
use super::process;
use super::stats::Better;

/// Our name of a weight format, and the form of llama.cpp's file that it is compared with.
const FORMATS: [(&str, &str); 3] = [("bf16", "bf16"), ("q8", "Q8_0"), ("q4", "Q4_K_M")];
/// Other programs that compute while decode is measured under load.
const BUSY_THREADS: usize = 2;
/// Tokens of a prompt whose prefill is measured.
const PREFILL_TOKENS: u32 = 512;
/// A peer that takes longer is stopped.
const PEER_LIMIT: Duration = Duration::from_secs(300);
/// The same under load, where a peer may come to a stand-still.
const LOADED_LIMIT: Duration = Duration::from_secs(90);
/// Tokens of one measurement under load.
const LOADED_TOKENS: u32 = 8;
/// What is asked for the time to the first token.
const QUESTION: &str = "What is the capital of France?";

pub(crate) fn metrics() -> Vec<Metric> {
    let mut metrics = Vec::new();
    let shares = [("decode_bf16_share", 0.90), ("decode_q8_share", 0.85), ("decode_q4_share", 0.75)];
    for ((format, _), (name, target)) in FORMATS.into_iter().zip(shares) {
        metrics.push(Metric {
            unit: "share",
            reference: vec![Reference::Quotient("bandwidth".to_owned(), format!("qvl bytes {format}"))],
            ..rates(
                name,
                &format!(
                    "decode of one sequence, {format} weights, as a share of the memory's limit, tokens/s"
                ),
                &format!("qvl decode {format} x1"),
                "",
                "measured read bandwidth over weight bytes a token",
                target,
            )
        });
    }
    let decode =
        [("decode_bf16_vs_llamacpp", 1.0), ("decode_q8_vs_llamacpp", 1.3), ("decode_q4_vs_llamacpp", 1.5)];
    for ((format, file), (name, target)) in FORMATS.into_iter().zip(decode) {
        let policies = ["default", "passive"].map(|policy| format!("llama.cpp decode {file} {policy}"));
        metrics.push(Metric {
            reference: vec![Reference::BestOf(policies.to_vec())],
            ..rates(
                name,
                &format!("decode of one sequence, {format} weights, tokens/s"),
                &format!("qvl decode {format} x1"),
                "",
                &format!("llama.cpp {file}, native build, the better of OMP_WAIT_POLICY unset and passive"),
                target,
            )
        });
    }
    for (name, format) in [("decode8_q8_gain", "q8"), ("decode8_q4_gain", "q4")] {
        metrics.push(rates(
            name,
            &format!("decode of eight sequences at once, {format} weights, all tokens/s"),
            &format!("qvl decode {format} x8"),
            &format!("qvl decode {format} x1"),
            "qvl, one sequence",
            5.0,
        ));
    }
    let prefill = [
        ("prefill512_bf16_vs_llamacpp", 1.6),
        ("prefill512_q8_vs_llamacpp", 4.0),
        ("prefill512_q4_vs_llamacpp", 2.0),
    ];
    for ((format, file), (name, target)) in FORMATS.into_iter().zip(prefill) {
        metrics.push(rates(
            name,
            &format!("prefill of 512 tokens, {format} weights, tokens/s"),
            &format!("qvl prefill {format}"),
            &format!("llama.cpp prefill {file}"),
            &format!("llama.cpp {file}, native build"),
            target,
        ));
    }
    metrics.push(rates(
        "prefill512_q4_vs_openvino",
        "prefill of 512 tokens, q4 weights, tokens/s",
        "qvl prefill q4",
        "openvino prefill",
        "OpenVINO GenAI, 4-bit weights",
        1.3,
    ));
    metrics.push(rates(
        "prefill512_q4_avx2_vs_llamacpp",
        "prefill of 512 tokens, q4 weights, AVX2 only, tokens/s",
        "qvl prefill q4 avx2",
        "llama.cpp prefill Q4_K_M avx2",
        "llama.cpp Q4_K_M, AVX2-only build",
        1.4,
    ));
    for (name, plain, side) in [
        ("vision448_vs_openvino", "vision448_bf16_vs_openvino", 448),
        ("vision1024_vs_openvino", "vision1024_bf16_vs_openvino", 1024),
    ] {
        let metric = |name, format, target| Metric {
            sides: Sides::Times,
            target,
            ..rates(
                name,
                &format!(
                    "a picture of {side} x {side}: JPEG to visual tokens, {format} vision weights, seconds"
                ),
                &format!("qvl vision {side} {format}"),
                &format!("openvino vision {side}"),
                "OpenVINO GenAI: the same, int8 vision weights as it exports them",
                0.0,
            )
        };
        metrics.push(metric(name, "q8", Some(1.2)));
        metrics.push(metric(plain, "bf16", None));
    }
    for (name, side, build, target) in [
        ("vision448_vs_llamacpp", 448, "native", 3.0),
        ("vision1024_vs_llamacpp", 1024, "native", 3.0),
        ("vision1024_avx2_vs_llamacpp", 1024, "avx2", 1.8),
    ] {
        let (isa, only) = if build == "native" { ("", "") } else { (" avx2", ", AVX2 only") };
        metrics.push(Metric {
            sides: Sides::Times,
            ..rates(
                name,
                &format!(
                    "a picture of {side} x {side}: JPEG to visual tokens, bf16 vision weights{only}, seconds"
                ),
                &format!("qvl vision {side} bf16{isa}"),
                &format!("llama.cpp vision {side}{isa}"),
                &format!("llama.cpp, f16 vision weights, {build} build: its tower alone"),
                target,
            )
        });
    }
    let loaded = |name, policy: &str, target| Metric {
        target,
        ..rates(
            name,
            "decode of one sequence, q4 weights, beside two busy threads, tokens/s",
            "qvl decode loaded",
            &format!("llama.cpp decode loaded {policy}"),
            &format!("llama.cpp Q4_K_M, native build, OMP_WAIT_POLICY {policy}"),
            0.0,
        )
    };
    metrics.push(loaded("decode_q4_under_load_vs_llamacpp", "unset", Some(5.0)));
    metrics.push(loaded("decode_q4_under_load_vs_llamacpp_passive", "passive", None));
    let peaks = |name, formats: &[&str], target| Metric {
        ours: formats.iter().map(|format| format!("qvl peak {format}")).collect(),
        reference: formats.iter().map(|format| Reference::Series(format!("qvl stated {format}"))).collect(),
        sides: Sides::Costs,
        better: Better::Lower,
        target,
        ..rates(
            name,
            &format!("peak resident memory of a request with a picture, {}, bytes", formats.join(", ")),
            "",
            "",
            "weights, KV cache and scratch as stated",
            0.0,
        )
    };
    let all = FORMATS.map(|(format, _)| format);
    metrics.push(Metric {
        what: "peak resident memory of a request with a picture, the worst of bf16, q8 and q4, bytes"
            .to_owned(),
        ..peaks("peak_memory_ratio", &all, Some(1.1))
    });
    for (name, format) in
        [("peak_memory_bf16_ratio", "bf16"), ("peak_memory_q8_ratio", "q8"), ("peak_memory_q4_ratio", "q4")]
    {
        metrics.push(peaks(name, &[format], None));
    }
    metrics.push(Metric {
        sides: Sides::Costs,
        better: Better::Lower,
        ..rates(
            "first_token_vs_llamacpp",
            "from the start of the process to the first token of an answer to a short question, files warm, \
             bf16 weights, seconds",
            "qvl first token",
            "llama.cpp first token",
            "llama.cpp bf16, native build",
            0.5,
        )
    });
    metrics
}

/// A metric of two rates, higher is better: the commonest kind, from which the others differ by fields.
fn rates(
    name: &'static str,
    what: &str,
    ours: &str,
    reference: &str,
    reference_name: &str,
    target: f64,
) -> Metric {
    Metric::rates("model", name, what, ours, reference, reference_name, Some(target))
}

pub(crate) fn plan<'a>(args: &'a Args, setup: &'a Setup) -> Plan<'a> {
    let runs = Runs { setup, native: Llama::native(args), avx2: Llama::avx2(args), args };
    let rounds = |full: u32, quick: u32| if setup.quick { quick } else { full };
    let group = |rounds, jobs| Group { rounds, jobs, ..Group::default() };
    let mut groups = vec![
        group(rounds(5, 2), runs.text()),
        group(rounds(5, 2), runs.vision(448, true)),
        group(rounds(3, 2), runs.vision(1024, !setup.quick)),
        Group { busy_threads: BUSY_THREADS, ..group(rounds(3, 2), runs.loaded()) },
        // Files that were read once lie in memory from then on.
        Group { warm_up: true, ..group(rounds(5, 3), runs.first_token()) },
        group(2, runs.memory()),
    ];
    if !setup.quick {
        groups.push(group(3, runs.prefill_avx2()));
        groups.push(group(3, runs.vision_avx2(1024)));
    }
    Plan { groups }
}

/// The processes of this suite, by what they measure.
struct Runs<'a> {
    setup: &'a Setup,
    args: &'a Args,
    native: Llama,
    avx2: Llama,
}

impl<'a> Runs<'a> {
    /// Decode and prefill of one sequence: each format loads once a round for both.
    fn text(&self) -> Vec<Job<'a>> {
        let setup = self.setup;
        let tokens = if setup.quick { 16 } else { 32 };
        let bandwidth = move || {
            let (lines, _) = setup.probe("limits", setup.threads).with("--only", "memory_read").run()?;
            let line = lines.iter().find(|line| line["threads"] == setup.threads);
            Ok(vec![figure(line.context("the probe did not read")?, "best")?])
        };
        let mut jobs = vec![Job::new(&["bandwidth"], Ok(bandwidth))];
        for (format, file) in FORMATS {
            // What is read in place gains from more sequences as anything does; its gain has no target.
            let sequences = if format == "bf16" { "1" } else { "1,8" };
            let ours = move || {
                let call = setup.on_model("decode", format, "bf16").with("--tokens", tokens);
                let call = call.with("--sequences", sequences).with("--prefill", PREFILL_TOKENS);
                let (lines, _) = call.run()?;
                let bytes = lines.first().context("the probe gave no measurement")?;
                let rates = lines.iter().map(|line| figure(line, "tokens_per_second"));
                [figure(bytes, "weight_bytes_per_token")].into_iter().chain(rates).collect()
            };
            let mut series = vec![format!("qvl bytes {format}"), format!("qvl decode {format} x1")];
            series.extend((sequences != "1").then(|| format!("qvl decode {format} x8")));
            series.push(format!("qvl prefill {format}"));
            jobs.push(Job::new(&series, Ok(ours)));
            for policy in ["default", "passive"] {
                let series = format!("llama.cpp decode {file} {policy}");
                let work = self.llama_bench(&self.native, file, 0, tokens, policy == "passive", PEER_LIMIT);
                jobs.push(Job::new(&[series], work));
            }
            let work = self.llama_bench(&self.native, file, PREFILL_TOKENS, 0, false, PEER_LIMIT);
            jobs.push(Job::new(&[format!("llama.cpp prefill {file}")], work));
        }
        let prefill = ["--prefill".to_owned(), PREFILL_TOKENS.to_string()];
        let openvino = self.openvino(&prefill, "prefill", |tokens, seconds| tokens / seconds);
        jobs.push(Job::new(&["openvino prefill"], openvino));
        jobs
    }

    fn prefill_avx2(&self) -> Vec<Job<'a>> {
        let theirs = self.llama_bench(&self.avx2, "Q4_K_M", PREFILL_TOKENS, 0, false, PEER_LIMIT);
        let setup = self.setup;
        let ours = move || {
            let call = setup.on_model("prefill", "q4", "bf16").with("--tokens", PREFILL_TOKENS);
            one(&call.isa("avx2").run()?.0, "tokens_per_second")
        };
        vec![
            Job::new(&["qvl prefill q4 avx2"], Ok(ours)),
            Job::new(&["llama.cpp prefill Q4_K_M avx2"], theirs),
        ]
    }

    /// A picture on our side in both forms, and on that of the peers.
    fn vision(&self, side: u32, with_llama: bool) -> Vec<Job<'a>> {
        let mut jobs = Vec::new();
        for format in ["q8", "bf16"] {
            let series = format!("qvl vision {side} {format}");
            jobs.push(Job::new(&[series], Ok(self.our_vision(side, format, None))));
        }
        let picture = ["--picture".to_owned(), self.picture(side)];
        let openvino = self.openvino(&picture, "vision", |_, seconds| seconds);
        jobs.push(Job::new(&[format!("openvino vision {side}")], openvino));
        if with_llama {
            let series = format!("llama.cpp vision {side}");
            jobs.push(Job::new(&[series], self.llama_vision(&self.native, side)));
        }
        jobs
    }

    fn vision_avx2(&self, side: u32) -> Vec<Job<'a>> {
        let ours = format!("qvl vision {side} bf16 avx2");
        let theirs = format!("llama.cpp vision {side} avx2");
        vec![
            Job::new(&[ours], Ok(self.our_vision(side, "bf16", Some("avx2")))),
            Job::new(&[theirs], self.llama_vision(&self.avx2, side)),
        ]
    }

    fn our_vision(
        &self,
        side: u32,
        format: &'static str,
        isa: Option<&'static str>,
    ) -> impl Fn() -> Result<Vec<f64>> + 'a {
        let setup = self.setup;
        let picture = self.picture(side);
        move || {
            let call = setup.on_model("vision", "bf16", format).with("--picture", &picture);
            let call = match isa {
                Some(isa) => call.isa(isa),
                None => call,
            };
            one(&call.run()?.0, "seconds")
        }
    }

    /// Both policies of the peer's threads: the one it has by itself, and the one its users are told to set.
    fn loaded(&self) -> Vec<Job<'a>> {
        let setup = self.setup;
        let ours = move || {
            let call = setup.on_model("decode", "q4", "bf16").with("--tokens", 4 * LOADED_TOKENS);
            one(&call.with("--limit", LOADED_LIMIT.as_secs() / 3).run()?.0, "tokens_per_second")
        };
        let theirs =
            |passive| self.llama_bench(&self.native, "Q4_K_M", 0, LOADED_TOKENS, passive, LOADED_LIMIT);
        vec![
            Job::new(&["qvl decode loaded"], Ok(ours)),
            Job::new(&["llama.cpp decode loaded unset"], theirs(false)),
            Job::new(&["llama.cpp decode loaded passive"], theirs(true)),
        ]
    }

    fn first_token(&self) -> Vec<Job<'a>> {
        let setup = self.setup;
        let ours = move || {
            let call = setup.on_model("first-token", "bf16", "bf16").with("--prompt", QUESTION);
            Ok(vec![call.run()?.1.as_secs_f64()])
        };
        let files = self.native.completion.clone().and_then(|path| Ok((path, self.native.text("bf16")?)));
        let theirs = files.map(|(program, model)| {
            move || {
                let mut command = llama_program(&program);
                command.arg("-m").arg(&model).args(["-p", QUESTION, "-n", "1", "-c", "4096", "--temp", "0"]);
                command.args(["-no-cnv", "--no-display-prompt", "--ignore-eos"]);
                command.args(["-t", &setup.threads.to_string()]);
                let done = process::run(&mut command, PEER_LIMIT)?;
                let first = done.first_output.context("llama-completion wrote no token")?;
                Ok(vec![first.as_secs_f64()])
            }
        });
        vec![Job::new(&["qvl first token"], Ok(ours)), Job::new(&["llama.cpp first token"], theirs)]
    }

    fn memory(&self) -> Vec<Job<'a>> {
        let setup = self.setup;
        FORMATS
            .into_iter()
            .map(|(format, _)| {
                let work = move || {
                    // With quantised weights the tower is quantised too, to the format it has.
                    let vision = if format == "bf16" { "bf16" } else { "q8" };
                    let (lines, _) = setup.on_model("memory", format, vision).run()?;
                    let line = lines.first().context("the probe gave no measurement")?;
                    Ok(vec![figure(line, "peak_resident_bytes")?, figure(line, "stated_bytes")?])
                };
                Job::new(&[format!("qvl peak {format}"), format!("qvl stated {format}")], Ok(work))
            })
            .collect()
    }

    fn picture(&self, side: u32) -> String {
        self.setup.picture(side).display().to_string()
    }

    /// Tokens a second of prefill or decode. At the limit it has decoded less than all its tokens in less
    /// than all the time: half of the time is taken for all of them, which is more than it did.
    fn llama_bench(
        &self,
        build: &Llama,
        file: &str,
        prompt: u32,
        decode: u32,
        passive: bool,
        limit: Duration,
    ) -> Result<impl Fn() -> Result<Vec<f64>> + 'a, String> {
        let (program, model) = (build.bench.clone()?, build.text(file)?);
        let threads = self.setup.threads.to_string();
        Ok(move || {
            let mut command = llama_program(&program);
            command.arg("-m").arg(&model).args(["-t", &threads, "-r", "1", "-o", "jsonl"]);
            command.args(["-p", &prompt.to_string(), "-n", &decode.to_string()]);
            if passive {
                command.env("OMP_WAIT_POLICY", "passive");
            }
            let done = process::run(&mut command, limit)?;
            if !done.timed_out() {
                return Ok(parse_llama_bench(&done.stdout)?.samples_ts);
            }
            if prompt > 0 {
                bail!("llama-bench did not end within {} s", limit.as_secs());
            }
            Ok(vec![f64::from(decode) / (limit.as_secs_f64() / 2.0)])
        })
    }

    fn llama_vision(&self, build: &Llama, side: u32) -> Result<impl Fn() -> Result<Vec<f64>> + 'a, String> {
        let (program, projector) = (build.mtmd.clone()?, build.mmproj()?);
        // The decoder is not measured here: the form that loads fastest will do.
        let model = build.text("Q4_K_M").or_else(|_| build.text("bf16"))?;
        let (threads, picture) = (self.setup.threads.to_string(), self.picture(side));
        Ok(move || {
            let mut command = llama_program(&program);
            command.arg("-m").arg(&model).arg("--mmproj").arg(&projector).args(["--image", &picture]);
            // Without -c it takes memory for the longest context the model knows.
            command.args(["-p", "Describe the image.", "-c", "4096", "-n", "1", "--temp", "0"]);
            command.args(["-t", &threads, "--verbosity", "4"]);
            let done = process::run(&mut command, PEER_LIMIT)?;
            if done.timed_out() {
                bail!("llama-mtmd-cli did not end within {} s", PEER_LIMIT.as_secs());
            }
            Ok(vec![parse_mtmd(&(done.stdout + &done.stderr))?])
        })
    }

    /// One call of the script; `sample` makes a sample of tokens and seconds.
    fn openvino(
        &self,
        what: &[String; 2],
        metric: &'static str,
        sample: fn(f64, f64) -> f64,
    ) -> Result<impl Fn() -> Result<Vec<f64>> + 'a, String> {
        let given = |path: &'a Option<std::path::PathBuf>, flag: &str| -> Result<&'a Path, String> {
            path.as_deref().ok_or_else(|| format!("{flag} was not given"))
        };
        let python = given(&self.args.openvino.openvino_python, "--openvino-python PATH")?;
        let model = given(&self.args.openvino.openvino_model, "--openvino-model DIR")?;
        let script = crate::run::root().join("xtask/python/bench_openvino.py");
        let (threads, what) = (self.setup.threads.to_string(), what.clone());
        Ok(move || {
            let mut command = Command::new(python);
            command.arg(&script).arg("--model").arg(model).args(["--threads", &threads]).args(&what);
            let done = process::run(&mut command, PEER_LIMIT)?;
            if done.timed_out() {
                bail!("OpenVINO's script did not end within {} s", PEER_LIMIT.as_secs());
            }
            let line = parse_openvino(&done.stdout, metric)?;
            Ok(vec![sample(line.tokens, line.seconds)])
        })
    }
}

/// One figure of the only measurement.
fn one(lines: &[serde_json::Value], name: &str) -> Result<Vec<f64>> {
    Ok(vec![figure(lines.first().context("the probe gave no measurement")?, name)?])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn every_metric_has_runs_that_measure_it() {
        let args = Cli::parse_from(["bench", "model"]).args;
        let setup = Setup::nowhere(false);
        let metrics = metrics();
        let plan = plan(&args, &setup);
        let jobs = || plan.groups.iter().flat_map(|group| &group.jobs);
        let measured: BTreeSet<&str> = jobs().flat_map(|job| &job.series).map(String::as_str).collect();
        let needed: BTreeSet<&str> = metrics.iter().flat_map(Metric::series).collect();
        assert_eq!(measured, needed);
        // Without any flag our side is measured, and each peer names the flag that is missing.
        for job in jobs() {
            let is_ours = job.series.iter().all(|name| name.starts_with("qvl ") || name == "bandwidth");
            match &job.work {
                Ok(_) => assert!(is_ours, "{:?}", job.series),
                Err(why) => assert!(!is_ours && why.starts_with("--"), "{:?}: {why}", job.series),
            }
        }
    }

    #[test]
    fn names_and_targets_are_those_that_were_promised() {
        let metrics = metrics();
        let judged: Vec<(&str, f64)> =
            metrics.iter().filter_map(|metric| Some((metric.name, metric.target?))).collect();
        let promised = [
            ("decode_bf16_share", 0.90),
            ("decode_q8_share", 0.85),
            ("decode_q4_share", 0.75),
            ("decode_bf16_vs_llamacpp", 1.0),
            ("decode_q8_vs_llamacpp", 1.3),
            ("decode_q4_vs_llamacpp", 1.5),
            ("decode8_q8_gain", 5.0),
            ("decode8_q4_gain", 5.0),
            ("prefill512_bf16_vs_llamacpp", 1.6),
            ("prefill512_q8_vs_llamacpp", 4.0),
            ("prefill512_q4_vs_llamacpp", 2.0),
            ("prefill512_q4_vs_openvino", 1.3),
            ("prefill512_q4_avx2_vs_llamacpp", 1.4),
            ("vision448_vs_openvino", 1.2),
            ("vision1024_vs_openvino", 1.2),
            ("vision448_vs_llamacpp", 3.0),
            ("vision1024_vs_llamacpp", 3.0),
            ("vision1024_avx2_vs_llamacpp", 1.8),
            ("decode_q4_under_load_vs_llamacpp", 5.0),
            ("peak_memory_ratio", 1.1),
            ("first_token_vs_llamacpp", 0.5),
        ];
        assert_eq!(judged, promised);
        let lower = metrics.iter().filter(|metric| metric.better == Better::Lower && metric.target.is_some());
        assert!(lower.map(|metric| metric.name).eq(["peak_memory_ratio", "first_token_vs_llamacpp"]));
        let names: BTreeSet<&str> = metrics.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), metrics.len());
    }
}
