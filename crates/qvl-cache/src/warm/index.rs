//! RocksDB, as far as this crate uses it: two column families, one batch for both, and what was really written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;
use rocksdb::statistics::{StatsLevel, Ticker};
use rocksdb::{
    BlockBasedOptions, Cache, ChecksumType, ColumnFamilyDescriptor, DB, DBCompressionType, ErrorKind,
    IteratorMode, LogLevel, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::format::Record;
use super::read::ReadError;
use crate::key::KeyId;

/// Key's id to [`Record`].
const INDEX: &str = "index";
/// Key's id to a stored value.
const SMALL: &str = "small";

/// An open index. All methods may be called from many threads; a write that must come after another is called after it.
pub(crate) struct Index {
    folder: PathBuf,
    small_max: usize,
    open: RwLock<Option<Open>>,
    /// By those that were open before.
    written_before: AtomicU64,
}

struct Open {
    db: DB,
    options: Options,
}

/// Why there is no index.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// Another one has it open.
    InUse,
    /// The drive refuses, or there is no right to it: nothing is known of the contents.
    Refused(rocksdb::Error),
    /// The contents are damaged.
    Damaged(String),
}

/// Changes that are written together or not at all.
#[derive(Default)]
pub(crate) struct Changes {
    steps: Vec<Step>,
}

enum Step {
    Record(KeyId, Record),
    Small(KeyId, Vec<u8>),
    ForgetSmall(KeyId),
    Forget(KeyId),
}

impl Changes {
    pub(crate) fn record(&mut self, id: KeyId, record: Record) {
        self.steps.push(Step::Record(id, record));
    }

    /// `stored` is a value with its footer.
    pub(crate) fn small(&mut self, id: KeyId, stored: Vec<u8>) {
        self.steps.push(Step::Small(id, stored));
    }

    pub(crate) fn forget_small(&mut self, id: KeyId) {
        self.steps.push(Step::ForgetSmall(id));
    }

    /// Its record and its small value.
    pub(crate) fn forget(&mut self, id: KeyId) {
        self.steps.push(Step::Forget(id));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl Index {
    /// Opens or creates it.
    pub(crate) fn open(folder: &Path, small_max: usize) -> Result<Self, OpenError> {
        let open = Open::new(folder, small_max)?;
        Ok(Self {
            folder: folder.to_owned(),
            small_max,
            open: RwLock::new(Some(open)),
            written_before: AtomicU64::new(0),
        })
    }

    /// Closes it and opens it again: what ends RocksDB's own read-only state after an error in the background.
    pub(crate) fn reopen(&self) -> Result<(), OpenError> {
        let mut open = self.open.write();
        if let Some(open) = &*open {
            self.written_before.fetch_add(open.bytes_written(), Ordering::Relaxed);
        }
        *open = None;
        *open = Some(Open::new(&self.folder, self.small_max)?);
        Ok(())
    }

    /// Hands every record to `each`, by id, and `None` for one that is none.
    pub(crate) fn records(&self, mut each: impl FnMut(KeyId, Option<Record>)) -> Result<(), String> {
        self.with(|open| {
            let mut options = ReadOptions::default();
            options.set_readahead_size(2 << 20);
            options.fill_cache(false);
            for item in open.db.iterator_cf_opt(open.family(INDEX)?, options, IteratorMode::Start) {
                let (key, value) = item.map_err(rocksdb::Error::into_string)?;
                let Ok(id) = <[u8; 16]>::try_from(&*key) else {
                    return Err(format!("a key of {} bytes in the index", key.len()));
                };
                let id = KeyId(u128::from_be_bytes(id));
                each(id, Record::decode(&value, id));
            }
            Ok(())
        })
    }

    /// A small value with its footer.
    pub(crate) fn small(&self, id: KeyId) -> Result<Option<Bytes>, ReadError> {
        let unavailable = |what: String| ReadError::Unavailable(io::Error::other(what));
        let open = self.open.read();
        let Some(open) = &*open else { return Err(unavailable("the index is closed".to_owned())) };
        match open.db.get_cf(open.family(SMALL).map_err(unavailable)?, id.0.to_be_bytes()) {
            Ok(found) => Ok(found.map(Bytes::from)),
            Err(error)
                if error.kind() == ErrorKind::Corruption || error.as_ref().contains("Input/output error") =>
            {
                Err(ReadError::Damaged(error.into_string()))
            }
            Err(error) => Err(unavailable(error.into_string())),
        }
    }

    /// Writes changes, in the order of the calls. On the drive after [`sync`](Self::sync).
    pub(crate) fn write(&self, changes: Changes) -> Result<(), String> {
        if changes.is_empty() {
            return Ok(());
        }
        self.with(|open| {
            let (index, small) = (open.family(INDEX)?, open.family(SMALL)?);
            let mut batch = WriteBatch::default();
            for step in changes.steps {
                match step {
                    Step::Record(id, record) => batch.put_cf(index, id.0.to_be_bytes(), record.encode(id)),
                    Step::Small(id, stored) => batch.put_cf(small, id.0.to_be_bytes(), stored),
                    Step::ForgetSmall(id) => batch.delete_cf(small, id.0.to_be_bytes()),
                    Step::Forget(id) => {
                        batch.delete_cf(index, id.0.to_be_bytes());
                        batch.delete_cf(small, id.0.to_be_bytes());
                    }
                }
            }
            open.db.write_opt(batch, &WriteOptions::default()).map_err(rocksdb::Error::into_string)
        })
    }

    /// Puts all that was written on the drive.
    pub(crate) fn sync(&self) -> Result<(), String> {
        self.with(|open| open.db.flush_wal(true).map_err(rocksdb::Error::into_string))
    }

    /// Bytes that RocksDB wrote since this was opened: its log, tables, and their rewriting.
    pub(crate) fn bytes_written(&self) -> u64 {
        let before = self.written_before.load(Ordering::Relaxed);
        before + self.open.read().as_ref().map_or(0, Open::bytes_written)
    }

    /// Bytes of its tables and blob files on the drive.
    pub(crate) fn bytes_on_drive(&self) -> u64 {
        let sum = |open: &Open| {
            let mut sum = 0;
            for family in [INDEX, SMALL] {
                for property in ["rocksdb.total-sst-files-size", "rocksdb.total-blob-file-size"] {
                    let bytes = open.db.property_int_value_cf(open.family(family)?, property);
                    sum += bytes.ok().flatten().unwrap_or(0);
                }
            }
            Ok(sum)
        };
        self.with(sum).unwrap_or(0)
    }

    /// Closes it. What is read or written later fails.
    pub(crate) fn close(&self) {
        *self.open.write() = None;
    }

    fn with<T>(&self, use_it: impl FnOnce(&Open) -> Result<T, String>) -> Result<T, String> {
        match &*self.open.read() {
            Some(open) => use_it(open),
            None => Err("the index is closed".to_owned()),
        }
    }
}

impl Open {
    fn new(folder: &Path, small_max: usize) -> Result<Self, OpenError> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_background_jobs(2);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_log_level(LogLevel::Warn);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_max_total_wal_size(WAL_BYTES_MAX);
        options.set_max_open_files(256);
        options.enable_statistics();
        options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
        let families = [
            ColumnFamilyDescriptor::new("default", family(&cache, 1 << 20)),
            ColumnFamilyDescriptor::new(INDEX, family(&cache, 4 << 20)),
            ColumnFamilyDescriptor::new(SMALL, small_family(&cache, small_max)),
        ];
        match DB::open_cf_descriptors(&options, folder, families) {
            Ok(db) => Ok(Self { db, options }),
            Err(error) => Err(classify(error)),
        }
    }

    fn bytes_written(&self) -> u64 {
        // Flushes and compactions count the blob files that they write.
        let tickers = [Ticker::WalFileBytes, Ticker::FlushWriteBytes, Ticker::CompactWriteBytes];
        tickers.into_iter().map(|ticker| self.options.get_ticker_count(ticker)).sum()
    }

    fn family(&self, name: &str) -> Result<&rocksdb::ColumnFamily, String> {
        self.db.cf_handle(name).ok_or_else(|| format!("no column family {name:?}"))
    }
}

fn family(cache: &Cache, write_buffer_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_checksum_type(ChecksumType::XXH3);
    table.set_block_cache(cache);
    table.set_block_size(16 << 10);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    options.set_bottommost_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(write_buffer_bytes);
    options.set_max_write_buffer_number(3);
    options.set_paranoid_checks(true);
    options
}

/// Values live in blob files, which compactions do not rewrite: each is written to the log and once more. With half of
/// the values replaced three times that is 2.4 bytes written for one stored, in tables 3.1.
fn small_family(cache: &Cache, small_max: usize) -> Options {
    let mut options = family(cache, SMALL_WRITE_BUFFER_BYTES.max(small_max * 4));
    options.set_enable_blob_files(true);
    options.set_min_blob_size(BLOB_BYTES_MIN);
    options.set_blob_file_size(32 << 20);
    options.set_blob_compression_type(DBCompressionType::None);
    options.set_enable_blob_gc(true);
    options.set_blob_gc_age_cutoff(0.5);
    options.set_blob_gc_force_threshold(0.5);
    options
}

/// RocksDB says in text what happened.
fn classify(error: rocksdb::Error) -> OpenError {
    let text = error.as_ref();
    // "While lock file: …/LOCK: Resource temporarily unavailable", "lock hold by current process".
    if text.contains("lock file") || text.contains("lock hold") {
        return OpenError::InUse;
    }
    const REFUSALS: [&str; 6] = [
        "No space left",
        "Read-only file system",
        "Permission denied",
        "Too many open files",
        "Disk quota exceeded",
        "Cannot allocate memory",
    ];
    if error.kind() == ErrorKind::IOError && REFUSALS.iter().any(|refusal| text.contains(refusal)) {
        return OpenError::Refused(error);
    }
    OpenError::Damaged(error.into_string())
}

/// The records are all in memory already; this serves small values.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
const SMALL_WRITE_BUFFER_BYTES: usize = 16 << 20;
/// Bounds what is read again when it is opened after a crash.
const WAL_BYTES_MAX: u64 = 64 << 20;
/// Below this a blob costs more than being rewritten with its table.
const BLOB_BYTES_MIN: u64 = 1 << 10;
