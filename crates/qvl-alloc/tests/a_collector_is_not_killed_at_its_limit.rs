//! In a real control group with a limit: who gives back when the watch says so is not killed, who does not is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use qvl_alloc::pressure::{Level, LimitedBy, Settings, Thresholds};
use qvl_alloc::system::{Live, System};
use qvl_alloc::{Pressure, Watch};

const MIB: usize = 1 << 20;
const LIMIT_MIB: usize = 64;
/// Many times the limit.
const ALL_MIB: usize = 200;
const GROUP: &str = "QVL_ALLOC_TEST_GROUP";
const HOW: &str = "QVL_ALLOC_TEST_HOW";
const SIGKILL: i32 = 9;

/// A control group of memory with a limit.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Option<Self> {
        let roots = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max", "memory.swap.max"),
        ];
        for (root, file, swap) in roots {
            let path = Path::new(root).join(format!("qvl-alloc-{name}-{}", std::process::id()));
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self(path);
            let limit = (LIMIT_MIB * MIB).to_string();
            if group.0.join(file).exists() && std::fs::write(group.0.join(file), &limit).is_ok() {
                // Where there is swap, the limit would be less of one. Version 1 counts both together.
                let most = if swap == "memory.swap.max" { "0" } else { &limit };
                let _ = std::fs::write(group.0.join(swap), most);
                return Some(group);
            }
        }
        None
    }

    fn child(&self, how: &str) -> Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]).env(GROUP, &self.0);
        command.env(HOW, how);
        command.output().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel takes a moment to see that the last process is gone.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Memory that is given back to the system when it is dropped, whatever the allocator does; it counts in a group as
/// the heap does, and cannot be reclaimed.
fn mebibyte() -> File {
    let mut file = File::from(rustix::fs::memfd_create("mebibyte", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&vec![1; MIB]).unwrap();
    file
}

#[test]
fn who_gives_back_lives_and_who_does_not_is_killed() {
    let [Some(woken), Some(looking), Some(hoarding)] = ["woken", "looks", "hoards"].map(Group::new) else {
        eprintln!("skipped: no control group of memory can be made here, as root or where one is delegated");
        return;
    };
    let hoarder = hoarding.child("hoards");
    let said = String::from_utf8_lossy(&hoarder.stderr);
    assert_eq!(hoarder.status.signal(), Some(SIGKILL), "the limit holds: {:?} {said}", hoarder.status);
    for (group, how) in [(&woken, "woken"), (&looking, "looks")] {
        let collector = group.child(how);
        let said = String::from_utf8_lossy(&collector.stderr);
        assert!(collector.status.success(), "{how}: {:?}: {said}", collector.status);
        eprintln!("{how}: {said}");
    }
}

/// This machine, where nothing can be asked to wake.
struct NoTriggers;

impl System for NoTriggers {
    fn read(&self, path: &Path) -> io::Result<String> {
        Live.read(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        Live.list(folder)
    }
}

/// Not a test by itself: what the other one starts in a group.
#[test]
fn child() {
    let Ok(group) = std::env::var(GROUP) else { return };
    let how = std::env::var(HOW).unwrap();
    let collects = how != "hoards";
    std::fs::write(Path::new(&group).join("cgroup.procs"), std::process::id().to_string()).unwrap();

    let held: Arc<Mutex<Vec<File>>> = Arc::default();
    let full_at: Arc<Mutex<Option<Instant>>> = Arc::default();
    let reactions: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let (pool, full, times) = (Arc::clone(&held), Arc::clone(&full_at), Arc::clone(&reactions));
    let thresholds = Thresholds {
        critical_enter: 0.5,
        critical_leave: 0.35,
        dwell: Duration::from_millis(50),
        ..Thresholds::default()
    };
    let watch = Watch::builder(if how == "looks" { Pressure::new(NoTriggers) } else { Pressure::live() })
        .settings(Settings { thresholds, ..Settings::default() })
        .on_change(move |change| {
            if collects && change.to == Level::Critical {
                times.lock().unwrap().extend(full.lock().unwrap().take().map(|full| full.elapsed()));
                pool.lock().unwrap().clear();
            }
        })
        .start()
        .unwrap();
    let reading = watch.reading();
    let limits = reading.limits.as_ref().unwrap();
    assert_eq!(limits.total_bytes, (LIMIT_MIB * MIB) as u64, "{limits:?}");
    assert!(
        matches!(&limits.limited_by, LimitedBy::Group { file } if file.starts_with(&group)),
        "{limits:?}"
    );

    // What is critical here, seen from this side: 16 % are left.
    let full_bytes = (LIMIT_MIB * MIB * 84 / 100) as u64;
    let used = ["memory.usage_in_bytes", "memory.current"].map(|file| Path::new(&group).join(file));
    let used = used.iter().find(|path| path.exists()).unwrap();
    let mut made = 0;
    while made < ALL_MIB {
        // At a critical level nothing new is kept: a cache that fills again at once was not given back.
        if !collects || watch.level() < Level::Critical {
            let more = mebibyte();
            held.lock().unwrap().push(more);
            made += 1;
        }
        let used_bytes: u64 = std::fs::read_to_string(used).unwrap().trim().parse().unwrap();
        let mut full = full_at.lock().unwrap();
        *full = (used_bytes >= full_bytes).then(|| full.unwrap_or_else(Instant::now));
        drop(full);
        // No more than 50 MiB a second: the limit is 200 ms away when it gets critical, on a machine that does other
        // things as well.
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(collects, "it made {made} MiB at a limit of {LIMIT_MIB} MiB and lives");
    let stats = watch.stats();
    let mut reactions = reactions.lock().unwrap().clone();
    reactions.sort();
    assert!(stats.changes >= 2 * (ALL_MIB / LIMIT_MIB) as u64, "{stats:?}");
    eprintln!("made {made} MiB; {}; {stats:?}; from full to the call back: {reactions:?}", watch.how());
}
