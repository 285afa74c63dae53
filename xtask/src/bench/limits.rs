//! The suite `limits`: what the machine can do.

use anyhow::Context;

use super::plan::{Group, Job, Metric, Plan, Sides};
use super::probe::{Setup, figure};
use super::stats::Better;

/// Name, what the probe calls it, whether on one thread only, meaning.
const LIMITS: [(&str, &str, bool, &str); 9] = [
    ("memory_read_1_thread", "memory_read", true, "streaming reads, one thread"),
    ("memory_read", "memory_read", false, "streaming reads, all threads"),
    ("memcpy_1_thread", "memcpy", true, "bytes copied from buffer to buffer, one thread"),
    ("memcpy", "memcpy", false, "bytes copied from buffer to buffer, all threads"),
    ("f32_avx2", "f32_avx2", false, "f32 multiplications and additions, AVX2 with FMA"),
    ("f32_avx512", "f32_avx512", false, "f32 multiplications and additions, AVX-512"),
    ("i8_avx2", "i8_avx2", false, "int8 multiplications and additions, AVX2 without VNNI"),
    ("i8_avx_vnni", "i8_avx_vnni", false, "int8 multiplications and additions, AVX-VNNI"),
    ("i8_avx512_vnni", "i8_avx512_vnni", false, "int8 multiplications and additions, AVX-512 with VNNI"),
];

pub(crate) fn metrics() -> Vec<Metric> {
    LIMITS
        .iter()
        .map(|&(name, kind, _, what)| Metric {
            suite: "limits",
            name,
            what: what.to_owned(),
            unit: if kind.starts_with("mem") { "bytes/s" } else { "operations/s" },
            ours: vec![name.to_owned()],
            reference: Vec::new(),
            reference_name: "none".to_owned(),
            sides: Sides::Alone,
            target: None,
            better: Better::Higher,
        })
        .collect()
}

pub(crate) fn plan(setup: &Setup) -> Plan<'_> {
    let job = |&(name, kind, single, _): &(&'static str, &'static str, bool, &str)| {
        let threads = if single { 1 } else { setup.threads };
        let work = move || {
            let (lines, _) = setup.probe("limits", threads).with("--only", kind).run()?;
            let line = lines.iter().find(|line| line["threads"] == threads);
            Ok(vec![figure(line.context("this CPU does not have it")?, "best")?])
        };
        Job::new(&[name], Ok(work))
    };
    let jobs = LIMITS.iter().map(job).collect();
    let rounds = if setup.quick { 2 } else { 5 };
    Plan { groups: vec![Group { rounds, jobs, ..Group::default() }] }
}
