//! Starting other programs and saying what is done.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, bail};

const HEADING: Style = AnsiColor::Cyan.on_default().bold();
const ERROR: Style = AnsiColor::Red.on_default().bold();

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// A cargo command in the root, with the cargo that runs this.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

/// Runs a command to its end; fails unless it succeeds.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Standard output of a command; fails unless it succeeds.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` wrote something that is not text"))
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Steps with their times, for the table at the end.
#[derive(Default)]
pub(crate) struct Steps(Vec<(String, Duration)>);

impl Steps {
    /// Announces a step and runs it.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        say(&format!("\n{HEADING}== {name}{HEADING:#}"));
        let start = Instant::now();
        work().with_context(|| format!("step \"{name}\""))?;
        self.0.push((name.to_owned(), start.elapsed()));
        Ok(())
    }

    /// Prints what took how long.
    pub(crate) fn summary(&self) {
        say("");
        for (name, time) in &self.0 {
            say(&format!("{:>8.1} s  {name}", time.as_secs_f64()));
        }
        let total: Duration = self.0.iter().map(|step| step.1).sum();
        say(&format!("{HEADING}{:>8.1} s  all passed{HEADING:#}", total.as_secs_f64()));
    }
}

/// A line on stdout. A reader that has gone is no reason to stop the work.
pub(crate) fn say(line: &str) {
    let _ = writeln!(anstream::stdout(), "{line}");
}

/// A line on stderr.
pub(crate) fn say_error(line: &str) {
    let _ = writeln!(anstream::stderr(), "{ERROR}error{ERROR:#}: {line}");
}
