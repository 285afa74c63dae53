//! The suite `alloc`: pairs of allocate and free, a trace of tensors beside other allocators, fragmentation, what trim
//! gives back, and what watching costs.

use anyhow::Result;

use super::evidence::Evidence;
use super::plan::{Group, Job, Metric, Plan};
use super::probe::{Setup, figure};
use super::stats::Better;

/// Sizes of pairs, in bytes, by class.
const PAIRS: [(&str, u64); 2] = [("small", 256), ("medium", 64 << 10)];
const THREADS: [u64; 2] = [1, 2];
/// Who a trace is replayed with.
const ALLOCATORS: [&str; 3] = ["pool", "system", "mimalloc"];

pub(crate) fn metrics() -> Vec<Metric> {
    let mut metrics = Vec::new();
    for (name, what) in [
        ("pair_ns_small", "256 bytes allocated and freed, steady state, one thread, ns"),
        ("pair_ns_medium", "the same of 64 KiB, ns"),
        ("pair_ns_small_2t", "the same of 256 bytes on two threads at once, ns a pair of each"),
        ("pair_ns_medium_2t", "the same of 64 KiB on two threads, ns a pair of each"),
    ] {
        metrics.push(alone(name, "ns", what, name, Some(25.0), Better::Lower));
    }
    let what = "the tensors of 64 KiB to 64 MiB of a prefill and a picture, allocated, each page touched, and freed: traces/s";
    for (name, other, target) in [("trace_vs_system", "system", 3.0), ("trace_vs_mimalloc", "mimalloc", 1.5)]
    {
        let reference = format!("trace {other}");
        metrics.push(Metric::rates("alloc", name, what, "trace pool", &reference, other, Some(target)));
        metrics.push(Metric::rates(
            "alloc",
            if other == "system" { "trace_2t_vs_system" } else { "trace_2t_vs_mimalloc" },
            "the same on two threads at once: traces/s",
            "trace pool 2",
            &format!("trace {other} 2"),
            other,
            None,
        ));
    }
    metrics.extend([
        alone(
            "fragmentation",
            "share",
            "after ten million operations of the committed traces: of what is free, the share that is not in the largest piece",
            "fragmentation",
            Some(0.05),
            Better::Lower,
        ),
        alone(
            "peak_over_live",
            "ratio",
            "the same: the most that was taken of the system, over the most that was live",
            "peak over live",
            Some(1.1),
            Better::Lower,
        ),
        alone(
            "trim_rss_over_live",
            "ratio",
            "half of a gigabyte in mixed sizes freed at random, then trim: resident bytes over live ones",
            "trim",
            Some(1.05),
            Better::Lower,
        ),
        alone(
            "pressure_reaction_ms",
            "ms",
            "a group of 256 MiB filled at 500 MiB/s: from the crossing of the critical level to the callback, the longest of the run",
            "reaction",
            Some(100.0),
            Better::Lower,
        ),
        alone(
            "watch_core_share",
            "share",
            "watching while nothing happens: processor time of the watching thread",
            "watch",
            Some(0.001),
            Better::Lower,
        ),
    ]);
    metrics
}

/// An amount that is compared with nothing.
fn alone(
    name: &'static str,
    unit: &'static str,
    what: &str,
    ours: &str,
    target: Option<f64>,
    better: Better,
) -> Metric {
    Metric::alone("alloc", name, unit, what, ours, target, better)
}

pub(crate) fn plan<'a>(setup: &'a Setup, evidence: &'a Evidence) -> Plan<'a> {
    let rounds = |full: u32, quick: u32| if setup.quick { quick } else { full };
    let group = |rounds, jobs| Group { rounds, jobs, ..Group::default() };
    Plan {
        groups: vec![
            group(rounds(5, 3), pairs(setup)),
            group(rounds(5, 2), traces(setup, evidence)),
            group(rounds(3, 1), vec![long(setup), trim(setup)]),
            group(rounds(3, 1), vec![reaction(setup, evidence), watch(setup, evidence)]),
        ],
    }
}

fn pairs(setup: &Setup) -> Vec<Job<'_>> {
    let each = PAIRS.into_iter().flat_map(|pair| THREADS.map(|threads| (pair, threads)));
    each.map(|((name, bytes), threads)| {
        let series =
            if threads == 1 { format!("pair_ns_{name}") } else { format!("pair_ns_{name}_{threads}t") };
        let work = move || {
            let call = setup.plain_probe("alloc-pair").with("--bytes", bytes).with("--threads", threads);
            Ok(vec![figure(&call.one()?, "nanoseconds")?])
        };
        Job::new(&[series], Ok(work))
    })
    .collect()
}

fn traces<'a>(setup: &'a Setup, evidence: &'a Evidence) -> Vec<Job<'a>> {
    let each = THREADS.into_iter().flat_map(|threads| ALLOCATORS.map(|who| (who, threads)));
    each.map(|(who, threads)| {
        let series = if threads == 1 { format!("trace {who}") } else { format!("trace {who} {threads}") };
        let work = move || {
            let call = setup.plain_probe("alloc-trace").with("--allocator", who).with("--threads", threads);
            let line = call.one()?;
            // All have the same to do, and have done it.
            evidence.same(&format!("the trace on {threads}"), who, line["sum"].to_string().as_bytes())?;
            Ok(vec![figure(&line, "traces_per_s")?])
        };
        Job::new(&[series], Ok(work))
    })
    .collect()
}

fn long(setup: &Setup) -> Job<'_> {
    let operations = if setup.quick { 1_000_000 } else { 10_000_000 };
    let work = move || {
        let line = setup.plain_probe("alloc-long").with("--operations", operations).one()?;
        Ok(vec![figure(&line, "fragmentation")?, figure(&line, "peak_over_live")?])
    };
    Job::new(&["fragmentation", "peak over live"].map(str::to_owned), Ok(work))
}

fn trim(setup: &Setup) -> Job<'_> {
    let work = move || Ok(vec![figure(&setup.plain_probe("alloc-trim").one()?, "rss_over_live")?]);
    Job::new(&["trim".to_owned()], Ok(work))
}

fn reaction<'a>(setup: &'a Setup, evidence: &'a Evidence) -> Job<'a> {
    let work = move || -> Result<Vec<f64>> {
        let line = setup.plain_probe("pressure-reaction").one()?;
        evidence.remark("reaction", &format!(" {}", line["how"].as_str().unwrap_or_default()));
        Ok(vec![figure(&line, "milliseconds")?])
    };
    Job::new(&["reaction".to_owned()], Ok(work))
}

fn watch<'a>(setup: &'a Setup, evidence: &'a Evidence) -> Job<'a> {
    let seconds = if setup.quick { 5 } else { 20 };
    let work = move || -> Result<Vec<f64>> {
        let line = setup.plain_probe("watch-share").with("--seconds", seconds).one()?;
        evidence.remark("watch", &format!(" {}", line["how"].as_str().unwrap_or_default()));
        Ok(vec![figure(&line, "share")?])
    };
    Job::new(&["watch".to_owned()], Ok(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_series() {
        let (setup, evidence) = (Setup::nowhere(false), Evidence::default());
        plan(&setup, &evidence).assert_gives(&metrics());
    }
}
