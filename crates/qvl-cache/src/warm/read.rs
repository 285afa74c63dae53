//! Reading a value's file: in pieces that are hashed while they are in the processor's cache, into memory that was used
//! before.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::folder::{Content, Folder};
use super::format::{self, CHUNK_BYTES, Record, Wrong};
use crate::buffers::{Buffers, PAGE_BYTES};
use crate::storage::{Opened, Storage};

/// A value that was read and is what was stored.
pub(crate) struct Value {
    pub(crate) value: Bytes,
    pub(crate) key: Bytes,
    pub(crate) cost: f32,
    /// All that was read for it.
    pub(crate) bytes_read: u64,
}

/// Why there is none.
pub(crate) enum ReadError {
    /// There is no such file or small value.
    Missing,
    /// It is not what was stored, or the drive cannot read it.
    Damaged(String),
    /// It cannot be read now, which says nothing of its contents.
    Unavailable(io::Error),
}

/// Reads files.
pub(crate) struct Reader {
    pub(crate) buffers: Buffers,
    pub(crate) direct: bool,
    /// Threads that read one large value together, the caller's included; of all values at once, one fewer are helpers.
    pub(crate) threads: usize,
    helpers: AtomicUsize,
    pool: OnceLock<Option<rayon::ThreadPool>>,
}

impl Reader {
    pub(crate) fn new(buffers: Buffers, direct: bool, threads: usize) -> Self {
        let threads = threads.max(if direct { 2 } else { 1 });
        Self { buffers, direct, threads, helpers: AtomicUsize::new(0), pool: OnceLock::new() }
    }

    /// The value of a file, checked.
    pub(crate) fn read(
        &self,
        storage: &dyn Storage,
        folder: &Folder,
        record: &Record,
    ) -> Result<Value, ReadError> {
        let damaged = |wrong: Wrong| ReadError::Damaged(wrong.to_string());
        let file_bytes = record.file_bytes().and_then(|bytes| usize::try_from(bytes).ok());
        let file_bytes = file_bytes.ok_or_else(|| damaged(Wrong::NotIndexed))?;
        let value_bytes = record.value_bytes as usize;
        let path = folder.value(record.place, record.generation);
        let file = storage.open(&path, self.direct).map_err(classify)?;
        let mut buffer = self.buffers.take(file_bytes);
        let mut hashes = vec![0; value_bytes.div_ceil(CHUNK_BYTES)];
        // Direct reads are of whole pages; the last one ends early.
        let room = file_bytes.next_multiple_of(PAGE_BYTES);
        let read_bytes = if self.direct { room } else { file_bytes };
        let whole = Part { into: &mut buffer.bytes_mut()[..read_bytes], hashes: &mut hashes, offset: 0 };
        let work = Work { file: &*file, value_bytes, file_bytes, piece_bytes: CHUNK_BYTES };
        self.read_parts(work, whole).map_err(classify)?;

        let value_hash = format::value_hash_of(&hashes);
        if let Some(check) = &record.check {
            if value_hash != check.value_hash {
                return Err(damaged(Wrong::Value));
            }
            let (key, more_bytes) = match record.short_key() {
                Some(key) => (Bytes::copy_from_slice(key), 0),
                None => (footer_key(storage, folder, record)?, format::footer_bytes(record.key_bytes)),
            };
            let bytes_read = record.value_bytes + more_bytes;
            return Ok(Value { value: buffer.share(0..value_bytes), key, cost: record.cost, bytes_read });
        }
        let (key, tail) =
            format::decode_footer(&buffer.as_ref()[value_bytes..file_bytes]).map_err(damaged)?;
        let key_bytes = key.len();
        if tail.generation != record.generation || tail.value_bytes != record.value_bytes {
            return Err(damaged(Wrong::NotIndexed));
        }
        if value_hash != tail.value_hash {
            return Err(damaged(Wrong::Value));
        }
        let stored = buffer.share(0..file_bytes);
        let key = stored.slice(value_bytes..value_bytes + key_bytes);
        let value = stored.slice(..value_bytes);
        Ok(Value { value, key, cost: tail.cost, bytes_read: file_bytes as u64 })
    }

    /// The least that is worth a thread, and what each of so many threads reads at once.
    ///
    /// Past the page cache two threads read one value: while one hashes what has come, which is in no processor's cache,
    /// the drive works for the other.
    fn part_bytes_min(&self) -> usize {
        if self.direct { DIRECT_PIECE_BYTES } else { PART_BYTES_MIN }
    }

    fn piece_bytes(&self, threads: usize) -> usize {
        match (self.direct, threads) {
            (false, _) => CHUNK_BYTES,
            (true, 1) => DIRECT_ALONE_PIECE_BYTES,
            (true, _) => DIRECT_PIECE_BYTES,
        }
    }

    /// Reads and hashes with as many threads as are free and worth it.
    fn read_parts(&self, mut work: Work<'_>, whole: Part<'_>) -> io::Result<()> {
        let parts_max = (work.value_bytes / self.part_bytes_min()).clamp(1, self.threads);
        let pool = if parts_max > 1 { self.pool() } else { None };
        let wanted = if pool.is_some() { parts_max - 1 } else { 0 };
        let helpers = Helpers::take(&self.helpers, wanted, self.threads - 1);
        let parts = helpers.count + 1;
        work.piece_bytes = self.piece_bytes(parts);
        let Some(pool) = pool.filter(|_| parts > 1) else { return work.read(whole) };
        let work = &work;
        let part_bytes = whole.into.len().div_ceil(parts).next_multiple_of(CHUNK_BYTES);
        let mut others: Vec<io::Result<()>> = (0..helpers.count).map(|_| Ok(())).collect();
        let mut mine = Ok(());
        pool.in_place_scope(|scope| {
            let mut rest = Some(whole);
            for other in &mut others {
                let Some(whole) = rest.take() else { break };
                let (part, later) = whole.split_at(part_bytes);
                rest = later;
                scope.spawn(move |_| *other = work.read(part));
            }
            mine = rest.map_or(Ok(()), |part| work.read(part));
        });
        others.into_iter().collect::<io::Result<()>>().and(mine)
    }

    /// Threads that wait for parts to read: starting one for each value cost more than hashing it. Without them, where
    /// none can be started, the caller reads alone.
    fn pool(&self) -> Option<&rayon::ThreadPool> {
        let start = || {
            let threads = rayon::ThreadPoolBuilder::new().num_threads(self.threads - 1);
            threads.thread_name(|number| format!("qvl-cache-read-{number}")).build().ok()
        };
        self.pool.get_or_init(start).as_ref()
    }
}

/// Threads that were free.
struct Helpers<'a> {
    used: &'a AtomicUsize,
    count: usize,
}

impl<'a> Helpers<'a> {
    fn take(used: &'a AtomicUsize, wanted: usize, most: usize) -> Self {
        let mut count = 0;
        let _ = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            count = wanted.min(most.saturating_sub(used));
            Some(used + count)
        });
        Self { used, count }
    }
}

impl Drop for Helpers<'_> {
    fn drop(&mut self) {
        self.used.fetch_sub(self.count, Ordering::Relaxed);
    }
}

struct Work<'a> {
    file: &'a dyn Opened,
    value_bytes: usize,
    file_bytes: usize,
    /// A multiple of [`CHUNK_BYTES`].
    piece_bytes: usize,
}

/// A part of the file, from a chunk's beginning, with the hashes of its chunks.
struct Part<'a> {
    into: &'a mut [u8],
    hashes: &'a mut [u64],
    offset: usize,
}

impl<'a> Part<'a> {
    /// The first `bytes` and what comes after, if anything does.
    fn split_at(self, bytes: usize) -> (Part<'a>, Option<Part<'a>>) {
        if bytes >= self.into.len() {
            return (self, None);
        }
        let (into, later_into) = self.into.split_at_mut(bytes);
        let chunks = (bytes / CHUNK_BYTES).min(self.hashes.len());
        let (hashes, later_hashes) = self.hashes.split_at_mut(chunks);
        let later = Part { into: later_into, hashes: later_hashes, offset: self.offset + bytes };
        (Part { into, hashes, offset: self.offset }, Some(later))
    }
}

impl Work<'_> {
    fn read(&self, part: Part<'_>) -> io::Result<()> {
        let Part { mut into, hashes, mut offset } = part;
        let mut hashes = hashes.iter_mut();
        while !into.is_empty() {
            // A short rest is read with the piece before it: the footer is no request of its own.
            let bytes =
                if into.len() <= self.piece_bytes + REST_BYTES_MAX { into.len() } else { self.piece_bytes };
            let (piece, rest) = into.split_at_mut(bytes);
            let needed = bytes.min(self.file_bytes - offset);
            if self.file.read_at(offset as u64, piece)? < needed {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let of_value = bytes.min(self.value_bytes.saturating_sub(offset));
            for (chunk, hash) in piece[..of_value].chunks(CHUNK_BYTES).zip(hashes.by_ref()) {
                *hash = format::chunk_hash(chunk);
            }
            offset += bytes;
            into = rest;
        }
        Ok(())
    }
}

/// The key of a value that is alone, from the footer's file, which must be that of this record.
pub(crate) fn footer_key(
    storage: &dyn Storage,
    folder: &Folder,
    record: &Record,
) -> Result<Bytes, ReadError> {
    let damaged = |wrong: Wrong| ReadError::Damaged(wrong.to_string());
    let path = folder.file(Content::Footer, record.generation);
    let file = storage.open(&path, false).map_err(classify)?;
    // One byte more than there must be, to notice what is too long.
    let mut footer = vec![0; format::footer_bytes(record.key_bytes) as usize + 1];
    let bytes = file.read_at(0, &mut footer).map_err(classify)?;
    if bytes + 1 != footer.len() {
        return Err(damaged(Wrong::Footer));
    }
    footer.truncate(bytes);
    let (key, tail) = format::decode_footer(&footer).map_err(damaged)?;
    if Record::of(record.place, key, &tail) != (Record { before: None, ..*record }) {
        return Err(damaged(Wrong::NotIndexed));
    }
    footer.truncate(record.key_bytes as usize);
    Ok(footer.into())
}

pub(crate) fn classify(error: io::Error) -> ReadError {
    const EIO: i32 = 5;
    match error.kind() {
        io::ErrorKind::NotFound => ReadError::Missing,
        io::ErrorKind::UnexpectedEof => ReadError::Damaged(Wrong::Short.to_string()),
        _ if error.raw_os_error() == Some(EIO) => ReadError::Damaged("the drive cannot read it".to_owned()),
        _ => ReadError::Unavailable(error),
    }
}

/// Waking a thread must be worth it: 1 MiB from the page cache takes some 60 µs.
const PART_BYTES_MIN: usize = 2 << 20;

/// Past the page cache; a multiple of [`CHUNK_BYTES`].
const DIRECT_PIECE_BYTES: usize = 2 * CHUNK_BYTES;
/// By one thread, which pays for each request.
const DIRECT_ALONE_PIECE_BYTES: usize = 16 * CHUNK_BYTES;

/// What is read along with the piece before it; less than a chunk, so that pieces begin at chunks.
const REST_BYTES_MAX: usize = CHUNK_BYTES / 2;
