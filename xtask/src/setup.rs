//! What building and testing needs beyond what this program was built with.
//!
//! That is little: rustfmt and clippy for `test`, and, only for the optional decoder of Pillow, CMake and an
//! assembler. What is missing is installed where that needs no question; else the command is printed.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run::{cargo, say, succeed};

pub(crate) fn run() -> Result<()> {
    rust_tools()?;
    if libjpeg_turbo() {
        say("setup: cmake and nasm are there: the feature libjpeg-turbo can be built");
    }
    say("setup: ready");
    Ok(())
}

/// rustfmt and clippy, by rustup where they are missing.
pub(crate) fn rust_tools() -> Result<()> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if works(cargo(&[tool, "--version"])) {
            continue;
        }
        let command = format!("rustup component add {component}");
        say(&format!("setup: `cargo {tool}` is missing: {command}"));
        if !works_with_args("rustup", &["--version"]) {
            bail!(
                "`cargo {tool}` is missing and there is no rustup: install {component} as you installed Rust"
            );
        }
        succeed(Command::new("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}

/// Whether the feature `libjpeg-turbo` can be built here, after what it needs was installed if that could be done.
pub(crate) fn libjpeg_turbo() -> bool {
    has_libjpeg_turbo_tools() || install(&["cmake", "nasm"])
}

/// Whether the C library of the feature `libjpeg-turbo` can be built here.
fn has_libjpeg_turbo_tools() -> bool {
    ["cmake", "nasm"].iter().all(|tool| works_with_args(tool, &["--version"]))
}

/// Installs Debian packages if that needs no password; else prints how. `false` if they are not there after.
fn install(packages: &[&str]) -> bool {
    let by_hand = format!("apt-get install --yes {}", packages.join(" "));
    if !is_root() || !works_with_args("apt-get", &["--version"]) {
        say(&format!("setup: for the feature libjpeg-turbo (optional) run: sudo {by_hand}"));
        return false;
    }
    say(&format!("setup: {by_hand}"));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    let done = apt(&arguments) || (apt(&["update"]) && apt(&arguments));
    if !done {
        say(&format!(
            "setup: that failed; the feature libjpeg-turbo is not tested (`{by_hand}` would make it so)"
        ));
    }
    done
}

fn is_root() -> bool {
    let mut command = Command::new("id");
    command.arg("-u");
    crate::run::output(&mut command).is_ok_and(|id| id.trim() == "0")
}

fn works_with_args(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args);
    works(command)
}

fn works(mut command: Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}
