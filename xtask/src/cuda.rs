//! The tests of what runs on a card, on a stand-in for its driver: every machine can run them.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::run::{cargo, root, succeed};

const TRANSFER: [&str; 4] = ["--package", "qvl-transfer", "--features", "cuda"];

/// Builds the stand-in, and runs clippy and the tests of qvl-transfer with it.
pub(crate) fn tests() -> Result<()> {
    let folder = stand_in()?;
    succeed(cargo(&["clippy", "--all-targets"]).args(TRANSFER).args(["--", "--deny", "warnings"]))?;
    let mut folders = vec![folder];
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&others).filter(|folder| !folder.as_os_str().is_empty()));
    let folders = std::env::join_paths(folders)?;
    succeed(cargo(&["test"]).args(TRANSFER).env("LD_LIBRARY_PATH", folders).env("QVL_CUDA_STAND_IN", "1"))
}

/// Builds the stand-in; returns the folder that has it under the names of the driver.
fn stand_in() -> Result<PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec()?;
    let target = metadata.target_directory.into_std_path_buf();
    succeed(&mut cargo(&["build", "--package", "cuda-stand-in"]))?;
    let built = target.join("debug").join(library_name("cuda_stand_in"));
    let folder = target.join("cuda-stand-in");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    // Both are looked for, the first one first.
    for name in ["libcuda.so", "libcuda.so.1"] {
        let to = folder.join(name);
        // A library that a program has open must not be written over.
        let _ = std::fs::remove_file(&to);
        std::fs::copy(&built, &to).with_context(|| format!("{} to {}", built.display(), to.display()))?;
    }
    Ok(folder)
}

fn library_name(name: &str) -> String {
    format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX)
}
