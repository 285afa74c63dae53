//! Tar shards of every dialect give the samples that were packed into them, in their order.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/archives.rs"]
mod archives;
#[path = "common/sources.rs"]
mod sources;

use archives::{archive, members};
use proptest::prelude::*;
use qvl_dataload::{Error, Source, TarOptions, TarSample, TarShards};
use sources::{Folder, extent_bytes, failure, message, read};

type Fields = Vec<(String, Vec<u8>)>;

fn shard(bytes: impl AsRef<[u8]>) -> (Folder, TarShards) {
    let folder = Folder::new();
    let path = folder.file("shard.tar", bytes);
    let shards = TarShards::open([path]).unwrap();
    (folder, shards)
}

fn plain(sample: &TarSample) -> (String, Fields) {
    (sample.key.clone(), sample.fields.iter().map(|(name, bytes)| (name.clone(), bytes.to_vec())).collect())
}

fn all(shards: &TarShards) -> Vec<(String, Fields)> {
    (0..shards.len()).map(|index| plain(&read(shards, index).unwrap())).collect()
}

fn sample(key: &str, fields: &[(&str, &str)]) -> (String, Fields) {
    let fields = fields.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.as_bytes().to_vec())).collect();
    (key.to_owned(), fields)
}

#[test]
fn members_that_lie_together_and_are_named_alike_are_a_sample() {
    let (_folder, shards) = shard(archive(&[
        ("a/0.jpg", b"1"),
        ("a/0.Seg.PNG", b"22"),
        ("README", b"passed by"),
        ("a/0.json", b""),
        ("a/1.jpg", b"3"),
        ("b/1.jpg", b"4"),
        ("a/1.json", b"5"),
        (".hidden", b"passed by"),
    ]));
    let expected = [
        sample("a/0", &[("jpg", "1"), ("seg.png", "22"), ("json", "")]),
        sample("a/1", &[("jpg", "3")]),
        sample("b/1", &[("jpg", "4")]),
        sample("a/1", &[("json", "5")]),
    ];
    assert_eq!(all(&shards), expected);
    assert_eq!(shards.passed_by(), 2);
    assert_eq!(extent_bytes(&shards, 0), 3);
    assert!(shards.name(1).ends_with("shard.tar: a/1"));
    let first = read(&shards, 0).unwrap();
    assert_eq!(first.field("jpg").unwrap()[..], *b"1");
    assert!(first.field("txt").is_none());
    assert!(matches!(failure(&shards, 4, ""), Error::Index { index: 4, len: 4, .. }));
}

#[test]
fn a_field_of_each_sample_is_a_source_of_pictures() {
    let (_folder, shards) =
        shard(archive(&[("0.png", b"1"), ("0.jpg", b"22"), ("1.txt", b"3"), ("2.png", b"4")]));
    let pictures = shards.clone().field(&["jpg", "png"]);
    assert_eq!(pictures.len(), 3);
    let first = read(&pictures, 0).unwrap();
    assert_eq!(first.bytes[..], *b"22", "the first of the fields asked for, not of those there");
    assert!(first.name.ends_with("shard.tar: 0.jpg"));
    let error = failure(&pictures, 1, "shard.tar: 1: has no field jpg or png, only txt");
    assert!(matches!(error, Error::Field { .. }));
    assert_eq!(read(&pictures, 2).unwrap().bytes[..], *b"4");
    assert_ne!(pictures.fingerprint(), shards.field(&["png", "jpg"]).fingerprint());
}

#[test]
fn a_field_that_is_there_twice_is_an_error_of_its_sample() {
    let (_folder, shards) = shard(archive(&[("0.jpg", b"1"), ("0.JPG", b"2"), ("1.jpg", b"3")]));
    assert!(matches!(failure(&shards, 0, "the sample 0 has the field jpg twice"), Error::Archive { .. }));
    assert_eq!(plain(&read(&shards, 1).unwrap()), sample("1", &[("jpg", "3")]));
}

#[test]
fn long_names_of_gnu_tar() {
    for length in [99, 100, 101, 255, 256, 3_000] {
        let key = format!("{}/{}", "d".repeat(20), "n".repeat(length - 21));
        let (_folder, shards) = shard(archive(&[(&format!("{key}.jpg"), b"1"), ("b.jpg", b"2")]));
        assert_eq!(all(&shards), [sample(&key, &[("jpg", "1")]), sample("b", &[("jpg", "2")])]);
    }
}

#[test]
fn names_in_two_parts_as_posix_has_them() {
    let key = format!("{}/{}", "d".repeat(120), "n".repeat(60));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_path(format!("{key}.jpg")).unwrap();
    header.set_size(1);
    header.set_cksum();
    builder.append(&header, &b"1"[..]).unwrap();
    let (_folder, shards) = shard(builder.into_inner().unwrap());
    assert_eq!(all(&shards), [sample(&key, &[("jpg", "1")])]);
}

#[test]
fn names_and_sizes_in_pax_headers() {
    let key = format!("{}/{}", "d".repeat(200), "\u{e9}".repeat(100));
    let mut builder = tar::Builder::new(Vec::new());
    // One for all members, which says nothing about names.
    let mut global = tar::Header::new_ustar();
    global.set_entry_type(tar::EntryType::XGlobalHeader);
    global.set_size(13);
    global.set_cksum();
    builder.append(&global, &b"13 comment=x\n"[..]).unwrap();
    let name = format!("{key}.jpg");
    builder
        .append_pax_extensions([("mtime", &b"1.5"[..]), ("path", name.as_bytes()), ("size", b"600")])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("short.txt").unwrap();
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, std::io::empty()).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend([b'x'; 600]);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(archive(&[("b.jpg", b"2")]));
    let (_folder, shards) = shard(bytes);
    assert_eq!(all(&shards), [sample(&key, &[("jpg", &"x".repeat(600))]), sample("b", &[("jpg", "2")])]);
}

#[test]
fn sizes_in_base_256() {
    let mut bytes = archive(&[("a.jpg", b"123"), ("b.jpg", b"4")]);
    let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
    header.as_old_mut().size = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    let (_folder, shards) = shard(bytes);
    assert_eq!(all(&shards), [sample("a", &[("jpg", "123")]), sample("b", &[("jpg", "4")])]);
}

#[test]
fn folders_and_links_are_no_samples() {
    let mut builder = tar::Builder::new(Vec::new());
    for kind in
        [tar::EntryType::Directory, tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Fifo]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("a.jpg").unwrap();
        header.set_link_name("b.jpg").unwrap();
        // What some programs write for a link: the size of what it leads to.
        header.set_size(if kind == tar::EntryType::Link { 700 } else { 0 });
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
    }
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(archive(&[("b.jpg", b"2")]));
    let (_folder, shards) = shard(bytes);
    assert_eq!(all(&shards), [sample("b", &[("jpg", "2")])]);
}

#[test]
fn several_shards_are_one_list() {
    let folder = Folder::new();
    let first = folder.file("0.tar", archive(&[("a.jpg", b"1")]));
    let second = folder.file("1.tar", archive(&[("a.txt", b"2")]));
    let shards = TarShards::open([&first, &second]).unwrap();
    assert_eq!(all(&shards), [sample("a", &[("jpg", "1")]), sample("a", &[("txt", "2")])]);
    assert_ne!(shards.fingerprint(), TarShards::open([&second, &first]).unwrap().fingerprint());
}

#[test]
fn more_shards_than_files_may_be_open() {
    let folder = Folder::new();
    let path =
        |i: usize| folder.file(&format!("{i:04}.tar"), archive(&[("a.jpg", i.to_string().as_bytes())]));
    let shards = TarShards::open((0..1_500).map(path)).unwrap();
    for index in 0..shards.len() {
        assert_eq!(read(&shards, index).unwrap().fields[0].1[..], *index.to_string().as_bytes());
    }
    assert_eq!(shards.len(), 1_500);
    // Linux shows what is open.
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        assert!(open.count() < 512);
    }
}

#[test]
fn what_has_no_samples_says_why() {
    let folder = Folder::new();
    let error = TarShards::open([folder.file("a.tar", archive(&[("README", b"")]))]).unwrap_err();
    assert!(matches!(error, Error::NoSamples { .. }));
    message(&error, "(1 other file(s) passed by)");
    assert!(matches!(TarShards::open::<&str>([]), Err(Error::NoSamples { .. })));
    assert!(matches!(TarShards::open([folder.path().join("missing")]), Err(Error::Missing { .. })));
    assert!(matches!(TarShards::open([folder.path()]), Err(Error::Folder { .. })));
    for (magic, says) in [
        (&b"\x1f\x8b\x08"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh9", "bzip2"),
    ] {
        let mut bytes = magic.to_vec();
        bytes.resize(2_000, 0x55);
        let error = TarShards::open([folder.file("a.tar.gz", bytes)]).unwrap_err();
        message(&error, says);
        message(&error, "decompress it first");
    }
}

#[test]
fn a_member_over_the_limit_is_an_error_of_its_sample() {
    let folder = Folder::new();
    let path = folder.file("a.tar", archive(&[("a.jpg", b"12345"), ("b.jpg", b"1234")]));
    let shards =
        TarShards::open_with([path], &TarOptions { max_field_bytes: 4, ..TarOptions::default() }).unwrap();
    assert!(matches!(failure(&shards, 0, "a.tar: a.jpg"), Error::FileSize { bytes: 5, limit_bytes: 4, .. }));
    assert_eq!(plain(&read(&shards, 1).unwrap()), sample("b", &[("jpg", "1234")]));
}

#[test]
fn a_saved_index_opens_the_same_samples_until_the_shard_changes() {
    let folder = Folder::new();
    let path = folder.file("a.tar", archive(&[("a.jpg", b"12345"), ("b.jpg", b"1")]));
    let scanned = TarShards::open([&path]).unwrap();
    scanned.save_index().unwrap();
    let index = folder.path().join("a.tar.index");
    assert!(index.is_file());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");

    // Headers that are no longer readable show that they are not read.
    let times = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..512].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
    let loaded = TarShards::open([&path]).unwrap();
    assert_eq!(all(&loaded), all(&scanned));
    assert_eq!(loaded.fingerprint(), scanned.fingerprint());
    let scan = TarOptions { use_index: false, ..TarOptions::default() };
    assert!(matches!(TarShards::open_with([&path], &scan), Err(Error::Archive { offset: 0, .. })));

    std::fs::write(&path, archive(&[("c.jpg", b"1"), ("d.jpg", b"1")])).unwrap();
    assert_eq!(all(&TarShards::open([&path]).unwrap())[0].0, "c", "a changed shard is scanned");
    TarShards::open([&path]).unwrap().save_index().unwrap();
    std::fs::write(&index, "nonsense").unwrap();
    assert_eq!(all(&TarShards::open([&path]).unwrap())[0].0, "c", "a damaged index is not used");
}

#[test]
fn a_shard_that_shrank_after_it_was_opened() {
    let (folder, shards) = shard(archive(&[("a.jpg", &[1; 2_000]), ("b.jpg", b"1")]));
    std::fs::File::options().write(true).open(folder.path().join("shard.tar")).unwrap().set_len(600).unwrap();
    assert!(matches!(
        failure(&shards, 0, "shard.tar"),
        Error::Shorter { offset: 512, expected: 2_000, got: 88, .. }
    ));
}

fn packed() -> impl Strategy<Value = Vec<(String, Fields)>> {
    let fields = prop::collection::btree_map(
        "[a-z]{1,4}(\\.[a-z]{1,3})?",
        prop::collection::vec(any::<u8>(), 0..1_500),
        1..4,
    );
    prop::collection::vec(("[a-zA-Z0-9_\u{e0}-\u{ef}]{1,30}(/[a-z0-9]{1,90}){0,3}", fields), 1..12).prop_map(
        |samples| {
            let number = |(i, (key, fields)): (usize, (String, std::collections::BTreeMap<_, _>))| {
                // Neighbours of one name would be one sample.
                (format!("{key}{i}"), fields.into_iter().collect())
            };
            samples.into_iter().enumerate().map(number).collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_packed_comes_back(samples in packed(), end in any::<bool>()) {
        let names: Vec<(String, &[u8])> = samples
            .iter()
            .flat_map(|(key, fields)| fields.iter().map(move |(field, bytes)| (format!("{key}.{field}"), &bytes[..])))
            .collect();
        let names: Vec<(&str, &[u8])> = names.iter().map(|(name, bytes)| (&name[..], *bytes)).collect();
        let bytes = if end { archive(&names) } else { members(&names).0 };
        let (_folder, shards) = shard(bytes);
        prop_assert_eq!(all(&shards), samples);
        shards.save_index().unwrap();
    }
}
