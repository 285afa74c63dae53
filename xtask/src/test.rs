//! `cargo xtask test`: the one command.

use anyhow::Result;

use crate::run::{Steps, cargo, root, say, succeed};
use crate::setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out what needs CMake: the tests of the feature libjpeg-turbo.
    #[arg(long)]
    no_c: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("set-up", setup::rust_tools)?;
    steps.step("format", || succeed(&mut cargo(&["fmt", "--all", "--check"])))?;
    steps.step("clippy", || {
        succeed(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
    })?;
    steps.step("tests", || succeed(&mut cargo(&["test", "--workspace", "--all-targets"])))?;
    steps.step("doc tests", || succeed(&mut cargo(&["test", "--workspace", "--doc"])))?;
    steps.step("docs", || {
        succeed(cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"))
    })?;
    steps.step("model of the prefetch queue (loom)", || {
        let manifest = "crates/qvl-dataload/loom/Cargo.toml";
        // A folder of its own: the model is no member of the workspace, and its tests are of use only when optimised.
        let target = root().join("target/loom");
        succeed(cargo(&["test", "--release", "--manifest-path", manifest]).env("CARGO_TARGET_DIR", target))
    })?;
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
