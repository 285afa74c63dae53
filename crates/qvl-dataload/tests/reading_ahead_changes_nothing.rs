//! However files are read ahead, the samples are the same, in the same order, with the same errors.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::PathBuf;

use qvl_dataload::storage::{DataFile, Extent, Reader, Storage};
use qvl_dataload::{DataLoader, Error, OnError, Recycled, Result, Shuffle, Source};

/// Each sample is three pieces of files: one of its own, and two of one that all share.
struct Pieces {
    own: Vec<PathBuf>,
    shared: DataFile,
    shared_bytes: usize,
}

const COUNT: usize = 60;

impl Pieces {
    fn write(folder: &std::path::Path) -> Self {
        let bytes = |count: usize, salt: usize| -> Vec<u8> {
            (0..count).map(|i| (i * 31 + i / 256 * 7 + salt) as u8).collect()
        };
        let shared_bytes = 700_001;
        fs::write(folder.join("shared"), bytes(shared_bytes, 1)).unwrap();
        let own = (0..COUNT)
            .map(|i| {
                let path = folder.join(format!("{i}"));
                fs::write(&path, bytes(i * 997, i)).unwrap();
                path
            })
            .collect();
        Self { own, shared: DataFile::kept(folder.join("shared")), shared_bytes }
    }

    fn pieces(&self, index: usize) -> Result<Vec<Extent>> {
        let step = self.shared_bytes / (COUNT + 1);
        let shared = |turn: usize| Extent {
            file: self.shared.clone(),
            offset: (turn * step) as u64,
            bytes: step + index,
        };
        Ok(vec![shared(index), Extent::whole(DataFile::once(&self.own[index]))?, shared(COUNT - 1 - index)])
    }
}

impl Source for Pieces {
    type Sample = Vec<Vec<u8>>;

    fn len(&self) -> usize {
        COUNT
    }

    fn name(&self, index: usize) -> String {
        format!("sample {index}")
    }

    fn read(&self, index: usize, reader: &mut Reader<'_>) -> Result<Self::Sample> {
        self.pieces(index)?.iter().map(|extent| Ok(reader.read(extent)?.to_vec())).collect()
    }

    fn extents(&self, index: usize) -> Vec<Extent> {
        self.pieces(index).unwrap_or_default()
    }
}

#[test]
fn with_every_engine() {
    let folder = tempfile::tempdir().unwrap();
    let reference = Pieces::write(folder.path());
    // One vanishes after it was listed, one is replaced by a folder.
    fs::remove_file(&reference.own[17]).unwrap();
    fs::remove_file(&reference.own[33]).unwrap();
    fs::create_dir(&reference.own[33]).unwrap();
    let buffers = Recycled::new(0);
    let mut expected = Vec::new();
    for index in 0..COUNT {
        match reference.read(index, &mut Reader::new(&buffers)) {
            Ok(sample) => expected.push((index, sample)),
            Err(Error::Missing { .. }) if index == 17 => {}
            Err(Error::Folder { .. }) if index == 33 => {}
            Err(other) => unreachable!("{other}"),
        }
    }
    let storages = [
        Storage::Buffered { readahead_bytes: 0 },
        Storage::Buffered { readahead_bytes: 100_000 },
        Storage::Pool { threads: 3, direct: false },
        Storage::Pool { threads: 2, direct: true },
        Storage::Uring { depth: 8, direct: false },
        Storage::Uring { depth: 8, direct: true },
    ];
    let mut refused = 0;
    for storage in storages {
        for (workers, shuffle, bytes) in [
            (1, Shuffle::Off, 1 << 30),
            (3, Shuffle::All { seed: 3 }, 1 << 30),
            (2, Shuffle::All { seed: 4 }, 1 << 20),
        ] {
            let loader = DataLoader::builder(Pieces::write_nothing(&reference))
                .storage(storage)
                .workers(workers)
                .prefetch_items(16)
                .prefetch_bytes(bytes)
                .shuffle(shuffle)
                .batch_size(7)
                .on_error(OnError::SKIP)
                .build();
            let mut loader = match loader {
                Ok(loader) => loader,
                Err(error @ Error::Storage { .. }) => {
                    println!("{storage}: {error}");
                    refused += 1;
                    continue;
                }
                Err(other) => unreachable!("{other}"),
            };
            let mut got = Vec::new();
            for batch in &mut loader {
                let batch = batch.unwrap();
                got.extend(batch.indices.clone().into_iter().zip(batch.items));
            }
            let stats = loader.stats();
            if stats.skips.iter().any(|skip| skip.reason.contains("cannot be used here")) {
                // A file system without direct reads: said for each sample, and nothing is read another way.
                println!("{storage}: {}", stats.skips[0].reason);
                refused += 1;
                continue;
            }
            got.sort_unstable_by_key(|(index, _)| *index);
            assert!(got == expected, "{storage}, {workers} workers");
            assert_eq!(stats.skipped, 2, "{storage}: {stats}");
            assert!(stats.peak_bytes <= stats.bytes_bound);
        }
    }
    assert!(refused < 18 - 6, "nothing but buffered reads was tried");
}

impl Pieces {
    /// The same files, named once more.
    fn write_nothing(other: &Self) -> Self {
        let shared = DataFile::kept(other.shared.path());
        Self { own: other.own.clone(), shared, shared_bytes: other.shared_bytes }
    }
}
