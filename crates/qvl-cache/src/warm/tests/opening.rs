//! Opening: what is found again, and what is refused.

use super::*;

#[test]
fn reopening_finds_what_was_closed_with_its_order_and_uses() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    let sizes = [0, 1, SMALL, SMALL + 1, 4096, 100_000, 600_000];
    for (i, bytes) in sizes.into_iter().enumerate() {
        assert_eq!(put(&warm, &format!("key {i}"), &value(i as u64, bytes)), Put::Stored);
    }
    assert!(get(&warm, "key 1").is_some() && get(&warm, "key 1").is_some());
    warm.close().unwrap();
    for mode in [ReadMode::Buffered, ReadMode::Direct, ReadMode::Auto] {
        let warm = Warm::open(WarmSettings { read_mode: mode, ..settings(folder.path()) }).unwrap();
        for (i, bytes) in sizes.into_iter().enumerate().filter(|(i, _)| *i != 1) {
            assert_eq!(get(&warm, &format!("key {i}")), Some(value(i as u64, bytes)), "{mode:?}");
        }
        let order: Vec<_> = warm.shared.table.lock().order();
        assert_eq!(order[0], (KeyId::of(b"key 1"), 2), "used least lately now, and twice before");
        let stats = warm.stats();
        assert_eq!((stats.entries, stats.hits, stats.damaged), (7, 6, 0));
        assert!(!stats.read_mode.is_empty());
        drop(warm);
    }
}

#[test]
fn large_values_are_read_by_several_threads_into_one() {
    let folder = tempfile::tempdir().unwrap();
    let modes =
        [(ReadMode::Buffered, 1), (ReadMode::Buffered, 3), (ReadMode::Direct, 1), (ReadMode::Direct, 4)];
    for ((mode, threads), alone_min) in
        modes.into_iter().flat_map(|mode| [ALONE, usize::MAX].map(|alone_min| (mode, alone_min)))
    {
        let mut settings = settings(folder.path());
        (settings.read_mode, settings.read_threads, settings.budget_bytes) = (mode, threads, 1 << 26);
        settings.alone_min = alone_min;
        let warm = Warm::open(settings).unwrap();
        for bytes in [(1 << 20) - 4096, (2 << 20) - 100, 4 << 20, (6 << 20) + 1, 9 << 20] {
            put(&warm, "large", &value(bytes as u64, bytes));
            assert!(
                get(&warm, "large") == Some(value(bytes as u64, bytes)),
                "{mode:?}, {threads} threads, {bytes}"
            );
        }
    }
}

#[test]
fn a_second_opener_is_told_so_and_the_first_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    assert!(matches!(Warm::open(settings(folder.path())), Err(Error::InUse { .. })));
    put(&warm, "key", b"value");
    drop(warm);
    assert_eq!(get(&open(&folder), "key"), Some(b"value".to_vec()));
}

#[test]
fn a_file_in_its_place_and_a_folder_of_others_are_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "text").unwrap();
    assert!(matches!(Warm::open(settings(&file)), Err(Error::NotAFolder { .. })));
    let refused = Warm::open(settings(folder.path()));
    assert!(matches!(refused, Err(Error::Foreign { found, .. }) if found == "file"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let drive = tempfile::tempdir().unwrap();
    std::fs::create_dir(drive.path().join("lost+found")).unwrap();
    put(&open(&drive), "key", b"value");
    let deep = folder.path().join("new/and/deep");
    assert_eq!(put(&Warm::open(settings(&deep)).unwrap(), "key", b"value"), Put::Stored);
}

#[test]
fn another_format_and_a_marker_that_is_none_are_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    put(&open(&folder), "key", b"value");
    let marker = folder.path().join("qvl-cache");
    let good = std::fs::read_to_string(&marker).unwrap();
    std::fs::write(&marker, good.replace("format 1", "format 77")).unwrap();
    let refused = Warm::open(settings(folder.path()));
    assert!(matches!(refused, Err(Error::Version { found: 77, expected: 1, .. })));
    for bad in [
        "",
        "something else",
        "a warm tier of qvl-cache\nformat 1\n",
        &good.replace("opened 1", "opened x"),
        &good.replace("opened 1", "opened 99999999"),
    ] {
        std::fs::write(&marker, bad).unwrap();
        assert!(matches!(Warm::open(settings(folder.path())), Err(Error::Malformed { .. })), "{bad:?}");
    }
    std::fs::write(&marker, good).unwrap();
    assert_eq!(get(&open(&folder), "key"), Some(b"value".to_vec()));
}

#[test]
fn a_folder_filled_for_something_else_is_refused_or_cleared_as_set() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    put(&warm, "small", b"value");
    put(&warm, "file", &value(1, 5000));
    drop(warm);
    let other = || WarmSettings { fingerprint: "another\nmodel".to_owned(), ..settings(folder.path()) };
    let refused = Warm::open(other());
    assert!(matches!(refused, Err(Error::Fingerprint { found, .. }) if found == "a model"));
    assert!(has(&open(&folder), "file"));
    let warm = Warm::open(WarmSettings { clear_other_fingerprint: true, ..other() }).unwrap();
    assert_eq!((warm.stats().entries, warm.stats().bytes), (0, 0));
    assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
    put(&warm, "file", b"of the other");
    drop(warm);
    assert_eq!(get(&Warm::open(other()).unwrap(), "file"), Some(b"of the other".to_vec()));
}

#[test]
fn files_that_nothing_names_are_removed_and_others_files_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    put(&warm, "file", &value(1, 5000));
    put(&warm, "alone", &value(2, ALONE));
    warm.close().unwrap();
    let known = files(folder.path())[0].clone();
    let orphans = ["7", "8.value", "8.footer", "9.value", "a.footer"]
        .map(|name| folder.path().join(format!("values/07/000000000000000{name}")));
    let not_ours = folder.path().join("values/07/notes.txt");
    for orphan in &orphans {
        std::fs::copy(&known, orphan).unwrap();
    }
    std::fs::write(&not_ours, "text").unwrap();
    let mut warm = open(&folder);
    warm.wait_for_sweep();
    assert_eq!((warm.stats().orphans_removed, warm.stats().damaged), (5, 0));
    assert!(!orphans.iter().any(|orphan| orphan.exists()) && not_ours.exists());
    assert_eq!(get(&warm, "file"), Some(value(1, 5000)));
    assert_eq!(get(&warm, "alone"), Some(value(2, ALONE)));
}

#[test]
fn a_smaller_budget_at_opening_holds_and_keeps_what_was_used_last() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    for i in 0..10 {
        put(&warm, &format!("key {i}"), &value(i, 8000));
    }
    get(&warm, "key 0");
    warm.close().unwrap();
    let warm = Warm::open(WarmSettings { budget_bytes: 30_000, ..settings(folder.path()) }).unwrap();
    assert!(warm.stats().bytes <= 30_000);
    let kept: Vec<_> = (0..10).filter(|i| has(&warm, &format!("key {i}"))).collect();
    assert_eq!(kept, [0, 8, 9]);
    assert_eq!(files(folder.path()).len(), 3);
}

#[test]
fn a_hundred_thousand_records_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    let mut changes = Changes::default();
    let record = |i: u64| {
        let tail = format::Tail::of(b"the key", &[1; 100], i, 1.0).unwrap();
        Record::of(Place::Inline, b"the key", &tail)
    };
    for i in 0..100_000_u64 {
        changes.record(KeyId::of(&i.to_le_bytes()), record(i));
    }
    warm.shared.index.write(changes).unwrap();
    warm.shared.index.close();
    let index = Index::open(&warm.shared.folder.index(), SMALL).unwrap();
    let mut table = Table::new(Box::new(Append), 1 << 40);
    index.records(|id, record| table.restore(id, record.unwrap(), 1000, 0)).unwrap();
    assert_eq!(table.len(), 100_000);
}

/// Only gives slots: the other one is quadratic.
struct Append;

impl Policy for Append {
    fn name(&self) -> &'static str {
        "append"
    }
    fn set_budget(&mut self, _: u64) {}
    fn insert(&mut self, item: Item) -> Slot {
        assert!(item.bytes > 0);
        Slot(0)
    }
    fn hit(&mut self, _: Slot) {}
    fn miss(&mut self, _: KeyId) {}
    fn update(&mut self, _: Slot, _: u64, _: f32) {}
    fn pin(&mut self, _: Slot) {}
    fn unpin(&mut self, _: Slot) {}
    fn victim(&mut self) -> Option<Slot> {
        None
    }
    fn leave(&mut self, _: Slot, _: Leave) {}
    fn worth(&self, _: Slot) -> f64 {
        0.0
    }
    fn uses(&self, _: Slot) -> u32 {
        0
    }
    fn order(&self) -> Vec<Slot> {
        Vec::new()
    }
}
