//! One safetensors file: mapped, its header checked before anything in it is believed.
//!
//! Layout: `u64` little-endian header length, that many bytes of JSON, then the tensors' bytes. The header
//! maps names to `{dtype, shape, data_offsets: [begin, end]}`, offsets relative to the end of the header.
//! Everything in the header comes from outside: lengths are checked with overflow in mind, ranges must lie
//! in the file, must have the size that dtype and shape imply, and must not overlap.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::storage::Storage;
use super::tensor::{Dtype, TensorView};
use crate::error::{Error, Result};

/// Longest header accepted, in bytes: the limit of the format's own library.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// An opened safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    name: Arc<str>,
    storage: Storage,
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

impl SafetensorsFile {
    /// Maps the file and checks its header. Costs a few pages of reading, whatever the file's size.
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
        let fail = |reason: String| Error::Header { file: name.to_owned(), reason };
        let bytes = storage.bytes();
        let file_bytes = bytes.len() as u64;
        let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(fail(format!(
                "{file_bytes} bytes are too few for a safetensors file, which starts with 8 bytes of header \
                 length"
            )));
        };
        let header_bytes = u64::from_le_bytes(*length);
        if header_bytes > HEADER_BYTES_MAX {
            return Err(fail(format!(
                "the header claims {header_bytes} bytes, at most {HEADER_BYTES_MAX} are allowed; this is not \
                 a safetensors file"
            )));
        }
        if header_bytes > rest.len() as u64 {
            return Err(fail(format!(
                "the header claims {header_bytes} bytes, but only {} follow; the file is truncated or not a \
                 safetensors file",
                rest.len()
            )));
        }
        let (header, data) = rest.split_at(header_bytes as usize);
        let header: Header = serde_json::from_slice(header)
            .map_err(|error| fail(format!("the header is not what safetensors writes: {error}")))?;
        let data_start = bytes.len() - data.len();

        let mut entries = HashMap::with_capacity(header.0.len());
        let mut unreadable = HashMap::new();
        let mut ranges = Vec::with_capacity(header.0.len());
        for (tensor, raw) in header.0 {
            let [begin, end] = raw.data_offsets;
            let dtype = match raw.dtype.as_str() {
                "BF16" => Some(Dtype::Bf16),
                "F16" => Some(Dtype::F16),
                "F32" => Some(Dtype::F32),
                _ => None,
            };
            if let Some(dtype) = dtype {
                let needed =
                    raw.shape
                        .iter()
                        .try_fold(dtype.bytes(), |bytes, &dim| bytes.checked_mul(dim))
                        .ok_or_else(|| fail(format!("tensor {tensor}: shape {:?} overflows", raw.shape)))?;
                if end.checked_sub(begin) != Some(needed as u64) {
                    return Err(fail(format!(
                        "tensor {tensor}: data_offsets [{begin}, {end}] do not hold the {needed} bytes that \
                         {dtype} of shape {:?} needs",
                        raw.shape
                    )));
                }
            }
            if begin > end {
                return Err(fail(format!("tensor {tensor}: data_offsets [{begin}, {end}] run backwards")));
            }
            if end > data.len() as u64 {
                return Err(fail(format!(
                    "tensor {tensor} ends at byte {end} of the data, but the file has only {}; it is \
                     truncated: download it again",
                    data.len()
                )));
            }
            ranges.push((begin, end, tensor.clone()));
            let range = data_start + begin as usize..data_start + end as usize;
            match dtype {
                Some(dtype) => {
                    entries.insert(tensor, Entry { dtype, shape: raw.shape, range });
                }
                None => {
                    unreadable.insert(tensor, raw.dtype);
                }
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
        Ok(Self { name: name.into(), storage, entries, unreadable })
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

    /// The stored type of a tensor that is there but in a type this crate does not read.
    pub fn unreadable_dtype(&self, tensor: &str) -> Option<&str> {
        self.unreadable.get(tensor).map(String::as_str)
    }

    /// A view of one tensor. Cheap: a reference count and a copy of the name and shape.
    pub fn get(&self, tensor: &str) -> Option<TensorView> {
        self.entries.get_key_value(tensor).map(|(name, entry)| {
            TensorView::new(&self.name, name, entry.dtype, &entry.shape, &self.storage, entry.range.clone())
        })
    }
}

/// The header as written: a list, so that a name written twice is seen.
struct Header(Vec<(String, RawEntry)>);

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<de::IgnoredAny>()?;
                        continue;
                    }
                    if !seen.insert(name.clone()) {
                        return Err(de::Error::custom(format!("tensor {name} is written twice")));
                    }
                    let entry = map
                        .next_value::<RawEntry>()
                        .map_err(|error| de::Error::custom(format!("tensor {name}: {error}")))?;
                    entries.push((name, entry));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
