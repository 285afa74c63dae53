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
fn a_value_alone_with_any_damage_is_dropped_and_reported_with_its_footer() {
    let folder = memory_folder();
    for mode in [ReadMode::Buffered, ReadMode::Direct] {
        let warm = Warm::open(WarmSettings { read_mode: mode, ..settings(folder.path()) }).unwrap();
        for damage in 0..100_u64 {
            put(&warm, "key", &value(1, ALONE + damage as usize));
            let [footer, path] = files(folder.path()).try_into().unwrap();
            assert!(path.extension().unwrap() == "value" && footer.extension().unwrap() == "footer");
            let mut bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len(), ALONE + damage as usize, "nothing but the value");
            if damage % 4 == 3 {
                bytes.truncate(bytes.len() * damage as usize / 100);
            } else {
                let bit = damage as usize * 829 % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            std::fs::write(&path, bytes).unwrap();
            let found = warm.get(b"key", KeyId::of(b"key"));
            assert!(matches!(found, Found::Damaged { .. }), "damage {damage}: {found:?}");
            assert!(!has(&warm, "key") && files(folder.path()).is_empty());
        }
        assert_eq!((warm.stats().damaged, warm.stats().bytes), (100, 0));
    }
}

/// What can happen to a footer's file, and what of another value's footer `other`.
fn damage_footer(case: usize, path: &Path, other: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    match case {
        0 => return std::fs::remove_file(path).unwrap(),
        1 => bytes = std::fs::read(other).unwrap(),
        2 => bytes.truncate(bytes.len() - 1),
        3 => bytes.clear(),
        4 => bytes.push(0),
        _ => {
            let bit = case * 37 % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
    std::fs::write(path, bytes).unwrap();
}

const FOOTER_CASES: usize = 40;

/// Footers of values that are alone, in the order in which these were put.
fn footers(folder: &Path) -> Vec<PathBuf> {
    let is_footer = |path: &PathBuf| path.extension().is_some_and(|end| end == "footer");
    files(folder).into_iter().filter(is_footer).collect()
}

#[test]
fn a_footer_with_any_damage_fails_reads_of_long_keys_alone_and_gives_no_wrong_value() {
    let folder = memory_folder();
    let warm = open(&folder);
    let (long, other) = ("a key of more bytes than records have", "another of more bytes than records have");
    for case in 0..FOOTER_CASES {
        for key in [long, other, "short"] {
            put(&warm, key, &value(key.len() as u64, ALONE));
            assert_eq!(get(&warm, key), Some(value(key.len() as u64, ALONE)));
        }
        let footers = footers(folder.path());
        damage_footer(case, &footers[2], &footers[1]);
        assert!(get(&warm, "short").is_some(), "it was compared from memory");
        damage_footer(case, &footers[0], &footers[1]);
        let found = warm.get(long.as_bytes(), KeyId::of(long.as_bytes()));
        assert!(matches!(found, Found::Damaged { .. }), "case {case}: {found:?}");
        assert!(get(&warm, other).is_some());
        for key in [other, "short"] {
            assert!(warm.remove(KeyId::of(key.as_bytes())));
        }
        assert_eq!((files(folder.path()).len(), warm.stats().bytes), (0, 0));
    }
    assert_eq!(warm.stats().damaged, FOOTER_CASES as u64);
}

#[test]
fn an_index_made_again_has_every_large_value_whose_footer_is_whole_and_no_other() {
    for case in 0..FOOTER_CASES {
        let folder = memory_folder();
        let warm = open(&folder);
        let keys = ["damaged", "whole", "without its value", "a key of more bytes than records have"];
        for (i, key) in keys.into_iter().enumerate() {
            put(&warm, key, &value(i as u64, ALONE + i));
        }
        warm.close().unwrap();
        let footers = footers(folder.path());
        damage_footer(case, &footers[0], &footers[1]);
        std::fs::remove_file(footers[2].with_extension("value")).unwrap();
        std::fs::remove_dir_all(folder.path().join("index")).unwrap();
        let mut warm = open(&folder);
        warm.wait_for_sweep();
        assert!(warm.stats().index_rebuilt.is_some());
        for (i, key) in keys.into_iter().enumerate() {
            let expected = (i % 2 == 1).then(|| value(i as u64, ALONE + i));
            assert_eq!(get(&warm, key), expected, "case {case}, {key}");
        }
        assert_eq!(
            (warm.stats().damaged, files(folder.path()).len()),
            (0, 4),
            "the rest are orphans, and gone"
        );
    }
}

#[test]
fn a_large_value_of_which_a_file_is_missing_or_of_another_length_is_dropped_at_opening() {
    for case in 0..5 {
        for of_value in [false, true] {
            let folder = memory_folder();
            let warm = open(&folder);
            put(&warm, "damaged", &value(1, ALONE));
            put(&warm, "whole, with a longer key", &value(2, ALONE + 9));
            warm.close().unwrap();
            let [one, other] = footers(folder.path()).try_into().unwrap();
            let [one, other] =
                if of_value { [one, other].map(|path| path.with_extension("value")) } else { [one, other] };
            damage_footer(case, &one, &other);
            let mut warm = open(&folder);
            warm.wait_for_sweep();
            assert_eq!(
                (warm.stats().entries, warm.stats().damaged, files(folder.path()).len()),
                (1, 1, 2),
                "{case}"
            );
            assert_eq!(get(&warm, "damaged"), None);
            assert!(get(&warm, "whole, with a longer key").is_some());
        }
    }
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
        put(&warm, &format!("key {i}"), &value(i, [300, 5000, ALONE][i as usize % 3]));
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
    let small = [(5000, 6000), (50, 6000), (ALONE, 6000)].map(|sizes| (sizes, ""));
    let large = [(5000, ALONE), (50, ALONE), (ALONE, 2 * ALONE)];
    let large = ["value", "footer"].into_iter().flat_map(|end| large.map(|sizes| (sizes, end)));
    for (case, ((older, newer), end)) in small.into_iter().chain(large).enumerate() {
        for torn in [None, Some(false), Some(true)] {
            let key = format!("key {case} {torn:?}");
            let warm = open(&folder);
            put(&warm, &key, &value(1, older));
            warm.flush().unwrap();
            let before = files(folder.path());
            put(&warm, &key, &value(2, newer));
            let is_new = |path: &PathBuf| {
                !before.contains(path) && path.extension().map_or("", |end| end.to_str().unwrap()) == end
            };
            let new = files(folder.path()).into_iter().find(is_new).unwrap();
            // As it is found after the power is back: the folder as it is now, without what closing would do.
            let copy = memory_folder();
            copy_folder(folder.path(), copy.path());
            let new = copy.path().join(new.strip_prefix(folder.path()).unwrap());
            match torn {
                None => {}
                Some(true) => {
                    let bytes = std::fs::metadata(&new).unwrap().len();
                    std::fs::write(&new, vec![0; bytes as usize]).unwrap();
                }
                Some(false) => std::fs::remove_file(&new).unwrap(),
            }
            let expected = if torn.is_some() { value(1, older) } else { value(2, newer) };
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
