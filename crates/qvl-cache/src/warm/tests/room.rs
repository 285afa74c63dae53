//! Room: budgets, pins, removal, what is told to the tier below, and many threads at once.

use super::*;

#[derive(Default)]
struct Below(Mutex<Vec<(Vec<u8>, Bytes, f32)>>);

impl Spill for Below {
    fn spill(&self, key: &[u8], value: Bytes, cost: f32) {
        self.0.lock().push((key.to_vec(), value, cost));
    }
}

#[test]
fn what_leaves_is_handed_down_with_its_key_and_value_and_its_file_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let below = Arc::new(Below::default());
    let mut settings = settings(folder.path());
    settings.budget_bytes = 30_000;
    settings.spill = Some(below.clone());
    let warm = Warm::open(settings).unwrap();
    for (i, key) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        assert_eq!(put(&warm, key, &value(i as u64, 8000)), Put::Stored);
        assert!(warm.stats().bytes <= 30_000);
    }
    put(&warm, "small", &value(9, 500));
    let spilled = below.0.lock();
    let keys: Vec<_> = spilled.iter().map(|spilled| String::from_utf8_lossy(&spilled.0)).collect();
    assert_eq!(keys, ["a", "b"]);
    assert_eq!((spilled[1].1.to_vec(), spilled[1].2), (value(1, 8000), 0.5));
    assert_eq!((warm.stats().evicted, files(folder.path()).len()), (2, 3));
}

#[test]
fn a_value_that_takes_more_than_the_budget_is_refused_and_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let warm = Warm::open(WarmSettings { budget_bytes: 20_000, ..settings(folder.path()) }).unwrap();
    put(&warm, "a", &value(1, 9000));
    for (bytes, charge) in [(20_000, 20_480 + 4096 + 1024), (15_000, 16_384 + 4096 + 1024)] {
        let refused = put(&warm, "c", &value(3, bytes));
        assert_eq!(refused, Put::Refused(Refusal::TooLarge { bytes: charge, budget_bytes: 20_000 }));
    }
    assert_eq!(get(&warm, "a"), Some(value(1, 9000)));
    assert_eq!(put(&warm, "b", &value(2, 9000)), Put::Stored);
    assert!(!has(&warm, "a"));
    let stats = warm.stats();
    assert_eq!((stats.refused, stats.evicted, stats.puts), (2, 1, 2));
}

#[test]
fn a_value_is_replaced_across_places_and_the_files_that_were_flushed_go_with_the_next_flush() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    put(&warm, "key", &value(1, 5000));
    warm.flush().unwrap();
    put(&warm, "key", &value(2, 6000));
    assert_eq!(files(folder.path()).len(), 2, "the older one is on the drive for sure, the new one is not");
    put(&warm, "key", &value(3, 7000));
    assert_eq!(files(folder.path()).len(), 2, "the one between was never sure");
    assert_eq!(get(&warm, "key"), Some(value(3, 7000)));
    warm.flush().unwrap();
    assert_eq!(files(folder.path()).len(), 1);
    assert_eq!(warm.stats().bytes, charge_of(Place::File, 7000, 3));
    for (seed, bytes) in
        [(4, 10), (5, 20), (6, 9000), (7, 30), (6, 12_000), (9, 6000), (10, 11_000), (7, 30), (8, 40)]
    {
        put(&warm, "key", &value(seed, bytes));
        assert_eq!(get(&warm, "key"), Some(value(seed, bytes)));
    }
    warm.flush().unwrap();
    assert_eq!(files(folder.path()).len(), 0);
    assert_eq!(warm.stats().bytes, charge_of(Place::Inline, 40, 3));
    drop(warm);
    assert_eq!(get(&open(&folder), "key"), Some(value(8, 40)));
}

#[test]
fn superseded_files_make_room_when_it_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let warm = Warm::open(WarmSettings { budget_bytes: 30_000, ..settings(folder.path()) }).unwrap();
    for seed in 0..20 {
        assert_eq!(put(&warm, "key", &value(seed, 8000)), Put::Stored);
        warm.flush().unwrap();
        assert_eq!(put(&warm, "key", &value(seed + 100, 8000)), Put::Stored);
        assert!(warm.stats().bytes <= 30_000 && files(folder.path()).len() <= 3);
        assert_eq!(get(&warm, "key"), Some(value(seed + 100, 8000)));
    }
}

#[test]
fn removed_values_are_gone_with_their_bytes_and_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    put(&warm, "small", b"value");
    put(&warm, "file", &value(1, 5000));
    assert!(warm.remove(KeyId::of(b"small")) && warm.remove(KeyId::of(b"file")));
    assert!(!warm.remove(KeyId::of(b"file")));
    assert_eq!((warm.stats().bytes, warm.stats().entries, files(folder.path()).len()), (0, 0, 0));
    drop(warm);
    let warm = open(&folder);
    assert!(!has(&warm, "small") && !has(&warm, "file"));
}

#[test]
fn a_use_that_was_served_above_keeps_a_value() {
    let folder = tempfile::tempdir().unwrap();
    let warm = Warm::open(WarmSettings { budget_bytes: 20_000, ..settings(folder.path()) }).unwrap();
    put(&warm, "a", &value(1, 8000));
    put(&warm, "b", &value(2, 8000));
    assert!(warm.touch(KeyId::of(b"a")) && !warm.touch(KeyId::of(b"unknown")));
    warm.missed(KeyId::of(b"unknown"));
    put(&warm, "c", &value(3, 8000));
    assert!(has(&warm, "a") && !has(&warm, "b"));
    let info = warm.contains(KeyId::of(b"a")).unwrap();
    let expected = Info {
        value_bytes: 8000,
        charge_bytes: 8704,
        cost: 0.5,
        worth: 1.0,
        uses: 1,
        inline: false,
        why: "used once".to_owned(),
    };
    assert_eq!(info, expected);
}

#[test]
fn resizing_evicts_at_once_and_growing_keeps_all() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    for i in 0..20 {
        put(&warm, &format!("key {i}"), &value(i, 8000));
    }
    warm.resize(50_000).unwrap();
    assert!(warm.stats().bytes <= 50_000 && warm.stats().entries == 5);
    assert_eq!(get(&warm, "key 19"), Some(value(19, 8000)));
    warm.resize(1 << 20).unwrap();
    assert_eq!((warm.stats().entries, warm.stats().budget_bytes), (5, 1 << 20));
}

#[test]
fn two_keys_with_one_id_never_give_each_others_value() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    let id = KeyId(7);
    for bytes in [10, 5000, ALONE] {
        warm.put(b"one", id, &value(1, bytes), 0.5).unwrap();
        assert!(matches!(warm.get(b"two", id), Found::Miss));
        assert!(matches!(warm.get(b"one", id), Found::Hit { .. }));
        warm.put(b"two", id, &value(2, bytes), 0.5).unwrap();
        assert!(matches!(warm.get(b"one", id), Found::Miss));
    }
    assert_eq!(warm.stats().damaged, 0);
}

#[test]
fn a_smaller_budget_holds_when_it_was_set_though_a_larger_value_is_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let warm = open(&folder);
    std::thread::scope(|scope| {
        let not_yet = warm.shared.writer.lock();
        let putting = scope.spawn(|| put(&warm, "a", &value(1, 9000)));
        while warm.stats().bytes == 0 {
            std::thread::yield_now();
        }
        let (tell, told) = std::sync::mpsc::channel();
        let warm = &warm;
        scope.spawn(move || {
            warm.resize(8000).unwrap();
            tell.send(warm.stats().bytes).unwrap();
        });
        let early = told.recv_timeout(Duration::from_millis(50));
        assert!(early.is_err(), "{early:?} bytes were left while the value was being written");
        drop(not_yet);
        assert_eq!(putting.join().unwrap(), Put::Stored);
        assert_eq!(told.recv().unwrap(), 0);
    });
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_budget_that_changes_under_writes_holds_whenever_it_was_set() {
    let folder = memory_folder();
    let warm = open(&folder);
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (warm, ended) = (&warm, &ended);
            scope.spawn(move || {
                let mut step = thread;
                while !ended.load(Ordering::Relaxed) {
                    step += 2;
                    put(warm, &format!("key {}", step % 9), &value(step, 500 + 1000 * (step % 30) as usize));
                    if step % 13 == 0 {
                        warm.flush().unwrap();
                    }
                }
            });
        }
        for step in 0..300_u64 {
            warm.resize(if step % 2 == 0 { 5000 + 100 * step } else { 300_000 }).unwrap();
            let stats = warm.stats();
            assert!(stats.bytes <= stats.budget_bytes, "{} of {}", stats.bytes, stats.budget_bytes);
        }
        ended.store(true, Ordering::Relaxed);
    });
}

#[test]
fn threads_that_put_get_and_remove_at_once_see_whole_values_of_their_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    settings.budget_bytes = 200_000;
    settings.spill = Some(Arc::new(Below::default()));
    let warm = Warm::open(settings).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let warm = &warm;
            scope.spawn(move || {
                for step in 0..300_u64 {
                    let pick = (step * 31 + thread * 17) % 23;
                    let key = format!("key {pick}");
                    let id = KeyId::of(key.as_bytes());
                    let bytes = if step % 3 == 0 { 400 } else { 3000 + 1000 * (step % 20) as usize };
                    match (step + thread) % 5 {
                        0 | 1 => _ = warm.put(key.as_bytes(), id, &value(pick, bytes), 0.5).unwrap(),
                        2 if step % 7 == 0 => _ = warm.remove(id),
                        3 if step % 50 == 0 => warm.flush().unwrap(),
                        _ => {
                            if let Some(found) = get(warm, &key) {
                                assert!(found == value(pick, found.len()), "another key's or a torn value");
                            }
                        }
                    }
                    assert!(warm.stats().bytes <= 200_000);
                }
            });
        }
    });
    assert_eq!(warm.stats().damaged, 0);
    warm.flush().unwrap();
    let stats = warm.stats();
    let counted: u64 = warm.shared.table.lock().entries().map(|(_, entry)| entry.charge).sum();
    assert_eq!(stats.bytes, counted, "what is counted is what is there");
    let of_entry = |entry: &table::Entry| folder::contents(entry.record.place).len();
    let in_files: usize = warm.shared.table.lock().entries().map(|(_, entry)| of_entry(entry)).sum();
    assert_eq!(files(folder.path()).len(), in_files);
}
