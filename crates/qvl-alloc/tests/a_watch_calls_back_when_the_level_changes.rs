//! A watch calls back for each change of the level and for nothing else, survives what it calls, and ends when dropped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qvl_alloc::pressure::{Change, Level, Settings, Thresholds, WatchBuilder};
use qvl_alloc::system::Written;
use qvl_alloc::{Error, Pressure, Watch};

/// Long enough for the slowest machine; nothing waits for all of it if the watch works.
const PATIENCE: Duration = Duration::from_secs(30);

fn machine(available: u64) -> Arc<Written> {
    let files = Arc::new(Written::default());
    set(&files, available);
    files
}

/// Of 1000 kB.
fn set(files: &Written, available: u64) {
    let text = format!("MemTotal: 1000 kB\nMemAvailable: {available} kB\nSwapFree: 0 kB\n");
    files.set("/proc/meminfo", Some(&text));
}

fn watch(files: &Arc<Written>) -> WatchBuilder {
    let thresholds = Thresholds { dwell: Duration::from_millis(20), ..Thresholds::default() };
    let (fast, slow) = (Duration::from_millis(5), Duration::from_millis(10));
    Watch::builder(Pressure::new(Arc::clone(files))).settings(Settings { thresholds, fast, slow })
}

fn heard(watch: WatchBuilder) -> (WatchBuilder, Receiver<(Level, Level)>) {
    let (say, hear) = mpsc::channel();
    (watch.on_change(move |change: &Change| _ = say.send((change.from, change.to))), hear)
}

#[test]
fn up_and_down() {
    let files = machine(900);
    let (builder, hear) = heard(watch(&files));
    let watch = builder.start().unwrap();
    assert_eq!(watch.level(), Level::Calm);
    set(&files, 10);
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), (Level::Calm, Level::Critical));
    assert_eq!(watch.level(), Level::Critical);
    assert_eq!(watch.reading().limits.as_ref().unwrap().available_bytes, 10 << 10);
    set(&files, 900);
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), (Level::Critical, Level::Low));
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), (Level::Low, Level::Calm));
    assert_eq!(watch.stats().changes, 3);
    drop(watch);
    let after = hear.try_recv();
    assert_eq!(after, Err(mpsc::TryRecvError::Disconnected), "the thread is gone, with what it called");
}

#[test]
fn what_is_low_at_the_start_is_the_first_change() {
    let (builder, hear) = heard(watch(&machine(150)));
    let watch = builder.start().unwrap();
    assert_eq!(watch.level(), Level::Low);
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), (Level::Calm, Level::Low));
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let files = machine(10);
    let (builder, hear) = heard(watch(&files));
    let watch = builder.start().unwrap();
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), (Level::Calm, Level::Critical));
    files.set("/proc/meminfo", None);
    let looks = watch.stats().looks;
    while watch.stats().looks < looks + 20 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((watch.level(), watch.reading().share), (Level::Critical, None));
    assert!(hear.try_recv().is_err());
}

#[test]
fn a_panic_in_a_call_back_is_caught_and_others_are_called() {
    let files = machine(900);
    let (builder, hear) = heard(watch(&files).on_change(|_| panic!("a panic that is part of a test")));
    let watch = builder.start().unwrap();
    set(&files, 10);
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap().1, Level::Critical);
    set(&files, 900);
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap().1, Level::Low);
    assert_eq!(watch.stats().panics, 2);
}

#[test]
fn dropped_in_its_own_call_back_it_ends() {
    let files = machine(900);
    let slot: Arc<Mutex<Option<Watch>>> = Arc::default();
    let (say, hear) = mpsc::channel::<()>();
    let own = Arc::clone(&slot);
    let watch = watch(&files)
        .on_change(move |_| {
            drop(own.lock().unwrap().take());
            say.send(()).unwrap();
        })
        .start()
        .unwrap();
    *slot.lock().unwrap() = Some(watch);
    set(&files, 10);
    assert_eq!(hear.recv_timeout(PATIENCE), Ok(()), "it goes on after the drop");
    // The sender goes with the thread.
    assert_eq!(hear.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn it_is_woken_when_asked() {
    let files = machine(900);
    let (builder, hear) = heard(watch(&files));
    let hour = Duration::from_secs(3600);
    // Of 1 EiB nothing is gone soon.
    files.set(
        "/proc/meminfo",
        Some("MemTotal: 1000000000000000 kB\nMemAvailable: 1000000000000000 kB\nSwapFree: 0 kB"),
    );
    let settings = Settings { fast: hour, slow: hour, ..Settings::default() };
    let watch = builder.settings(settings).start().unwrap();
    set(&files, 10);
    watch.look();
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap().1, Level::Critical);
}

#[test]
fn a_machine_that_is_not_this_one_is_looked_at_and_that_is_said() {
    let files = machine(900);
    let watch = watch(&files).start().unwrap();
    let how = watch.how();
    assert!(how.triggers.is_empty(), "{how}");
    assert!(how.to_string().starts_with("looks each 5ms to 10ms"), "{how}");
    if cfg!(target_os = "linux") {
        assert!(how.to_string().contains("not woken: /proc/pressure/memory: the machine is not"), "{how}");
    }
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let files = machine(900);
    let wrong = [
        Settings { fast: Duration::ZERO, ..Settings::default() },
        Settings { slow: Duration::from_millis(1), ..Settings::default() },
        Settings {
            thresholds: Thresholds { low_leave: 0.9, ..Thresholds::default() },
            ..Settings::default()
        },
    ];
    for settings in wrong {
        let refused = watch(&files).settings(settings).start();
        assert!(matches!(refused, Err(Error::Setting { .. })), "{settings:?}");
    }
}
