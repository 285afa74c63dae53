//! Running a program to its end or to a limit, with the time of its first output.

use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a program did.
pub(crate) struct Finished {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// From the start of the process to the first byte on stdout.
    pub(crate) first_output: Option<Duration>,
    /// `None` if it was stopped at the limit.
    status: Option<ExitStatus>,
}

impl Finished {
    pub(crate) fn timed_out(&self) -> bool {
        self.status.is_none()
    }
}

/// Often enough to notice an end, seldom enough to leave the cores alone.
const POLL: Duration = Duration::from_millis(20);

/// Runs a program, killed after `limit`. Fails if it cannot be started or ends without success.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    // Where a program lies is nobody's business who reads a result.
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().display().to_string();
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdout = child.stdout.take().context("stdout was piped")?;
    let stderr = child.stderr.take().context("stderr was piped")?;
    let (sender, first_output) = mpsc::channel();
    let out = std::thread::spawn(move || {
        collect(stdout, || {
            // The receiver lives to the end of this function, which waits for this thread.
            let _ = sender.send(start.elapsed());
        })
    });
    let err = std::thread::spawn(move || collect(stderr, || ()));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > limit {
            child.kill().with_context(|| format!("cannot stop {name}"))?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(POLL);
    };
    let text = |thread: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
    };
    let finished =
        Finished { stdout: text(out), stderr: text(err), first_output: first_output.try_recv().ok(), status };
    if let Some(status) = status
        && !status.success()
    {
        let lines: Vec<&str> = finished.stderr.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let said = lines.last().copied().unwrap_or("it said nothing");
        bail!("{name}: {} ({status})", said.trim_start_matches("error: "));
    }
    Ok(finished)
}

/// Everything a pipe gives; `first` is called at its first byte.
fn collect(mut pipe: impl Read, first: impl FnOnce()) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    if matches!(pipe.read(&mut byte), Ok(1)) {
        first();
        bytes.push(byte[0]);
        // What was read until a pipe breaks is what there is.
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_the_time_of_its_first_byte() {
        let start = Instant::now();
        let script = "sleep 0.2; echo one; sleep 0.4; echo two";
        let done = run(&mut shell(script), Duration::from_secs(60)).expect("it ends well");
        let (first, all) = (done.first_output.expect("there was output"), start.elapsed());
        assert_eq!((done.stdout.as_str(), done.timed_out()), ("one\ntwo\n", false));
        assert!(first >= Duration::from_millis(200), "{first:?}");
        assert!(first + Duration::from_millis(200) < all, "{first:?} of {all:?}");
    }

    #[test]
    fn a_program_that_does_not_end_is_stopped() {
        let start = Instant::now();
        let done = run(&mut shell("echo begun; exec sleep 60"), Duration::from_millis(200)).expect("stopped");
        assert!(done.timed_out() && start.elapsed() < Duration::from_secs(20));
        assert_eq!(done.stdout, "begun\n");
    }

    #[test]
    fn a_failure_says_the_last_line() {
        let failed =
            run(&mut shell("echo first >&2; echo 'error: no model' >&2; exit 3"), Duration::from_secs(9));
        let text = failed.err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(text, "sh: no model (exit status: 3)");
    }
}
