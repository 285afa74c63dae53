//! A column of Parquet files gives its rows as pictures: plain bytes, or the struct of Hugging Face data sets.

#![cfg(feature = "parquet")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/sources.rs"]
mod sources;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use qvl_dataload::{Error, ParquetImages, Source};
use sources::{Folder, failure, message, read_estimated as read};

const PLAIN: &str = "message m { required int64 id; required binary image; }";
const STRUCT: &str = "message m { required int64 id; optional group image { optional binary bytes; optional binary path (UTF8); } }";

/// Writes row groups of rows, `None` for a null.
fn write(path: &Path, schema: &str, groups: &[&[Option<Vec<u8>>]], compression: Compression) {
    let properties = WriterProperties::builder().set_compression(compression).build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer =
        SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let mut number = 0;
        while let Some(mut column) = group.next_column().unwrap() {
            number += 1;
            if number == 1 {
                let ids: Vec<i64> = (0..rows.len() as i64).collect();
                column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
            } else {
                let values: Vec<ByteArray> =
                    rows.iter().flatten().map(|bytes| ByteArray::from(bytes.clone())).collect();
                let levels: Vec<i16> = rows.iter().map(|row| if row.is_some() { 2 } else { 0 }).collect();
                column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
            }
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn rows(numbers: std::ops::Range<usize>) -> Vec<Option<Vec<u8>>> {
    numbers.map(|i| Some(vec![i as u8; 1_000 + 10 * i])).collect()
}

#[test]
fn rows_come_back_in_any_order_from_any_file() {
    let folder = Folder::new();
    let [first, second] = ["0.parquet", "1.parquet"].map(|name| folder.path().join(name));
    write(&first, PLAIN, &[&rows(0..10), &rows(10..13)], Compression::SNAPPY);
    write(&second, STRUCT, &[&rows(13..14), &rows(14..40)], Compression::UNCOMPRESSED);
    let images = ParquetImages::open([&first, &second], "image").unwrap();
    assert_eq!(images.len(), 40);
    for index in (0..40).chain((0..40).rev()).chain([0, 39, 10, 13, 12, 5]) {
        let sample = read(&images, index).unwrap();
        assert_eq!(sample.bytes[..], vec![index as u8; 1_000 + 10 * index], "row {index}");
        assert_eq!(*sample.name, images.name(index));
    }
    assert!(images.name(15).ends_with("1.parquet: row 1 of row group 1, column image"));
    assert!(images.sample_bytes(3, &qvl_dataload::Recycled::new(0)).unwrap() > 100);
    assert!(images.extents(3).is_empty());
    assert!(matches!(failure(&images, 40, ""), Error::Index { index: 40, len: 40, .. }));
    let inner = ParquetImages::open([&second], "image.bytes").unwrap();
    assert_eq!(read(&inner, 0).unwrap().bytes.len(), 1_130);
    assert_ne!(images.fingerprint(), inner.fingerprint());
}

#[test]
fn a_null_is_an_error_of_its_row() {
    let folder = Folder::new();
    let path = folder.path().join("a.parquet");
    write(&path, STRUCT, &[&[Some(vec![1]), None, Some(vec![]), Some(vec![4])]], Compression::SNAPPY);
    let images = ParquetImages::open([&path], "image").unwrap();
    assert_eq!(read(&images, 0).unwrap().bytes[..], [1]);
    assert!(matches!(
        failure(&images, 1, "a.parquet: row 1 of row group 0, column image"),
        Error::Field { .. }
    ));
    assert!(read(&images, 2).unwrap().bytes.is_empty());
    assert_eq!(read(&images, 3).unwrap().bytes[..], [4]);
}

#[test]
fn many_threads_read_the_same_group() {
    let folder = Folder::new();
    let path = folder.path().join("a.parquet");
    write(&path, PLAIN, &[&rows(0..20), &rows(20..40), &rows(40..60)], Compression::SNAPPY);
    let images = ParquetImages::open([&path], "image").unwrap();
    std::thread::scope(|scope| {
        for offset in 0..4 {
            let images = &images;
            scope.spawn(move || {
                for index in (0..60).map(|i| (i + offset * 17) % 60) {
                    assert_eq!(read(images, index).unwrap().bytes.len(), 1_000 + 10 * index);
                }
            });
        }
    });
}

#[test]
fn what_is_wrong_is_named() {
    let folder = Folder::new();
    let path = folder.path().join("a.parquet");
    write(&path, PLAIN, &[&rows(0..3)], Compression::SNAPPY);
    let error = ParquetImages::open([&path], "picture").unwrap_err();
    assert!(matches!(error, Error::Field { .. }));
    message(&error, "a.parquet: has no field picture of bytes, only id (INT64), image (BYTE_ARRAY)");
    assert!(matches!(ParquetImages::open([&path], "id"), Err(Error::Field { .. })));
    let text = folder.file("b.parquet", "not one of them");
    assert!(matches!(ParquetImages::open([&text], "image"), Err(Error::Archive { kind: "Parquet", .. })));
    write(&folder.path().join("c.parquet"), PLAIN, &[], Compression::SNAPPY);
    let empty = ParquetImages::open([folder.path().join("c.parquet")], "image");
    assert!(matches!(empty, Err(Error::NoSamples { .. })));
    assert!(matches!(ParquetImages::open([folder.path().join("d")], "image"), Err(Error::Missing { .. })));
    let images = ParquetImages::open([&path], "image").unwrap().limits(100, 100);
    assert!(matches!(failure(&images, 0, "row group 0"), Error::FileSize { limit_bytes: 100, .. }));
    let images = ParquetImages::open([&path], "image").unwrap().limits(1 << 20, 1_005);
    assert_eq!(read(&images, 0).unwrap().bytes.len(), 1_000);
    assert!(matches!(failure(&images, 1, "row 1 of"), Error::FileSize { bytes: 1_010, .. }));
}

#[test]
fn damage_anywhere_is_an_error_or_other_bytes_and_no_panic() {
    let folder = Folder::new();
    let path = folder.path().join("a.parquet");
    write(&path, STRUCT, &[&[Some(vec![7; 40]), None], &[Some(vec![8; 30])]], Compression::SNAPPY);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(images) = ParquetImages::open([&path], "image") {
                for index in 0..images.len().min(5) {
                    if let Err(error) = read(&images, index) {
                        message(&error, "a.parquet");
                    }
                }
            }
        }
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(ParquetImages::open([&path], "image").is_err(), "cut at {at}");
    }
}
