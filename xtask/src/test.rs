//! `cargo xtask test`: the one command.

use anyhow::Result;

use crate::run::{Steps, cargo, root, say, succeed};
use crate::{cuda, setup};

/// Crates whose tests are run once, with their features, which add to what is there without them. Those of qvl-dataload
/// run twice: one of its features replaces the decoder.
const TESTED_WITH_FEATURES: &[&str] =
    if cfg!(target_os = "linux") { &["qvl-cache", "qvl-transfer"] } else { &["qvl-cache"] };
const CACHE_FEATURES: &str = "async,object-store,postcard,rkyv,safetensors";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out what needs CMake: the tests of the feature libjpeg-turbo.
    #[arg(long)]
    no_c: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("set-up", || {
        setup::rust_tools()?;
        setup::rocksdb()
    })?;
    steps.step("format", || succeed(&mut cargo(&["fmt", "--all", "--check"])))?;
    steps.step("clippy", || {
        succeed(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
    })?;
    steps.step("tests", || {
        let mut test = cargo(&["test", "--workspace", "--all-targets"]);
        for name in TESTED_WITH_FEATURES {
            test.args(["--exclude", name]);
        }
        succeed(&mut test)
    })?;
    steps.step("doc tests", || succeed(&mut cargo(&["test", "--workspace", "--doc"])))?;
    steps.step("docs", || {
        succeed(cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"))
    })?;
    steps.step("models of queues, of moving values and of chunks (loom)", || {
        // A folder of its own: the models are no members of the workspace, and of use only when optimised.
        let target = root().join("target/loom");
        ["qvl-alloc", "qvl-cache", "qvl-dataload", "qvl-transfer"].iter().try_for_each(|name| {
            let manifest = format!("crates/{name}/loom/Cargo.toml");
            let test = ["test", "--release", "--manifest-path", &manifest];
            succeed(cargo(&test).env("CARGO_TARGET_DIR", &target))
        })
    })?;
    steps.step("qvl-cache with its features", || {
        let all = ["--package", "qvl-cache", "--features", CACHE_FEATURES];
        succeed(cargo(&["clippy", "--all-targets"]).args(all).args(["--", "--deny", "warnings"]))?;
        succeed(cargo(&["test"]).args(all))?;
        // And what is left in pure Rust: no compiler for C++, no warm tier.
        let none = ["--package", "qvl-cache", "--no-default-features"];
        succeed(cargo(&["clippy", "--all-targets"]).args(none).args(["--", "--deny", "warnings"]))
    })?;
    if cfg!(target_os = "linux") {
        steps.step("qvl-transfer with a card's driver (a stand-in)", cuda::tests)?;
    }
    let mut features = vec!["io-uring", "parquet"];
    if args.no_c {
        say("\nnot run: the feature libjpeg-turbo (--no-c)");
    } else if setup::libjpeg_turbo() {
        features.push("libjpeg-turbo");
    } else {
        say("\nnot run: the feature libjpeg-turbo, since cmake or nasm is missing");
    }
    steps.step("qvl-dataload with its features", || {
        let features = features.join(",");
        let feature = ["--package", "qvl-dataload", "--features", &features];
        succeed(cargo(&["clippy", "--all-targets"]).args(feature).args(["--", "--deny", "warnings"]))?;
        succeed(cargo(&["test"]).args(feature))
    })?;
    steps.summary();
    Ok(())
}
