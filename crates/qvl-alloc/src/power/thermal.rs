//! Heat, and what processors are slowed to: `thermal_throttle`, `/sys/class/thermal`, `cpufreq`.

use super::{Frequency, content, find, find_number, get, get_number, names, numbered};
use crate::system::System;
use crate::{Error, Result};

/// What the kernel does at a trip point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TripKind {
    /// Slows the machine.
    Passive,
    /// Tells of it: soon it is critical.
    Hot,
    /// Stops the machine.
    Critical,
}

/// A trip point that is reached.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Trip {
    /// The zone, such as `x86_pkg_temp`.
    pub zone: String,
    /// What the kernel does there.
    pub kind: TripKind,
    /// How hot it is, in degrees Celsius.
    pub celsius: f64,
    /// Where the point is, in degrees Celsius.
    pub trip_celsius: f64,
}

/// All counts of all processors; `None` if none counts.
pub(super) fn throttle_events(system: &dyn System, failed: &mut Vec<Error>) -> Result<Option<u64>> {
    let mut sum = None;
    for cpu in numbered(system, CPUS, "cpu")? {
        let folder = cpu.join("thermal_throttle");
        for file in ["core_throttle_count", "package_throttle_count"] {
            let path = folder.join(file);
            match find_number(system, &path, file) {
                Ok(Some(count)) => match u64::try_from(count) {
                    Ok(count) => sum = Some(count.saturating_add(sum.unwrap_or(0))),
                    Err(_) => failed.push(content(&path, file, &count.to_string(), "a count")),
                },
                Ok(None) => {}
                Err(error) => failed.push(error),
            }
        }
    }
    Ok(sum)
}

/// Whether any zone has a trip point that slows or stops, and those that are reached.
pub(super) fn trips(system: &dyn System, failed: &mut Vec<Error>) -> Result<(bool, Vec<Trip>)> {
    let mut known = false;
    let mut reached = Vec::new();
    for folder in numbered(system, ZONES, "thermal_zone")? {
        let mut zone = || -> Result<()> {
            let name = get(system, &folder.join("type"))?.trim().to_owned();
            let temp = get_number(system, &folder.join("temp"), "temp")?;
            for file in names(system, &folder)? {
                let Some(point) =
                    file.strip_prefix("trip_point_").and_then(|file| file.strip_suffix("_type"))
                else {
                    continue;
                };
                let kind = match get(system, &folder.join(&file))?.trim() {
                    "passive" => TripKind::Passive,
                    "hot" => TripKind::Hot,
                    "critical" => TripKind::Critical,
                    // A fan turns faster; nothing is slowed.
                    "active" => continue,
                    got => {
                        let expected = "passive, hot, critical or active";
                        return Err(content(&folder.join(&file), "trip_point_type", got, expected));
                    }
                };
                let trip =
                    get_number(system, &folder.join(format!("trip_point_{point}_temp")), "trip_point_temp")?;
                // 0 and below is a point that nobody has set: those of x86_pkg_temp are so at first.
                if trip <= 0 {
                    continue;
                }
                known = true;
                if temp >= trip {
                    let (celsius, trip_celsius) = (temp as f64 / 1000.0, trip as f64 / 1000.0);
                    reached.push(Trip { zone: name.clone(), kind, celsius, trip_celsius });
                }
            }
            Ok(())
        };
        if let Err(error) = zone() {
            failed.push(error);
        }
    }
    Ok((known, reached))
}

/// The mean of all processors that say; `None` if none does.
pub(super) fn frequency(system: &dyn System, failed: &mut Vec<Error>) -> Result<Option<Frequency>> {
    let mut sum = [0_u64; 3];
    let mut count = 0;
    for cpu in numbered(system, CPUS, "cpu")? {
        let folder = cpu.join("cpufreq");
        let current = folder.join("scaling_cur_freq");
        let mut one = || -> Result<()> {
            if find(system, &current)?.is_none() {
                return Ok(());
            }
            let mut three = [0; 3];
            for (value, file) in three.iter_mut().zip(FREQUENCIES) {
                let path = folder.join(file);
                let got = get_number(system, &path, file)?;
                let fine = u64::try_from(got).ok().filter(|khz| *khz <= KHZ_MAX);
                *value = fine.ok_or_else(|| content(&path, file, &got.to_string(), "a number of kHz"))?;
            }
            for (sum, value) in sum.iter_mut().zip(three) {
                *sum = sum.saturating_add(value);
            }
            count += 1;
            Ok(())
        };
        if let Err(error) = one() {
            failed.push(error);
        }
    }
    let mean = |sum: u64| sum.checked_div(count);
    let [current, allowed, max] = sum.map(mean);
    Ok(match (current, allowed, max) {
        (Some(current_khz), Some(allowed_khz), Some(max_khz)) => {
            Some(Frequency { current_khz, allowed_khz, max_khz })
        }
        _ => None,
    })
}

const CPUS: &str = "/sys/devices/system/cpu";
const ZONES: &str = "/sys/class/thermal";
const FREQUENCIES: [&str; 3] = ["scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq"];
/// 1 THz: what is more is garbled.
const KHZ_MAX: u64 = 1_000_000_000;
