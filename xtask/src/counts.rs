//! `cargo xtask counts`: how many instructions the hot kernels take, compared with what is committed.
//!
//! A count is nearly the same on every machine and beside every load, where a time is not: a kernel that a
//! change of the code or of the compiler made worse shows here first. Only AVX2 and portable code: valgrind
//! knows no AVX-512. Each kernel is a process of its own; the program is `benches/counts`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::run::{cargo, output, root, say, succeed};

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Write the counts to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only kernels whose names begin so; several may be given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Make these counts the baseline, benches/counts/baseline.json, in place of comparing with it.
    #[arg(long, conflicts_with = "only")]
    bless: bool,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask counts
  cargo xtask counts --only linear_q4,attention
  cargo xtask counts --bless

Needs valgrind: sudo apt-get install valgrind. Exit code 1 if a kernel takes over 3 % more instructions than in the \
baseline, or is not in it. A baseline is of one compiler: bless it anew when that changes.";

/// What a count may be above the baseline: other versions of the C library copy memory in other ways.
const TOLERANCE: f64 = 0.03;

/// The instruction sets that valgrind knows.
const ISAS: [&str; 2] = ["avx2", "portable"];

/// The function of the program inside which instructions are counted.
const COUNTED: &str = "*measured_kernel_call*";

/// A kernel as the program lists it.
#[derive(Debug, Deserialize)]
struct Kernel {
    kernel: String,
    /// What its instructions are counted per.
    per: String,
    amount: u64,
}

/// One kernel on one instruction set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Count {
    kernel: String,
    isa: String,
    instructions: u64,
    per: String,
    amount: u64,
}

impl Count {
    fn each(&self) -> f64 {
        self.instructions as f64 / self.amount as f64
    }
}

/// A count beside the baseline's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// The count over the baseline's, less 1.
    Within(f64),
    Less(f64),
    More(f64),
    /// The baseline has no such kernel, or another amount of work for it.
    Unknown,
}

impl Verdict {
    fn of(count: &Count, baseline: &[Count]) -> Self {
        let same = |known: &&Count| {
            (&known.kernel, &known.isa, known.amount) == (&count.kernel, &count.isa, count.amount)
        };
        match baseline.iter().find(same) {
            None => Self::Unknown,
            Some(known) => match count.instructions as f64 / known.instructions as f64 - 1.0 {
                change if change > TOLERANCE => Self::More(change),
                change if change < -TOLERANCE => Self::Less(change),
                change => Self::Within(change),
            },
        }
    }

    fn fails(self) -> bool {
        matches!(self, Self::More(_) | Self::Unknown)
    }

    fn shown(self) -> String {
        match self {
            Self::Within(change) => format!("{:+.1} %", 100.0 * change),
            Self::Less(change) => format!("{GOOD}{:+.1} %: fewer{GOOD:#}", 100.0 * change),
            Self::More(change) => format!("{BAD}{:+.1} %: more{BAD:#}", 100.0 * change),
            Self::Unknown => format!("{BAD}not in the baseline{BAD:#}"),
        }
    }
}

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

pub(crate) fn run(args: &Args) -> Result<()> {
    needs_valgrind()?;
    succeed(&mut cargo(&["build", "--release", "--package", "qvl-benches", "--bin", "counts"]))?;
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec()?;
    let program = metadata.target_directory.into_std_path_buf().join("release/counts");
    let kernels = kernels(&output(Command::new(&program).arg("list"))?, &args.only)?;
    let path = root().join("benches/counts/baseline.json");
    let baseline = if args.bless { Vec::new() } else { read(&path)? };
    let name_width = kernels.iter().map(|kernel| kernel.kernel.len()).max().unwrap_or(0);
    say(&format!(
        "{:name_width$}  {:8}  {:>12}  {:>8}  {:12}  beside",
        "kernel", "isa", "instructions", "each", "per"
    ));
    let mut counts = Vec::new();
    let mut failed = Vec::new();
    for kernel in kernels {
        for isa in ISAS {
            let count = measure(&program, &kernel, isa)?;
            let verdict = (!args.bless).then(|| Verdict::of(&count, &baseline));
            say(&format!(
                "{:name_width$}  {isa:8}  {:>12}  {:>8.3}  {:12}  {}",
                count.kernel,
                count.instructions,
                count.each(),
                count.per,
                verdict.map_or("blessed".to_owned(), Verdict::shown)
            ));
            if verdict.is_some_and(Verdict::fails) {
                failed.push(format!("{} on {isa}", count.kernel));
            }
            counts.push(count);
        }
    }
    let gone = if args.only.is_empty() { gone(&counts, &baseline) } else { Vec::new() };
    if args.bless {
        write(&path, &counts)?;
    }
    if let Some(path) = &args.json {
        write(path, &counts)?;
    }
    if !gone.is_empty() {
        bail!("in the baseline and no longer counted: {}; --bless if so intended", gone.join(", "));
    }
    if !failed.is_empty() {
        bail!(
            "over {} % more instructions than in the baseline, or not in it: {}; --bless if so intended",
            100.0 * TOLERANCE,
            failed.join(", ")
        );
    }
    Ok(())
}

/// valgrind is needed for nothing else here, so it is asked for and not installed.
fn needs_valgrind() -> Result<()> {
    let mut command = Command::new("valgrind");
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if command.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    bail!("valgrind, which counts the instructions, is missing: sudo apt-get install valgrind")
}

/// Those of the program's list that are wanted.
fn kernels(list: &str, only: &[String]) -> Result<Vec<Kernel>> {
    let all = list.lines().map(serde_json::from_str::<Kernel>).collect::<Result<Vec<_>, _>>()?;
    let wanted = |kernel: &Kernel| {
        only.is_empty() || only.iter().any(|start| kernel.kernel.starts_with(start.as_str()))
    };
    let names: Vec<String> = all.iter().map(|kernel| kernel.kernel.clone()).collect();
    let kernels: Vec<Kernel> = all.into_iter().filter(wanted).collect();
    if kernels.is_empty() {
        bail!("--only {}: no kernel has such a name; there are {}", only.join(","), names.join(", "));
    }
    Ok(kernels)
}

fn measure(program: &Path, kernel: &Kernel, isa: &str) -> Result<Count> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(program)
        .args(["run", &kernel.kernel, "--isa", isa]);
    let done = command.stdin(Stdio::null()).output().context("cannot start valgrind")?;
    let said = String::from_utf8_lossy(&done.stderr);
    let what = format!("{} on {isa}", kernel.kernel);
    if !done.status.success() {
        let error = said.lines().find_map(|line| line.strip_prefix("error: "));
        bail!("{what}: {} ({})", error.unwrap_or_else(|| said.trim()), done.status);
    }
    Ok(Count {
        kernel: kernel.kernel.clone(),
        isa: isa.to_owned(),
        instructions: collected(&said).context(what)?,
        per: kernel.per.clone(),
        amount: kernel.amount,
    })
}

/// What callgrind says at its end, `==123== Collected : 3158`. None is an error: then it did not find the
/// function that is counted.
fn collected(said: &str) -> Result<u64> {
    let number = said.lines().find_map(|line| {
        let (name, number) = line.strip_prefix("==")?.split_once("== ")?.1.split_once(':')?;
        (name.trim() == "Collected").then_some(number.trim())
    });
    let number = number.context("callgrind did not say what it collected")?;
    match number.parse().with_context(|| format!("callgrind collected \"{number}\""))? {
        0 => bail!("callgrind counted nothing: the program has no function {COUNTED}"),
        count => Ok(count),
    }
}

/// What the baseline has and the program has not.
fn gone(counts: &[Count], baseline: &[Count]) -> Vec<String> {
    let is_counted = |known: &&Count| {
        counts.iter().any(|count| (&count.kernel, &count.isa) == (&known.kernel, &known.isa))
    };
    let gone = baseline.iter().filter(|known| !is_counted(known));
    gone.map(|known| format!("{} on {}", known.kernel, known.isa)).collect()
}

fn read(path: &Path) -> Result<Vec<Count>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: `cargo xtask counts --bless` writes it", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn write(path: &Path, counts: &[Count]) -> Result<()> {
    let text = serde_json::to_string_pretty(counts)? + "\n";
    std::fs::write(path, text).with_context(|| path.display().to_string())?;
    say(&format!("written to {}", path.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(kernel: &str, instructions: u64) -> Count {
        let [kernel, isa, per] = [kernel, "avx2", "value"].map(str::to_owned);
        Count { kernel, isa, instructions, per, amount: 100 }
    }

    #[test]
    fn the_count_is_found_in_what_callgrind_says() {
        let said = "==12== Callgrind\n==12== Command: counts run\n==12== \n==12== Events    : Ir\n\
                    ==12== Collected : 3158\n==12== \n==12== I   refs:      3,158\n";
        assert_eq!(collected(said).unwrap(), 3158);
        let error = |said: &str| collected(said).unwrap_err().to_string();
        assert!(error("==12== Collected : 0").contains("no function"));
        assert!(error("==12== Collected : many").contains("many"));
        assert!(error("Collected : 3").contains("did not say"), "a line of the program, not of callgrind");
    }

    #[test]
    fn more_than_the_tolerance_fails_and_less_does_not() {
        let baseline = [count("a", 1000)];
        let verdict = |instructions| Verdict::of(&count("a", instructions), &baseline);
        assert!(matches!(verdict(1000), Verdict::Within(0.0)));
        assert!(matches!(verdict(1029), Verdict::Within(_)) && matches!(verdict(971), Verdict::Within(_)));
        assert!(matches!(verdict(1031), Verdict::More(_)) && verdict(1031).fails());
        assert!(matches!(verdict(969), Verdict::Less(_)) && !verdict(969).fails());
    }

    #[test]
    fn only_the_same_work_is_compared() {
        let baseline = [count("a", 1000)];
        let others = [
            count("b", 1000),
            Count { isa: "portable".to_owned(), ..count("a", 1000) },
            Count { amount: 200, ..count("a", 1000) },
        ];
        for other in others {
            assert!(Verdict::of(&other, &baseline).fails(), "{other:?}");
        }
    }

    #[test]
    fn a_kernel_that_is_no_longer_counted_is_named() {
        let baseline = [count("a", 1000), count("b", 1000)];
        assert_eq!(gone(&[count("a", 1)], &baseline), ["b on avx2"]);
        assert!(gone(&baseline, &baseline).is_empty());
    }

    #[test]
    fn kernels_are_chosen_by_how_their_names_begin() {
        let list = "{\"kernel\":\"linear_q8\",\"per\":\"value\",\"amount\":2}\n\
                    {\"kernel\":\"rms_norm\",\"per\":\"value\",\"amount\":3}\n";
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|&name| name.to_owned()).collect();
            kernels(list, &only).map(|kernels| kernels.into_iter().map(|k| k.kernel).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["linear_q8", "rms_norm"]);
        assert_eq!(names(&["rms"]).unwrap(), ["rms_norm"]);
        let error = names(&["softmax"]).unwrap_err().to_string();
        assert!(error.contains("softmax") && error.contains("rms_norm"), "{error}");
    }

    #[test]
    fn counts_come_back_from_the_file_as_they_were() {
        let counts = vec![count("a", 1000)];
        let text = serde_json::to_string(&counts).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Count>>(&text).unwrap(), counts);
    }
}
