//! Damage: flipped bits, missing ends and missing files are noticed, counted and gone. Never a wrong value.

use super::*;

fn filled(folder: &TempDir) -> HashMap<String, Vec<u8>> {
    let warm = open(folder);
    let mut model = HashMap::new();
    for i in 0..30_u64 {
        let key = format!("key {i}");
        let bytes = value(i, if i % 2 == 0 { 300 } else { 2000 + 600 * i as usize });
        assert_eq!(put(&warm, &key, &bytes), Put::Stored);
        model.insert(key, bytes);
    }
    warm.close().unwrap();
    model
}

/// Opens what may be damaged, and reads all of it. Returns how many are as they were.
fn read_all(folder: &TempDir, model: &HashMap<String, Vec<u8>>) -> usize {
    let mut warm = open(folder);
    warm.wait_for_sweep();
    let mut whole = 0;
    for (key, bytes) in model {
        if let Some(found) = get(&warm, key) {
            assert!(found == *bytes, "{key}: a wrong value");
            whole += 1;
        }
        assert_eq!(put(&warm, key, bytes), Put::Stored, "it can be put again");
        assert_eq!(get(&warm, key).as_ref(), Some(bytes));
    }
    warm.close().unwrap();
    whole
}

#[test]
fn a_value_file_with_any_damage_is_dropped_and_reported() {
    let folder = memory_folder();
    let warm = open(&folder);
    let whole = value(1, 2000);
    for damage in 0..200_u64 {
        put(&warm, "key", &whole);
        let path = files(folder.path())[0].clone();
        let mut bytes = std::fs::read(&path).unwrap();
        if damage % 4 == 3 {
            bytes.truncate(bytes.len() * damage as usize / 200);
        } else {
            let bit = damage as usize * 83 % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        std::fs::write(&path, bytes).unwrap();
        let found = warm.get(b"key", KeyId::of(b"key"));
        assert!(matches!(found, Found::Damaged { .. }), "damage {damage}: {found:?}");
        assert!(!has(&warm, "key") && !path.exists());
        assert!(matches!(warm.get(b"key", KeyId::of(b"key")), Found::Miss));
    }
    assert_eq!((warm.stats().damaged, warm.stats().bytes), (200, 0));
}

#[test]
fn missing_and_short_files_are_found_at_opening_and_dropped() {
    let folder = memory_folder();
    let model = filled(&folder);
    let paths = files(folder.path());
    std::fs::remove_file(&paths[0]).unwrap();
    std::fs::write(&paths[1], b"short").unwrap();
    let mut warm = open(&folder);
    warm.wait_for_sweep();
    assert_eq!((warm.stats().damaged, warm.stats().entries), (2, 28));
    drop(warm);
    assert_eq!(read_all(&folder, &model), 28);
}

#[test]
fn another_values_file_in_its_place_is_noticed() {
    let folder = memory_folder();
    let warm = open(&folder);
    put(&warm, "a", &value(1, 2000));
    put(&warm, "b", &value(2, 2000));
    let paths = files(folder.path());
    std::fs::copy(&paths[0], &paths[1]).unwrap();
    let found = [get(&warm, "a"), get(&warm, "b")];
    assert_eq!(found.iter().flatten().count(), 1);
    assert!(found[0].is_none() || found[0] == Some(value(1, 2000)));
    assert_eq!(warm.stats().damaged, 1);
}

#[test]
fn damage_anywhere_in_rocksdbs_files_gives_no_wrong_value() {
    let folder = memory_folder();
    let model = filled(&folder);
    // Tables as well as the log: opening and closing moves what is in the log.
    drop(open(&folder));
    let index = folder.path().join("index");
    let names: Vec<_> = std::fs::read_dir(&index).unwrap().map(|file| file.unwrap().path()).collect();
    for path in names.into_iter().filter(|path| path.is_file() && !path.ends_with("LOCK")) {
        let length = std::fs::metadata(&path).unwrap().len() as usize;
        for damage in 0..6 {
            let copy = memory_folder();
            copy_folder(folder.path(), copy.path());
            let path = copy.path().join("index").join(path.file_name().unwrap());
            let mut bytes = std::fs::read(&path).unwrap();
            match damage {
                0 => bytes.truncate(length / 2),
                1 => bytes.clear(),
                2 => bytes.fill(0),
                _ if length > 0 => bytes[length * (damage - 3) / 3] ^= 0x10,
                _ => {}
            }
            std::fs::write(&path, bytes).unwrap();
            read_all(&copy, &model);
        }
        let copy = memory_folder();
        copy_folder(folder.path(), copy.path());
        std::fs::remove_file(copy.path().join("index").join(path.file_name().unwrap())).unwrap();
        read_all(&copy, &model);
    }
}

#[test]
fn an_index_that_is_gone_or_garbage_is_made_again_from_the_files() {
    let folder = memory_folder();
    let model = filled(&folder);
    std::fs::write(folder.path().join("index/CURRENT"), "garbage").unwrap();
    let warm = open(&folder);
    assert!(warm.stats().index_rebuilt.is_some());
    assert_eq!(warm.stats().entries, 15, "values in files; the small ones were in the index");
    assert!(folder.path().join("index.damaged-1").is_dir());
    drop(warm);
    assert_eq!(read_all(&folder, &model), 15);

    let warm = open(&folder);
    assert_eq!((warm.stats().index_rebuilt, warm.stats().entries), (None, 30));
    drop(warm);
    std::fs::remove_dir_all(folder.path().join("index")).unwrap();
    let warm = open(&folder);
    assert!(warm.stats().index_rebuilt.is_some() && warm.stats().entries == 15);
}

#[test]
fn a_process_that_is_killed_leaves_all_that_it_put() {
    let folder = memory_folder();
    let warm = open(&folder);
    for i in 0..20_u64 {
        put(&warm, &format!("key {i}"), &value(i, if i % 2 == 0 { 300 } else { 5000 }));
    }
    // As it is found then: the system has all that was written, and nothing was flushed, saved or closed.
    let copy = memory_folder();
    copy_folder(folder.path(), copy.path());
    let mut again = open(&copy);
    again.wait_for_sweep();
    for i in 0..20_u64 {
        assert!(
            get(&again, &format!("key {i}")).is_some_and(|found| found == value(i, found.len())),
            "key {i}"
        );
    }
    assert_eq!((again.stats().damaged, again.stats().orphans_removed, again.stats().entries), (0, 0, 20));
}

#[test]
fn after_a_power_loss_the_older_value_is_there_if_the_newer_is_not_whole() {
    let folder = memory_folder();
    let sizes = [(5000, 6000), (50, 6000)];
    for (case, (older, newer)) in sizes.into_iter().enumerate() {
        for torn in [false, true] {
            let key = format!("key {case} {torn}");
            let warm = open(&folder);
            put(&warm, &key, &value(1, older));
            warm.flush().unwrap();
            let before = files(folder.path());
            put(&warm, &key, &value(2, newer));
            let new = files(folder.path()).into_iter().find(|path| !before.contains(path)).unwrap();
            // As it is found after the power is back: the folder as it is now, without what closing would do.
            let copy = memory_folder();
            copy_folder(folder.path(), copy.path());
            if torn {
                std::fs::write(copy.path().join(new.strip_prefix(folder.path()).unwrap()), vec![0; 6000])
                    .unwrap();
            }
            let expected = if torn { value(1, older) } else { value(2, newer) };
            for _ in 0..2 {
                let mut again = open(&copy);
                again.wait_for_sweep();
                assert_eq!(get(&again, &key), Some(expected.clone()), "{key}");
                again.close().unwrap();
            }
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            copy_folder(&path, &to.join(name));
        } else {
            std::fs::copy(&path, to.join(name)).unwrap();
        }
    }
}
