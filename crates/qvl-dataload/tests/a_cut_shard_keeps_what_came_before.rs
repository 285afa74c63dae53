//! A tar archive that is cut off or damaged is an error that says where, or gives every sample that is complete and
//! says what is lost.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/archives.rs"]
mod archives;
#[path = "common/sources.rs"]
mod sources;

use archives::{archive, members};
use qvl_dataload::{Error, Source, TarOptions, TarShards};
use sources::{Folder, message, read};

fn tolerant() -> TarOptions {
    TarOptions { allow_truncated: true, ..TarOptions::default() }
}

/// Three samples of two fields, one with a long name, all with contents that do not fill their last block.
fn contents() -> Vec<(String, Vec<u8>)> {
    let long = "n".repeat(150);
    let names = ["a.jpg", "a.json", &format!("{long}.jpg"), &format!("{long}.json"), "c.jpg", "c.json"];
    names
        .iter()
        .enumerate()
        .map(|(i, name)| ((*name).to_owned(), vec![b'0' + i as u8; 200 * i + 100]))
        .collect()
}

#[test]
fn a_shard_cut_at_any_block_and_inside_any_header() {
    let contents = contents();
    let listed: Vec<(&str, &[u8])> = contents.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    let (whole, ends) = members(&listed);
    let mut whole = whole;
    let end_mark = whole.len();
    whole.extend([0; 1024]);
    let folder = Folder::new();
    let cuts = (0..=whole.len()).filter(|cut| matches!(cut % 512, 0 | 1 | 100 | 130 | 257 | 511));
    for cut in cuts {
        let path = folder.file("cut.tar", &whole[..cut]);
        let complete = ends.iter().filter(|end| **end <= cut).count();
        // The next member begins after what fills the last block of the one before.
        let next = if complete == 0 { 0 } else { ends[complete - 1].next_multiple_of(512) };
        let is_whole = cut > 0 && cut <= next || cut >= end_mark;
        let strict = TarShards::open([&path]);
        if is_whole {
            assert_eq!(strict.unwrap().len(), complete.div_ceil(2), "cut at {cut}");
            continue;
        }
        let error = strict.unwrap_err();
        assert!(matches!(&error, Error::Archive { kind: "tar", .. }), "cut at {cut}: {error:?}");
        message(&error, "cut.tar: damaged or truncated tar at offset ");

        // Of a sample that is complete there is a member of the next one, or of the next one the whole header.
        let kept = match TarShards::open_with([&path], &tolerant()) {
            Ok(shards) => {
                let damage = &shards.damage()[0];
                assert!(
                    damage.offset as usize <= cut
                        && damage.lost_bytes as usize == cut - damage.offset as usize
                );
                for index in 0..shards.len() {
                    let sample = read(&shards, index).unwrap();
                    let fields: Vec<&[u8]> = sample.fields.iter().map(|(_, bytes)| &bytes[..]).collect();
                    assert_eq!(
                        fields,
                        [&contents[2 * index].1[..], &contents[2 * index + 1].1[..]],
                        "cut at {cut}"
                    );
                }
                let first_lost = shards.len() * 2;
                assert_eq!(damage.dropped.is_some(), first_lost < complete, "cut at {cut}: {damage:?}");
                shards.len()
            }
            Err(error) => {
                assert!(matches!(error, Error::NoSamples { .. }), "cut at {cut}: {error:?}");
                0
            }
        };
        let next_is_known = cut >= end_mark
            || contents.get(complete).is_some_and(|(name, _)| {
                let header = if name.len() > 100 { 512 * 3 } else { 512 };
                cut >= next + header
            });
        // A sample of which the second member is there, and the next thing is known, or yet another member is there.
        let expected = if complete.is_multiple_of(2) && !next_is_known {
            (complete / 2).saturating_sub(1)
        } else {
            complete / 2
        };
        assert_eq!(kept, expected, "cut at {cut}, {complete} complete members");
    }
}

#[test]
fn a_damaged_header_ends_a_shard() {
    let folder = Folder::new();
    let (mut bytes, _) = members(&[("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")]);
    bytes[1024 + 5] ^= 1;
    let path = folder.file("a.tar", &bytes);
    let error = TarShards::open([&path]).unwrap_err();
    assert!(matches!(error, Error::Archive { offset: 1024, .. }));
    message(&error, "its checksum is");
    let error = TarShards::open_with([&path], &tolerant()).unwrap_err();
    assert!(matches!(error, Error::NoSamples { .. }), "the sample before it may have had more fields");
    let (mut bytes, _) = members(&[("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")]);
    bytes[2048 + 5] ^= 1;
    let shards = TarShards::open_with([folder.file("a.tar", &bytes)], &tolerant()).unwrap();
    assert_eq!(shards.len(), 1);
    let damage = &shards.damage()[0];
    assert_eq!((damage.offset, damage.lost_bytes, damage.dropped.as_deref()), (2048, 1024, Some("b")));
    assert!(damage.shard.ends_with("a.tar"));
}

#[test]
fn what_follows_the_end_mark_is_not_lost_in_silence() {
    let folder = Folder::new();
    let mut joined = archive(&[("a.jpg", b"1"), ("b.jpg", b"2")]);
    let end = joined.len();
    joined.extend(archive(&[("c.jpg", b"3")]));
    let error = TarShards::open([folder.file("a.tar", &joined)]).unwrap_err();
    assert!(matches!(&error, Error::Archive { offset, .. } if *offset == end as u64));
    message(&error, "archives put one behind the other");
    joined.truncate(end);
    // A tape record of 10 KiB, as programs write it.
    joined.resize(10_240, 0);
    assert_eq!(TarShards::open([folder.file("a.tar", &joined)]).unwrap().len(), 2);
}

#[test]
fn other_shards_are_not_affected() {
    let folder = Folder::new();
    let cut = folder.file("0.tar", &members(&[("a.jpg", b"1"), ("b.jpg", &[0; 600])]).0[..1_600]);
    let whole = folder.file("1.tar", archive(&[("b.jpg", b"3")]));
    let shards = TarShards::open_with([&cut, &whole], &tolerant()).unwrap();
    assert_eq!(shards.len(), 2);
    assert_eq!(read(&shards, 1).unwrap().fields[0].1[..], *b"3");
    assert_eq!(
        (shards.damage().len(), shards.damage()[0].offset, &shards.damage()[0].dropped),
        (1, 1024, &None)
    );
    let empty = folder.file("2.tar", "");
    assert!(matches!(TarShards::open([&whole, &empty]), Err(Error::Archive { offset: 0, .. })));
    assert_eq!(TarShards::open_with([&whole, &empty], &tolerant()).unwrap().len(), 1);
}

#[test]
fn sizes_that_no_archive_can_hold() {
    let folder = Folder::new();
    for size in
        [[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], [0xff; 12], *b"77777777777\0"]
    {
        let (mut bytes, _) = members(&[("a.jpg", b"1"), ("b.jpg", b"2")]);
        for kind in [b'0', b'L', b'x', b'K', b'g', b'S'] {
            let mut header = tar::Header::from_byte_slice(&bytes[1024..1536]).clone();
            header.as_old_mut().size = size;
            header.as_old_mut().linkflag = [kind];
            header.set_cksum();
            bytes[1024..1536].copy_from_slice(header.as_bytes());
            let error = TarShards::open([folder.file("a.tar", &bytes)]).unwrap_err();
            assert!(matches!(error, Error::Archive { offset: 1024, .. }), "{error:?}");
        }
    }
}
