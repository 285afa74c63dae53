//! A folder as a cold tier: what was put comes back, also after a restart; what is damaged does not; the budget holds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

#[path = "common/first_stays.rs"]
mod first_stays;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use first_stays::FirstStays;
use proptest::prelude::*;
use qvl_cache::cold::folder::{FolderSettings, FolderTier};
use qvl_cache::cold::{Cold, Kept, Refusal};
use qvl_cache::storage::{Disk, Opened, Storage};
use qvl_cache::{Error, KeyId, PolicyName};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(path: &Path, settings: FolderSettings) -> FolderTier {
    FolderTier::open(path, settings, PolicyName::Lru.build()).unwrap()
}

fn refused(path: &Path, settings: FolderSettings) -> Error {
    match FolderTier::open(path, settings, PolicyName::Lru.build()) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

/// A value of its own for each seed, which does not compress.
fn value(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn file_of(folder: &Path, key: &[u8]) -> PathBuf {
    let name = KeyId::of(key).to_string();
    folder.join("values").join(&name[..1]).join(&name[1..2]).join(name)
}

fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    // A tier that never held a value has no folder for them.
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), path.metadata().unwrap().len()));
        }
    }
    found
}

#[test]
fn a_value_comes_back_and_again_after_a_restart() {
    let folder = folder();
    let long_key = vec![7; 100_000];
    let values: Vec<(&[u8], Bytes)> = vec![
        (b"empty", Bytes::new()),
        (b"", value(1, 10)),
        (b"large", value(2, 300_000)),
        (&long_key, value(3, 5)),
        (b"text", Bytes::from("the same again and again; ".repeat(1000))),
    ];
    let tier = open(folder.path(), FolderSettings::new(MIB));
    for (key, value) in &values {
        assert!(!tier.contains(key).unwrap());
        assert_eq!(tier.get(key).unwrap(), None);
        assert_eq!(tier.put(key, value, 0.5).unwrap(), Kept::Stored);
        assert_eq!(tier.put(key, value, 0.5).unwrap(), Kept::AlreadyThere);
        assert_eq!(tier.get(key).unwrap().as_ref(), Some(value));
        assert!(tier.contains(key).unwrap());
    }
    let stats = tier.stats();
    assert_eq!((stats.hits, stats.misses, stats.puts, stats.values), (5, 5, 5, 5));
    tier.close().unwrap();
    assert!(matches!(tier.get(b"empty"), Err(Error::Closed)));
    assert!(matches!(tier.put(b"empty", &Bytes::new(), 0.0), Err(Error::Closed)));

    let tier = open(folder.path(), FolderSettings::new(MIB));
    assert_eq!((tier.stats().values, tier.stats().bytes), (5, stats.bytes));
    for (key, value) in &values {
        assert_eq!(tier.get(key).unwrap().as_ref(), Some(value));
        tier.remove(key).unwrap();
        assert_eq!(tier.get(key).unwrap(), None);
    }
    assert_eq!((tier.stats().values, tier.stats().bytes), (0, 0));
    assert_eq!(files(&folder.path().join("values")), []);
}

#[cfg(feature = "compression")]
#[test]
fn text_takes_less_and_random_bytes_as_much_as_they_are() {
    let folder = folder();
    let tier = open(folder.path(), FolderSettings::new(MIB));
    let text = Bytes::from((0..10_000).map(|i| format!("line {i} of a text\n")).collect::<String>());
    tier.put(b"text", &text, 0.0).unwrap();
    assert!(tier.stats().stored_bytes * 2 < text.len() as u64, "{:?}", tier.stats());
    assert_eq!(tier.get(b"text").unwrap(), Some(text.clone()));
    let before = tier.stats().stored_bytes;
    tier.put(b"random", &value(1, 100_000), 0.0).unwrap();
    assert_eq!(tier.stats().stored_bytes - before, 100_000 + 64);

    let plain = self::folder();
    let mut settings = FolderSettings::new(MIB);
    settings.link = None;
    let tier = open(plain.path(), settings);
    tier.put(b"text", &text, 0.0).unwrap();
    assert_eq!(tier.stats().stored_bytes, text.len() as u64 + 64);
}

#[test]
fn every_damaged_byte_is_a_counted_miss_and_the_file_goes() {
    let folder = folder();
    let tier = open(folder.path(), FolderSettings::new(MIB));
    let text = Bytes::from("a value that compresses, a value that compresses. ".repeat(20));
    for (key, value) in [(&b"plain"[..], value(1, 40)), (b"compressed", text)] {
        let path = file_of(folder.path(), key);
        tier.put(key, &value, 0.0).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = tier.stats().damaged;
        let mut check = |bytes: &[u8], what: String| {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(tier.get(key).unwrap(), None, "{what}");
            damaged += 1;
            assert_eq!(tier.stats().damaged, damaged, "{what}");
            assert!(!path.exists(), "{what}");
            assert_eq!(tier.put(key, &value, 0.0).unwrap(), Kept::Stored);
            assert_eq!(tier.get(key).unwrap().as_ref(), Some(&value));
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            check(&bytes, format!("byte {at}"));
        }
        for len in 0..whole.len() {
            check(&whole[..len], format!("{len} bytes"));
        }
    }
}

#[test]
fn a_file_under_another_keys_name_is_a_miss() {
    let folder = folder();
    let tier = open(folder.path(), FolderSettings::new(MIB));
    tier.put(b"one", &value(1, 100), 0.0).unwrap();
    tier.put(b"two", &value(2, 100), 0.0).unwrap();
    std::fs::copy(file_of(folder.path(), b"one"), file_of(folder.path(), b"two")).unwrap();
    assert_eq!(tier.get(b"two").unwrap(), None);
    assert_eq!(tier.stats().damaged, 1);
    assert_eq!(tier.get(b"one").unwrap(), Some(value(1, 100)));
}

#[test]
fn a_file_that_somebody_removed_is_a_miss_and_can_be_put_again() {
    let folder = folder();
    let tier = open(folder.path(), FolderSettings::new(MIB));
    tier.put(b"one", &value(1, 100), 0.0).unwrap();
    std::fs::remove_file(file_of(folder.path(), b"one")).unwrap();
    assert_eq!(tier.get(b"one").unwrap(), None);
    assert_eq!((tier.stats().damaged, tier.stats().bytes), (0, 0));
    assert_eq!(tier.put(b"one", &value(1, 100), 0.0).unwrap(), Kept::Stored);
    assert_eq!(tier.get(b"one").unwrap(), Some(value(1, 100)));
}

#[test]
fn the_budget_holds_and_the_policy_says_who_leaves() {
    let folder = folder();
    // A header, key and zeros take 64 bytes: room for three.
    let tier = open(folder.path(), FolderSettings::new(3 * (1000 + 64)));
    let key = |i: u64| i.to_le_bytes();
    for i in 0..3 {
        tier.put(&key(i), &value(i, 1000), 0.0).unwrap();
    }
    tier.get(&key(0)).unwrap().unwrap();
    tier.put(&key(3), &value(3, 1000), 0.0).unwrap();
    let there =
        |tier: &FolderTier| -> Vec<u64> { (0..4).filter(|&i| tier.contains(&key(i)).unwrap()).collect() };
    assert_eq!(there(&tier), [0, 2, 3]);
    assert_eq!((tier.stats().evicted, tier.stats().bytes), (1, 3 * 1064));
    tier.resize(2 * 1064).unwrap();
    assert_eq!(there(&tier), [0, 3]);
    assert_eq!(files(&folder.path().join("values")).iter().map(|file| file.1).sum::<u64>(), 2 * 1064);
    assert_eq!(tier.put(b"large", &value(9, 3000), 0.0).unwrap(), Kept::Refused(Refusal::TooLarge));
    assert_eq!(there(&tier), [0, 3]);
    tier.resize(0).unwrap();
    assert_eq!(files(&folder.path().join("values")), []);
}

#[test]
fn what_the_policy_does_not_want_is_refused_and_not_written() {
    let folder = folder();
    let tier = FolderTier::open(folder.path(), FolderSettings::new(1500), FirstStays::boxed()).unwrap();
    assert_eq!(tier.put(b"first", &value(1, 1000), 0.0).unwrap(), Kept::Stored);
    assert_eq!(tier.put(b"second", &value(2, 1000), 0.0).unwrap(), Kept::Refused(Refusal::NotWorthIt));
    assert_eq!(tier.get(b"second").unwrap(), None);
    assert_eq!(tier.get(b"first").unwrap(), Some(value(1, 1000)));
    assert_eq!((tier.stats().refused, files(&folder.path().join("values")).len()), (1, 1));
}

#[test]
fn after_a_restart_the_oldest_files_leave_first_and_a_read_makes_young() {
    let folder = folder();
    let mut settings = FolderSettings::new(MIB);
    settings.touch_after = Duration::ZERO;
    let tier = open(folder.path(), settings.clone());
    for (age, key) in [(300, b"a"), (200, b"b"), (100, b"c")] {
        tier.put(key, &value(age, 1000), 0.0).unwrap();
        let file = std::fs::File::options().write(true).open(file_of(folder.path(), key)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    tier.get(b"a").unwrap().unwrap();
    drop(tier);
    settings.budget_bytes = 2 * 1064;
    let tier = open(folder.path(), settings.clone());
    assert_eq!([b"a", b"b", b"c"].map(|key| tier.contains(key).unwrap()), [true, false, true]);
    drop(tier);
    settings.budget_bytes = 1064;
    let tier = open(folder.path(), settings);
    assert_eq!([b"a", b"b", b"c"].map(|key| tier.contains(key).unwrap()), [true, false, false]);
}

#[test]
fn values_over_the_bound_are_refused() {
    let folder = folder();
    let mut settings = FolderSettings::new(MIB);
    settings.value_bytes_max = 1000;
    let tier = open(folder.path(), settings);
    assert_eq!(tier.put(b"k", &value(1, 1001), 0.0).unwrap(), Kept::Refused(Refusal::TooLarge));
    assert_eq!(tier.put(b"k", &value(1, 1000), 0.0).unwrap(), Kept::Stored);
    assert_eq!(tier.put(&[0; 2_000_000], &value(1, 1), 0.0).unwrap(), Kept::Refused(Refusal::TooLarge));
}

#[test]
fn a_folder_of_other_things_is_not_touched() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("tmp")).unwrap();
    std::fs::write(folder.path().join("tmp").join("mine"), b"mine").unwrap();
    assert!(
        matches!(refused(folder.path(), FolderSettings::new(MIB)), Error::Foreign { found, .. } if found == "tmp")
    );
    assert_eq!(files(folder.path()).len(), 1);
    let file = folder.path().join("tmp").join("mine");
    assert!(matches!(refused(&file, FolderSettings::new(MIB)), Error::NotAFolder { path } if path == file));
}

#[test]
fn a_marker_of_another_version_or_none_at_all_is_an_error() {
    let folder = folder();
    drop(open(folder.path(), FolderSettings::new(MIB)));
    let marker = folder.path().join("qvl-cold");
    let text = std::fs::read_to_string(&marker).unwrap();
    std::fs::write(&marker, text.replace("version 1", "version 7")).unwrap();
    let error = refused(folder.path(), FolderSettings::new(MIB));
    assert!(matches!(error, Error::Version { found: 7, expected: 1, .. }), "{error}");
    for text in ["", "something", "qvl-cache cold tier, version 1", "qvl-cache cold tier, version one\n"] {
        std::fs::write(&marker, text).unwrap();
        let error = refused(folder.path(), FolderSettings::new(MIB));
        assert!(matches!(&error, Error::Malformed { path, .. } if *path == marker), "{text:?}: {error}");
    }
}

#[test]
fn a_folder_filled_for_something_else_is_cleared_only_when_asked_for() {
    let folder = folder();
    let settings = |fingerprint: &str| {
        let mut settings = FolderSettings::new(MIB);
        settings.fingerprint = fingerprint.to_owned();
        settings
    };
    let tier = open(folder.path(), settings("model one\nbf16"));
    tier.put(b"k", &value(1, 100), 0.0).unwrap();
    drop(tier);
    match refused(folder.path(), settings("model two")) {
        Error::Fingerprint { found, expected, .. } => {
            assert_eq!((found.as_str(), expected.as_str()), ("model one\nbf16", "model two"));
        }
        other => panic!("{other}"),
    }
    assert_eq!(open(folder.path(), settings("model one\nbf16")).get(b"k").unwrap(), Some(value(1, 100)));
    let mut clear = settings("model two");
    clear.clear_if_other = true;
    assert_eq!(open(folder.path(), clear).stats().values, 0);
    assert_eq!(open(folder.path(), settings("model two")).get(b"k").unwrap(), None);
}

#[test]
fn a_folder_is_open_once() {
    let folder = folder();
    let tier = open(folder.path(), FolderSettings::new(MIB));
    assert!(matches!(refused(folder.path(), FolderSettings::new(MIB)), Error::InUse { .. }));
    tier.close().unwrap();
    open(folder.path(), FolderSettings::new(MIB));
}

#[test]
fn what_a_killed_process_left_is_cleared_and_what_is_not_ours_stays() {
    let folder = folder();
    drop(open(folder.path(), FolderSettings::new(MIB)));
    std::fs::write(folder.path().join("qvl-cold-tmp").join("half"), b"half a val").unwrap();
    std::fs::create_dir_all(folder.path().join("values/a/b")).unwrap();
    std::fs::write(folder.path().join("values/a/b/notes.txt"), b"mine").unwrap();
    let tier = open(folder.path(), FolderSettings::new(MIB));
    assert_eq!(tier.stats().values, 0);
    tier.resize(0).unwrap();
    assert!(!folder.path().join("qvl-cold-tmp").join("half").exists());
    assert!(folder.path().join("values/a/b/notes.txt").exists());
}

/// A drive that does something of its own before it writes a file.
struct Before<F>(F);

impl<F: Fn(&Path, &[&[u8]]) -> std::io::Result<()> + Send + Sync> Storage for Before<F> {
    fn open(&self, path: &Path, direct: bool) -> std::io::Result<Box<dyn Opened>> {
        Disk.open(path, direct)
    }
    fn read_at(&self, path: &Path, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        Disk.read_at(path, offset, into)
    }
    fn remove_folder(&self, path: &Path) -> std::io::Result<()> {
        Disk.remove_folder(path)
    }
    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> std::io::Result<()> {
        self.0(path, parts)?;
        Disk.write_new(path, parts)
    }
    fn sync(&self, path: &Path) -> std::io::Result<()> {
        Disk.sync(path)
    }
    fn sync_folder(&self, path: &Path) -> std::io::Result<()> {
        Disk.sync_folder(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        Disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        Disk.remove(path)
    }
    fn create_folder(&self, path: &Path) -> std::io::Result<()> {
        Disk.create_folder(path)
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<(PathBuf, u64)>> {
        Disk.list(path)
    }
}

#[test]
fn a_full_drive_is_an_error_that_leaves_nothing_behind() {
    let folder = folder();
    let full = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&full);
    let mut settings = FolderSettings::new(MIB);
    settings.storage = Arc::new(Before(move |path: &Path, parts: &[&[u8]]| {
        if told.load(Ordering::Relaxed) {
            // As far as it came.
            Disk.write_new(path, &[&parts[0][..parts[0].len() / 2]])?;
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }));
    let tier = open(folder.path(), settings);
    tier.put(b"before", &value(1, 100), 0.0).unwrap();
    full.store(true, Ordering::Relaxed);
    let error = tier.put(b"k", &value(2, 100), 0.0).unwrap_err();
    assert!(matches!(error, Error::Io { operation: "write", .. }), "{error}");
    assert_eq!(tier.get(b"k").unwrap(), None);
    assert_eq!((tier.stats().values, tier.stats().bytes, tier.stats().errors), (1, 164, 1));
    assert_eq!(files(&folder.path().join("qvl-cold-tmp")), []);
    assert_eq!(tier.get(b"before").unwrap(), Some(value(1, 100)));
    full.store(false, Ordering::Relaxed);
    assert_eq!(tier.put(b"k", &value(2, 100), 0.0).unwrap(), Kept::Stored);
}

#[test]
fn what_is_done_with_a_key_while_it_is_written_is_done() {
    let folder = folder();
    let tier: Arc<OnceLock<FolderTier>> = Arc::default();
    let inner = Arc::clone(&tier);
    let saw = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&saw);
    let mut settings = FolderSettings::new(3000);
    settings.storage = Arc::new(Before(move |path: &Path, _: &[&[u8]]| {
        if path.file_name().unwrap() == "qvl-cold" || told.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let tier = inner.get().unwrap();
        assert_eq!(tier.get(b"k").unwrap(), None);
        assert!(!tier.contains(b"k").unwrap());
        assert_eq!(tier.put(b"k", &value(1, 2000), 0.0).unwrap(), Kept::AlreadyThere);
        // There is no room beside it, and it cannot leave.
        let other = tier.put(b"other", &value(2, 2000), 0.0).unwrap();
        assert_eq!(other, Kept::Refused(Refusal::NotWorthIt));
        assert_eq!(tier.stats().bytes, 2064);
        tier.remove(b"k").unwrap();
        assert_eq!(tier.stats().bytes, 0);
        Ok(())
    }));
    assert!(tier.set(open(folder.path(), settings)).is_ok());
    let tier = tier.get().unwrap();
    assert_eq!(tier.put(b"k", &value(1, 2000), 0.0).unwrap(), Kept::Stored);
    assert!(saw.load(Ordering::Relaxed));
    assert_eq!(tier.get(b"k").unwrap(), None, "it was removed");
    assert_eq!(files(&folder.path().join("values")), []);
    assert_eq!(tier.put(b"k", &value(1, 2000), 0.0).unwrap(), Kept::Stored);
    assert_eq!(tier.get(b"k").unwrap(), Some(value(1, 2000)));
}

#[test]
fn many_threads_never_see_a_wrong_value_nor_break_the_budget() {
    let folder = folder();
    let budget = 20 * 1064;
    let tier = open(folder.path(), FolderSettings::new(budget));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let tier = &tier;
            scope.spawn(move || {
                for i in 0..500u64 {
                    let number = (i * 7 + thread * 13) % 40;
                    let key = number.to_le_bytes();
                    // Another length for each key, so that a mix-up of files would be seen as damage.
                    let expected = value(number, 500 + number as usize * 10);
                    match i % 5 {
                        0 | 1 => _ = tier.put(&key, &expected, 0.0).unwrap(),
                        2 | 3 => {
                            if let Some(found) = tier.get(&key).unwrap() {
                                assert_eq!(found, expected);
                            }
                        }
                        _ => tier.remove(&key).unwrap(),
                    }
                    assert!(tier.stats().bytes <= budget + 4 * 1064);
                }
            });
        }
    });
    let stats = tier.stats();
    assert_eq!(stats.damaged, 0);
    assert!(stats.bytes <= budget);
    let listed: u64 = files(&folder.path().join("values")).iter().map(|file| file.1).sum();
    assert!(listed <= stats.bytes, "no file that is not counted");
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u16),
    Get(u8),
    Remove(u8),
    Resize(u16),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12u8, 0..2000u16).prop_map(|(key, len)| Step::Put(key, len)),
        4 => (0..12u8).prop_map(Step::Get),
        1 => (0..12u8).prop_map(Step::Remove),
        1 => (0..9000u16).prop_map(Step::Resize),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_value_is_what_was_put_last_or_nothing(steps in proptest::collection::vec(step(), 1..60)) {
        let folder = folder();
        let mut budget = 6000;
        let mut tier = open(folder.path(), FolderSettings::new(budget));
        let mut model: std::collections::HashMap<u8, Bytes> = Default::default();
        for step in steps {
            match step {
                Step::Put(key, len) => {
                    let new = value(u64::from(len), usize::from(len));
                    match tier.put(&[key], &new, 1.0).unwrap() {
                        Kept::Stored => _ = model.insert(key, new),
                        Kept::AlreadyThere => prop_assert!(model.contains_key(&key)),
                        Kept::Refused(why) => {
                            prop_assert_eq!(why, Refusal::TooLarge);
                            prop_assert!(u64::from(len) + 64 > budget);
                        }
                    }
                }
                Step::Get(key) => {
                    let found = tier.get(&[key]).unwrap();
                    prop_assert!(found.is_none() || found.as_ref() == model.get(&key));
                }
                Step::Remove(key) => {
                    tier.remove(&[key]).unwrap();
                    model.remove(&key);
                }
                Step::Resize(bytes) => {
                    budget = u64::from(bytes);
                    tier.resize(budget).unwrap();
                }
                Step::Reopen => {
                    drop(tier);
                    tier = open(folder.path(), FolderSettings::new(budget));
                }
            }
            prop_assert!(tier.stats().bytes <= budget);
            let listed: u64 = files(&folder.path().join("values")).iter().map(|file| file.1).sum();
            prop_assert_eq!(listed, tier.stats().bytes);
            prop_assert_eq!(tier.stats().damaged, 0);
        }
    }
}
