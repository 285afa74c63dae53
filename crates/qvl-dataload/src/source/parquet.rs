//! Pictures in a column of Parquet files, as Hugging Face data sets are published.
//!
//! A Parquet file is read by row groups: of each the chunk of the column is one run of bytes, compressed as a whole
//! or by pages. So a row costs its row group, and the groups that were read last are kept: reading in order decodes
//! each group once.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, get_column_reader};
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescriptor;

use crate::buffer::{Buffer, Buffers};
use crate::source::files::{MAX_FILE_BYTES, whole};
use crate::source::{Encoded, Source, fingerprint, shown};
use crate::storage::{DataFile, Extent, Reader};
use crate::{Error, Result};

/// Row groups that are kept decoded: the one that is read in order, and its neighbour at the border.
const KEPT_GROUPS: usize = 2;

/// The longest column chunk read unless another limit is set, in bytes before compression: 2 GiB.
const MAX_GROUP_BYTES: u64 = 2 << 30;

/// Pictures in a column of Parquet files: a column of bytes, or one of Hugging Face's pictures, a struct with the
/// field `bytes`.
///
/// Reading a row reads and decodes the column of its row group, unless that is among the two that were decoded
/// last: read in order, or shuffled in blocks not larger than a row group. Rows at random cost a row group each. The
/// decoded groups are memory beside that of the samples. Nothing is announced for reading ahead, since most samples
/// read nothing.
///
/// Compression with snappy, and none, are read. Needs the feature `parquet`.
pub struct ParquetImages {
    files: Vec<DataFile>,
    groups: Vec<Group>,
    /// The row after the last one of each group.
    ends: Vec<usize>,
    column: String,
    max_group_bytes: u64,
    max_file_bytes: u64,
    kept: Mutex<VecDeque<(usize, Slot)>>,
}

/// The rows of a group, which one worker decodes while others wait for them.
type Slot = Arc<Mutex<Option<Arc<Vec<Option<ByteArray>>>>>>;

struct Group {
    file: usize,
    /// Its number in the file.
    number: usize,
    rows: usize,
    chunk: ColumnChunkMetaData,
    offset: u64,
    bytes: u64,
}

impl ParquetImages {
    /// Opens files and reads where their row groups are. A name in the column's name is divided from the next by a
    /// dot.
    ///
    /// # Errors
    /// [`Error::Archive`] for a file that is not Parquet, or damaged; [`Error::Field`] for one without such a column,
    /// with those it has; [`Error::NoSamples`] if there are no rows; [`Error::Missing`], [`Error::Folder`] and
    /// [`Error::Read`].
    pub fn open<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>, column: &str) -> Result<Self> {
        let mut images = Self {
            files: Vec::new(),
            groups: Vec::new(),
            ends: Vec::new(),
            column: column.to_owned(),
            max_group_bytes: MAX_GROUP_BYTES,
            max_file_bytes: MAX_FILE_BYTES,
            kept: Mutex::new(VecDeque::new()),
        };
        for path in paths {
            images.add(path.as_ref())?;
        }
        if images.is_empty() {
            let name =
                images.files.first().map_or_else(|| "the list of files".to_owned(), |f| shown(f.path()));
            let what = format!("no row in {} Parquet file(s)", images.files.len());
            return Err(Error::NoSamples { name, what });
        }
        Ok(images)
    }

    /// Refuses row groups whose column has more bytes than this before compression, by default 2 GiB, and pictures
    /// of more bytes than this, by default 256 MiB: each with [`Error::FileSize`].
    pub fn limits(self, max_group_bytes: u64, max_file_bytes: u64) -> Self {
        Self { max_group_bytes, max_file_bytes, ..self }
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let (file, name) = (DataFile::once(path), shown(path));
        let length = whole(&file, u64::MAX)?.bytes as u64;
        let opened = File::open(path).map_err(|e| file.failed(e))?;
        let broken = |what: String| Error::Archive { name: name.clone(), kind: "Parquet", offset: 0, what };
        let metadata =
            ParquetMetaDataReader::new().parse_and_finish(&opened).map_err(|e| broken(said(&e)))?;
        let leaf = self.leaf(&metadata, &name)?;
        let file_index = self.files.len();
        for (number, group) in metadata.row_groups().iter().enumerate() {
            let flawed = |what: &str| broken(format!("row group {number}, column {}: {what}", self.column));
            let chunk = group.columns().get(leaf).ok_or_else(|| flawed("is missing"))?.clone();
            let rows = usize::try_from(group.num_rows()).map_err(|_| flawed("a negative number of rows"))?;
            // The crate asserts these: they come from the file.
            let begin = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
            let offset = u64::try_from(begin).map_err(|_| flawed("a negative offset"))?;
            let bytes = u64::try_from(chunk.compressed_size()).map_err(|_| flawed("a negative length"))?;
            if offset.checked_add(bytes).is_none_or(|end| end > length) {
                return Err(flawed("ends after the file"));
            }
            if chunk.num_values() != group.num_rows() {
                return Err(flawed("has another number of values than the group has rows"));
            }
            let end = self.len().checked_add(rows).ok_or_else(|| flawed("more rows than can be numbered"))?;
            self.ends.push(end);
            self.groups.push(Group { file: file_index, number, rows, chunk, offset, bytes });
        }
        self.files.push(file);
        Ok(())
    }

    /// The number of the column with the bytes.
    fn leaf(&self, metadata: &ParquetMetaData, name: &str) -> Result<usize> {
        let columns = metadata.file_metadata().schema_descr().columns();
        let inner = format!("{}.bytes", self.column);
        let is_it = |column: &ColumnDescriptor| {
            let path = column.path().string();
            let is_plain = column.physical_type() == Type::BYTE_ARRAY && column.max_rep_level() == 0;
            is_plain && (path == self.column || path == inner)
        };
        columns.iter().position(|column| is_it(column)).ok_or_else(|| {
            let described = |column: &ColumnDescriptor| {
                let list = if column.max_rep_level() > 0 { "list of " } else { "" };
                format!("{} ({list}{})", column.path().string(), column.physical_type())
            };
            let present: Vec<String> = columns.iter().map(|column| described(column)).collect();
            let field = format!("{} of bytes", self.column);
            Error::Field { name: name.to_owned(), field, present: present.join(", ") }
        })
    }

    /// The group of a row, and the row's number in it.
    fn place(&self, index: usize) -> Result<(usize, usize)> {
        let group = self.ends.partition_point(|end| *end <= index);
        let (what, len) = ("the Parquet files".to_owned(), self.len());
        match self.groups.get(group) {
            Some(found) => Ok((group, index - (self.ends[group] - found.rows))),
            None => Err(Error::Index { what, index, len }),
        }
    }

    /// What is said of a group in errors.
    fn group_name(&self, group: &Group) -> String {
        let file = shown(self.files[group.file].path());
        format!("{file}: row group {}, column {}", group.number, self.column)
    }

    /// The rows of a group, decoded now or before.
    fn rows(&self, number: usize, reader: &mut Reader<'_>) -> Result<Arc<Vec<Option<ByteArray>>>> {
        let slot = {
            let mut kept = self.kept.lock();
            let slot = match kept.iter().position(|(of, _)| *of == number).and_then(|at| kept.remove(at)) {
                Some((_, slot)) => slot,
                None => Slot::default(),
            };
            kept.push_front((number, Arc::clone(&slot)));
            kept.truncate(KEPT_GROUPS);
            slot
        };
        let mut rows = slot.lock();
        if let Some(rows) = &*rows {
            return Ok(Arc::clone(rows));
        }
        let decoded = Arc::new(self.decode(&self.groups[number], reader)?);
        *rows = Some(Arc::clone(&decoded));
        Ok(decoded)
    }

    fn decode(&self, group: &Group, reader: &mut Reader<'_>) -> Result<Vec<Option<ByteArray>>> {
        let limit_bytes = self.max_group_bytes;
        let stated = u64::try_from(group.chunk.uncompressed_size()).unwrap_or(u64::MAX).max(group.bytes);
        let too_long = || Error::FileSize { name: self.group_name(group), bytes: stated, limit_bytes };
        let bytes = usize::try_from(group.bytes).map_err(|_| too_long())?;
        if stated > limit_bytes {
            return Err(too_long());
        }
        let extent = Extent { file: self.files[group.file].clone(), offset: group.offset, bytes };
        let chunk = Chunk { offset: group.offset, bytes: Bytes::from_owner(Owned(reader.read(&extent)?)) };
        guarded(|| values(chunk, group)).map_err(|e| Error::Archive {
            name: self.group_name(group),
            kind: "Parquet",
            offset: group.offset,
            what: said(&e),
        })
    }
}

impl Source for ParquetImages {
    type Sample = Encoded;

    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn name(&self, index: usize) -> String {
        let Ok((group, row)) = self.place(index) else { return format!("row {index}") };
        let Group { file, number, .. } = self.groups[group];
        format!("{}: row {row} of row group {number}, column {}", shown(self.files[file].path()), self.column)
    }

    /// The mean of the rows of its group: each one's length is not known before the group is read.
    fn sample_bytes(&self, index: usize, buffers: &dyn Buffers) -> Result<usize> {
        let group = &self.groups[self.place(index)?.0];
        let bytes = usize::try_from(group.chunk.uncompressed_size()).unwrap_or(0);
        Ok(Encoded::bytes_of(self.name(index).len(), bytes / group.rows.max(1), buffers))
    }

    fn read(&self, index: usize, reader: &mut Reader<'_>) -> Result<Encoded> {
        let (group, row) = self.place(index)?;
        let rows = self.rows(group, reader)?;
        let name = self.name(index);
        let Some(value) = rows.get(row).and_then(Option::as_ref) else {
            return Err(Error::Field { name, field: self.column.clone(), present: "a null".to_owned() });
        };
        let value = value.data();
        if value.len() as u64 > self.max_file_bytes {
            return Err(Error::FileSize {
                name,
                bytes: value.len() as u64,
                limit_bytes: self.max_file_bytes,
            });
        }
        let mut bytes = reader.buffer(value.len())?;
        bytes.copy_from_slice(value);
        Ok(Encoded { name: name.into(), bytes })
    }

    fn fingerprint(&self) -> u64 {
        let ends = self.ends.iter().map(|end| (*end as u64).to_le_bytes().to_vec());
        fingerprint(ends.chain([self.column.as_bytes().to_vec()]))
    }
}

impl fmt::Debug for ParquetImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParquetImages")
            .field("files", &self.files.len())
            .field("rows", &self.len())
            .field("column", &self.column)
            .finish_non_exhaustive()
    }
}

/// The values of a column chunk, one for each row.
fn values(chunk: Chunk, group: &Group) -> ParquetResult<Vec<Option<ByteArray>>> {
    let pages = SerializedPageReader::new(Arc::new(chunk), &group.chunk, group.rows, None)?;
    let column = group.chunk.column_descr_ptr();
    let deepest = column.max_def_level();
    let ColumnReader::ByteArrayColumnReader(mut column) = get_column_reader(column, Box::new(pages)) else {
        return Err(ParquetError::General("not a column of bytes".to_owned()));
    };
    let (mut levels, mut present) = (Vec::new(), Vec::new());
    let mut records = 0;
    while records < group.rows {
        let (read, ..) = column.read_records(group.rows - records, Some(&mut levels), None, &mut present)?;
        if read == 0 {
            return Err(ParquetError::General(format!("{records} rows instead of {}", group.rows)));
        }
        records += read;
    }
    if deepest == 0 {
        return Ok(present.into_iter().map(Some).collect());
    }
    let mut present = present.into_iter();
    Ok(levels.iter().map(|level| if *level == deepest { present.next() } else { None }).collect())
}

/// Runs a parser of the crate parquet, which meets some damaged files with a panic and not with an error.
///
/// Nothing that it was working on is used after a panic. The panic's message is still printed; a program that is
/// built to abort on panics aborts.
fn guarded<T>(parse: impl FnOnce() -> ParquetResult<T>) -> ParquetResult<T> {
    catch_unwind(AssertUnwindSafe(parse)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        Err(ParquetError::General(format!("the parser gave up: {message}")))
    })
}

/// What the parser said, in one line.
fn said(error: &ParquetError) -> String {
    error.to_string().replace('\n', " ")
}

/// A column chunk in memory that answers for its place in the file.
struct Chunk {
    offset: u64,
    bytes: Bytes,
}

impl Chunk {
    fn from(&self, start: u64) -> ParquetResult<Bytes> {
        let at = start.checked_sub(self.offset).and_then(|at| usize::try_from(at).ok());
        match at.filter(|at| *at <= self.bytes.len()) {
            Some(at) => Ok(self.bytes.slice(at..)),
            None => Err(ParquetError::EOF(format!("a page at {start} is outside its column chunk"))),
        }
    }
}

impl Length for Chunk {
    fn len(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl ChunkReader for Chunk {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let mut bytes = self.from(start)?;
        if length > bytes.len() {
            let what = format!("a page of {length} bytes at {start} ends after its column chunk");
            return Err(ParquetError::EOF(what));
        }
        bytes.truncate(length);
        Ok(bytes)
    }
}

struct Owned(Buffer);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
