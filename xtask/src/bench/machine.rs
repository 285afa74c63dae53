//! Which machine the figures are of.

use std::fs::read_to_string;

use anyhow::Result;
use serde::Serialize;

use crate::run::{output, root};

/// What distinguishes machines; `None` where this one does not say.
#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: Option<String>,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) instruction_sets: Vec<String>,
    pub(crate) drive: Option<String>,
    pub(crate) kernel: Option<String>,
    pub(crate) governor: Option<String>,
    pub(crate) power_source: Option<String>,
    pub(crate) gpu: Option<String>,
    pub(crate) driver: Option<String>,
    /// Runnable threads of the last minute before the run: above a few tenths the machine is not quiet.
    pub(crate) load_average: Option<f64>,
}

/// Those that decide which kernels run, as Linux names them.
const INSTRUCTION_SETS: [&str; 12] = [
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
];

impl Machine {
    pub(crate) fn read() -> Self {
        let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags: Vec<&str> = field(&cpuinfo, "flags").unwrap_or_default().split(' ').collect();
        let memory = read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = field(&memory, "MemTotal").and_then(|kb| kb.strip_suffix(" kB")?.parse::<u64>().ok());
        let load = read_to_string("/proc/loadavg").ok();
        Self {
            cpu: field(&cpuinfo, "model name").map(str::to_owned),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory.map(|kilobytes| kilobytes * 1024),
            instruction_sets: INSTRUCTION_SETS
                .iter()
                .filter(|set| flags.contains(set))
                .map(ToString::to_string)
                .collect(),
            drive: drive(),
            kernel: line("/proc/sys/kernel/osrelease"),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            power_source: power_source(),
            gpu: gpu().map(|gpu| gpu.0),
            driver: gpu().map(|gpu| gpu.1),
            load_average: load.and_then(|load| load.split(' ').next()?.parse().ok()),
        }
    }
}

/// The commit of the working tree, marked where files differ from it.
pub(crate) fn commit() -> Result<String> {
    let git = |args: &[&str]| output(std::process::Command::new("git").current_dir(root()).args(args));
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed = if git(&["status", "--porcelain"])?.trim().is_empty() { "" } else { "-dirty" };
    Ok(format!("{}{changed}", commit.trim()))
}

/// The value of `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn line(path: &str) -> Option<String> {
    Some(read_to_string(path).ok()?.trim().to_owned()).filter(|line| !line.is_empty())
}

/// Names and models of the drives; loop devices and memory disks are none.
fn drive() -> Option<String> {
    let entries = std::fs::read_dir("/sys/block").ok()?;
    let mut drives: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| ["nvme", "sd", "vd", "mmcblk"].iter().any(|kind| name.starts_with(kind)))
        .map(|name| match line(&format!("/sys/block/{name}/device/model")) {
            Some(model) => format!("{name} {model}"),
            None => name,
        })
        .collect();
    drives.sort();
    Some(drives.join(", ")).filter(|drives| !drives.is_empty())
}

fn power_source() -> Option<String> {
    let entries = std::fs::read_dir("/sys/class/power_supply").ok()?;
    let online: Vec<String> =
        entries.flatten().filter_map(|entry| line(&entry.path().join("online").to_string_lossy())).collect();
    match &online[..] {
        [] => None,
        online if online.iter().any(|state| state == "1") => Some("mains".to_owned()),
        _ => Some("battery".to_owned()),
    }
}

/// Name and driver of an NVIDIA card.
fn gpu() -> Option<(String, String)> {
    let mut command = std::process::Command::new("nvidia-smi");
    let said = output(command.args(["--query-gpu=name,driver_version", "--format=csv,noheader"])).ok()?;
    let (name, driver) = said.lines().next()?.split_once(',')?;
    Some((name.trim().to_owned(), driver.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "model\t\t: 106\nmodel name\t: Some CPU @ 2.80GHz\nflags\t\t: fpu avx2\n";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2.80GHz"));
        assert_eq!(field(text, "flags"), Some("fpu avx2"));
        assert_eq!(field(text, "mode"), None);
    }
}
