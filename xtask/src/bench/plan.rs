//! What is run in which order, and how its samples become metrics.
//!
//! A *series* is a list of samples with a name, one sample a round: "qvl decode q4". A *job* is one process that
//! gives a sample to one or more series. A *group* is a list of jobs that run in turn, round after round. A
//! *metric* compares two series.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::busy::Busy;
use super::report::Row;
use super::stats::{self, Better, Verdict};
use crate::run::say;

/// Samples of each series, or why there are none.
pub(crate) type Samples = BTreeMap<String, Result<Vec<f64>, String>>;

/// Runs a process and gives a sample for each of its series.
type Work<'a> = Box<dyn Fn() -> Result<Vec<f64>> + 'a>;

/// A process that gives samples.
pub(crate) struct Job<'a> {
    /// The series it gives one sample each.
    pub(crate) series: Vec<String>,
    /// Runs it; the samples are in the order of `series`. Or why it cannot be run.
    pub(crate) work: Result<Work<'a>, String>,
}

impl<'a> Job<'a> {
    pub(crate) fn new(
        series: &[impl ToString],
        work: Result<impl Fn() -> Result<Vec<f64>> + 'a, String>,
    ) -> Self {
        let series = series.iter().map(ToString::to_string).collect();
        Self { series, work: work.map(|work| Box::new(work) as Work<'a>) }
    }
}

/// Jobs that run in turn.
#[derive(Default)]
pub(crate) struct Group<'a> {
    pub(crate) rounds: u32,
    /// Busy threads beside every job.
    pub(crate) busy_threads: usize,
    /// One round more goes first and is forgotten. Most processes warm themselves up instead.
    pub(crate) warm_up: bool,
    pub(crate) jobs: Vec<Job<'a>>,
}

/// Groups, one after the other.
pub(crate) struct Plan<'a> {
    pub(crate) groups: Vec<Group<'a>>,
}

impl Plan<'_> {
    /// Panics if there is a metric with a series that no job gives.
    #[cfg(test)]
    pub(crate) fn assert_gives(&self, metrics: &[Metric]) {
        let jobs = self.groups.iter().flat_map(|group| &group.jobs);
        let given: BTreeSet<&str> = jobs.flat_map(|job| &job.series).map(String::as_str).collect();
        for metric in metrics {
            for series in metric.series().filter(|series| !series.is_empty()) {
                assert!(given.contains(series), "{}: nothing gives {series}", metric.name);
            }
        }
    }

    /// Runs what the metrics need. A job that fails is not run again, and its series say why.
    pub(crate) fn run(self, metrics: &[Metric], rounds: Option<u32>) -> Result<Samples> {
        let needed: BTreeSet<&str> = metrics.iter().flat_map(Metric::series).collect();
        let mut samples = Samples::new();
        let mut groups = self.groups;
        for group in &mut groups {
            group.rounds = rounds.unwrap_or(group.rounds);
            group.jobs.retain(|job| job.series.iter().any(|series| needed.contains(series.as_str())));
        }
        let runs: u64 = groups.iter().map(Group::runs).sum();
        let bar = ProgressBar::new(runs);
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} {elapsed} {msg}")?);
        for group in &groups {
            let _busy = Busy::start(group.busy_threads);
            let mut forgotten = Samples::new();
            for round in 0..group.rounds + u32::from(group.warm_up) {
                for job in &group.jobs {
                    bar.set_message(job.series.join(", "));
                    let is_warm_up = group.warm_up && round == 0;
                    job.sample(if is_warm_up { &mut forgotten } else { &mut samples }, &bar);
                    bar.inc(1);
                }
            }
        }
        bar.finish_and_clear();
        Ok(samples)
    }
}

impl Group<'_> {
    fn runs(&self) -> u64 {
        u64::from(self.rounds + u32::from(self.warm_up)) * self.jobs.len() as u64
    }
}

impl Job<'_> {
    /// Adds one sample to each of its series.
    fn sample(&self, samples: &mut Samples, bar: &ProgressBar) {
        if self.series.iter().any(|series| matches!(samples.get(series), Some(Err(_)))) {
            return;
        }
        let result = match &self.work {
            Ok(work) => work().map_err(|error| format!("{error:#}").replace('\n', " ")),
            Err(why) => Err(why.clone()),
        };
        if let (Err(why), Ok(_)) = (&result, &self.work) {
            bar.suspend(|| say(&format!("{}: {why}", self.series.join(", "))));
        }
        for (index, series) in self.series.iter().enumerate() {
            let list = samples.entry(series.clone()).or_insert_with(|| Ok(Vec::new()));
            match (&result, &mut *list) {
                (Ok(values), Ok(list)) => list.extend(values.get(index)),
                (Err(why), _) => *list = Err(why.clone()),
                (Ok(_), Err(_)) => {}
            }
        }
    }
}

/// How the two sides become a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sides {
    /// Amounts a second: ours over the reference's.
    Rates,
    /// Seconds of the same work: the reference's over ours, which is how many times faster we are.
    Times,
    /// Something that costs: ours over the reference's.
    Costs,
    /// Ours alone: an amount that is shown.
    Alone,
}

/// What ours is compared with.
pub(crate) enum Reference {
    /// A series.
    Series(String),
    /// The better of several: of rates the higher median.
    BestOf(Vec<String>),
    /// Of seconds the lowest median. One that did other work counts with [`NOT_THE_SAME`].
    FastestOf(Vec<String>),
    /// A series divided by another, round by round.
    Quotient(String, String),
}

/// Seconds of what did not make what was asked for: it is never the fastest.
pub(crate) const NOT_THE_SAME: f64 = f64::INFINITY;

/// A comparison with a name that stays.
pub(crate) struct Metric {
    pub(crate) suite: &'static str,
    pub(crate) name: &'static str,
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    /// Of several series the one with the worst ratio to its reference at the same place.
    pub(crate) ours: Vec<String>,
    pub(crate) reference: Vec<Reference>,
    pub(crate) reference_name: String,
    pub(crate) sides: Sides,
    pub(crate) target: Option<f64>,
    pub(crate) better: Better,
}

impl Metric {
    /// Of two rates, higher is better: the commonest kind, from which the others differ by fields.
    pub(crate) fn rates(
        suite: &'static str,
        name: &'static str,
        what: &str,
        ours: &str,
        reference: &str,
        reference_name: &str,
        target: Option<f64>,
    ) -> Self {
        Self {
            suite,
            name,
            what: what.to_owned(),
            unit: "ratio",
            ours: vec![ours.to_owned()],
            reference: vec![Reference::Series(reference.to_owned())],
            reference_name: reference_name.to_owned(),
            sides: Sides::Rates,
            target,
            better: Better::Higher,
        }
    }

    /// The same of two costs, lower is better.
    pub(crate) fn of_costs(self) -> Self {
        Self { sides: Sides::Costs, better: Better::Lower, ..self }
    }

    /// Of an amount that is compared with nothing.
    pub(crate) fn alone(
        suite: &'static str,
        name: &'static str,
        unit: &'static str,
        what: &str,
        ours: &str,
        target: Option<f64>,
        better: Better,
    ) -> Self {
        let rates = Self::rates(suite, name, what, ours, "", "none", target);
        Self { unit, reference: Vec::new(), sides: Sides::Alone, better, ..rates }
    }

    /// All series it looks at.
    pub(crate) fn series(&self) -> impl Iterator<Item = &str> {
        let of_reference = self.reference.iter().flat_map(|reference| match reference {
            Reference::Series(one) => vec![one.as_str()],
            Reference::BestOf(several) | Reference::FastestOf(several) => {
                several.iter().map(String::as_str).collect()
            }
            Reference::Quotient(over, under) => vec![over.as_str(), under.as_str()],
        });
        self.ours.iter().map(String::as_str).chain(of_reference)
    }

    /// The metric of a finished run.
    pub(crate) fn row(&self, samples: &Samples) -> Row {
        let pairs = self.ours.iter().enumerate().map(|(index, ours)| {
            let ours = find(samples, ours)?;
            let reference = match self.reference.get(index).or(self.reference.last()) {
                Some(reference) => reference.samples(samples)?,
                None => ours.clone(),
            };
            Ok((ours, reference))
        });
        match pairs.collect::<Result<Vec<_>, String>>() {
            Err(why) => self.empty(why),
            Ok(pairs) => {
                let rows = pairs.iter().map(|(ours, reference)| self.compare(ours, reference));
                let worst = |a: &Row, b: &Row| match self.better {
                    Better::Higher => a.value.partial_cmp(&b.value),
                    Better::Lower => b.value.partial_cmp(&a.value),
                };
                rows.min_by(|a, b| worst(a, b).unwrap_or(std::cmp::Ordering::Equal))
                    .unwrap_or_else(|| self.empty("it looks at nothing".to_owned()))
            }
        }
    }

    fn compare(&self, ours: &[f64], reference: &[f64]) -> Row {
        let ratio = match self.sides {
            Sides::Rates | Sides::Costs => stats::ratio(ours, reference),
            Sides::Times => stats::ratio(reference, ours),
            Sides::Alone => stats::ratio(ours, &vec![1.0; ours.len()]),
        };
        let noise = stats::noise(if self.sides == Sides::Alone { ours } else { reference });
        let runs = ours.len().min(reference.len());
        let (verdict, why) = stats::judge(ratio, noise, runs, self.target, self.better);
        Row {
            value: Some(ratio.value),
            low: Some(ratio.low),
            high: Some(ratio.high),
            ours: Some(stats::median(ours)),
            reference: (self.sides != Sides::Alone).then(|| stats::median(reference)),
            noise: Some(noise),
            verdict,
            ..self.empty(why)
        }
    }

    fn empty(&self, why: String) -> Row {
        Row {
            suite: self.suite,
            metric: self.name.to_owned(),
            what: self.what.clone(),
            unit: self.unit,
            value: None,
            low: None,
            high: None,
            ours: None,
            reference: None,
            reference_name: self.reference_name.clone(),
            target: self.target,
            better: self.better,
            noise: None,
            verdict: Verdict::NotRun,
            why,
        }
    }
}

impl Reference {
    fn samples(&self, samples: &Samples) -> Result<Vec<f64>, String> {
        match self {
            Self::Series(series) => find(samples, series),
            Self::BestOf(several) | Self::FastestOf(several) => {
                let found =
                    several.iter().map(|series| find(samples, series)).collect::<Result<Vec<_>, _>>()?;
                let by_median = |a: &Vec<f64>, b: &Vec<f64>| stats::median(a).total_cmp(&stats::median(b));
                let best = match self {
                    Self::FastestOf(_) => found.into_iter().min_by(by_median),
                    _ => found.into_iter().max_by(by_median),
                };
                best.ok_or_else(|| "nothing to compare with".to_owned())
            }
            Self::Quotient(over, under) => {
                let (over, under) = (find(samples, over)?, find(samples, under)?);
                Ok(over.iter().zip(&under).map(|(over, under)| over / under).collect())
            }
        }
    }
}

fn find(samples: &Samples, series: &str) -> Result<Vec<f64>, String> {
    match samples.get(series) {
        Some(Ok(list)) if !list.is_empty() => Ok(list.clone()),
        Some(Err(why)) => Err(why.clone()),
        _ => Err("left out by --quick".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::bail;

    use super::*;

    fn metric(sides: Sides, target: f64, better: Better) -> Metric {
        Metric {
            suite: "model",
            name: "metric",
            what: String::new(),
            unit: "ratio",
            ours: vec!["ours".to_owned()],
            reference: vec![Reference::Series("theirs".to_owned())],
            reference_name: "them".to_owned(),
            sides,
            target: Some(target),
            better,
        }
    }

    fn samples(pairs: &[(&str, &[f64])]) -> Samples {
        pairs.iter().map(|(name, list)| (name.to_string(), Ok(list.to_vec()))).collect()
    }

    #[test]
    fn rates_times_and_costs_have_their_directions() {
        let samples = samples(&[("ours", &[2.0, 2.0]), ("theirs", &[3.0, 3.0])]);
        let value = |sides| metric(sides, 1.0, Better::Higher).row(&samples).value;
        assert_eq!(value(Sides::Rates), Some(2.0 / 3.0));
        assert_eq!(value(Sides::Times), Some(1.5));
        assert_eq!(value(Sides::Costs), Some(2.0 / 3.0));
        assert_eq!(metric(Sides::Times, 1.2, Better::Higher).row(&samples).verdict, Verdict::Holds);
        assert_eq!(metric(Sides::Costs, 0.5, Better::Lower).row(&samples).verdict, Verdict::FallsShort);
    }

    #[test]
    fn the_better_of_the_references_counts() {
        let samples = samples(&[("ours", &[4.0, 4.0]), ("spinning", &[2.0, 2.0]), ("passive", &[5.0, 5.0])]);
        let reference = vec![Reference::BestOf(vec!["spinning".to_owned(), "passive".to_owned()])];
        let row = Metric { reference, ..metric(Sides::Rates, 1.0, Better::Higher) }.row(&samples);
        assert_eq!((row.value, row.reference), (Some(0.8), Some(5.0)));
    }

    #[test]
    fn the_fastest_that_does_the_same_counts() {
        let mut all = samples(&[("ours", &[2.0, 2.0]), ("a", &[4.0, 4.0]), ("b", &[5.0, 5.0])]);
        all.insert("other".to_owned(), Ok(vec![NOT_THE_SAME; 2]));
        let names = ["other", "b", "a"].map(str::to_owned).to_vec();
        let metric = |names| Metric {
            reference: vec![Reference::FastestOf(names)],
            ..metric(Sides::Costs, 1.2, Better::Lower)
        };
        let row = metric(names.clone()).row(&all);
        assert_eq!((row.value, row.reference, row.verdict), (Some(0.5), Some(4.0), Verdict::Holds));
        all.insert("b".to_owned(), Err("--b was not given".to_owned()));
        assert_eq!(metric(names).row(&all).why, "--b was not given");
    }

    #[test]
    fn a_share_is_of_the_quotient() {
        let samples = samples(&[("ours", &[9.0, 9.0]), ("bandwidth", &[50.0, 40.0]), ("bytes", &[5.0, 4.0])]);
        let reference = vec![Reference::Quotient("bandwidth".to_owned(), "bytes".to_owned())];
        let row = Metric { reference, ..metric(Sides::Rates, 0.85, Better::Higher) }.row(&samples);
        assert_eq!((row.value, row.verdict), (Some(0.9), Verdict::Holds));
    }

    #[test]
    fn of_several_pairs_the_worst_is_judged() {
        let samples = samples(&[
            ("peak a", &[1.0, 1.0]),
            ("peak b", &[3.0, 3.0]),
            ("stated a", &[1.0, 1.0]),
            ("stated b", &[2.0, 2.0]),
        ]);
        let metric = Metric {
            ours: vec!["peak a".to_owned(), "peak b".to_owned()],
            reference: vec![
                Reference::Series("stated a".to_owned()),
                Reference::Series("stated b".to_owned()),
            ],
            ..metric(Sides::Costs, 1.1, Better::Lower)
        };
        let row = metric.row(&samples);
        assert_eq!((row.value, row.verdict), (Some(1.5), Verdict::FallsShort));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut all = samples(&[("ours", &[1.0])]);
        let metric = metric(Sides::Rates, 1.0, Better::Higher);
        assert_eq!(metric.row(&all).why, "left out by --quick");
        all.insert("theirs".to_owned(), Err("--llama-bench PATH was not given".to_owned()));
        let row = metric.row(&all);
        assert_eq!((row.verdict, row.why.as_str()), (Verdict::NotRun, "--llama-bench PATH was not given"));
    }

    #[test]
    fn jobs_run_in_turn_and_a_failed_one_only_once() {
        let (order, failures) = (Cell::new(0), Cell::new(0));
        let next = |order: &Cell<i32>| {
            order.set(order.get() + 1);
            f64::from(order.get())
        };
        let jobs = vec![
            Job::new(&["ours"], Ok(|| Ok(vec![next(&order)]))),
            Job::new(&["theirs", "more"], Ok(|| Ok(vec![next(&order), 0.0]))),
            Job::new(
                &["broken"],
                Ok(|| {
                    failures.set(failures.get() + 1);
                    bail!("no such model")
                }),
            ),
            Job::new(&["unneeded"], Ok(|| Ok(vec![next(&order)]))),
        ];
        let mut metrics = vec![metric(Sides::Rates, 1.0, Better::Higher)];
        metrics.push(Metric { ours: vec!["broken".to_owned()], ..metric(Sides::Rates, 1.0, Better::Higher) });
        let plan = Plan { groups: vec![Group { rounds: 3, jobs, ..Group::default() }] };
        let samples = plan.run(&metrics, None).expect("runs");
        assert_eq!(samples["ours"], Ok(vec![1.0, 3.0, 5.0]));
        assert_eq!(samples["theirs"], Ok(vec![2.0, 4.0, 6.0]));
        assert_eq!((failures.get(), samples.contains_key("unneeded")), (1, false));
        assert_eq!(metrics[1].row(&samples).why, "no such model");
    }
}
