//! A drive that fails: full, read-only, broken, gone. Callers go on, and the tier comes back.

use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

#[test]
fn a_full_drive_refuses_writes_with_the_reason_until_a_try_succeeds() {
    for (errno, shown) in [(ENOSPC, "No space left"), (EROFS, "Read-only"), (EIO, "Input/output")] {
        let folder = tempfile::tempdir().unwrap();
        let (warm, faulty, clock) = open_faulty(&folder);
        put(&warm, "before", &value(1, 5000));
        let full =
            Fault { path_contains: "values".into(), ..Fault::new(Operation::WriteNew, What::Errno(errno)) };
        faulty.fail(full);
        let id = KeyId::of(b"key");
        let failed = warm.put(b"key", id, &value(2, 5000), 0.5);
        assert!(matches!(failed, Err(Error::Io { operation: "write", .. })));
        for _ in 0..3 {
            match put(&warm, "key", &value(2, 5000)) {
                Put::Refused(Refusal::Degraded { reason }) => assert!(reason.contains(shown), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(faulty.met(), 1, "nothing is tried meanwhile");
        assert_eq!(get(&warm, "before"), Some(value(1, 5000)), "reads go on");
        clock.pass(1);
        warm.put(b"key", id, &value(2, 5000), 0.5).unwrap_err();
        let stats = warm.stats();
        assert!(stats.degraded.is_some_and(|reason| reason.contains(shown)));
        assert_eq!((stats.degraded_seconds, stats.degraded_count, stats.refused), (1.0, 1, 5));
        faulty.heal();
        clock.pass(1);
        assert!(
            matches!(put(&warm, "key", b"small"), Put::Refused(Refusal::Degraded { .. })),
            "it waits longer now"
        );
        clock.pass(1);
        assert_eq!(put(&warm, "key", &value(2, 5000)), Put::Stored);
        assert_eq!(warm.stats().degraded, None);
        assert_eq!(get(&warm, "key"), Some(value(2, 5000)));
        assert_eq!(files(folder.path()).len(), 2);
    }
}

#[test]
fn a_write_cut_short_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (warm, faulty, _) = open_faulty(&folder);
    faulty.fail(Fault { times: 1, ..Fault::new(Operation::WriteNew, What::Half) });
    warm.put(b"key", KeyId::of(b"key"), &value(1, 5000), 0.5).unwrap_err();
    assert_eq!((warm.stats().bytes, warm.stats().entries, files(folder.path()).len()), (0, 0, 0));
}

#[test]
fn an_older_value_is_not_found_once_a_newer_was_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (warm, faulty, _) = open_faulty(&folder);
    for key in ["a", "b"] {
        put(&warm, key, &value(1, 5000));
    }
    faulty.fail(Fault { times: 1, ..Fault::new(Operation::WriteNew, What::Errno(ENOSPC)) });
    warm.put(b"a", KeyId::of(b"a"), &value(2, 5000), 0.5).unwrap_err();
    assert!(matches!(put(&warm, "b", &value(2, 5000)), Put::Refused(Refusal::Degraded { .. })));
    assert_eq!((get(&warm, "a"), get(&warm, "b")), (None, None));
    drop(warm);
    assert_eq!(open(&folder).stats().entries, 0);
}

#[test]
fn what_the_drive_writes_or_reads_wrong_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (warm, faulty, _) = open_faulty(&folder);
    faulty.fail(Fault { times: 1, ..Fault::new(Operation::WriteNew, What::Flip(12_345)) });
    put(&warm, "written wrong", &value(1, 5000));
    assert_eq!(get(&warm, "written wrong"), None);
    for what in [What::Flip(5), What::Half, What::Errno(EIO)] {
        put(&warm, "read wrong", &value(2, 5000));
        faulty.fail(Fault { times: 1, ..Fault::new(Operation::Read, what) });
        let found = warm.get(b"read wrong", KeyId::of(b"read wrong"));
        assert!(matches!(found, Found::Damaged { .. }), "{what:?}: {found:?}");
    }
    assert_eq!((warm.stats().damaged, warm.stats().bytes), (4, 0));
}

#[test]
fn a_value_that_cannot_be_opened_for_now_is_a_miss_and_stays() {
    const EMFILE: i32 = 24;
    let folder = tempfile::tempdir().unwrap();
    let (warm, faulty, _) = open_faulty(&folder);
    put(&warm, "key", &value(1, 5000));
    faulty.fail(Fault { times: 1, ..Fault::new(Operation::Open, What::Errno(EMFILE)) });
    assert_eq!(get(&warm, "key"), None);
    assert_eq!(get(&warm, "key"), Some(value(1, 5000)));
    assert_eq!((warm.stats().errors, warm.stats().damaged), (1, 0));
    assert!(warm.stats().last_error.is_some_and(|error| error.contains("open files")));
}

#[test]
fn what_cannot_be_synchronised_is_dropped_and_the_flush_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (warm, faulty, clock) = open_faulty(&folder);
    put(&warm, "key", &value(1, 5000));
    faulty.fail(Fault { times: 1, ..Fault::new(Operation::Sync, What::Errno(EIO)) });
    assert!(matches!(warm.flush(), Err(Error::Io { operation: "synchronise", .. })));
    assert_eq!((get(&warm, "key"), warm.stats().damaged), (None, 1));
    clock.pass(1);
    put(&warm, "key", &value(1, 5000));
    warm.close().unwrap();
    assert_eq!(get(&open(&folder), "key"), Some(value(1, 5000)));
}

#[test]
fn a_flush_that_fails_keeps_superseded_files_and_counts_them_once() {
    let folder = tempfile::tempdir().unwrap();
    let (warm, faulty, clock) = open_faulty(&folder);
    put(&warm, "key", &value(1, 5000));
    warm.flush().unwrap();
    put(&warm, "key", &value(2, 5000));
    faulty.fail(Fault { times: 1, ..Fault::new(Operation::SyncFolder, What::Errno(EIO)) });
    warm.flush().unwrap_err();
    assert_eq!((warm.stats().entries, files(folder.path()).len()), (1, 2));
    clock.pass(1);
    warm.flush().unwrap();
    assert_eq!((warm.stats().bytes, files(folder.path()).len()), (charge_of(Place::File, 5000, 3), 1));
}

#[test]
fn a_folder_that_vanished_is_reported_not_made_again_elsewhere() {
    let place = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir_in(place.path()).unwrap();
    let (warm, _, clock) = open_faulty(&folder);
    put(&warm, "key", &value(1, 5000));
    let aside = place.path().join("aside");
    std::fs::rename(folder.path(), &aside).unwrap();
    assert_eq!(get(&warm, "key"), None);
    warm.put(b"key", KeyId::of(b"key"), &value(1, 5000), 0.5).unwrap_err();
    clock.pass(1);
    warm.put(b"key", KeyId::of(b"key"), &value(1, 5000), 0.5).unwrap_err();
    assert!(warm.stats().degraded.is_some());
    assert!(!folder.path().exists());
    std::fs::rename(&aside, folder.path()).unwrap();
    clock.pass(2);
    assert_eq!(put(&warm, "key", &value(1, 5000)), Put::Stored);
    assert_eq!(get(&warm, "key"), Some(value(1, 5000)));
}

/// A file system of 8 MiB, if this machine lets us have one.
struct SmallDrive(TempDir);

impl SmallDrive {
    fn mount() -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
            .arg(folder.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Ok(Self(folder)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for SmallDrive {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[test]
fn on_a_drive_that_is_really_full_nothing_is_wrong_and_it_comes_back() {
    let drive = match SmallDrive::mount() {
        Ok(drive) => drive,
        Err(why) => return println!("skipped: no small file system: {why}"),
    };
    let clock = TestClock::default();
    let now = clock.clone();
    let mut settings = settings(&drive.0.path().join("warm"));
    settings.budget_bytes = 1 << 30;
    settings.clock = Arc::new(move || Duration::from_secs(now.0.load(Ordering::Relaxed)));
    let warm = Warm::open(settings).unwrap();
    let mut stored = HashMap::new();
    for i in 0..400_u64 {
        let key = format!("key {i}");
        let bytes = value(i, if i % 3 == 0 { 900 } else { 50_000 });
        if let Ok(Put::Stored) = warm.put(key.as_bytes(), KeyId::of(key.as_bytes()), &bytes, 0.5) {
            stored.insert(key, bytes);
        }
        clock.pass(1);
    }
    assert!(warm.stats().degraded_count > 0 && warm.stats().errors > 0 && stored.len() > 50);
    let check = |warm: &Warm| {
        for (key, bytes) in &stored {
            assert!(get(warm, key).is_none_or(|found| found == *bytes), "{key}");
        }
    };
    check(&warm);
    warm.resize(2 << 20).unwrap();
    clock.pass(1000);
    assert_eq!(put(&warm, "after", &value(7, 50_000)), Put::Stored);
    assert_eq!(get(&warm, "after"), Some(value(7, 50_000)));
    check(&warm);
    warm.close().unwrap();
}
