//! Extents are sorted by where they lie on their drives.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, and whether the file system tells is of interest"
)]

use std::io::Write;

use qvl_dataload::storage::{DataFile, Extent, advise, place, sort_by_place};

fn write(path: &std::path::Path, bytes: usize) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&vec![7; bytes]).unwrap();
    // A file lies nowhere before it is written.
    file.sync_all().unwrap();
}

#[test]
fn extents_of_a_file_sort_by_offset_and_files_do_not_mix() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let files: Vec<DataFile> = (0..3)
        .map(|number| {
            let path = folder.path().join(format!("{number}"));
            write(&path, 64 << 10);
            DataFile::kept(path)
        })
        .collect();
    let mut extents: Vec<Extent> = (0..48)
        .map(|step| Extent {
            file: files[step % 3].clone(),
            offset: (step as u64 * 7919) % (64 << 10),
            bytes: 100,
        })
        .collect();
    sort_by_place(&mut extents, |extent| extent);
    let places: Vec<_> = extents.iter().map(place).collect();
    assert!(places.is_sorted());
    println!("the file system says where they lie: {}", places[0].physical().is_some());
    for file in &files {
        let physical = |offset| place(&Extent { file: file.clone(), offset, bytes: 1 }).physical();
        let in_one_piece =
            physical(0).zip(physical(65_535)).is_none_or(|(first, last)| last == first + 65_535);
        let offsets: Vec<u64> =
            extents.iter().filter(|e| e.file.path() == file.path()).map(|e| e.offset).collect();
        assert_eq!(offsets.len(), 16);
        assert!(offsets.is_sorted() || !in_one_piece, "{offsets:?}");
    }
    let changes = extents.windows(2).filter(|two| two[0].file.path() != two[1].file.path()).count();
    assert!(changes == 2 || places[0].physical().is_some(), "files in one piece each: {changes} changes");
}

#[test]
fn what_is_not_there_comes_first_and_harms_nothing() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("there");
    write(&path, 5000);
    let extent = |file, offset| Extent { file, offset, bytes: 1 };
    let gone = folder.path().join("gone");
    let mut extents = vec![extent(DataFile::once(&path), 9), extent(DataFile::once(&gone), 0)];
    sort_by_place(&mut extents, |extent| extent);
    assert_eq!(extents[0].file.path(), gone);
    assert!(advise(&extents[0]).is_err());
    assert!(advise(&extents[1]).is_ok());
    assert!(advise(&extent(DataFile::once(&path), u64::MAX)).is_ok());
}
