//! Batteries and supplies: `/sys/class/power_supply`.

use std::path::Path;

use super::{Supply, content, find, find_number, get, names};
use crate::system::System;
use crate::{Error, Result};

/// A battery that the machine runs on, in the units of the kernel: uWh or uAh, uW or uA, uV.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Battery {
    pub(super) name: String,
    pub(super) status: String,
    pub(super) capacity_percent: Option<i64>,
    pub(super) now: Option<Store>,
    pub(super) full: Option<Store>,
    pub(super) design: Option<Store>,
    power_uw: Option<i64>,
    current_ua: Option<i64>,
    pub(super) voltage_uv: Option<i64>,
}

/// What a battery holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    Energy(i64),
    Charge(i64),
}

impl Store {
    pub(super) fn amount(self) -> i64 {
        match self {
            Self::Energy(amount) | Self::Charge(amount) => amount,
        }
    }
}

impl Battery {
    pub(super) fn is_discharging(&self) -> bool {
        self.status == "Discharging"
    }

    /// What is drawn from it; negative while it is charged.
    fn watts(&self) -> Option<f64> {
        let power = match (self.power_uw, self.current_ua, self.voltage_uv) {
            (Some(power), ..) => power.unsigned_abs() as f64 / 1e6,
            (None, Some(current), Some(voltage)) => current.unsigned_abs() as f64 * voltage as f64 / 1e12,
            _ => return None,
        };
        // Some drivers sign the current, some do not; the status says which way it goes.
        Some(if self.status == "Charging" { -power } else { power })
    }
}

pub(super) fn batteries_and_mains(
    system: &dyn System,
    failed: &mut Vec<Error>,
) -> Result<(Vec<Battery>, Vec<bool>)> {
    let (mut batteries, mut mains) = (Vec::new(), Vec::new());
    for name in names(system, Path::new(FOLDER))? {
        let folder = Path::new(FOLDER).join(&name);
        let mut one = || -> Result<()> {
            match get(system, &folder.join("type"))?.trim() {
                "Battery" => {
                    // That of a mouse is none that the machine runs on.
                    if find(system, &folder.join("scope"))?.is_some_and(|scope| scope.trim() == "Device") {
                        return Ok(());
                    }
                    batteries.push(battery(system, &folder, &name, failed)?);
                }
                kind if kind == "Mains" || kind == "Wireless" || kind.starts_with("USB") => {
                    let path = folder.join("online");
                    if let Some(online) = find_number(system, &path, "online")? {
                        // 2 is a supply whose voltage can be set.
                        if !(0..=2).contains(&online) {
                            return Err(content(&path, "online", &online.to_string(), "0, 1 or 2"));
                        }
                        mains.push(online > 0);
                    }
                }
                "UPS" => {}
                kind => {
                    let expected = "Battery, Mains, USB, Wireless or UPS";
                    return Err(content(&folder.join("type"), "type", kind, expected));
                }
            }
            Ok(())
        };
        if let Err(error) = one() {
            failed.push(error);
        }
    }
    Ok((batteries, mains))
}

fn battery(system: &dyn System, folder: &Path, name: &str, failed: &mut Vec<Error>) -> Result<Battery> {
    let status = get(system, &folder.join("status"))?.trim().to_owned();
    if !STATUSES.contains(&status.as_str()) {
        return Err(content(
            &folder.join("status"),
            "status",
            &status,
            "Charging, Discharging, Full or such",
        ));
    }
    let mut value = |file: &'static str, least: i64, most: i64| {
        let path = folder.join(file);
        let got = find_number(system, &path, file).and_then(|got| match got {
            Some(got) if got < least || got > most => {
                Err(content(&path, file, &got.to_string(), "a number that a battery can have"))
            }
            got => Ok(got),
        });
        got.unwrap_or_else(|error| {
            failed.push(error);
            None
        })
    };
    let capacity_percent = value("capacity", 0, 100);
    let mut store = |energy, charge| {
        let energy = value(energy, 0, AMOUNT_MAX).map(Store::Energy);
        energy.or_else(|| value(charge, 0, AMOUNT_MAX).map(Store::Charge))
    };
    let now = store("energy_now", "charge_now");
    let full = store("energy_full", "charge_full");
    let design = store("energy_full_design", "charge_full_design");
    Ok(Battery {
        name: name.to_owned(),
        status,
        capacity_percent,
        now,
        full,
        design,
        power_uw: value("power_now", -AMOUNT_MAX, AMOUNT_MAX),
        current_ua: value("current_now", -AMOUNT_MAX, AMOUNT_MAX),
        voltage_uv: value("voltage_now", 0, AMOUNT_MAX),
    })
}

pub(super) fn supply(batteries: &[Battery], mains: &[bool]) -> Supply {
    if mains.contains(&true) || batteries.iter().any(|battery| battery.status == "Charging") {
        Supply::Mains
    } else if batteries.iter().any(Battery::is_discharging) || (!batteries.is_empty() && !mains.is_empty()) {
        Supply::Battery
    } else {
        Supply::Unknown
    }
}

/// Of all batteries together where all say what they hold, else the mean of what they say.
pub(super) fn charge_share(batteries: &[Battery]) -> Option<f64> {
    let held = |store: fn(&Battery) -> Option<Store>| -> Option<f64> {
        // Amounts of two kinds do not add.
        let stores: Vec<Store> = batteries.iter().map(store).collect::<Option<_>>()?;
        let all_energy = stores.iter().all(|store| matches!(store, Store::Energy(_)));
        let all_charge = stores.iter().all(|store| matches!(store, Store::Charge(_)));
        (all_energy || all_charge).then(|| stores.iter().map(|store| store.amount() as f64).sum())
    };
    let (now, full) = (held(|battery| battery.now), held(|battery| battery.full));
    if let (Some(now), Some(full)) = (now, full)
        && full > 0.0
    {
        return Some((now / full).clamp(0.0, 1.0));
    }
    let percents: Vec<i64> = batteries.iter().filter_map(|battery| battery.capacity_percent).collect();
    (!percents.is_empty()).then(|| percents.iter().sum::<i64>() as f64 / percents.len() as f64 / 100.0)
}

/// What is drawn from all batteries; not known if one does not say.
pub(super) fn watts(batteries: &[Battery]) -> Option<f64> {
    let all: Vec<f64> = batteries.iter().map(Battery::watts).collect::<Option<_>>()?;
    (!all.is_empty()).then(|| all.iter().sum())
}

const FOLDER: &str = "/sys/class/power_supply";
const STATUSES: [&str; 5] = ["Charging", "Discharging", "Not charging", "Full", "Unknown"];
/// 1 MWh, 1 MW, 1 MV: what is more is garbled.
const AMOUNT_MAX: i64 = 1_000_000_000_000;
