//! Folders of pictures are videos: in natural order, with the indices and the rate of their source, and only the
//! frames that are asked for are read.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;
#[path = "common/sources.rs"]
mod sources;

use qvl_dataload::vision::{DecodeLimits, Still, Video, VideoConfig};
use qvl_dataload::{Error, FrameFolders, FrameOptions, Source};
use sources::{Folder, extent_bytes, failure, message, read};

/// A folder `v` of frames with these names, whose contents are their names, and a rate.
fn frames(names: &[&str], options: FrameOptions) -> (Folder, FrameFolders) {
    let folder = Folder::new();
    for name in names {
        folder.file(&format!("v/{name}"), name);
    }
    let source = FrameFolders::open(folder.path()).unwrap().options(options);
    (folder, source)
}

fn at(fps: f64) -> FrameOptions {
    FrameOptions { fps: Some(fps), ..FrameOptions::default() }
}

fn check(names: &[&str], options: FrameOptions, expected: &[(u64, &str)]) {
    let (_folder, source) = frames(names, options);
    let video = read(&source, 0).unwrap();
    let got: Vec<(u64, String)> = video
        .frames
        .iter()
        .map(|(i, frame)| (*i, String::from_utf8_lossy(&frame.bytes).into_owned()))
        .collect();
    let expected: Vec<(u64, String)> = expected.iter().map(|(i, name)| (*i, (*name).to_owned())).collect();
    assert_eq!(got, expected);
    let bytes: usize = expected.iter().map(|(_, name)| name.len()).sum();
    assert_eq!(extent_bytes(&source, 0), bytes);
}

#[test]
fn frames_are_in_natural_order_with_the_numbers_of_their_names() {
    check(
        &["f10.jpg", "f2.jpg", "f0.png", ".f1.jpg", "notes1.txt"],
        at(1.0),
        &[(0, "f0.png"), (2, "f2.jpg"), (10, "f10.jpg")],
    );
    check(
        &["one.jpg", "three2.jpg", "two.jpg"],
        at(1.0),
        &[(0, "one.jpg"), (1, "three2.jpg"), (2, "two.jpg")],
    );
    let ffmpeg = FrameOptions { first_number: 1, ..at(1.0) };
    check(&["0001.jpg", "0002.jpg"], ffmpeg, &[(0, "0001.jpg"), (1, "0002.jpg")]);
}

#[test]
fn only_the_sampled_frames_are_read() {
    let names: Vec<String> = (0..100).map(|i| format!("{i}.jpg")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let config = VideoConfig { fps: 2.0, min_frames: 2, ..VideoConfig::default() };
    let kept = config.sample_indices(100, 25.0).unwrap();
    let expected: Vec<(u64, &str)> = kept.iter().map(|i| (*i as u64, names[*i])).collect();
    assert_eq!(expected.len(), 8);
    check(&names, FrameOptions { sample: Some(config.clone()), ..at(25.0) }, &expected);
    let (_folder, source) = frames(&["3.jpg", "5.jpg"], FrameOptions { sample: Some(config), ..at(25.0) });
    assert!(matches!(failure(&source, 0, "sampled already"), Error::AlreadySampled { position: 0, got: 3 }));
}

#[test]
fn the_rate_comes_from_the_options_or_from_a_file_in_the_folder() {
    let (folder, source) = frames(&["0.jpg"], FrameOptions::default());
    let error = failure(&source, 0, "set fps in FrameOptions");
    message(&error, &folder.path().join("v").display().to_string());
    assert!(matches!(error, Error::NoFrameRate { .. }));
    folder.file("v/meta.json", "{\"fps\": 24, \"x\": []}");
    assert_eq!(read(&source, 0).unwrap().fps, 24.0);
    folder.file("v/fps.txt", "30000/1001\n");
    assert_eq!(read(&source, 0).unwrap().fps, 30000.0 / 1001.0);
    assert_eq!(read(&source.clone().options(at(5.0)), 0).unwrap().fps, 5.0);
    folder.file("v/fps.txt", "fast\n");
    failure(&source, 0, "fps.txt: fps is fast, expected a positive number");
    std::fs::remove_file(folder.path().join("v/fps.txt")).unwrap();
    for (wrong, says) in [
        ("{\"fps\": \"24\"}", "fps is"),
        ("[]", "not a JSON object"),
        ("{}", "nothing says"),
        ("{", "not a JSON"),
    ] {
        folder.file("v/meta.json", wrong);
        failure(&source, 0, says);
    }
}

#[test]
fn folders_without_frames_and_files_without_folders_are_errors() {
    let folder = Folder::new();
    folder.file("a.jpg", "");
    let error = FrameFolders::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::NoSamples { .. }));
    message(&error, "FrameFolders::list");
    folder.file("b/notes.txt", "");
    folder.file("a/1.jpg", "1");
    let source = FrameFolders::open(folder.path()).unwrap().options(at(1.0));
    assert_eq!(source.len(), 2);
    assert_eq!(read(&source, 0).unwrap().frames[0].0, 1);
    failure(&source, 1, "no frame in it");
    let own = FrameFolders::list([folder.path().join("missing"), folder.path().join("a.jpg")])
        .unwrap()
        .options(at(1.0));
    assert!(matches!(failure(&own, 0, "missing"), Error::Missing { .. }));
    failure(&own, 1, "take it apart");
    failure(&own, 2, "there is no number 2");
    assert!(matches!(FrameFolders::list::<&str>([]), Err(Error::NoSamples { .. })));
    assert!(matches!(FrameFolders::open(folder.path().join("missing")), Err(Error::Missing { .. })));
    let (_folder, twice) = frames(&["1.jpg", "01.jpg"], at(1.0));
    assert!(matches!(failure(&twice, 0, ""), Error::FrameOrder { position: 1, .. }));
}

#[test]
fn a_decoded_folder_equals_the_video_of_its_files() {
    let folder = Folder::new();
    let picture = |name: &str| std::fs::read(common::data("jpeg").join(name)).unwrap();
    for i in 0..3 {
        folder.file(&format!("v/{i}.jpg"), picture("420_141x99.jpg"));
    }
    let limits = DecodeLimits::default();
    let source = FrameFolders::open(folder.path()).unwrap().options(at(3.0));
    let video = read(&source, 0).unwrap().decode(&limits).unwrap();
    let paths: Vec<_> = (0..3).map(|i| folder.path().join(format!("v/{i}.jpg"))).collect();
    assert_eq!(video, Video::open_frames(&paths, 3.0, &limits).unwrap());
    assert_eq!(video.frames()[2].rgb(), Still::open(&paths[2], &limits).unwrap().rgb());

    folder.file("v/1.jpg", picture("420_17x3.jpg"));
    let error = read(&source, 0).unwrap().decode(&limits).unwrap_err();
    assert!(matches!(&error, Error::FrameSize { name, width: 17, .. } if name.ends_with("1.jpg")));
}
