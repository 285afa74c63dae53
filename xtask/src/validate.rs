//! Properties of the workspace that no single crate's tests can show.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand, Package};

use crate::run::{Steps, cargo, output, root, say, succeed};

/// The one crate that may depend on the others.
const COMPOSITION: &str = "qvl-runtime";

/// The only files that may open `unsafe`, each for the reason its first use gives.
const UNSAFE_FILES: [&str; 70] = [
    "benches/probe/alloc.rs",
    "benches/probe/kernels.rs",
    "benches/probe/transfer.rs",
    "crates/cuda-stand-in/src/lib.rs",
    "crates/cuda-stand-in/src/memory.rs",
    "crates/cuda-stand-in/src/work.rs",
    "crates/qvl-alloc/loom/src/lib.rs",
    "crates/qvl-alloc/src/arena.rs",
    "crates/qvl-alloc/src/backing.rs",
    "crates/qvl-alloc/src/backing/heap.rs",
    "crates/qvl-alloc/src/backing/locked.rs",
    "crates/qvl-alloc/src/backing/pages.rs",
    "crates/qvl-alloc/src/blocks.rs",
    "crates/qvl-alloc/src/owner.rs",
    "crates/qvl-alloc/src/plan/held.rs",
    "crates/qvl-alloc/src/plan/run.rs",
    "crates/qvl-alloc/src/pool/buffer.rs",
    "crates/qvl-alloc/src/pool/central.rs",
    "crates/qvl-alloc/src/pool/inner.rs",
    "crates/qvl-alloc/src/pool/shard.rs",
    "crates/qvl-alloc/src/pool/sync.rs",
    "crates/qvl-alloc/tests/common/heap.rs",
    "crates/qvl-alloc/tests/threads_share_a_pool.rs",
    "crates/qvl-alloc/tests/writes_where_none_should_be_are_found.rs",
    "crates/qvl-dataload/src/buffer.rs",
    "crates/qvl-dataload/src/storage/uring.rs",
    "crates/qvl-dataload/src/vision/kernels.rs",
    "crates/qvl-dataload/src/vision/kernels/x86.rs",
    "crates/qvl-dataload/src/vision/kernels/x86_patches.rs",
    "crates/qvl-dataload/tests/common/counting.rs",
    "crates/qvl-model/src/backend/cpu/activations.rs",
    "crates/qvl-model/src/backend/cpu/amx.rs",
    "crates/qvl-model/src/backend/cpu/amx/attention.rs",
    "crates/qvl-model/src/backend/cpu/amx/bytes.rs",
    "crates/qvl-model/src/backend/cpu/amx/floats.rs",
    "crates/qvl-model/src/backend/cpu/attention_kernels.rs",
    "crates/qvl-model/src/backend/cpu/blocks.rs",
    "crates/qvl-model/src/backend/cpu/dots.rs",
    "crates/qvl-model/src/backend/cpu/isa.rs",
    "crates/qvl-model/src/backend/cpu/kernels.rs",
    "crates/qvl-model/src/backend/cpu/panel_dots.rs",
    "crates/qvl-model/src/backend/cpu/team.rs",
    "crates/qvl-model/src/checkpoint/storage.rs",
    "crates/qvl-transfer/src/copy.rs",
    "crates/qvl-transfer/src/device.rs",
    "crates/qvl-transfer/src/device/cuda.rs",
    "crates/qvl-transfer/src/device/cuda/card.rs",
    "crates/qvl-transfer/src/device/cuda/driver.rs",
    "crates/qvl-transfer/src/device/cuda/memory.rs",
    "crates/qvl-transfer/src/device/cuda/pinned.rs",
    "crates/qvl-transfer/src/device/cuda/registered.rs",
    "crates/qvl-transfer/src/device/host.rs",
    "crates/qvl-transfer/src/device/link.rs",
    "crates/qvl-transfer/src/drive/cached.rs",
    "crates/qvl-transfer/src/drive/mapped.rs",
    "crates/qvl-transfer/src/drive/probe.rs",
    "crates/qvl-transfer/src/drive/uring.rs",
    "crates/qvl-transfer/src/memory.rs",
    "crates/qvl-transfer/src/memory/region.rs",
    "crates/qvl-transfer/src/ticket.rs",
    "crates/qvl-transfer/src/worker.rs",
    "crates/qvl-transfer/tests/a_calibration_measures_every_stage.rs",
    "crates/qvl-transfer/tests/a_chunk_allocates_nothing.rs",
    "crates/qvl-transfer/tests/common/mod.rs",
    "crates/qvl-transfer/tests/cuda_bytes_come_back_as_they_went.rs",
    "crates/qvl-transfer/tests/cuda_nothing_is_left_behind.rs",
    "crates/qvl-transfer/tests/cuda_says_why_there_is_no_card.rs",
    "crates/qvl-transfer/tests/packed_bytes_come_back_or_say_what_is_wrong.rs",
    "crates/qvl-transfer/tests/ranges_of_files_arrive_as_they_are.rs",
    "crates/qvl-transfer/tests/stand_in/mod.rs",
];

/// What a package may weigh, in bytes: the registry's own limit.
const PACKAGE_BYTES_MAX: u64 = 10 * 1024 * 1024;

pub(crate) fn run() -> Result<()> {
    let metadata = MetadataCommand::new().current_dir(root()).no_deps().exec()?;
    let crates: Vec<&Package> = metadata
        .workspace_packages()
        .into_iter()
        .filter(|p| p.name.starts_with("qvl-") && is_published(p))
        .collect();
    let mut steps = Steps::default();
    steps.step("no leaf depends on a sibling", || leaves_stand_alone(&crates))?;
    steps.step("every crate has what its users expect", || crates.iter().try_for_each(|p| is_complete(p)))?;
    steps.step("unsafe code only where it is announced", unsafe_is_announced)?;
    steps.step("every file says what it is", files_have_headers)?;
    steps.step("READMEs compile", || succeed(&mut cargo(&["test", "--workspace", "--doc"])))?;
    steps.step("every crate packages and builds from its package", || package(&metadata, &crates))?;
    steps.summary();
    Ok(())
}

fn is_published(package: &Package) -> bool {
    package.publish.as_ref().is_none_or(|registries| !registries.is_empty())
}

fn leaves_stand_alone(crates: &[&Package]) -> Result<()> {
    for package in crates.iter().filter(|package| package.name != COMPOSITION) {
        for dependency in &package.dependencies {
            if crates.iter().any(|sibling| sibling.name.as_str() == dependency.name) {
                bail!(
                    "{} depends on {} ({}): a leaf stands alone, even in its tests",
                    package.name,
                    dependency.name,
                    dependency.kind
                );
            }
        }
        say(&format!("{}: {} dependencies, no sibling among them", package.name, package.dependencies.len()));
    }
    Ok(())
}

fn is_complete(package: &Package) -> Result<()> {
    let dir = package.manifest_path.parent().context("a manifest lies in a folder")?;
    for file in ["README.md", "CHANGELOG.md"] {
        if !dir.join(file).is_file() {
            bail!("{}: no {file}", package.name);
        }
    }
    let lib = std::fs::read_to_string(dir.join("src/lib.rs"))?;
    if !lib.contains("include_str!(\"../README.md\")") {
        bail!("{}: src/lib.rs does not include README.md, so its example is not compiled", package.name);
    }
    let missing = [
        ("description", package.description.is_none()),
        ("license", package.license.is_none()),
        ("repository", package.repository.is_none()),
        ("rust-version", package.rust_version.is_none()),
        ("readme", package.readme.is_none()),
    ];
    if let Some((field, _)) = missing.iter().find(|(_, missing)| *missing) {
        bail!("{}: the manifest has no {field}", package.name);
    }
    Ok(())
}

fn unsafe_is_announced() -> Result<()> {
    for file in rust_files()? {
        let shown = shown(&file);
        let text = std::fs::read_to_string(&file)?;
        let uses = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| code.contains(form))
        });
        // This file names the forms it looks for.
        if uses && !UNSAFE_FILES.contains(&shown.as_str()) && shown != "xtask/src/validate.rs" {
            bail!("{shown} has unsafe code but is not among the files that may: {UNSAFE_FILES:?}");
        }
    }
    Ok(())
}

fn files_have_headers() -> Result<()> {
    for file in rust_files()? {
        let text = std::fs::read_to_string(&file)?;
        if !text.starts_with("//!") && !text.starts_with("#![doc") {
            bail!("{} does not start with //! and what it is", shown(&file));
        }
    }
    Ok(())
}

/// Packs every crate, says what is in it, and builds each from what was packed.
fn package(metadata: &Metadata, crates: &[&Package]) -> Result<()> {
    let mut arguments = vec!["package", "--allow-dirty", "--quiet"];
    for package in crates {
        let listed = output(&mut cargo(&["package", "--list", "--allow-dirty", "--package", &package.name]))?;
        say(&format!("{}: {} files", package.name, listed.lines().count()));
        arguments.extend(["--package", &package.name]);
    }
    forget_unpacked(crates)?;
    succeed(&mut cargo(&arguments))?;
    for package in crates {
        let name = format!("{}-{}.crate", package.name, package.version);
        let packed = metadata.target_directory.join("package").join(&name);
        let bytes = std::fs::metadata(&packed).with_context(|| packed.to_string())?.len();
        say(&format!("{name}: {bytes} bytes, builds"));
        if bytes > PACKAGE_BYTES_MAX {
            bail!("{name} has {bytes} bytes, at most {PACKAGE_BYTES_MAX} can be published");
        }
    }
    Ok(())
}

/// Removes what cargo unpacked for an earlier check: it takes a package of the same name and version for the
/// same, whatever it contains, and would build a crate against an old copy of its sibling. Such copies lie
/// in folders whose names begin with a hyphen, since the registry they come from has no host.
fn forget_unpacked(crates: &[&Package]) -> Result<()> {
    let sources = home::cargo_home()?.join("registry/src");
    let Ok(registries) = std::fs::read_dir(&sources) else { return Ok(()) };
    for registry in registries {
        let registry = registry?;
        if !registry.file_name().to_string_lossy().starts_with('-') {
            continue;
        }
        for package in crates {
            let copy = registry.path().join(format!("{}-{}", package.name, package.version));
            if copy.is_dir() {
                std::fs::remove_dir_all(&copy).with_context(|| copy.display().to_string())?;
            }
        }
    }
    Ok(())
}

/// All Rust files under version control or about to be.
fn rust_files() -> Result<Vec<PathBuf>> {
    let mut command = std::process::Command::new("git");
    command.current_dir(root()).args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]);
    let listed = output(&mut command)?;
    Ok(listed.lines().map(|line| root().join(line)).filter(|path| path.is_file()).collect())
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).to_string_lossy().replace('\\', "/")
}
