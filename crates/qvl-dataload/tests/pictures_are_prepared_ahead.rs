//! Picture files through the loader are what they are one by one, within the bound of bytes, whatever is among them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use qvl_dataload::vision::{DecodeLimits, ImageConfig, ProcessorConfig, Still, Video};
use qvl_dataload::{
    DataLoader, Encoded, Files, FrameFolders, FrameOptions, Manifest, OnError, Patchify, PatchifyVideo,
    Shuffle, TarShards,
};

fn folder() -> String {
    format!("{}/tests/data/pixels", env!("CARGO_MANIFEST_DIR"))
}

/// Small enough for a test, large enough for some pictures to be shrunk.
fn config() -> ProcessorConfig {
    let image = ImageConfig { min_pixels: 4096, max_pixels: 200_000, ..ImageConfig::default() };
    ProcessorConfig { image, ..ProcessorConfig::default() }
}

#[test]
fn as_they_are_one_by_one() {
    let mut loader = DataLoader::builder(Files::folder(folder()).unwrap())
        .transform(Patchify::<f32>::new(config()).content_hash(true))
        .workers(3)
        .prefetch_bytes(16 << 20)
        .shuffle(Shuffle::All { seed: 1 })
        .batch_size(5)
        .epochs(2)
        .on_error(OnError::SKIP)
        .build()
        .unwrap();
    let mut hashes = BTreeMap::new();
    let mut repeats = 0;
    for batch in &mut loader {
        for picture in batch.unwrap() {
            let still = Still::open(&*picture.name, &DecodeLimits::default()).unwrap();
            let expected = config().image(&still).unwrap();
            assert_eq!(picture.grid, expected.grid, "{}", picture.name);
            assert!(picture.values() == expected.pixel_values, "{}", picture.name);
            let known = hashes.insert(picture.content_hash.unwrap(), expected.pixel_values.clone());
            repeats += usize::from(known.is_some_and(|known| known == expected.pixel_values));
        }
    }
    let stats = loader.stats();
    assert!(stats.items >= 60, "{stats}");
    assert_eq!(
        repeats as u64,
        stats.items / 2,
        "each picture is known again in the second epoch, and no other is"
    );
    assert_eq!(stats.undeclared_bytes, 0, "every size was said beforehand");
    assert!(stats.peak_bytes <= stats.bytes_bound);
}

#[test]
fn rounded_to_bfloat16() {
    let files = || Files::folder(folder()).unwrap();
    let whole =
        DataLoader::builder(files()).transform(Patchify::<f32>::new(config())).on_error(OnError::SKIP);
    let half =
        DataLoader::builder(files()).transform(Patchify::<half::bf16>::new(config())).on_error(OnError::SKIP);
    let (mut whole, half) = (whole.build().unwrap(), half.build().unwrap());
    let mut count = 0;
    for batch in half {
        let (half, whole) = (batch.unwrap(), whole.next().unwrap().unwrap());
        assert_eq!(half[0].name, whole[0].name);
        let rounded: Vec<half::bf16> = whole[0].values().iter().map(|v| half::bf16::from_f32(*v)).collect();
        assert!(half[0].values() == rounded, "{}", half[0].name);
        count += 1;
    }
    assert!(count > 30);
}

fn write_bad_ones(folder: &Path) {
    fs::copy(format!("{}/rgb_1280x720.png", self::folder()), folder.join("a.png")).unwrap();
    fs::write(folder.join("b_empty.jpg"), "").unwrap();
    fs::write(folder.join("c_text.png"), "no picture").unwrap();
    let cut = fs::read(folder.join("a.png")).unwrap();
    fs::write(folder.join("d_cut.png"), &cut[..cut.len() / 2]).unwrap();
    fs::write(folder.join("e_gone.png"), &cut).unwrap();
    fs::copy(folder.join("a.png"), folder.join("f.png")).unwrap();
}

#[test]
fn a_bad_picture_costs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    write_bad_ones(folder.path());
    let files = Files::folder(folder.path()).unwrap();
    // It vanishes between listing and reading.
    fs::remove_file(folder.path().join("e_gone.png")).unwrap();
    for workers in [0, 2] {
        let mut loader = DataLoader::builder(files.clone())
            .transform(Patchify::<f32>::new(config()))
            .workers(workers)
            .on_error(OnError::SKIP)
            .build()
            .unwrap();
        let names: Vec<String> = loader.by_ref().map(|batch| batch.unwrap()[0].name.to_string()).collect();
        assert_eq!(names.len(), 2);
        assert!(names[0].ends_with("a.png") && names[1].ends_with("f.png"));
        let reasons: Vec<String> = loader.stats().skips.iter().map(|skip| skip.reason.clone()).collect();
        for (reason, (name, what)) in reasons.iter().zip([
            ("b_empty.jpg", "the file is empty (0 bytes)"),
            ("c_text.png", "not a JPEG, PNG, WebP, GIF or BMP picture"),
            ("d_cut.png", "damaged or truncated PNG data"),
            ("e_gone.png", "no such file"),
        ]) {
            assert!(reason.contains(name) && reason.contains(what), "{reason}");
        }
        assert_eq!(reasons.len(), 4);
    }
}

#[test]
fn from_every_kind_of_source() {
    let picture = fs::read(format!("{}/rgb_1280x720.png", folder())).unwrap();
    let expected = config().image(&Still::decode(&picture, "", &DecodeLimits::default()).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.png"), &picture).unwrap();

    let mut tar = tar::Builder::new(fs::File::create(dir.path().join("s.tar")).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(picture.len() as u64);
    tar.append_data(&mut header, "0.png", &picture[..]).unwrap();
    tar.finish().unwrap();
    let shards = TarShards::open([dir.path().join("s.tar")]).unwrap().field(&["jpg", "png"]);
    let mut loader = DataLoader::builder(shards).transform(Patchify::<f32>::new(config())).build().unwrap();
    assert!(loader.next().unwrap().unwrap()[0].values() == expected.pixel_values);

    let line = serde_json::json!({ "messages": [{ "role": "user", "content": [
        { "type": "image", "image": "p.png" }, { "type": "text", "text": "What is this?" } ] }] });
    fs::write(dir.path().join("list.jsonl"), line.to_string()).unwrap();
    let config = config();
    let prepare = move |record: qvl_dataload::Record| {
        let patches = |image: &Encoded| {
            config.image(&Still::decode(&image.bytes, &image.name, &DecodeLimits::default())?)
        };
        record.images.iter().map(patches).collect::<qvl_dataload::Result<Vec<_>>>()
    };
    let manifest = Manifest::open(dir.path().join("list.jsonl")).unwrap();
    let mut loader = DataLoader::builder(manifest).map(prepare).build().unwrap();
    assert_eq!(loader.next().unwrap().unwrap()[0], [expected]);
}

/// Frames of a folder, sampled before they are read, are what the whole video gives when it is sampled.
#[test]
fn videos_too_with_their_timestamps() {
    // Frames of one size among those of the test videos.
    let open = |path: &Path| Still::open(path, &DecodeLimits::default()).unwrap();
    let source = format!("{}/tests/data/video", env!("CARGO_MANIFEST_DIR"));
    let mut stored: Vec<_> = fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()).collect();
    stored.retain(|path| path.extension().is_some_and(|extension| extension == "png"));
    stored.sort();
    let first = open(&stored[0]);
    stored.retain(|path| (open(path).width(), open(path).height()) == (first.width(), first.height()));
    assert!(stored.len() > 1, "frames that differ");

    let dir = tempfile::tempdir().unwrap();
    let mut frames = Vec::new();
    for video in ["a", "b"] {
        fs::create_dir(dir.path().join(video)).unwrap();
        for number in 0..25 {
            let path = dir.path().join(video).join(format!("frame{number}.png"));
            fs::copy(&stored[number % stored.len()], &path).unwrap();
            frames.push(path);
        }
    }
    let config = ProcessorConfig::default();
    let whole = Video::open_frames(&frames[..25], 10.0, &DecodeLimits::default()).unwrap();
    let expected = config.video(&whole.sample(&config.video).unwrap()).unwrap();
    let options =
        FrameOptions { fps: Some(10.0), sample: Some(config.video.clone()), ..FrameOptions::default() };
    let folders = FrameFolders::open(dir.path()).unwrap().options(options);
    let mut loader =
        DataLoader::builder(folders).transform(PatchifyVideo::<f32>::new(config)).workers(2).build().unwrap();
    for batch in &mut loader {
        let video = &batch.unwrap()[0];
        assert_eq!(video.grid, expected.grid);
        assert_eq!(video.timestamps, expected.timestamps);
        assert_eq!(video.source_indices.len(), 5);
        assert!(video.values() == expected.pixel_values);
    }
    let stats = loader.stats();
    assert_eq!((stats.items, stats.undeclared_bytes), (2, 0));
}
