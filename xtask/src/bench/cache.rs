//! The suite `cache`: the tiered cache beside moka, foyer and plain reads of files.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use super::evidence::Evidence;
use super::plan::{Group, Job, Metric, Plan, Reference};
use super::probe::{Call, Setup, figure};
use super::stats::Better;

/// The mixed requests in their settings.
const MIXED: [Mixed; 4] = [
    Mixed {
        name: "mixed",
        metrics: [("mixed_vs_foyer", Some(1.3)), ("mixed_p99_vs_foyer", Some(1.0))],
        threads: 2,
        direct: false,
        trace: None,
        what: "reads (80 %) and inserts of values of 4 KiB to 4 MiB by popularity, two clients",
    },
    Mixed {
        name: "mixed real",
        metrics: [("mixed_real_vs_foyer", Some(1.3)), ("mixed_real_p99_vs_foyer", Some(1.0))],
        threads: 2,
        direct: false,
        trace: Some(FILE_ACCESSES),
        what: "the file accesses of a real program, one in five an insert, two clients",
    },
    Mixed {
        name: "mixed 1t",
        metrics: [("mixed_1t_vs_foyer", None), ("mixed_1t_p99_vs_foyer", None)],
        threads: 1,
        direct: false,
        trace: None,
        what: "reads (80 %) and inserts of values of 4 KiB to 4 MiB by popularity, one client",
    },
    Mixed {
        name: "mixed direct",
        metrics: [("mixed_direct_vs_foyer", None), ("mixed_direct_p99_vs_foyer", None)],
        threads: 2,
        direct: true,
        trace: None,
        what: "reads (80 %) and inserts of values of 4 KiB to 4 MiB by popularity, two clients, direct I/O (ours for reads)",
    },
];

/// Requests for values of many sizes, in one setting.
struct Mixed {
    /// Of its series.
    name: &'static str,
    /// Of the rate and of the 99th percentile, with their targets.
    metrics: [(&'static str, Option<f64>); 2],
    threads: usize,
    direct: bool,
    /// A file of [`TRACES`] in place of the generated requests.
    trace: Option<&'static str>,
    what: &'static str,
}

/// The folder of recorded traces.
const TRACES: &str = "crates/qvl-cache/traces";
/// Of them the one of a real program's file accesses.
const FILE_ACCESSES: &str = "git-work";

/// When foyer writes a value to the drive; both are tried.
const FOYER_WRITES: [(&str, &str); 2] = [("eviction", "WriteOnEviction"), ("insertion", "WriteOnInsertion")];

/// Values that are read from the drive, in MiB, with the metric of buffered and of direct I/O.
const READ: [(usize, [&str; 2]); 4] = [
    (1, ["warm_read_cached_vs_pread_1m", "warm_read_vs_pread_1m"]),
    (4, ["warm_read_cached_vs_pread_4m", "warm_read_vs_pread_4m"]),
    (16, ["warm_read_cached_vs_pread_16m", "warm_read_vs_pread_16m"]),
    (64, ["warm_read_cached_vs_pread_64m", "warm_read_vs_pread_64m"]),
];
/// Clients of the hits and of the reads.
const THREADS: [usize; 2] = [1, 2];
/// Memory's budget as a share of all values: one in so many.
const BUDGETS: [u64; 4] = [8, 4, 2, 1];
/// Where the values live that a measurement stores.
const FOLDER: &str = "cache";

pub(crate) fn metrics() -> Vec<Metric> {
    let [moka, foyer] = ["moka", "foyer"].map(|name| format!("{name} {}", locked(name)));
    let mut metrics = Vec::new();
    for (name, threads) in [("hot_hit_vs_moka_1t", 1), ("hot_hit_vs_moka_2t", 2)] {
        metrics.push(costs(
            name,
            &format!("a hit in memory among 100,000 resident entries of 4 KiB, threads: {threads}, ns"),
            &format!("qvl hot hit {threads}"),
            &format!("moka hot hit {threads}"),
            &format!("{moka} sync, weigher by bytes;{{qvl hot hit {threads}}}"),
            Some(1.2),
        ));
    }
    for (name, threads) in [("hot_1pct_inserts_vs_moka_1t", 1), ("hot_1pct_inserts_vs_moka_2t", 2)] {
        metrics.push(costs(
            name,
            &format!("the same with one request in a hundred inserting a new entry, for which another goes, threads: {threads}, ns"),
            &format!("qvl hot inserts {threads}"),
            &format!("moka hot inserts {threads}"),
            &format!("{moka} sync;{{qvl hot inserts {threads}}}"),
            None,
        ));
    }
    let burst = "values of 4 MiB put in one after the other: bytes alive at most, as a share of the budget";
    metrics.push(alone("hot_overshoot", "share", burst, "qvl overshoot", Some(1.0), Better::Lower));
    metrics.push(alone(
        "moka_overshoot",
        "share",
        &format!("{burst}, {moka}"),
        "moka overshoot",
        None,
        Better::Lower,
    ));
    for mixed in &MIXED {
        metrics.extend(mixed.metrics(&foyer));
    }
    metrics.push(Metric {
        reference: vec![Reference::Series("qvl mixed stored".to_owned())],
        ..costs(
            "write_amplification",
            "mixed requests, two clients: bytes written to the drive",
            "qvl mixed written",
            "",
            "bytes of the values that the drive's tier stored",
            Some(2.0),
        )
    });
    metrics.push(costs(
        "foyer_write_amplification",
        &format!("the same of {foyer}, WriteOnEviction"),
        "foyer eviction mixed written",
        "foyer eviction mixed stored",
        "bytes of the values that came in",
        None,
    ));
    for (mebibytes, names) in READ {
        for (name, direct) in names.into_iter().zip([false, true]) {
            metrics.push(read_metric(name, mebibytes, direct));
        }
    }
    let scan = "keys asked for in a circle, twice what memory holds: hits from the fourth round on, as a share of the \
                most that is possible";
    metrics.push(alone("cyclic_hit_share", "share", scan, "qvl scan auto", Some(0.95), Better::Higher));
    metrics.push(alone(
        "cyclic_hit_share_lru",
        "share",
        &format!("{scan}, with LRU"),
        "qvl scan lru",
        None,
        Better::Higher,
    ));
    metrics.extend(traces().iter().flat_map(|(name, _)| replay_metrics(name)));
    let restart = "100,000 entries of 4 KiB: from opening the folder to the first value served, s";
    metrics.push(alone("warm_restart_s", "s", restart, "qvl restart seconds", Some(1.0), Better::Lower));
    metrics.push(rates(
        "warm_restart_hits",
        "the same: share of all keys that are hits after the restart",
        "qvl restart hits",
        "qvl hits before",
        "before it",
        Some(0.99),
    ));
    let budget = |share: &u64| format!("qvl budget 1/{share} rate");
    metrics.push(Metric {
        ours: BUDGETS[1..].iter().map(budget).collect(),
        reference: BUDGETS[..3].iter().map(|share| Reference::Series(budget(share))).collect(),
        ..rates(
            "budget_monotone",
            "mixed requests, memory for 1/4, 1/2 and all of the values: requests/s, the worst",
            "",
            "",
            "memory for half as much",
            Some(1.0),
        )
    });
    metrics
}

impl Mixed {
    fn metrics(&self, foyer: &str) -> [Metric; 2] {
        let series = |side: &str, what: &str| format!("{side} {} {what}", self.name);
        let of_foyer = |what: &str| {
            FOYER_WRITES.iter().map(|(write, _)| series(&format!("foyer {write}"), what)).collect::<Vec<_>>()
        };
        let seen =
            FOYER_WRITES.map(|(write, name)| format!("{name}:{{foyer {write} {}}}", self.name)).join("; ");
        let reference_name = format!("the better of {foyer} {seen}; ours:{{qvl {}}}", self.name);
        let what = format!("{}, memory for a tenth", self.what);
        let [(rate, rate_target), (p99, p99_target)] = self.metrics;
        [
            Metric {
                reference: vec![Reference::BestOf(of_foyer("rate"))],
                ..rates(
                    rate,
                    &format!("{what}: requests/s"),
                    &series("qvl", "rate"),
                    "",
                    &reference_name,
                    rate_target,
                )
            },
            Metric {
                reference: vec![Reference::FastestOf(of_foyer("p99"))],
                ..costs(
                    p99,
                    &format!("{what}: what 99 % do not exceed, s"),
                    &series("qvl", "p99"),
                    "",
                    &format!("the better policy of {foyer}"),
                    p99_target,
                )
            },
        ]
    }
}

/// Values of one size read from the drive: of one and two threads the worse.
fn read_metric(name: &'static str, mebibytes: usize, direct: bool) -> Metric {
    // What the drive gives is the claim. From the page cache, the checksum shows.
    let (how, target) = if direct { ("direct I/O", Some(0.90)) } else { ("page cache warm", None) };
    Metric {
        ours: THREADS.map(|threads| read_series("qvl", mebibytes, direct, threads)).to_vec(),
        reference: THREADS
            .map(|threads| Reference::Series(read_series("pread", mebibytes, direct, threads)))
            .into(),
        ..rates(
            name,
            &format!(
                "values of {mebibytes} MiB from the drive, {how}, one and two threads, the worse: bytes/s"
            ),
            "",
            "",
            "pread of open files of the same size into one buffer a thread",
            target,
        )
    }
}

fn read_series(side: &str, mebibytes: usize, direct: bool, threads: usize) -> String {
    let how = if direct { " direct" } else { "" };
    format!("{side} read {mebibytes}m{how} x{threads}")
}

/// The recorded traces, by name.
fn traces() -> Vec<(String, PathBuf)> {
    let files = std::fs::read_dir(crate::run::root().join(TRACES));
    let named = |path: PathBuf| Some((path.file_stem()?.to_str()?.to_owned(), path));
    let mut traces: Vec<(String, PathBuf)> = files
        .into_iter()
        .flatten()
        .filter_map(|file| named(file.ok()?.path()))
        .filter(|(_, path)| path.extension().is_some_and(|extension| extension == "trace"))
        .collect();
    traces.sort();
    traces
}

/// What the default policy makes of a trace. Simulated: no clock and no values.
fn replay_metrics(trace: &str) -> [Metric; 3] {
    // Names of metrics live as long as the program.
    let named = |start: &str| -> &'static str { format!("{start}_{}", trace.replace('-', "_")).leak() };
    let series = |what: &str| format!("qvl replay {trace} {what}");
    let budgets = "with memory for 1/32 to 1/2, the worst";
    [
        alone(
            named("belady_gap"),
            "share",
            &format!(
                "trace {trace}, memory for 1/4: hits of the default policy over those of a schedule that knows the future (the best there is where all sizes are equal)"
            ),
            &series("share of belady"),
            None,
            Better::Higher,
        ),
        alone(
            named("auto_vs_lru"),
            "ratio",
            &format!("trace {trace}: hits of the default policy over those of LRU, {budgets}"),
            &series("hits"),
            Some(1.0),
            Better::Higher,
        ),
        alone(
            named("auto_saved_vs_lru"),
            "ratio",
            &format!(
                "trace {trace}: seconds that hits of the default policy save over those of LRU, {budgets}"
            ),
            &series("saved"),
            None,
            Better::Higher,
        ),
    ]
}

/// A metric of two rates, higher is better; the others differ by fields.
fn rates(
    name: &'static str,
    what: &str,
    ours: &str,
    reference: &str,
    reference_name: &str,
    target: Option<f64>,
) -> Metric {
    Metric::rates("cache", name, what, ours, reference, reference_name, target)
}

/// A metric of two costs, lower is better.
fn costs(
    name: &'static str,
    what: &str,
    ours: &str,
    reference: &str,
    reference_name: &str,
    target: Option<f64>,
) -> Metric {
    rates(name, what, ours, reference, reference_name, target).of_costs()
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
    Metric::alone("cache", name, unit, what, ours, target, better)
}

/// The version of a dependency that the probe is built with, or nothing where its lock file does not say.
fn locked(name: &str) -> String {
    let lock = std::fs::read_to_string(crate::run::root().join("benches/cache/Cargo.lock"));
    version_in(&lock.unwrap_or_default(), name).unwrap_or_default().to_owned()
}

fn version_in<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    after.split_once('"').map(|(version, _)| version)
}

pub(crate) fn plan<'a>(setup: &'a Setup, evidence: &'a Evidence) -> Plan<'a> {
    let runs = Runs { setup, evidence };
    let rounds = |full: u32, quick: u32| if setup.quick { quick } else { full };
    let group = |rounds, jobs| Group { rounds, jobs, ..Group::default() };
    let mut groups = vec![
        group(rounds(7, 3), runs.hits()),
        group(2, runs.overshoot()),
        group(rounds(3, 2), runs.scans()),
        group(2, runs.replays()),
        group(rounds(3, 2), vec![runs.restart()]),
        group(rounds(5, 2), runs.budgets()),
    ];
    groups.extend(MIXED.iter().map(|mixed| group(rounds(5, 3), runs.mixed(mixed))));
    groups.extend(READ.iter().map(|&(mebibytes, _)| group(rounds(5, 3), runs.reads(mebibytes))));
    Plan { groups }
}

/// The processes of this suite, by what they measure.
struct Runs<'a> {
    setup: &'a Setup,
    evidence: &'a Evidence,
}

impl<'a> Runs<'a> {
    fn hits(&self) -> Vec<Job<'a>> {
        let (setup, evidence) = (self.setup, self.evidence);
        let job = |side: &'static str, threads: usize, inserts: u64| {
            let what = if inserts == 0 { "hit" } else { "inserts" };
            let name = format!("{side} hot {what} {threads}");
            let series = name.clone();
            let work = move || {
                let call = setup.probe("hot-hit", threads).with("--side", side).with("--inserts", inserts);
                let line = call.one()?;
                if let Some(told) = line["told_share"].as_f64() {
                    let told = format!("our policy was told of {:.1} % of the hits", 100.0 * told);
                    evidence.remark(&name, &told);
                }
                Ok(vec![figure(&line, "nanoseconds")?])
            };
            Job::new(&[series], Ok(work))
        };
        let mut jobs = Vec::new();
        for inserts in [0, 10] {
            for threads in THREADS {
                jobs.extend(["qvl", "moka"].map(|side| job(side, threads, inserts)));
            }
        }
        jobs
    }

    fn overshoot(&self) -> Vec<Job<'a>> {
        let setup = self.setup;
        let job = |side: &'static str| {
            let work = move || {
                let line = setup.plain_probe("overshoot").with("--side", side).one()?;
                Ok(vec![figure(&line, "share")?])
            };
            Job::new(&[format!("{side} overshoot")], Ok(work))
        };
        ["qvl", "moka"].map(job).into()
    }

    fn scans(&self) -> Vec<Job<'a>> {
        let setup = self.setup;
        let job = |policy: &'static str| {
            let work = move || {
                let line = setup.plain_probe("scan").with("--policy", policy).one()?;
                Ok(vec![figure(&line, "share_of_possible")?])
            };
            Job::new(&[format!("qvl scan {policy}")], Ok(work))
        };
        ["auto", "lru"].map(job).into()
    }

    fn replays(&self) -> Vec<Job<'a>> {
        let setup = self.setup;
        let job = |(name, path): (String, PathBuf)| {
            let series = ["share of belady", "hits", "saved"].map(|what| format!("qvl replay {name} {what}"));
            let work = move || {
                let line = setup.plain_probe("replay").with("--trace", path.display()).one()?;
                ["share_of_belady", "hits_vs_lru_min", "saved_vs_lru_min"]
                    .into_iter()
                    .map(|what| figure(&line, what))
                    .collect()
            };
            Job::new(&series, Ok(work))
        };
        traces().into_iter().map(job).collect()
    }

    fn restart(&self) -> Job<'a> {
        let setup = self.setup;
        let work = move || {
            let before = on_drive(setup, "restart-fill").one()?;
            let after = on_drive(setup, "restart-open").one()?;
            Ok(vec![
                figure(&after, "first_value_seconds")?,
                figure(&after, "hit_share")?,
                figure(&before, "hit_share")?,
            ])
        };
        Job::new(&["qvl restart seconds", "qvl restart hits", "qvl hits before"], Ok(work))
    }

    fn budgets(&self) -> Vec<Job<'a>> {
        let setup = self.setup;
        let data = 10 * hot_mebibytes(setup);
        let job = |share: u64| {
            let work = move || {
                let call = mixed(setup, 2).with("--side", "qvl").with("--requests", requests(setup));
                let call = call.with("--data-mebibytes", data).with("--hot-mebibytes", data / share);
                let line = call.one()?;
                Ok(vec![figure(&line, "requests_per_second")?])
            };
            Job::new(&[format!("qvl budget 1/{share} rate")], Ok(work))
        };
        BUDGETS.map(job).into()
    }

    /// Ours, and foyer with each policy.
    fn mixed(&self, of: &'static Mixed) -> Vec<Job<'a>> {
        let (setup, evidence) = (self.setup, self.evidence);
        let job = |write: Option<&'static str>| {
            let side = write.map_or("qvl".to_owned(), |write| format!("foyer {write}"));
            let name = format!("{side} {}", of.name);
            let series = ["rate", "p99", "written", "stored"].map(|what| format!("{name} {what}"));
            let trace = of.trace.map(|name| {
                let found = traces().into_iter().find(|(trace, _)| trace == name);
                found.map(|(_, path)| path).ok_or_else(|| format!("{TRACES}: no trace {name}"))
            });
            let work = trace.transpose().map(|trace| {
                move || {
                    let call = mixed(setup, of.threads);
                    let call = match &trace {
                        Some(trace) => call.with("--trace", trace.display()),
                        None => call
                            .with("--hot-mebibytes", hot_mebibytes(setup))
                            .with("--requests", requests(setup)),
                    };
                    let call = if of.direct { call.flag("--direct") } else { call };
                    let call = match write {
                        None => call.with("--side", "qvl"),
                        Some(write) => call.with("--side", "foyer").with("--foyer-write", write),
                    };
                    let line = call.one()?;
                    evidence.remark(&name, &seen(&line)?);
                    // Of all values that came in ours says which it stored on the drive; foyer does not.
                    let came_in = figure(&line, "stored_bytes")?;
                    let stored = line["own"]["drive_stored_bytes"].as_f64().unwrap_or(came_in);
                    let written = figure(&line, "written_bytes")?;
                    Ok(vec![
                        figure(&line, "requests_per_second")?,
                        figure(&line, "p99_seconds")?,
                        written,
                        stored,
                    ])
                }
            });
            Job::new(&series, work)
        };
        let foyer = FOYER_WRITES.iter().map(|(write, _)| Some(*write));
        std::iter::once(None).chain(foyer).map(job).collect()
    }

    fn reads(&self, mebibytes: usize) -> Vec<Job<'a>> {
        let setup = self.setup;
        let job = |side: &'static str, direct: bool, threads: usize| {
            let work = move || {
                let call = on_drive(setup, "read").with("--side", side).with("--mebibytes", mebibytes);
                let call = call.with("--threads", threads);
                let line = (if direct { call.flag("--direct") } else { call }).one()?;
                Ok(vec![figure(&line, "bytes_per_second")?])
            };
            Job::new(&[read_series(side, mebibytes, direct, threads)], Ok(work))
        };
        let mut jobs = Vec::new();
        for direct in [false, true] {
            for threads in THREADS {
                jobs.extend(["qvl", "pread"].map(|side| job(side, direct, threads)));
            }
        }
        jobs
    }
}

/// Memory's budget of the mixed requests.
fn hot_mebibytes(setup: &Setup) -> u64 {
    if setup.quick { 64 } else { 256 }
}

fn mixed(setup: &Setup, threads: usize) -> Call {
    on_drive(setup, "mixed").with("--threads", threads)
}

/// Generated requests that are measured.
fn requests(setup: &Setup) -> u64 {
    if setup.quick { 10_000 } else { 20_000 }
}

/// A call that stores values in a folder.
fn on_drive(setup: &Setup, command: &str) -> Call {
    setup.plain_probe(command).with("--folder", setup.scratch(FOLDER).display())
}

/// What happened beside the figures that are compared.
fn seen(line: &Value) -> Result<String> {
    let percent = |name| figure(line, name).map(|share| 100.0 * share);
    let own = |name: &str| line["own"][name].as_u64();
    let dropped = own("dropped").context("the probe does not say how many were dropped")?;
    let by_choice = own("cheaper_to_make")
        .map(|count| format!(" ({count} of them since they are faster made again than read back)"))
        .unwrap_or_default();
    Ok(format!(
        "{:.0}/s, p99 {:.2} ms; of the reads {:.0} % from memory, {:.0} % from the drive, {:.0} % made anew; \
         {:.2} GB written, {dropped} values not written{by_choice}, {:.1} s more until all was, \
         {:.0} MB of memory at most",
        figure(line, "requests_per_second")?,
        1e3 * figure(line, "p99_seconds")?,
        percent("memory_share")?,
        percent("drive_share")?,
        percent("made_share")?,
        figure(line, "written_bytes")? / 1e9,
        figure(line, "drain_seconds")?,
        figure(line, "peak_memory_bytes")? / 1e6,
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn every_metric_has_runs_that_measure_it() {
        let (setup, evidence, metrics) = (Setup::nowhere(false), Evidence::default(), metrics());
        let plan = plan(&setup, &evidence);
        let measured: BTreeSet<&str> = plan
            .groups
            .iter()
            .flat_map(|group| &group.jobs)
            .flat_map(|job| &job.series)
            .map(String::as_str)
            .collect();
        for series in metrics.iter().flat_map(Metric::series) {
            assert!(measured.contains(series), "{series}");
        }
        let names: BTreeSet<&str> = metrics.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), metrics.len());
    }

    #[test]
    fn names_and_targets_are_those_that_were_promised() {
        let metrics = metrics();
        let judged: Vec<(&str, f64, Better)> =
            metrics.iter().filter_map(|metric| Some((metric.name, metric.target?, metric.better))).collect();
        let (replayed, judged): (Vec<_>, Vec<_>) =
            judged.into_iter().partition(|(name, ..)| name.starts_with("auto_vs_lru_"));
        assert_eq!(replayed.len(), traces().len());
        let promised = [
            ("hot_hit_vs_moka_1t", 1.2, Better::Lower),
            ("hot_hit_vs_moka_2t", 1.2, Better::Lower),
            ("hot_overshoot", 1.0, Better::Lower),
            ("mixed_vs_foyer", 1.3, Better::Higher),
            ("mixed_p99_vs_foyer", 1.0, Better::Lower),
            ("mixed_real_vs_foyer", 1.3, Better::Higher),
            ("mixed_real_p99_vs_foyer", 1.0, Better::Lower),
            ("write_amplification", 2.0, Better::Lower),
            ("warm_read_vs_pread_1m", 0.90, Better::Higher),
            ("warm_read_vs_pread_4m", 0.90, Better::Higher),
            ("warm_read_vs_pread_16m", 0.90, Better::Higher),
            ("warm_read_vs_pread_64m", 0.90, Better::Higher),
            ("cyclic_hit_share", 0.95, Better::Higher),
            ("warm_restart_s", 1.0, Better::Lower),
            ("warm_restart_hits", 0.99, Better::Higher),
            ("budget_monotone", 1.0, Better::Higher),
        ];
        assert_eq!(judged, promised);
    }

    #[test]
    fn the_better_policy_of_foyer_counts_and_both_are_shown() {
        let metrics = metrics();
        let mixed = metrics.iter().find(|metric| metric.name == "mixed_vs_foyer").expect("is there");
        let evidence = Evidence::default();
        let line = json!({
            "requests_per_second": 8293.4, "p99_seconds": 0.00303, "memory_share": 0.584, "drive_share": 0.357,
            "made_share": 0.059, "written_bytes": 2_500_000_000_u64, "peak_memory_bytes": 612_000_000,
            "drain_seconds": 1.26, "own": { "dropped": 3, "cheaper_to_make": 2 },
        });
        evidence.remark("foyer eviction mixed", &seen(&line).expect("all figures"));
        let name = evidence.complete(&mixed.reference_name);
        assert!(
            name.contains(
                "WriteOnEviction: 8293/s, p99 3.03 ms; of the reads 58 % from memory, 36 % from the drive, 6 % made \
                 anew; 2.50 GB written, 3 values not written (2 of them since they are faster made again than read \
                 back), 1.3 s more until all was, 612 MB of memory at most; WriteOnInsertion:;"
            ),
            "{name}"
        );
        assert!(seen(&json!({})).is_err());
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"foyer-memory\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"foyer\"\nversion \
                    = \"0.22.6\"\n";
        assert_eq!(version_in(lock, "foyer"), Some("0.22.6"));
        assert_eq!(version_in(lock, "moka"), None);
        assert!(locked("foyer").starts_with("0.22."));
    }
}
