//! One GGUF file: mapped, its header checked before anything in it is believed.
//!
//! Layout, all little-endian: the magic `GGUF`; `u32` version; `u64` tensors; `u64` metadata entries; the
//! entries, each a key, a type and a value; the tensors, each a name, `u32` dimensions, that many `u64` sizes
//! (the fastest first, the reverse of ours), `u32` type, `u64` offset; then the tensors' bytes, from the next
//! multiple of `general.alignment` on. A string is its `u64` length and UTF-8; an array is a `u32` type, a `u64`
//! count and its elements. Versions 2 and 3 are alike.
//!
//! Everything in it comes from outside: counts, lengths and sizes are checked against what is left of the file
//! before they are used, and no memory is asked for on their word. Tensors must lie in the file and must not
//! overlap. Arrays stay in the file until someone walks them.
//!
//! What a pair of such files says about a Qwen3-VL is in [`pair`].

mod names;
pub(super) mod pair;
mod vocabulary;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::storage::Storage;
use super::tensor::{Dtype, TensorView};
use crate::error::{Error, Result};
use crate::quant::BlockFormat;

pub(super) use names::stored as stored_name;
pub(super) use pair::READABLE;

/// What every file begins with.
const MAGIC: &[u8; 4] = b"GGUF";

/// `general.alignment` where a file does not say.
const ALIGNMENT: u64 = 32;
/// Largest alignment believed, in bytes.
const ALIGNMENT_MAX: u64 = 1 << 24;
/// Most dimensions of a tensor: the format's own limit.
const DIMENSIONS_MAX: u32 = 4;
/// Arrays within arrays followed; no known file has any.
const NESTING_MAX: usize = 4;

/// An opened GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    name: Arc<str>,
    storage: Storage,
    metadata: HashMap<String, Value>,
    entries: HashMap<String, Entry>,
    /// Tensors of a type this crate does not read, with that type: an error only for whoever needs one.
    unreadable: HashMap<String, String>,
}

#[derive(Clone, Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// A metadata value. Texts and arrays are places in the file.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array { kind: Kind, count: usize, at: usize },
}

impl Value {
    /// For messages.
    fn describe(&self) -> String {
        match self {
            Self::Unsigned(value) => value.to_string(),
            Self::Signed(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(_) => "a string".to_owned(),
            Self::Array { kind, count, .. } => format!("an array of {count} values of type {kind:?}"),
        }
    }
}

/// Types of metadata values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_id(id: u32) -> Option<Self> {
        const IDS: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::String,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        IDS.get(id as usize).copied()
    }

    /// Bytes of a value; for texts and arrays the fewest it can have.
    fn bytes_min(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// ggml's types by number: those we read, or the name of one we do not.
fn tensor_type(id: u32) -> Result<Dtype, String> {
    const UNREAD: [(u32, &str); 25] = [
        (3, "Q4_1"),
        (6, "Q5_0"),
        (7, "Q5_1"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
    ];
    Ok(match id {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Block(BlockFormat::Q4_0),
        8 => Dtype::Block(BlockFormat::Q8_0),
        12 => Dtype::Block(BlockFormat::Q4K),
        13 => Dtype::Block(BlockFormat::Q5K),
        14 => Dtype::Block(BlockFormat::Q6K),
        30 => Dtype::Bf16,
        _ => {
            let known = UNREAD.iter().find(|(known, _)| *known == id);
            return Err(known.map_or_else(|| format!("type {id}"), |(_, name)| (*name).to_owned()));
        }
    })
}

impl GgufFile {
    /// Maps the file and checks its header. Costs reading the header, whatever the file's size; the vocabulary
    /// is most of it.
    ///
    /// The file must not be changed or truncated while it is in use: the operating system would end the
    /// process on access to pages that are gone.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Header`] with the first thing wrong.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(&path.display().to_string(), Storage::map(path)?)
    }

    /// A file that is part of the program.
    ///
    /// # Errors
    /// [`Error::Header`].
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::parse(name, Storage::Static(bytes))
    }

    fn parse(name: &str, storage: Storage) -> Result<Self> {
        let bytes = storage.bytes();
        let mut cursor = Cursor { file: name, bytes, at: 0 };
        let magic = cursor.take(4, "the magic")?;
        if magic != MAGIC {
            return Err(cursor.fail(format!(
                "it begins with \"{}\", expected \"GGUF\"; this is not a GGUF file",
                magic.escape_ascii()
            )));
        }
        match cursor.u32("the version")? {
            2 | 3 => {}
            1 => {
                return Err(cursor.fail(
                    "GGUF version 1 is not read, expected 2 or 3; convert the model again with a current tool"
                        .to_owned(),
                ));
            }
            version if (1..=0xffff).contains(&version.swap_bytes()) => {
                return Err(cursor.fail(format!(
                    "it is a big-endian GGUF file of version {}; only little-endian files are read",
                    version.swap_bytes()
                )));
            }
            version => {
                return Err(cursor.fail(format!("GGUF version {version} is not known, expected 2 or 3")));
            }
        }
        let tensor_count = cursor.u64("the number of tensors")?;
        let metadata_count = cursor.u64("the number of metadata entries")?;
        // A key, a type and a value; a name, dimensions, a type and an offset.
        cursor.room(metadata_count, 8 + 4 + 1, "metadata entries")?;
        let mut metadata = HashMap::new();
        for _ in 0..metadata_count {
            let key = cursor.text("a metadata key")?;
            let what = || format!("metadata {key}");
            let kind = cursor.kind(&what)?;
            let value = cursor.value(kind, &what)?;
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(cursor.fail(format!("metadata {key} is written twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(&Value::Unsigned(alignment))
                if alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX =>
            {
                alignment
            }
            Some(other) => {
                return Err(cursor.fail(format!(
                    "general.alignment is {}, expected a power of two up to {ALIGNMENT_MAX}",
                    other.describe()
                )));
            }
        };
        cursor.room(tensor_count, 8 + 4 + 4 + 8, "tensors")?;
        let tensors = (0..tensor_count).map(|_| cursor.tensor()).collect::<Result<Vec<_>>>()?;
        let data_start = (cursor.at as u64).next_multiple_of(alignment);
        let data_bytes = (bytes.len() as u64).saturating_sub(data_start);

        let fail = |reason: String| Error::Header { file: name.to_owned(), reason };
        let mut entries = HashMap::new();
        let mut unreadable = HashMap::new();
        let mut ranges = Vec::new();
        for RawTensor { name: tensor, shape, type_id, offset } in tensors {
            if !offset.is_multiple_of(alignment) {
                return Err(fail(format!(
                    "tensor {tensor} begins at byte {offset} of the data, expected a multiple of {alignment}"
                )));
            }
            if offset > data_bytes {
                return Err(fail(format!(
                    "tensor {tensor} begins at byte {offset} of the data, but the file has only {data_bytes}; it \
                     is truncated: download it again"
                )));
            }
            let is_new = match tensor_type(type_id) {
                Err(stored) => unreadable.insert(tensor.clone(), stored).is_none(),
                Ok(dtype) => {
                    let row = shape.last().copied().unwrap_or(1);
                    if !row.is_multiple_of(dtype.unit_values()) {
                        return Err(fail(format!(
                            "tensor {tensor}: a row has {row} values, expected a multiple of {}, the block of \
                             {dtype}",
                            dtype.unit_values()
                        )));
                    }
                    let Some(needed) = dtype.bytes_of(&shape) else {
                        return Err(fail(format!("tensor {tensor}: shape {shape:?} overflows")));
                    };
                    let end = offset.saturating_add(needed as u64);
                    if end > data_bytes {
                        return Err(fail(format!(
                            "tensor {tensor} ends at byte {end} of the data, but the file has only {data_bytes}; \
                             it is truncated: download it again"
                        )));
                    }
                    ranges.push((offset, end, tensor.clone()));
                    let start = (data_start + offset) as usize;
                    entries
                        .insert(tensor.clone(), Entry { dtype, shape, range: start..start + needed })
                        .is_none()
                }
            };
            if !is_new || (entries.contains_key(&tensor) && unreadable.contains_key(&tensor)) {
                return Err(fail(format!("tensor {tensor} is written twice")));
            }
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            let [(first_begin, first_end, first), (second_begin, second_end, second)] = pair else {
                continue;
            };
            if second_begin < first_end {
                return Err(fail(format!(
                    "tensors {first} [{first_begin}, {first_end}] and {second} [{second_begin}, {second_end}] \
                     overlap"
                )));
            }
        }
        Ok(Self { name: name.into(), storage, metadata, entries, unreadable })
    }

    /// Path or name of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the tensors in it, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Tensors of types this crate does not read, with those types.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.unreadable.iter().map(|(name, dtype)| (name.as_str(), dtype.as_str()))
    }

    /// A view of one tensor, dimensions slowest first. Cheap: a reference count and a copy of name and shape.
    pub fn get(&self, tensor: &str) -> Option<TensorView> {
        self.entries.get_key_value(tensor).map(|(name, entry)| {
            TensorView::new(&self.name, name, entry.dtype, &entry.shape, &self.storage, entry.range.clone())
        })
    }

    /// Keys of the metadata, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The metadata entry `key`, a text.
    ///
    /// # Errors
    /// [`Error::Config`] if it is something else, or not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => match std::str::from_utf8(&self.storage.bytes()[range.clone()]) {
                Ok(text) => Ok(Some(text)),
                Err(error) => Err(self.wrong(key, format!("not UTF-8: {error}"), "a text")),
            },
            Some(other) => Err(self.wrong(key, other.describe(), "a text")),
        }
    }

    /// The metadata entry `key`, a number that is whole and not negative.
    ///
    /// # Errors
    /// [`Error::Config`] if it is something else.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Unsigned(value)) => Ok(Some(value)),
            Some(&Value::Signed(value)) if value >= 0 => Ok(Some(value.cast_unsigned())),
            Some(other) => Err(self.wrong(key, other.describe(), "a whole number from 0 on")),
        }
    }

    /// The metadata entry `key`, a number.
    ///
    /// # Errors
    /// [`Error::Config`] if it is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Float(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong(key, other.describe(), "a number with a point")),
        }
    }

    /// The metadata entry `key`, a switch.
    ///
    /// # Errors
    /// [`Error::Config`] if it is something else.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong(key, other.describe(), "true or false")),
        }
    }

    /// The metadata entry `key`, a list of texts, in the file's bytes.
    ///
    /// # Errors
    /// [`Error::Config`] if it is something else; an item that is not UTF-8 is such an error when it is
    /// reached.
    pub fn texts(&self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = Result<&str>>>> {
        let Some((count, at)) = self.array(key, &[Kind::String], "a list of texts")? else { return Ok(None) };
        let mut cursor = Cursor { file: &self.name, bytes: self.storage.bytes(), at };
        let key = key.to_owned();
        Ok(Some((0..count).map(move |index| {
            let bytes = cursor.string(&key)?;
            std::str::from_utf8(bytes)
                .map_err(|error| self.wrong(&key, format!("not UTF-8 in item {index}: {error}"), "texts"))
        })))
    }

    /// The metadata entry `key`, a list of whole numbers from 0 on.
    ///
    /// # Errors
    /// [`Error::Config`] if it is something else.
    pub fn unsigneds(&self, key: &str) -> Result<Option<Vec<u64>>> {
        let kinds = [Kind::U8, Kind::I8, Kind::U16, Kind::I16, Kind::U32, Kind::I32, Kind::U64, Kind::I64];
        self.elements(key, &kinds, "a list of whole numbers from 0 on", |value| match value {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        })
    }

    /// The metadata entry `key`, a list of numbers.
    ///
    /// # Errors
    /// [`Error::Config`] if it is something else.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.elements(key, &[Kind::F32, Kind::F64], "a list of numbers with a point", |value| match value {
            Value::Float(value) => Some(value),
            _ => None,
        })
    }

    /// The metadata entry `key`, a list of switches.
    ///
    /// # Errors
    /// [`Error::Config`] if it is something else.
    pub fn booleans(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.elements(key, &[Kind::Bool], "a list of true and false", |value| match value {
            Value::Bool(value) => Some(value),
            _ => None,
        })
    }

    fn elements<T>(
        &self,
        key: &str,
        kinds: &[Kind],
        expected: &str,
        read: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some((count, at)) = self.array(key, kinds, expected)? else { return Ok(None) };
        let Some(Value::Array { kind, .. }) = self.metadata.get(key) else { return Ok(None) };
        let mut cursor = Cursor { file: &self.name, bytes: self.storage.bytes(), at };
        (0..count)
            .map(|index| {
                let value = cursor.value(*kind, &|| key.to_owned())?;
                let described = value.describe();
                read(value).ok_or_else(|| self.wrong(key, format!("{described} in item {index}"), expected))
            })
            .collect::<Result<_>>()
            .map(Some)
    }

    /// Number of elements, and where they begin.
    fn array(&self, key: &str, kinds: &[Kind], expected: &str) -> Result<Option<(usize, usize)>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array { kind, count, at }) if kinds.contains(kind) => Ok(Some((*count, *at))),
            Some(other) => Err(self.wrong(key, other.describe(), expected)),
        }
    }

    /// The error for a metadata entry that is not what it must be.
    fn wrong(&self, key: &str, got: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::Config {
            file: self.name.to_string(),
            field: key.to_owned(),
            got: got.into(),
            expected: expected.into(),
        }
    }

    /// A metadata entry that must be there.
    fn required<T>(&self, key: &str, value: Option<T>, expected: &str) -> Result<T> {
        value.ok_or_else(|| self.wrong(key, "absent", expected))
    }
}

struct RawTensor {
    name: String,
    /// Slowest first.
    shape: Vec<usize>,
    type_id: u32,
    offset: u64,
}

/// A place in the file that never leaves it.
struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn fail(&self, reason: String) -> Error {
        Error::Header { file: self.file.to_owned(), reason }
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        if count > self.left() {
            return Err(self.fail(format!(
                "{what} needs {count} bytes at byte {}, but only {} follow; the file is truncated or not a GGUF \
                 file",
                self.at,
                self.left()
            )));
        }
        let (start, end) = (self.at, self.at + count as usize);
        self.at = end;
        Ok(&self.bytes[start..end])
    }

    /// That many things of at least so many bytes must fit into the rest of the file.
    fn room(&self, count: u64, bytes_min: u64, what: &str) -> Result<()> {
        if count.checked_mul(bytes_min).is_none_or(|needed| needed > self.left()) {
            return Err(self.fail(format!(
                "it claims {count} {what}, which do not fit into the {} bytes that follow; it is truncated or \
                 not a GGUF file",
                self.left()
            )));
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &str) -> Result<&'a [u8]> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    fn text(&mut self, what: &str) -> Result<&'a str> {
        let at = self.at;
        let bytes = self.string(what)?;
        std::str::from_utf8(bytes)
            .map_err(|error| self.fail(format!("{what} at byte {at} is not UTF-8: {error}")))
    }

    fn kind(&mut self, what: &dyn Fn() -> String) -> Result<Kind> {
        let id = self.u32(&what())?;
        Kind::from_id(id).ok_or_else(|| self.fail(format!("{}: type {id} is not known", what())))
    }

    fn value(&mut self, kind: Kind, what: &dyn Fn() -> String) -> Result<Value> {
        self.nested_value(kind, what, 0)
    }

    fn nested_value(&mut self, kind: Kind, what: &dyn Fn() -> String, depth: usize) -> Result<Value> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(self.array(&what()).map(u8::from_le_bytes)?.into()),
            Kind::I8 => Value::Signed(self.array(&what()).map(i8::from_le_bytes)?.into()),
            Kind::U16 => Value::Unsigned(self.array(&what()).map(u16::from_le_bytes)?.into()),
            Kind::I16 => Value::Signed(self.array(&what()).map(i16::from_le_bytes)?.into()),
            Kind::U32 => Value::Unsigned(self.u32(&what())?.into()),
            Kind::I32 => Value::Signed(self.array(&what()).map(i32::from_le_bytes)?.into()),
            Kind::F32 => Value::Float(self.array(&what()).map(f32::from_le_bytes)?.into()),
            Kind::U64 => Value::Unsigned(self.u64(&what())?),
            Kind::I64 => Value::Signed(self.array(&what()).map(i64::from_le_bytes)?),
            Kind::F64 => Value::Float(self.array(&what()).map(f64::from_le_bytes)?),
            Kind::Bool => match self.array(&what())? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(self.fail(format!("{} is {other}, expected 0 or 1", what()))),
            },
            Kind::String => {
                let length = self.string(&what())?.len();
                Value::Text(self.at - length..self.at)
            }
            Kind::Array => {
                if depth == NESTING_MAX {
                    return Err(
                        self.fail(format!("{}: arrays are nested more than {NESTING_MAX} deep", what()))
                    );
                }
                let kind = self.kind(what)?;
                let count = self.u64(&what())?;
                self.room(count, kind.bytes_min(), &format!("elements of {}", what()))?;
                let at = self.at;
                match kind {
                    Kind::String => {
                        for _ in 0..count {
                            let length = self.u64("a text")?;
                            self.take(length, "a text")?;
                        }
                    }
                    Kind::Array => {
                        for _ in 0..count {
                            self.nested_value(Kind::Array, what, depth + 1)?;
                        }
                    }
                    plain => {
                        self.take(count * plain.bytes_min(), "an array")?;
                    }
                }
                Value::Array { kind, count: count as usize, at }
            }
        })
    }

    fn tensor(&mut self) -> Result<RawTensor> {
        let name = self.text("a tensor's name")?.to_owned();
        let what = format!("tensor {name}");
        let dimensions = self.u32(&what)?;
        if dimensions > DIMENSIONS_MAX {
            return Err(
                self.fail(format!("{what} has {dimensions} dimensions, expected at most {DIMENSIONS_MAX}"))
            );
        }
        let mut shape = (0..dimensions)
            .map(|_| {
                let size = self.u64(&what)?;
                usize::try_from(size).map_err(|_| self.fail(format!("{what}: dimension {size} is too large")))
            })
            .collect::<Result<Vec<_>>>()?;
        shape.reverse();
        Ok(RawTensor { name, shape, type_id: self.u32(&what)?, offset: self.u64(&what)? })
    }
}
