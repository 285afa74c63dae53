//! A manifest gives a record for each line with the pictures it names; a line that is wrong is an error with its
//! number, and every other line is read.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/sources.rs"]
mod sources;

use qvl_dataload::vision::VideoConfig;
use qvl_dataload::{Error, Manifest, ManifestLimits, Record, Result, Source};
use serde_json::{Value, json};
use sources::{Folder, extent_bytes, failure, message, read, said};

/// A manifest of these lines, beside the pictures `a.jpg`, `sub/b.jpg` and a video `video`, whose contents are their
/// names.
fn manifest(lines: &[&str]) -> (Folder, Manifest) {
    let folder = Folder::new();
    for name in ["a.jpg", "sub/b.jpg", "video/0.jpg", "video/1.jpg", "video/2.jpg", "video/10.jpg"] {
        folder.file(name, name);
    }
    let path = folder.file("list.jsonl", lines.join("\n"));
    let manifest = Manifest::open(path).unwrap();
    (folder, manifest)
}

/// Reads a line of its own.
fn record(line: &Value) -> Result<Record> {
    let (_folder, manifest) = manifest(&[&line.to_string()]);
    let record = read(&manifest, 0);
    if record.is_ok() {
        assert_eq!(manifest.check().unwrap().len(), 0);
    }
    record
}

fn images(record: &Record) -> Vec<String> {
    record.images.iter().map(|image| String::from_utf8_lossy(&image.bytes).into_owned()).collect()
}

fn chat(content: Value) -> Value {
    json!({"messages": [{"role": "user", "content": content}]})
}

#[test]
fn pictures_are_found_wherever_data_sets_name_them() {
    let b64 = "data:image/jpeg;base64,YS5qcGc=";
    let place = |content| (chat(content), vec!["a.jpg"]);
    for (line, expected) in [
        (json!({"text": "none"}), vec![]),
        (json!({"image": "a.jpg"}), vec!["a.jpg"]),
        (json!({"image": null, "images": ["a.jpg", {"path": "sub/b.jpg"}]}), vec!["a.jpg", "sub/b.jpg"]),
        (json!({"image": ["sub/b.jpg", b64]}), vec!["sub/b.jpg", "a.jpg"]),
        place(json!([{"type": "image", "image": "a.jpg"}])),
        place(json!([{"type": "image", "path": "./sub/../a.jpg"}])),
        place(json!([{"type": "image", "url": "a.jpg"}])),
        place(json!([{"type": "image_url", "image_url": {"url": b64}}, {"type": "text", "text": "image"}])),
        place(json!([{"type": "image_url", "image_url": "a.jpg"}])),
        (chat(json!("a text with no list of items")), vec![]),
        (
            json!({"messages": [
                {"role": "user", "content": [{"type": "image", "image": "sub/b.jpg"}, {"type": "image"}]},
                {"role": "user", "content": [{"type": "image"}]},
            ], "images": ["a.jpg", "sub/b.jpg"]}),
            vec!["sub/b.jpg", "a.jpg", "sub/b.jpg"],
        ),
    ] {
        let record = record(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(images(&record), expected, "{line}");
        assert_eq!(Value::Object(record.value), line);
    }
}

#[test]
fn absolute_paths_and_file_urls() {
    let folder = Folder::new();
    let picture = folder.file("a picture.jpg", "here");
    let url = format!("file://{}", picture.display().to_string().replace(' ', "%20"));
    let places = if cfg!(unix) {
        vec![picture.display().to_string(), url]
    } else {
        vec![picture.display().to_string()]
    };
    for place in places {
        let record = record(&json!({"image": place})).unwrap();
        assert_eq!(images(&record), ["here"], "{place}");
        assert!(record.images[0].name.ends_with("a picture.jpg"));
    }
}

#[test]
fn a_line_that_is_not_json_is_named_with_its_number() {
    let (_folder, manifest) = manifest(&[
        "{\"image\": \"a.jpg\"}",
        "",
        "{\"image\": \"a.jpg\"",
        "[1]",
        "7",
        "{\"image\": \"sub/b.jpg\"}",
    ]);
    assert_eq!(manifest.len(), 5, "an empty line is no sample");
    assert_eq!(images(&read(&manifest, 0).unwrap()), ["a.jpg"]);
    let error = failure(&manifest, 1, "list.jsonl: line 3: is not JSON");
    assert!(matches!(error, Error::ManifestLine { line: 3, source: Some(_), .. }));
    assert!(matches!(failure(&manifest, 2, "line 4"), Error::ManifestLine { line: 4, source: None, .. }));
    failure(&manifest, 3, "line 5: is not a JSON object");
    let last = read(&manifest, 4).unwrap();
    assert_eq!((last.line, images(&last)), (6, vec!["sub/b.jpg".to_owned()]));
    assert!(manifest.name(4).ends_with("list.jsonl: line 6"));

    let wrong = manifest.check().unwrap();
    let lines: Vec<usize> =
        wrong.iter().map(|e| if let Error::ManifestLine { line, .. } = e { *line } else { 0 }).collect();
    assert_eq!(lines, [3, 4, 5]);
}

#[test]
fn a_line_that_names_what_cannot_be_read() {
    for (line, says) in [
        (json!({"image": "http://example.org/a.jpg"}), "line 1: http://example.org/a.jpg is not fetched"),
        (chat(json!([{"type": "image_url", "image_url": {"url": "https://e.org/a"}}])), "not fetched"),
        (json!({"image": "data:image/png;base64,$$"}), "not base64"),
        (json!({"image": 7}), "where a picture should be named there is 7"),
        (json!({"images": [{"bytes": "x"}]}), "where a picture should be named"),
        (json!({"image": "missing.jpg"}), "missing.jpg: no such file"),
        (json!({"image": "sub"}), "is a folder"),
        (chat(json!([{"type": "image"}])), "room for 1 pictures in its messages and names 0"),
        (
            json!({"messages": [{"content": [{"type": "image", "image": "a.jpg"}]}], "image": "sub/b.jpg"}),
            "in its messages and beside them",
        ),
        (chat(json!([{"type": "video", "video": ["a.jpg"]}])), "needs its \"fps\""),
        (chat(json!([{"type": "video", "video": "video"}])), "nothing says the frame rate"),
        (chat(json!([{"type": "video", "video": "video", "fps": 0}])), "expected a positive number"),
        (chat(json!([{"type": "video", "video": "a.jpg", "fps": 1}])), "take it apart"),
    ] {
        let error = record(&line).err().unwrap_or_else(|| panic!("{line} was read"));
        message(&error, says);
    }
}

#[test]
fn videos_are_folders_or_lists_of_frames() {
    let (_folder, manifest) = manifest(&[
        &chat(json!([{"type": "video", "video": "video", "fps": 5}])).to_string(),
        &json!({"videos": [["a.jpg", "sub/b.jpg"]], "fps": 2, "image": "a.jpg"}).to_string(),
        &json!({"video": {"video": ["a.jpg", "a.jpg", "a.jpg", "a.jpg"], "fps": 2}}).to_string(),
    ]);
    let frames = |record: &Record| -> Vec<(u64, String)> {
        let frames = record.videos[0].frames.iter();
        frames.map(|(index, frame)| (*index, String::from_utf8_lossy(&frame.bytes).into_owned())).collect()
    };
    let first = read(&manifest, 0).unwrap();
    assert_eq!(first.videos[0].fps, 5.0);
    let expected = [(0, "video/0.jpg"), (1, "video/1.jpg"), (2, "video/2.jpg"), (10, "video/10.jpg")];
    assert_eq!(frames(&first), expected.map(|(i, name)| (i, name.to_owned())));
    let second = read(&manifest, 1).unwrap();
    assert_eq!(frames(&second), [(0, "a.jpg".to_owned()), (1, "sub/b.jpg".to_owned())]);
    assert_eq!(images(&second), ["a.jpg"]);
    assert_eq!(read(&manifest, 2).unwrap().videos[0].frames.len(), 4);

    let config = VideoConfig { fps: 1.0, min_frames: 1, ..VideoConfig::default() };
    let sampled = manifest.sample(config);
    let indices: Vec<u64> = read(&sampled, 2).unwrap().videos[0].frames.iter().map(|frame| frame.0).collect();
    assert_eq!(indices, [0, 3]);
    failure(&sampled, 0, "has been sampled already");
}

#[test]
fn marks_of_windows_and_a_last_line_without_an_end_change_nothing() {
    let folder = Folder::new();
    folder.file("a.jpg", "1");
    let path = folder.file(
        "list.jsonl",
        "\u{feff}{\"image\":\"a.jpg\"}\r\n\r\n  {\"image\":\"a.jpg\"}  \r\n\n{\"image\":\"a.jpg\"}",
    );
    let manifest = Manifest::open(path).unwrap();
    let lines: Vec<usize> = (0..manifest.len()).map(|i| read(&manifest, i).unwrap().line).collect();
    assert_eq!(lines, [1, 3, 5]);
}

#[test]
fn what_is_read_ahead_is_the_line_and_its_pictures() {
    let line = json!({"images": ["a.jpg", "sub/b.jpg"]}).to_string();
    let (_folder, manifest) = manifest(&[&line, "nonsense"]);
    let bytes: Vec<usize> = manifest.extents(0).iter().map(|extent| extent.bytes).collect();
    assert_eq!(bytes, [line.len() + 1, 5, 9]);
    assert_eq!(extent_bytes(&manifest, 1), 8, "the line itself, whose error is that of reading");
    assert!(matches!(said(&manifest, 1), Err(Error::ManifestLine { line: 2, .. })));
}

#[test]
fn limits_hold() {
    let (_folder, manifest) = manifest(&[
        &json!({"images": ["a.jpg", "a.jpg", "a.jpg"]}).to_string(),
        &json!({"video": "video", "fps": 1}).to_string(),
        &json!({"image": "a.jpg", "text": "x".repeat(200)}).to_string(),
        "{\"image\": \"sub/b.jpg\"}",
        "{\"image\": \"data:;base64,AAAAAAAAAAAA\"}",
        &format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)),
    ]);
    let deep = failure(&manifest, 5, "line 6: is not JSON");
    assert!(matches!(deep, Error::ManifestLine { source: Some(_), .. }), "as deep as the parser goes");
    let manifest =
        manifest.limits(ManifestLimits { max_line_bytes: 100, max_pictures: 2, max_file_bytes: 8 });
    failure(&manifest, 0, "more pictures and frames than the limit of 2");
    failure(&manifest, 1, "more pictures and frames than the limit of 2");
    failure(&manifest, 2, "bytes or more, the limit is 100 bytes");
    assert!(matches!(failure(&manifest, 3, "b.jpg"), Error::FileSize { bytes: 9, limit_bytes: 8, .. }));
    failure(&manifest, 4, "a data: URL has 9 bytes");
    assert_eq!(manifest.check().unwrap().len(), 6);
}

#[test]
fn a_manifest_without_lines_is_an_error() {
    let folder = Folder::new();
    for text in ["", "\n\n \r\n"] {
        let error = Manifest::open(folder.file("list.jsonl", text)).unwrap_err();
        assert!(matches!(error, Error::NoSamples { .. }));
        message(&error, "list.jsonl");
    }
    assert!(matches!(Manifest::open(folder.path().join("missing")), Err(Error::Missing { .. })));
    assert!(matches!(Manifest::open(folder.path()), Err(Error::Folder { .. })));
}
