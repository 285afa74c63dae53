//! A file of a real control group of version 2 wakes the watch each time that it changes, and not when it is gone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![cfg(target_os = "linux")]

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qvl_alloc::pressure::{Settings, parse};
use qvl_alloc::system::{System, Written};
use qvl_alloc::{Pressure, Watch};

/// A machine in memory, whose group has the descriptors of a real one: `cgroup.events` changes when a process enters
/// or leaves, by the same way as `memory.events`.
struct Wired {
    files: Arc<Written>,
    group: PathBuf,
}

impl System for Wired {
    fn read(&self, path: &Path) -> io::Result<String> {
        self.files.read(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.files.list(folder)
    }

    fn real(&self, path: &Path) -> Option<PathBuf> {
        match path.to_str()? {
            "/v2/c/memory.events" => Some(self.group.join("cgroup.events")),
            "/v2/c/memory.pressure" => Some(self.group.join("memory.pressure")),
            _ => None,
        }
    }
}

fn set(files: &Written, available: u64) {
    let text = format!("MemTotal: 1000000000000 kB\nMemAvailable: {available} kB\nSwapFree: 0 kB\n");
    files.set("/proc/meminfo", Some(&text));
}

/// Waits until the watch has seen this, which it does when it is woken.
fn seen(watch: &Watch, available: u64) {
    let began = Instant::now();
    while watch.reading().limits.as_ref().unwrap().available_bytes != available << 10 {
        assert!(began.elapsed() < Duration::from_secs(30), "not woken: {watch:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn each_change_wakes_and_a_group_that_is_gone_does_not() {
    let mounts =
        parse::mounts(Path::new("mountinfo"), &std::fs::read_to_string("/proc/self/mountinfo").unwrap());
    let group =
        mounts.unwrap().v2.map(|mount| mount.point.join(format!("qvl-alloc-wakes-{}", std::process::id())));
    let Some(group) = group.filter(|group| std::fs::create_dir(group).is_ok()) else {
        eprintln!("skipped: no control group of version 2 can be made here");
        return;
    };
    let files = Arc::new(Written::default());
    set(&files, 999_999_999_999);
    files.set("/proc/self/cgroup", Some("0::/c\n"));
    files.set("/proc/self/mountinfo", Some("41 31 0:38 / /v2 rw - cgroup2 cgroup2 rw\n"));
    files.set("/v2/c/memory.events", Some("low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n"));
    let psi = "avg10=0.00 avg60=0.00 avg300=0.00 total=0";
    files.set("/v2/c/memory.pressure", Some(&format!("some {psi}\nfull {psi}\n")));

    let hour = Duration::from_secs(3600);
    let pressure = Pressure::new(Wired { files: Arc::clone(&files), group: group.clone() });
    let settings = Settings { fast: hour, slow: hour, ..Settings::default() };
    let watch = Watch::builder(pressure).settings(settings).start().unwrap();
    eprintln!("{}", watch.how());
    assert!(watch.how().to_string().contains("woken by changes of"), "{}", watch.how());

    set(&files, 999_999_999_998);
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
    seen(&watch, 999_999_999_998);
    // Once more: it is heard again after it was heard.
    set(&files, 999_999_999_997);
    child.kill().unwrap();
    child.wait().unwrap();
    seen(&watch, 999_999_999_997);
    assert!(watch.stats().woken_by_triggers >= 2, "{:?}", watch.stats());

    let began = Instant::now();
    while std::fs::remove_dir(&group).is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "{} stays", group.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    // A descriptor of a group that is gone is ready for ever. Each is heard once and let go.
    std::thread::sleep(Duration::from_millis(100));
    let looks = watch.stats().looks;
    std::thread::sleep(Duration::from_millis(300));
    assert!(watch.stats().looks <= looks + 2, "{looks} looks became {:?}", watch.stats());
}
