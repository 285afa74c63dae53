//! What building and testing needs beyond what this program was built with.
//!
//! That is little: rustfmt and clippy for `test`, a C++ compiler and libclang for RocksDB under the warm tier of
//! qvl-cache, and, only for the optional decoder of Pillow, CMake and an assembler. What is missing is installed where
//! that needs no question; else the command is printed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run::{cargo, say, succeed};

pub(crate) fn run() -> Result<()> {
    rust_tools()?;
    rocksdb()?;
    say("setup: a C++ compiler and libclang are there: qvl-cache can be built with its warm tier");
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

/// What RocksDB is built with: a C++20 compiler, and libclang, which its bindings are made with.
pub(crate) fn rocksdb() -> Result<()> {
    if has_rocksdb_tools() {
        return Ok(());
    }
    install(&["g++", "libclang-dev"], "qvl-cache's warm tier (its default feature rocksdb)");
    if has_rocksdb_tools() {
        return Ok(());
    }
    bail!(
        "RocksDB, under the warm tier of qvl-cache, needs a C++20 compiler and libclang: install them and try again"
    );
}

fn has_rocksdb_tools() -> bool {
    works_with_args("c++", &["--version"]) && has_libclang()
}

/// Whether bindgen will find libclang: where it was told, or where Debian and its like, and llvm-config, have it.
fn has_libclang() -> bool {
    let mut folders: Vec<PathBuf> = Vec::new();
    folders.extend(std::env::var_os("LIBCLANG_PATH").map(PathBuf::from));
    let mut llvm = Command::new("llvm-config");
    llvm.arg("--libdir");
    folders.extend(crate::run::output(&mut llvm).map(|folder| PathBuf::from(folder.trim())));
    folders.extend(["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from));
    if let Ok(entries) = std::fs::read_dir("/usr/lib") {
        let paths = entries.flatten().map(|entry| entry.path());
        // /usr/lib/llvm-14/lib, /usr/lib/x86_64-linux-gnu.
        folders.extend(paths.flat_map(|path| [path.join("lib"), path]));
    }
    folders.iter().any(|folder| {
        let Ok(entries) = std::fs::read_dir(folder) else { return false };
        entries.flatten().any(|entry| is_libclang(&entry.file_name().to_string_lossy()))
    })
}

/// Whether a file of this name is what bindgen loads. libclang-cpp, which comes with other tools, is another library.
fn is_libclang(name: &str) -> bool {
    name.starts_with("libclang.so")
        || name.starts_with("libclang-") && !name.starts_with("libclang-cpp") && name.contains(".so")
        || name == "libclang.dylib"
}

/// Whether the feature `libjpeg-turbo` can be built here, after what it needs was installed if that could be done.
pub(crate) fn libjpeg_turbo() -> bool {
    has_libjpeg_turbo_tools() || install(&["cmake", "nasm"], "the feature libjpeg-turbo (optional)")
}

/// Whether the C library of the feature `libjpeg-turbo` can be built here.
fn has_libjpeg_turbo_tools() -> bool {
    ["cmake", "nasm"].iter().all(|tool| works_with_args(tool, &["--version"]))
}

/// Installs Debian packages if that needs no password; else prints how. `false` if they are not there after.
fn install(packages: &[&str], what_for: &str) -> bool {
    let by_hand = format!("apt-get install --yes {}", packages.join(" "));
    let root = is_root();
    let may = root || works_with_args("sudo", &["--non-interactive", "true"]);
    if !may || !works_with_args("apt-get", &["--version"]) {
        say(&format!("setup: for {what_for} run: sudo {by_hand}"));
        return false;
    }
    say(&format!("setup: {by_hand}"));
    let apt = |args: &[&str]| {
        let mut command = Command::new(if root { "apt-get" } else { "sudo" });
        if !root {
            command.args(["--non-interactive", "apt-get"]);
        }
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    let done = apt(&arguments) || (apt(&["update"]) && apt(&arguments));
    if !done {
        say(&format!("setup: that failed; {what_for} needs what `{by_hand}` installs"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libclang_is_told_from_its_neighbours() {
        for name in ["libclang.so", "libclang.so.1", "libclang-14.so", "libclang-14.so.1", "libclang.dylib"] {
            assert!(is_libclang(name), "{name}");
        }
        for name in ["libclang-cpp.so.14", "libclang-cpp.so", "libclang-14.a", "libclangAST.so"] {
            assert!(!is_libclang(name), "{name}");
        }
    }
}
