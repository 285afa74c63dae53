//! A folder, a pattern and a list give the files they name, sorted by their bytes, and say so if there are none.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/sources.rs"]
mod sources;

use qvl_dataload::{Error, Files, FolderOptions, Source};
use sources::{Folder, message, read};

/// The paths of the samples from `folder`, with their separators as `/`.
fn names(files: &Files, folder: &Folder) -> Vec<String> {
    let relative = |index| files.path(index).unwrap().strip_prefix(folder.path()).unwrap().to_path_buf();
    (0..files.len()).map(|index| relative(index).to_string_lossy().replace('\\', "/")).collect()
}

fn pictures() -> Folder {
    let folder = Folder::new();
    for name in [
        "b.JPG",
        "a.jpeg",
        "c/z.png",
        "c/d/e.webp",
        "B.bmp",
        "notes.txt",
        ".hidden.jpg",
        ".git/x.jpg",
        "jpg",
        "c/a.txt",
    ] {
        folder.file(name, name);
    }
    folder
}

#[test]
fn a_folder_gives_its_pictures_at_every_depth() {
    let folder = pictures();
    let files = Files::folder(folder.path()).unwrap();
    assert_eq!(names(&files, &folder), ["B.bmp", "a.jpeg", "b.JPG", "c/d/e.webp", "c/z.png"]);
    let sample = read(&files, 3).unwrap();
    assert_eq!(sample.bytes[..], *b"c/d/e.webp");
    assert_eq!(*sample.name, files.name(3));
    assert_eq!(files.extents(3)[0].bytes, 10);
}

#[test]
fn a_folder_can_be_read_without_those_inside_and_with_other_endings() {
    let folder = pictures();
    let flat = FolderOptions { recursive: false, ..FolderOptions::default() };
    let files = Files::folder_with(folder.path(), &flat).unwrap();
    assert_eq!(names(&files, &folder), ["B.bmp", "a.jpeg", "b.JPG"]);
    let text = FolderOptions { extensions: vec!["TXT".to_owned()], ..FolderOptions::default() };
    let files = Files::folder_with(folder.path(), &text).unwrap();
    assert_eq!(names(&files, &folder), ["c/a.txt", "notes.txt"]);
}

#[test]
fn an_empty_folder_says_what_was_looked_for() {
    let folder = Folder::new();
    let error = Files::folder(folder.path()).unwrap_err();
    assert!(matches!(error, Error::NoSamples { .. }));
    message(&error, &folder.path().display().to_string());
    message(&error, "jpg, jpeg, png, webp, gif, bmp");
    folder.file("a.txt", "");
    folder.file(".b.jpg", "");
    message(&Files::folder(folder.path()).unwrap_err(), "1 other file(s) and 1 hidden name(s) passed by");
}

#[test]
fn a_folder_that_is_none_is_an_error() {
    let folder = Folder::new();
    let missing = folder.path().join("missing");
    let error = Files::folder(&missing).unwrap_err();
    assert!(matches!(&error, Error::Missing { name } if *name == missing.display().to_string()));
    let file = folder.file("file.jpg", "x");
    let error = Files::folder(&file).unwrap_err();
    assert!(matches!(&error, Error::Read { name, .. } if *name == file.display().to_string()), "{error:?}");
}

#[test]
fn a_pattern_gives_what_matches() {
    let folder = pictures();
    let glob = |pattern: &str| {
        let pattern = folder.path().join(pattern);
        Files::glob(pattern.to_str().unwrap()).map(|files| names(&files, &folder))
    };
    for (pattern, expected) in [
        ("*.jp*g", &["a.jpeg"][..]),
        ("?.*", &["B.bmp", "a.jpeg", "b.JPG"]),
        ("[ab].*", &["a.jpeg", "b.JPG"]),
        ("c/*", &["c/a.txt", "c/z.png"]),
        ("*/*.png", &["c/z.png"]),
        ("**/*.png", &["c/z.png"]),
        ("c/**/e.*", &["c/d/e.webp"]),
        ("c/**", &["c/a.txt", "c/d/e.webp", "c/z.png"]),
        ("**/**/d/*", &["c/d/e.webp"]),
        ("a.jpeg", &["a.jpeg"]),
        (".git/*", &[".git/x.jpg"]),
        (".*.jpg", &[".hidden.jpg"]),
        ("**/x.jpg", &[]),
        ("*.tiff", &[]),
        ("missing/*.jpg", &[]),
        ("c", &[]),
        ("[a", &[]),
    ] {
        match glob(pattern) {
            Ok(found) => assert_eq!(found, expected, "{pattern}"),
            Err(error) => {
                assert!(matches!(error, Error::NoSamples { .. }), "{pattern}: {error:?}");
                assert!(expected.is_empty(), "{pattern}: {error}");
                message(&error, pattern);
            }
        }
    }
}

#[test]
fn a_pattern_that_matches_nothing_says_so() {
    let folder = pictures();
    let pattern = folder.path().join("*.tiff").display().to_string();
    let error = Files::glob(&pattern).unwrap_err();
    message(&error, &pattern);
    message(&error, "no file matches");
    message(&Files::glob("").unwrap_err(), "no pattern");
    message(&Files::glob(&folder.path().join("no/such/*").display().to_string()).unwrap_err(), "no folder");
}

#[test]
fn a_list_keeps_its_order() {
    let folder = pictures();
    let paths = ["c/z.png", "a.jpeg", "c/z.png"].map(|name| folder.path().join(name));
    let files = Files::list(&paths).unwrap();
    assert_eq!(names(&files, &folder), ["c/z.png", "a.jpeg", "c/z.png"]);
    assert_ne!(files.fingerprint(), Files::list(&paths[..2]).unwrap().fingerprint());
    assert!(matches!(Files::list::<&str>([]), Err(Error::NoSamples { .. })));
}

#[cfg(unix)]
mod unix {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_name_that_is_not_utf8_is_read_and_shown() {
        let folder = Folder::new();
        let path = folder.path().join(OsStr::from_bytes(b"caf\xe9.jpg"));
        if let Err(e) = std::fs::write(&path, "here") {
            println!("skipped: this file system has no such names ({e})");
            return;
        }
        let pattern = folder.path().join("caf?.jpg");
        let listed = [
            Files::folder(folder.path()),
            Files::glob(pattern.to_str().unwrap()),
            Files::list([path.as_path()]),
        ];
        for files in listed.map(Result::unwrap) {
            assert_eq!(files.path(0), Some(path.as_path()));
            let sample = read(&files, 0).unwrap();
            assert_eq!(sample.bytes[..], *b"here");
            assert!(sample.name.ends_with("caf\u{fffd}.jpg"), "{}", sample.name);
        }
    }

    #[test]
    fn links_are_followed_and_circles_end() {
        let folder = Folder::new();
        folder.file("x/a.jpg", "1");
        folder.file("y/b.jpg", "2");
        symlink(folder.path().join("y"), folder.path().join("x/to_y")).unwrap();
        symlink(folder.path().join("x"), folder.path().join("y/to_x")).unwrap();
        symlink(folder.path(), folder.path().join("self")).unwrap();
        symlink("loop.jpg", folder.path().join("loop.jpg")).unwrap();
        symlink("nowhere", folder.path().join("broken.jpg")).unwrap();
        let files = Files::folder(folder.path()).unwrap();
        // A link that leads nowhere is a file that cannot be read: it is not passed over in silence.
        let expected = ["broken.jpg", "loop.jpg", "x/a.jpg", "x/to_y/b.jpg", "y/b.jpg", "y/to_x/a.jpg"];
        assert_eq!(names(&files, &folder), expected);
        assert!(matches!(read(&files, 0), Err(Error::Missing { .. })));
        assert!(matches!(read(&files, 1), Err(Error::Read { .. })));
        assert_eq!(read(&files, 5).unwrap().bytes[..], *b"1");
        let all = folder.path().join("**/*.jpg");
        assert_eq!(names(&Files::glob(all.to_str().unwrap()).unwrap(), &folder), expected);
    }

    #[test]
    fn a_folder_inside_that_cannot_be_read_is_named() {
        let folder = Folder::new();
        folder.file("a.jpg", "1");
        let inner = folder.file("locked/b.jpg", "2").parent().unwrap().to_owned();
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o000)).unwrap();
        if std::fs::read_dir(&inner).is_ok() {
            println!("skipped: this user may read everything");
        } else {
            let error = Files::folder(folder.path()).unwrap_err();
            assert!(matches!(&error, Error::Read { name, .. } if *name == inner.display().to_string()));
            // A pattern that cannot match inside it does not look inside it.
            Files::glob(folder.path().join("*.jpg").to_str().unwrap()).unwrap();
        }
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}
