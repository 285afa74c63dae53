//! Battery or mains, heat, and energy.
//!
//! [`Power::read`] says what the machine runs on and whether it is slowed by heat; [`EnergyMeter`] says what work
//! cost, or why that is not known here.

use std::io;
use std::path::{Path, PathBuf};

use crate::pressure::parse::content;
use crate::system::System;
use crate::{Error, Result};

mod battery;
mod energy;
mod thermal;

use battery::batteries_and_mains;
pub use energy::{Domain, Energy, EnergyFrom, EnergyMeter};
pub use thermal::{Trip, TripKind};

/// What a machine runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Supply {
    /// Mains, or a USB supply.
    Mains,
    /// A battery.
    Battery,
    /// The system does not say, as most servers do not.
    #[default]
    Unknown,
}

/// How fast processors run, as the mean of all, in kHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frequency {
    /// Now.
    pub current_khz: u64,
    /// What they are allowed now: less than they can if somebody has set so.
    pub allowed_khz: u64,
    /// What they can.
    pub max_khz: u64,
}

/// A source of a [`PowerReading`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PowerSource {
    /// `/sys/class/power_supply`.
    Supply,
    /// `thermal_throttle` of processors.
    ThrottleCounts,
    /// `/sys/class/thermal`.
    Zones,
    /// `/sys/firmware/acpi/platform_profile`.
    Profile,
    /// `cpufreq` of processors.
    Frequency,
}

/// Whether a source gave what it should.
#[derive(Debug)]
#[non_exhaustive]
pub struct PowerReport {
    /// Which.
    pub source: PowerSource,
    /// Whether it worked, and why not. A source may fail in part: then there is a report for each failure, and the
    /// rest counts.
    pub outcome: Result<()>,
}

/// What a machine runs on, and how hot it is, at one moment.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct PowerReading {
    /// What it runs on.
    pub source: Supply,
    /// How full the batteries are, 0 to 1; `None` if there are none.
    pub charge_share: Option<f64>,
    /// What is drawn from the batteries, in watts: negative while they are charged. `None` if they do not say.
    pub battery_watts: Option<f64>,
    /// Whether a zone is at a trip point at which the kernel or the hardware slows or stops the machine. `None` if no
    /// zone has such a point. What happened between two readings is in
    /// [`throttle_events_since`](Self::throttle_events_since).
    pub throttled: Option<bool>,
    /// The trip points that are reached.
    pub trips: Vec<Trip>,
    /// How often processors were slowed by heat since the machine was started, counted for each logical processor.
    pub throttle_events: Option<u64>,
    /// The platform profile, such as `balanced`.
    pub profile: Option<String>,
    /// How fast processors run.
    pub frequency: Option<Frequency>,
    /// Which sources worked and which did not, and why.
    pub sources: Vec<PowerReport>,
}

impl PowerReading {
    /// How often processors were slowed by heat since an earlier reading; `None` if either does not know, or if counts
    /// went back, as when a processor was taken out.
    pub fn throttle_events_since(&self, earlier: &Self) -> Option<u64> {
        self.throttle_events?.checked_sub(earlier.throttle_events?)
    }

    /// The sources that did not work, or not all of them.
    pub fn failures(&self) -> impl Iterator<Item = (PowerSource, &Error)> {
        self.sources.iter().filter_map(|report| Some((report.source, report.outcome.as_ref().err()?)))
    }
}

/// Reads what the machine runs on.
#[derive(Clone, Copy, Debug)]
pub struct Power;

impl Power {
    /// What there is now. Opens some four files for each processor and each zone, about 20 us each; a battery may
    /// take milliseconds to answer. So once a second is often. What cannot be read is in
    /// [`PowerReading::sources`]; the rest goes on.
    ///
    /// ```
    /// use qvl_alloc::{Power, system::Live};
    ///
    /// let reading = Power::read(&Live);
    /// println!("{:?}, {:?} W", reading.source, reading.battery_watts);
    /// ```
    pub fn read(system: &dyn System) -> PowerReading {
        let mut reading = PowerReading::default();
        let mut draft = Draft { system, sources: Vec::new() };

        if let Some((batteries, mains)) = draft.whole(PowerSource::Supply, batteries_and_mains) {
            reading.source = battery::supply(&batteries, &mains);
            reading.charge_share = battery::charge_share(&batteries);
            reading.battery_watts = battery::watts(&batteries);
        }
        reading.throttle_events =
            draft.whole(PowerSource::ThrottleCounts, thermal::throttle_events).flatten();
        if let Some((known, trips)) = draft.whole(PowerSource::Zones, thermal::trips) {
            reading.throttled = known.then_some(!trips.is_empty());
            reading.trips = trips;
        }
        reading.profile = draft.whole(PowerSource::Profile, |system, _| {
            let text = get(system, Path::new(PROFILE))?;
            let name = text.trim();
            let is_word = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
            if name.is_empty() || !name.chars().all(is_word) {
                return Err(content(Path::new(PROFILE), "profile", name, "one word"));
            }
            Ok(name.to_owned())
        });
        reading.frequency = draft.whole(PowerSource::Frequency, thermal::frequency).flatten();
        reading.sources = draft.sources;
        reading
    }
}

/// A reading as it is made.
struct Draft<'a> {
    system: &'a dyn System,
    sources: Vec<PowerReport>,
}

impl Draft<'_> {
    /// A source, with failures of parts of it beside what it gives.
    fn whole<T>(
        &mut self,
        source: PowerSource,
        read: impl FnOnce(&dyn System, &mut Vec<Error>) -> Result<T>,
    ) -> Option<T> {
        let mut parts = Vec::new();
        let got = read(self.system, &mut parts);
        let whole = parts.is_empty() && got.is_ok();
        self.sources.extend(parts.into_iter().map(|error| PowerReport { source, outcome: Err(error) }));
        match got {
            Ok(value) => {
                if whole {
                    self.sources.push(PowerReport { source, outcome: Ok(()) });
                }
                Some(value)
            }
            Err(error) => {
                self.sources.push(PowerReport { source, outcome: Err(error) });
                None
            }
        }
    }
}

/// All of a file.
fn get(system: &dyn System, path: &Path) -> Result<String> {
    system.read(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// The same, where a machine need not have the file.
fn find(system: &dyn System, path: &Path) -> Result<Option<String>> {
    match system.read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

/// What is in a folder: nothing if there is none.
fn names(system: &dyn System, folder: &Path) -> Result<Vec<String>> {
    match system.list(folder) {
        Ok(names) => Ok(names),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::File { path: folder.to_owned(), source }),
    }
}

/// A file that is a whole number.
fn number(path: &Path, field: &'static str, text: &str) -> Result<i64> {
    let got = text.trim();
    got.parse().map_err(|_| content(path, field, got, "a whole number"))
}

fn get_number(system: &dyn System, path: &Path, field: &'static str) -> Result<i64> {
    number(path, field, &get(system, path)?)
}

fn find_number(system: &dyn System, path: &Path, field: &'static str) -> Result<Option<i64>> {
    find(system, path)?.map(|text| number(path, field, &text)).transpose()
}

/// Folders whose names begin so and go on with a number.
fn numbered(system: &dyn System, folder: &str, prefix: &str) -> Result<Vec<PathBuf>> {
    let folder = Path::new(folder);
    let is_number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    let names = names(system, folder)?;
    let found = names.iter().filter(|name| name.strip_prefix(prefix).is_some_and(is_number));
    Ok(found.map(|name| folder.join(name)).collect())
}

const PROFILE: &str = "/sys/firmware/acpi/platform_profile";
