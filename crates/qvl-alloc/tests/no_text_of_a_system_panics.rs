//! Whatever is in the files of a system: a value or an error that names the file, and shares from 0 to 1.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use qvl_alloc::power::EnergyMeter;
use qvl_alloc::pressure::parse;
use qvl_alloc::system::Written;
use qvl_alloc::{Power, Pressure};

/// Files of a machine that has everything, with what is in them.
const FILES: [(&str, &str); 24] = [
    (
        "/proc/meminfo",
        "MemTotal:       16211516 kB\nMemAvailable:   9482340 kB\nSwapFree:        8126460 kB\n",
    ),
    (
        "/proc/pressure/memory",
        "some avg10=0.10 avg60=0.00 avg300=0.02 total=18\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=13\n",
    ),
    ("/proc/self/cgroup", "4:memory:/a/b\n0::/c\n"),
    (
        "/proc/self/mountinfo",
        "35 31 0:32 / /v1 rw,relatime - cgroup cgroup rw,memory\n41 31 0:38 / /v2 rw shared:9 - cgroup2 cgroup2 rw\n",
    ),
    ("/v1/a/b/memory.limit_in_bytes", "1073741824\n"),
    ("/v1/a/b/memory.usage_in_bytes", "1003741824\n"),
    (
        "/v1/a/b/memory.stat",
        "total_dirty 4\ntotal_writeback 4\ntotal_inactive_file 40960\ntotal_active_file 4096\n",
    ),
    ("/v2/c/memory.max", "max\n"),
    ("/v2/c/memory.high", "1073741824\n"),
    ("/v2/c/memory.current", "1003741824\n"),
    (
        "/v2/c/memory.stat",
        "file_dirty 4\nfile_writeback 4\ninactive_file 4096\nactive_file 9\nslab_reclaimable 8\n",
    ),
    ("/v2/c/memory.events", "low 0\nhigh 3\nmax 7\noom 0\noom_kill 0\n"),
    ("/sys/class/power_supply/AC/type", "Mains\n"),
    ("/sys/class/power_supply/AC/online", "0\n"),
    ("/sys/class/power_supply/BAT0/type", "Battery\n"),
    ("/sys/class/power_supply/BAT0/status", "Discharging\n"),
    ("/sys/class/power_supply/BAT0/charge_now", "2000000\n"),
    ("/sys/class/power_supply/BAT0/charge_full", "4000000\n"),
    ("/sys/class/power_supply/BAT0/current_now", "-4000000\n"),
    ("/sys/class/power_supply/BAT0/voltage_now", "12000000\n"),
    ("/sys/class/powercap/intel-rapl:0/name", "package-0\n"),
    ("/sys/class/powercap/intel-rapl:0/energy_uj", "120481337012\n"),
    ("/sys/class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850\n"),
    ("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "12\n"),
];

fn machine(changed: &[(usize, String)]) -> Arc<Written> {
    let files = Arc::new(Written::default());
    for (path, text) in FILES {
        files.set(path, Some(text));
    }
    for (index, text) in changed {
        files.set(FILES[*index].0, Some(text));
    }
    files
}

/// A cut, a byte more, less or other, a piece twice, a number that is large.
fn mutated() -> impl Strategy<Value = (usize, String)> {
    (0..FILES.len(), 0_usize..200, 0_usize..6, any::<char>()).prop_map(|(index, at, what, char)| {
        let mut chars: Vec<char> = FILES[index].1.chars().collect();
        let at = at % chars.len();
        match what {
            0 => chars.truncate(at),
            1 => chars.insert(at, char),
            2 => _ = chars.remove(at),
            3 => chars[at] = char,
            4 => chars.extend_from_within(at..),
            _ => _ = chars.splice(at..at, "99999999999999999999".chars()).count(),
        }
        (index, chars.into_iter().collect())
    })
}

fn check(files: &Arc<Written>) -> Result<(), TestCaseError> {
    let reading = Pressure::new(Arc::clone(files)).read();
    if let Some(share) = reading.share {
        prop_assert!((0.0..=1.0).contains(&share), "{share}");
    }
    for limits in &reading.all_limits {
        prop_assert!(limits.available_bytes <= limits.total_bytes);
    }
    for (_, why) in reading.failures() {
        prop_assert!(why.to_string().starts_with('/'), "{why}");
    }
    let power = Power::read(files);
    if let Some(share) = power.charge_share {
        prop_assert!((0.0..=1.0).contains(&share), "{share}");
    }
    prop_assert!(power.battery_watts.is_none_or(f64::is_finite));
    let meter = EnergyMeter::start(Arc::clone(files));
    files.set("/sys/class/powercap/intel-rapl:0/energy_uj", Some("120481337013\n"));
    if let Ok(energy) = meter.stop() {
        prop_assert!(energy.joules > 0.0 && energy.joules.is_finite(), "{energy:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn parsers_take_any_text(text in any::<String>()) {
        let path = Path::new("/f");
        let _ = (parse::psi(path, &text), parse::meminfo(path, &text), parse::events(path, &text));
        let _ = (parse::membership(path, &text), parse::mounts(path, &text), parse::limit(path, "l", &text));
        let _ = (parse::bytes(path, "b", &text), parse::reclaimable(path, &text, "total_"));
    }

    #[test]
    fn readings_take_any_text(index in 0..FILES.len(), text in any::<String>()) {
        check(&machine(&[(index, text)]))?;
    }

    #[test]
    fn readings_take_mutated_files(changed in prop::collection::vec(mutated(), 1..6)) {
        check(&machine(&changed))?;
    }
}

#[test]
fn the_machine_that_is_mutated_is_whole() {
    let reading = Pressure::new(machine(&[])).read();
    assert_eq!(reading.all_limits.len(), 2);
    let power = Power::read(&machine(&[]));
    assert!(power.charge_share == Some(0.5) && power.battery_watts == Some(48.0), "{power:?}");
}
