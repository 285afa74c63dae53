//! What is read of recorded machines, to the byte, and what is said of files that are garbled or missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qvl_alloc::power::{EnergyFrom, EnergyMeter, Frequency, PowerReading, Supply, TripKind};
use qvl_alloc::pressure::{DeviceMemory, LimitedBy, Reading};
use qvl_alloc::system::{Recorded, System, Written};
use qvl_alloc::{Error, Power, Pressure};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn machine(name: &str) -> Recorded {
    Recorded::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines").join(name))
}

/// What did not work, without the folder that the machine was recorded in.
fn failures(reading: &Reading) -> Vec<String> {
    reading.failures().map(|(source, why)| format!("{:?}: {why}", source.source)).collect()
}

fn power_failures(reading: &PowerReading) -> Vec<String> {
    reading.failures().map(|(source, why)| format!("{source:?}: {why}")).collect()
}

fn limits(reading: &Reading) -> (u64, u64, String) {
    let limits = reading.limits.as_ref().unwrap();
    (limits.total_bytes, limits.available_bytes, limits.limited_by.to_string())
}

fn near(got: Option<f64>, expected: f64) {
    let got = got.unwrap();
    assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
}

#[test]
fn a_laptop_on_battery() {
    let reading = Pressure::new(machine("laptop-i5-10210u")).read();
    assert_eq!(failures(&reading), [""; 0]);
    assert_eq!(limits(&reading), (16_211_516 << 10, 9_482_340 << 10, "the machine".to_owned()));
    assert_eq!(reading.all_limits.len(), 1, "groups without a limit have none");
    assert_eq!(reading.share, Some(0.0));
    assert_eq!(reading.psi.unwrap().some.total_us, 5211, "of the group");
    assert_eq!(reading.events.unwrap().oom_kill, 0);
    assert_eq!(reading.swap_free_bytes, Some(8_126_460 << 10));

    let power = Power::read(&machine("laptop-i5-10210u"));
    assert_eq!(power.source, Supply::Battery);
    near(power.charge_share, 31_350_000.0 / 49_760_000.0);
    near(power.battery_watts, 7.421);
    assert_eq!(power.profile.as_deref(), Some("balanced"));
    let expected = (1_100_000, 4_200_000, 4_200_000);
    let Frequency { current_khz, allowed_khz, max_khz, .. } = power.frequency.unwrap();
    assert_eq!((current_khz, allowed_khz, max_khz), expected);
    assert_eq!(power.throttle_events, Some(2 * (12 + 3 + 41) + 8 * 57));
    assert_eq!(power.throttled, Some(true));
    let [trip] = &power.trips[..] else { panic!("{:?}", power.trips) };
    assert_eq!((trip.zone.as_str(), trip.kind), ("SEN1", TripKind::Passive));
    assert_eq!((trip.celsius, trip.trip_celsius), (51.05, 51.05));
    // A radio that is off has no temperature.
    let said = power_failures(&power);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("Zones: /sys/class/thermal/thermal_zone4/temp: "), "{said:?}");
}

#[test]
fn a_container_at_its_limit() {
    let reading = Pressure::new(machine("container-at-its-limit")).read();
    assert_eq!(failures(&reading), [""; 0]);
    // 510 MiB are used, 12 + 6 + 2 of them can be reclaimed, less 1 that has to be written first.
    assert_eq!(limits(&reading), (512 * MIB, 21 * MIB, "/sys/fs/cgroup/memory.max".to_owned()));
    near(reading.share, 1.0 - (1.0 - (0.30 - 21.0 / 512.0) / 0.28) * (1.0 - 31.5 / 120.0));
    let events = reading.events.unwrap();
    assert_eq!((events.high, events.max, events.oom, events.oom_kill), (0, 1409, 2, 1));
    let psi = reading.psi.unwrap();
    assert_eq!(
        (psi.some.avg10, psi.some.avg60, psi.full.avg300, psi.full.total_us),
        (31.5, 18.25, 2.25, 4_377_216)
    );
    assert_eq!(reading.all_limits[0].limited_by, LimitedBy::Machine);
}

#[test]
fn a_server_with_groups_of_version_1() {
    let reading = Pressure::new(machine("server-groups-of-version-1")).read();
    let file = "/sys/fs/cgroup/memory/system.slice/qvl.service/memory.limit_in_bytes";
    // 20 GiB of 32 are used, 6 + 2 of them are pages of files, half a GiB of those has to be written first.
    assert_eq!(limits(&reading), (32 * GIB, 19 * GIB + GIB / 2, file.to_owned()));
    assert_eq!(reading.share, Some(0.0));
    assert_eq!((reading.psi, reading.events), (None, None));
    let said = failures(&reading);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("Psi: /proc/pressure/memory: "), "{said:?}");

    let power = Power::read(&machine("server-groups-of-version-1"));
    assert_eq!((power.source, power.charge_share, power.battery_watts), (Supply::Unknown, None, None));
    assert_eq!((power.throttled, power.throttle_events), (None, Some(2)), "no zone has a trip point");
    assert_eq!(power.frequency, None);
    let said = power_failures(&power);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("Profile: /sys/firmware/acpi/platform_profile: "), "{said:?}");
}

#[test]
fn a_container_without_psi_in_a_group_with_a_limit() {
    let reading = Pressure::new(machine("container-without-psi")).read();
    // The group above has the least left, its own `high` is the lowest limit.
    assert_eq!(limits(&reading), (1536 * MIB, 320 * MIB, "/sys/fs/cgroup/memory.max".to_owned()));
    let own = &reading.all_limits[1];
    assert_eq!((own.total_bytes, own.available_bytes), (1536 * MIB, 1236 * MIB));
    assert_eq!(own.limited_by.to_string(), "/sys/fs/cgroup/app/memory.high");
    near(reading.share, (0.30 - 320.0 / 1792.0) / 0.28);
    assert_eq!(reading.events.unwrap().high, 3);
    assert_eq!(failures(&reading).len(), 1);
    let power = Power::read(&machine("container-without-psi"));
    assert_eq!((power.source, power.throttled, power.throttle_events), (Supply::Unknown, None, None));
}

#[test]
fn garbled_and_missing_files_are_named_and_the_rest_counts() {
    let reading = Pressure::new(machine("garbled")).read();
    assert_eq!((&reading.limits, reading.share, &reading.psi), (&None, None, &None));
    assert_eq!(
        failures(&reading),
        [
            r#"Machine: /proc/meminfo: MemAvailable is "lots kB", a number of kB was expected"#,
            r#"Membership: /proc/self/cgroup: group is "nonsense", number:controllers:path was expected"#,
            r#"Psi: /proc/pressure/memory: avg10 is "abc", a number from 0 to 100 was expected"#,
        ]
    );
    let power = Power::read(&machine("garbled"));
    assert_eq!(power.source, Supply::Battery);
    near(power.charge_share, 0.5);
    near(power.battery_watts, 18.0);
    assert_eq!((power.throttled, power.throttle_events), (Some(true), Some(7)));
    assert_eq!((power.trips.len(), power.trips[0].kind), (1, TripKind::Critical));
    assert_eq!((&power.profile, power.frequency), (&None, None));
    let missing = io::Error::from_raw_os_error(2);
    let supply = "Supply: /sys/class/power_supply";
    assert_eq!(
        power_failures(&power),
        [
            format!(r#"{supply}/AC/online: online is "yes", a whole number was expected"#),
            format!(r#"{supply}/BAT0/status: status is "Sleepy", Charging, Discharging, Full or such was expected"#),
            format!(r#"{supply}/BAT1/capacity: capacity is "140", a number that a battery can have was expected"#),
            format!("{supply}/BAT2/type: {missing}"),
            "ThrottleCounts: /sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count: \
             core_throttle_count is \"many\", a whole number was expected"
                .to_owned(),
            r#"Zones: /sys/class/thermal/thermal_zone0/temp: temp is "hot", a whole number was expected"#.to_owned(),
            "Profile: /sys/firmware/acpi/platform_profile: profile is \"two words\", one word was expected".to_owned(),
            "Frequency: /sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq: scaling_max_freq is \"-1\", a number \
             of kHz was expected"
                .to_owned(),
        ]
    );
    let said = EnergyMeter::start(machine("garbled")).stop().unwrap_err().to_string();
    assert!(said.contains(r#"energy_uj is "-5", a whole number was expected"#), "{said}");
}

#[test]
fn a_limit_without_its_statistics_counts_and_is_said() {
    let files = Arc::new(copy("container-at-its-limit"));
    files.set("/sys/fs/cgroup/memory.stat", Some("anon 5\n"));
    let reading = Pressure::new(Arc::clone(&files)).read();
    assert_eq!(limits(&reading).1, 2 * MIB, "nothing is known to be reclaimable");
    let expected =
        r#"Group: /sys/fs/cgroup/memory.stat: inactive_file is "anon 5\n", this field was expected"#;
    assert_eq!(failures(&reading), [expected]);
    // A limit over what the machine has is none.
    files.set("/sys/fs/cgroup/memory.max", Some("999999999999"));
    let reading = Pressure::new(Arc::clone(&files)).read();
    assert_eq!((limits(&reading).2.as_str(), reading.all_limits.len()), ("the machine", 1));
}

#[test]
fn a_group_outside_of_what_is_mounted_is_taken_for_its_top_and_said() {
    for group in ["0::/../../host/app\n", "0::/elsewhere\n"] {
        let files = copy("container-without-psi");
        files.set("/proc/self/cgroup", Some(group));
        let reading = Pressure::new(files).read();
        assert_eq!(limits(&reading), (1792 * MIB, 320 * MIB, "/sys/fs/cgroup/memory.max".to_owned()));
        let said = failures(&reading);
        assert!(said[0].starts_with("Membership: /proc/self/cgroup: group is \"/"), "{said:?}");
    }
}

#[test]
fn no_path_leads_out_of_what_is_mounted() {
    let files = copy("container-at-its-limit");
    files.set("/proc/self/cgroup", Some("0::/../sibling\n"));
    files.set("/sys/fs/cgroup/../sibling/memory.max", Some("1\n"));
    files.set("/sys/fs/cgroup/../sibling/memory.current", Some("1\n"));
    let reading = Pressure::new(files).read();
    assert_eq!(limits(&reading), (512 * MIB, 21 * MIB, "/sys/fs/cgroup/memory.max".to_owned()));
    let said = failures(&reading);
    assert!(
        said[0].starts_with("Membership: /proc/self/cgroup: group is \"/../sibling\", a group in"),
        "{said:?}"
    );
}

#[test]
fn a_device_is_beside_the_host() {
    let free = |available_bytes| {
        move || Ok(DeviceMemory { name: "card 0".to_owned(), total_bytes: 100 * MIB, available_bytes })
    };
    let broken = || Err(Error::NoFigure { what: "card 1", reasons: "it fell off".to_owned() });
    let pressure = Pressure::new(machine("laptop-i5-10210u"));
    let reading = pressure.with_device(free(16 * MIB)).with_device(broken).read();
    assert_eq!(reading.share, Some(0.0));
    near(Some(reading.devices[0].share()), 0.5);
    assert_eq!(failures(&reading), ["Device: there is no figure for card 1: it fell off"]);
}

#[test]
fn events_between_two_readings() {
    let files = copy("laptop-i5-10210u");
    let first = Power::read(&files);
    let count = |count| {
        files.set("/sys/devices/system/cpu/cpu2/thermal_throttle/core_throttle_count", Some(count));
        Power::read(&files).throttle_events_since(&first)
    };
    assert_eq!((count("0"), count("5")), (Some(0), Some(5)));
    files.set("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", None);
    assert_eq!(count("5"), None, "a processor is gone");
}

#[test]
fn supplies_and_their_signs() {
    let files = copy("laptop-i5-10210u");
    files.set("/sys/class/power_supply/ucsi-source-psy-USBC000:001/online", Some("1\n"));
    files.set("/sys/class/power_supply/BAT0/status", Some("Charging\n"));
    let power = Power::read(&files);
    assert_eq!(power.source, Supply::Mains);
    near(power.battery_watts, -7.421);
    // Without energy it is the charge, without a charge the percent.
    for file in ["energy_now", "energy_full"] {
        files.set(format!("/sys/class/power_supply/BAT0/{file}"), None);
    }
    near(Power::read(&files).charge_share, 0.63);
}

const RAPL: &str = "/sys/class/powercap/intel-rapl:0";

#[test]
fn energy_of_a_package_and_its_memory_over_a_wrap() {
    let files = Arc::new(copy("laptop-i5-10210u"));
    let mut meter = EnergyMeter::start(Arc::clone(&files));
    let set = |part: &str, uj: u64| files.set(format!("{RAPL}{part}/energy_uj"), Some(&format!("{uj}\n")));
    set("", 262_142_000_000);
    meter.sample();
    set("", 6_671_150);
    set(":2", 51_922_718_205 + 1_500_000);
    set(":0", 120_481_337_012 + 4_000_000);
    let energy = meter.stop().unwrap();
    assert_eq!((energy.from, &energy.missing[..]), (EnergyFrom::Rapl, &[][..] as &[String]));
    let domains: Vec<(&str, f64, bool)> =
        energy.domains.iter().map(|domain| (domain.name.as_str(), domain.joules, domain.counted)).collect();
    let expected = [
        ("package-0", 10.0, true),
        ("package-0/core", 4.0, false),
        ("package-0/uncore", 0.0, false),
        ("package-0/dram", 1.5, true),
    ];
    assert_eq!(domains, expected);
    near(Some(energy.joules), 11.5);
    near(energy.joules_per(23.0), 0.5);
    assert_eq!(energy.joules_per(0.0), None);
}

/// As a user sees it who is not root.
struct Unprivileged(Arc<Written>);

impl System for Unprivileged {
    fn read(&self, path: &Path) -> io::Result<String> {
        match path.file_name() {
            Some(name) if name == "energy_uj" => Err(io::ErrorKind::PermissionDenied.into()),
            _ => self.0.read(path),
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.0.list(folder)
    }
}

#[test]
fn who_may_not_read_counters_gets_the_battery_with_its_steps() {
    let files = Arc::new(copy("laptop-i5-10210u"));
    let start = || EnergyMeter::start(Unprivileged(Arc::clone(&files)));
    let energy_now = "/sys/class/power_supply/BAT0/energy_now";
    let meter = start();
    files.set(energy_now, Some("31150000\n"));
    let energy = meter.stop().unwrap();
    assert_eq!(energy.from, EnergyFrom::Battery);
    near(Some(energy.joules), 0.2 * 3600.0);
    near(Some(energy.resolution_joules), 36.0);
    assert_eq!(energy.domains[0].name, "BAT0");
    assert_eq!(energy.missing.len(), 4, "{:?}", energy.missing);
    assert!(energy.missing[0].contains("run as root"), "{:?}", energy.missing);

    let why = |meter: EnergyMeter| match meter.stop() {
        Err(error @ Error::NoFigure { what: "energy", .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let said = why(start());
    assert!(said.contains("tells steps of 36 J and did not move by one: measure longer"), "{said}");
    let meter = start();
    files.set(energy_now, Some("31160000\n"));
    assert!(why(meter).contains("BAT0 was charged meanwhile"));
    // Mains at either end had a part in it that is not known.
    let meter = start();
    files.set("/sys/class/power_supply/AC/online", Some("1\n"));
    assert!(why(meter).contains("the machine was on mains"));
    let meter = start();
    files.set("/sys/class/power_supply/AC/online", Some("0\n"));
    files.set(energy_now, Some("31000000\n"));
    assert!(why(meter).contains("the machine was on mains"));
    let meter = start();
    files.set("/sys/class/power_supply/BAT0/status", Some("Full\n"));
    files.set(energy_now, Some("30000000\n"));
    assert!(why(meter).contains("no battery was discharged from the start to the end"));
}

#[test]
fn a_figure_without_one_of_its_parts_is_none() {
    let files = Arc::new(copy("server-groups-of-version-1"));
    let meter = EnergyMeter::start(Arc::clone(&files));
    files.set("/sys/class/powercap/intel-rapl:0/energy_uj", Some("9000000"));
    files.set("/sys/class/powercap/intel-rapl:1/energy_uj", Some("broken"));
    let said = meter.stop().unwrap_err().to_string();
    assert!(said.contains(r#"energy_uj is "broken""#) && said.contains("no battery"), "{said}");
    let said = EnergyMeter::start(machine("server-groups-of-version-1")).stop().unwrap_err().to_string();
    assert!(said.contains("the counters of RAPL did not move"), "{said}");
    let said = EnergyMeter::start(machine("container-without-psi")).stop().unwrap_err().to_string();
    assert!(said.contains("no counters of RAPL in /sys/class/powercap"), "{said}");
}

/// A recorded machine whose files can be changed.
fn copy(name: &str) -> Written {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines").join(name);
    let mut files = BTreeMap::new();
    collect(&root, &mut files);
    let written = Written::default();
    for (path, text) in files {
        // As `Recorded` has it.
        let inside = path.strip_prefix(&root).unwrap().to_str().unwrap().replace("%3A", ":");
        written.set(Path::new("/").join(inside), Some(&text));
    }
    written
}

fn collect(folder: &Path, files: &mut BTreeMap<PathBuf, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            let text = std::fs::read_to_string(&path).unwrap();
            files.insert(path, text);
        }
    }
}
