//! What work costs: RAPL where it may be read, else the battery, else why it is not known.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::battery::{Battery, Store, batteries_and_mains};
use super::{content, get, names};
use crate::system::System;
use crate::{Error, Result};

/// What energy is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EnergyFrom {
    /// Counters of the processor.
    Rapl,
    /// What batteries held before and after: of the whole machine, with its screen.
    Battery,
}

/// The energy of a part of the machine.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Domain {
    /// Which: `package-0`, a part such as `package-0/core`, or a battery.
    pub name: String,
    /// What it took.
    pub joules: f64,
    /// Whether [`Energy::joules`] has it: packages and their memory, not the parts that packages are made of.
    pub counted: bool,
}

/// What work cost.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Energy {
    /// What it is known from.
    pub from: EnergyFrom,
    /// Each domain.
    pub domains: Vec<Domain>,
    /// All that was counted.
    pub joules: f64,
    /// The least that it could have changed by, in joules: with less than some tens of it, measure longer. Of a
    /// battery it is what all its figures are multiples of; how often it updates them is not known.
    pub resolution_joules: f64,
    /// What is missing in it, such as a domain that failed.
    pub missing: Vec<String>,
}

impl Energy {
    /// Joules for each unit of work, such as a token. `None` for no work.
    pub fn joules_per(&self, units: f64) -> Option<f64> {
        (units > 0.0).then(|| self.joules / units)
    }
}

/// Measures what work costs.
///
/// Counters of RAPL begin again at 0 after some 60 Wh: a quarter of an hour of a large server. One such time between
/// two looks is seen; so call [`sample`](Self::sample) every few minutes in longer work.
///
/// ```
/// use qvl_alloc::{power::EnergyMeter, system::Live};
///
/// let meter = EnergyMeter::start(Live);
/// // work
/// match meter.stop() {
///     Ok(energy) => println!("{} J, {:?} J a token", energy.joules, energy.joules_per(100.0)),
///     Err(why) => println!("{why}"),
/// }
/// ```
pub struct EnergyMeter {
    system: Arc<dyn System>,
    domains: Vec<Counter>,
    /// Whether no package is missing in the domains.
    whole: bool,
    batteries: Vec<Battery>,
    /// At the start.
    on_mains: bool,
    /// Why there is no figure of a source.
    failed: Vec<Error>,
}

impl fmt::Debug for EnergyMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnergyMeter").field("domains", &self.domains).finish_non_exhaustive()
    }
}

/// A counter of RAPL.
#[derive(Clone, Debug)]
struct Counter {
    name: String,
    counted: bool,
    path: PathBuf,
    range_uj: u64,
    last_uj: u64,
    sum_uj: u64,
    failed: Option<String>,
}

impl EnergyMeter {
    /// Begins. Whether there will be a figure is known at the end: a battery may be plugged in until then.
    pub fn start(system: impl System) -> Self {
        let mut failed = Vec::new();
        let (domains, whole) = counters(&system, &mut failed);
        let (batteries, mains) = batteries_and_mains(&system, &mut failed).unwrap_or_else(|error| {
            failed.push(error);
            Default::default()
        });
        let on_mains = mains.contains(&true);
        Self { system: Arc::new(system), domains, whole, batteries, on_mains, failed }
    }

    /// Looks in between, so that no counter begins again twice unseen. Some 20 us for each domain.
    pub fn sample(&mut self) {
        for domain in &mut self.domains {
            domain.look(&*self.system);
        }
    }

    /// Ends, with what was taken since the start.
    ///
    /// # Errors
    /// [`Error::NoFigure`] with all reasons if no source has one; never 0 J for what is not known.
    pub fn stop(mut self) -> Result<Energy> {
        self.sample();
        let mut reasons: Vec<String> = self.failed.iter().map(ToString::to_string).collect();
        let (fine, broken): (Vec<_>, Vec<_>) =
            self.domains.iter().partition(|domain| domain.failed.is_none());
        // A sum without one of its parts would be a wrong figure.
        let whole = self.whole && !broken.iter().any(|domain| domain.counted);
        reasons.extend(broken.into_iter().filter_map(|domain| domain.failed.clone()));
        let domains: Vec<Domain> = fine
            .iter()
            .map(|domain| Domain {
                name: domain.name.clone(),
                joules: domain.sum_uj as f64 / 1e6,
                counted: domain.counted,
            })
            .collect();
        let joules: f64 = domains.iter().filter(|domain| domain.counted).map(|domain| domain.joules).sum();
        if whole && joules > 0.0 {
            let resolution_joules = 1e-6;
            return Ok(Energy {
                from: EnergyFrom::Rapl,
                domains,
                joules,
                resolution_joules,
                missing: reasons,
            });
        }
        if whole && domains.iter().any(|domain| domain.counted) {
            reasons.push("the counters of RAPL did not move: virtual machines have them so".to_owned());
        } else if self.domains.is_empty() && reasons.is_empty() {
            reasons.push(format!("there are no counters of RAPL in {POWERCAP}"));
        }
        match self.of_batteries() {
            Ok((domains, resolution_joules)) => {
                let joules = domains.iter().map(|domain| domain.joules).sum();
                Ok(Energy { from: EnergyFrom::Battery, domains, joules, resolution_joules, missing: reasons })
            }
            Err(reason) => {
                reasons.push(reason);
                Err(Error::NoFigure { what: "energy", reasons: reasons.join("; ") })
            }
        }
    }

    /// What batteries gave, and the step that they tell it in.
    fn of_batteries(&self) -> Result<(Vec<Domain>, f64), String> {
        if self.batteries.is_empty() {
            return Err("there is no battery to tell either".to_owned());
        }
        let mut failed = Vec::new();
        let (after, mains) =
            batteries_and_mains(&*self.system, &mut failed).map_err(|error| error.to_string())?;
        if self.on_mains || mains.contains(&true) {
            return Err("the machine was on mains, where a battery tells nothing".to_owned());
        }
        let discharged = |batteries: &[Battery]| batteries.iter().any(Battery::is_discharging);
        if !discharged(&self.batteries) || !discharged(&after) {
            return Err("no battery was discharged from the start to the end".to_owned());
        }
        let mut domains = Vec::new();
        let mut resolution_joules = 0.0_f64;
        for before in &self.batteries {
            let name = &before.name;
            let after = after.iter().find(|after| after.name == *name);
            let after = after.ok_or_else(|| format!("{name} is gone"))?;
            // Of two batteries one rests while the other is used.
            let given = match (before.now, after.now) {
                (Some(Store::Energy(before)), Some(Store::Energy(after))) => (before - after, 3.6e-3),
                (Some(Store::Charge(from)), Some(Store::Charge(to))) => {
                    let volts =
                        mean_volts(before, after).ok_or_else(|| format!("{name} tells no voltage"))?;
                    (from - to, 3.6e-3 * volts)
                }
                _ => return Err(format!("{name} does not tell what it holds")),
            };
            let (amount, joules_each) = given;
            if amount < 0 || before.status == "Charging" || after.status == "Charging" {
                return Err(format!("{name} was charged meanwhile"));
            }
            let step = [before.now, after.now, after.full, after.design]
                .into_iter()
                .flatten()
                .fold(0, |step, store| gcd(step, store.amount().unsigned_abs()));
            resolution_joules += step as f64 * joules_each;
            domains.push(Domain { name: name.clone(), joules: amount as f64 * joules_each, counted: true });
        }
        if domains.iter().all(|domain| domain.joules == 0.0) {
            return Err(format!(
                "the battery tells steps of {resolution_joules:.0} J and did not move by one: measure longer"
            ));
        }
        Ok((domains, resolution_joules))
    }
}

impl Counter {
    fn look(&mut self, system: &dyn System) {
        let got = energy_uj(system, &self.path)
            .and_then(|now| Ok((now, since(&self.path, self.last_uj, now, self.range_uj)?)));
        match got {
            Ok((now, more)) => {
                self.last_uj = now;
                self.sum_uj = self.sum_uj.saturating_add(more);
            }
            // What was between is not known, so neither is the sum.
            Err(error) => self.failed = Some(error.to_string()),
        }
    }
}

/// What a counter went on by that begins again at 0 after `range_uj`.
fn since(path: &Path, before: u64, now: u64, range_uj: u64) -> Result<u64> {
    if now > range_uj {
        return Err(content(path, "energy_uj", &now.to_string(), "no more than max_energy_range_uj"));
    }
    Ok(now.checked_sub(before).unwrap_or_else(|| now.saturating_add(range_uj.saturating_sub(before))))
}

/// What can be read, and whether no package is missing in it.
fn counters(system: &dyn System, failed: &mut Vec<Error>) -> (Vec<Counter>, bool) {
    let mut found: Vec<Counter> = Vec::new();
    let mut whole = true;
    let folders = names(system, Path::new(POWERCAP)).unwrap_or_else(|error| {
        failed.push(error);
        Vec::new()
    });
    // `intel-rapl-mmio` has the same packages once more. Processors of AMD are under this name too.
    for folder in folders.iter().filter(|name| name.starts_with("intel-rapl:")) {
        let path = Path::new(POWERCAP).join(folder);
        let one = || -> Result<Counter> {
            let own = get(system, &path.join("name"))?.trim().to_owned();
            let top = folder.split(':').nth(1).unwrap_or_default();
            let is_part = folder.split(':').count() > 2;
            let name = if is_part {
                let above = Path::new(POWERCAP).join(format!("intel-rapl:{top}")).join("name");
                format!("{}/{own}", get(system, &above)?.trim())
            } else {
                own.clone()
            };
            let range = path.join("max_energy_range_uj");
            let range_uj =
                crate::pressure::parse::whole(&range, "max_energy_range_uj", get(system, &range)?.trim())?;
            let energy = path.join("energy_uj");
            let last_uj = energy_uj(system, &energy)?;
            // Memory is beside the package, cores are in it, and psys is all of them with more.
            let counted = if is_part { own == "dram" } else { own.starts_with("package") };
            // So that a first value over the range is no wrap later.
            since(&energy, 0, last_uj, range_uj)?;
            Ok(Counter { name, counted, path: energy, range_uj, last_uj, sum_uj: 0, failed: None })
        };
        match one() {
            Ok(counter) => found.push(counter),
            Err(error) => {
                whole &= folder.split(':').count() > 2;
                failed.push(error);
            }
        }
    }
    (found, whole)
}

fn energy_uj(system: &dyn System, path: &Path) -> Result<u64> {
    match system.read(path) {
        Ok(text) => crate::pressure::parse::whole(path, "energy_uj", text.trim()),
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => Err(Error::System {
            operation: "read",
            what: path.display().to_string(),
            source,
            remedy: "Since 2020 only root may read it, as it tells what others compute: run as root, or allow it with \
                     `chmod a+r` on the file if nobody else uses this machine",
        }),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

fn mean_volts(before: &Battery, after: &Battery) -> Option<f64> {
    Some((before.voltage_uv? as f64 + after.voltage_uv? as f64) / 2e6)
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

const POWERCAP: &str = "/sys/class/powercap";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_counter_that_is_over_its_range_is_garbled() {
        let said = since(Path::new("/e"), 5, 101, 100).unwrap_err().to_string();
        assert_eq!(said, r#"/e: energy_uj is "101", no more than max_energy_range_uj was expected"#);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A counter that goes on by less than its range each time loses nothing over any number of wraps.
        #[test]
        fn wraps_lose_nothing(range in 10_u64..1 << 40, steps in prop::collection::vec(0.0_f64..1.0, 1..100)) {
            let (mut counter, mut last, mut sum, mut real) = (0_u64, 0_u64, 0_u64, 0_u64);
            for step in steps {
                let step = (step * (range - 1) as f64) as u64;
                real += step;
                counter = (counter + step) % range;
                sum += since(Path::new("/e"), last, counter, range).unwrap();
                last = counter;
            }
            prop_assert_eq!(sum, real);
        }
    }
}
