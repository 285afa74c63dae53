//! Where the tensors of a safetensors checkpoint lie.
//!
//! Source: the format's description at <https://github.com/huggingface/safetensors>: 8 bytes with the length of a JSON
//! header, the header, the tensors; offsets count from the end of the header. Only what places the tensors is checked;
//! that they leave no holes is not.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::error::{Error, Result};

/// The format's own bound on a header, and ours on an index.
const JSON_BYTES_MAX: u64 = 100_000_000;

const INDEX: &str = "model.safetensors.index.json";
const WHOLE: &str = "model.safetensors";

/// One tensor's place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// The tensors of a file, or of a checkpoint's folder.
pub(super) fn tensors(path: &Path) -> Result<Vec<Tensor>> {
    if !path.is_dir() {
        return header(path);
    }
    let index = path.join(INDEX);
    if index.exists() { sharded(path, &index) } else { header(&path.join(WHOLE)) }
}

/// The tensors that an index names, each checked to be in the shard that it says.
fn sharded(folder: &Path, index: &Path) -> Result<Vec<Tensor>> {
    let malformed = |what: String| Error::Malformed { path: index.to_path_buf(), what };
    let mut file = open(index)?;
    let bytes = file.metadata().map_err(|source| failed(index, source))?.len();
    let text = read_json(index, &mut file, bytes)?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|error| malformed(format!("{error}")))?;
    let mut by_shard: BTreeMap<String, BTreeMap<String, ()>> = BTreeMap::new();
    for (tensor, shard) in parsed.weight_map.0 {
        let plain = Path::new(&shard).file_name().is_some_and(|name| name == shard.as_str());
        if !plain || shard.contains(['/', '\\']) {
            return Err(malformed(format!(
                "tensor {tensor:?} is in {shard:?}, which is no name of a file beside it"
            )));
        }
        if by_shard.entry(shard).or_default().insert(tensor.clone(), ()).is_some() {
            return Err(malformed(format!("tensor {tensor:?} is named twice")));
        }
    }
    let mut all = Vec::new();
    for (shard, mut named) in by_shard {
        let path = folder.join(&shard);
        let found = header(&path)?;
        all.extend(found.into_iter().filter(|tensor| named.remove(&tensor.name).is_some()));
        if let Some((tensor, ())) = named.pop_first() {
            return Err(malformed(format!(
                "tensor {tensor:?} is said to be in {shard}, but that does not have it"
            )));
        }
    }
    Ok(all)
}

/// The tensors of one file.
fn header(path: &Path) -> Result<Vec<Tensor>> {
    let malformed = |what: String| Error::Malformed { path: path.to_path_buf(), what };
    let mut file = open(path)?;
    let file_bytes = file.metadata().map_err(|source| failed(path, source))?.len();
    let mut length = [0; 8];
    if file_bytes < 8 {
        return Err(malformed(format!("is no safetensors file: {file_bytes} bytes")));
    }
    file.read_exact(&mut length).map_err(|source| failed(path, source))?;
    let json_bytes = u64::from_le_bytes(length);
    if json_bytes > file_bytes - 8 {
        return Err(malformed(format!(
            "its header is said to have {json_bytes} bytes, the file has {file_bytes}"
        )));
    }
    let text = read_json(path, &mut file, json_bytes)?;
    let Pairs(entries) = serde_json::from_slice(&text)
        .map_err(|error| malformed(format!("its header cannot be read: {error}")))?;
    let data_bytes = file_bytes - 8 - json_bytes;
    let mut seen = std::collections::HashSet::new();
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let wrong = |what: String| malformed(format!("tensor {name:?} {what}"));
        let entry: Entry =
            serde_json::from_value(entry).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let [start, end] = entry.data_offsets;
        if start > end || end > data_bytes {
            return Err(wrong(format!(
                "lies at {start} to {end}, but there are {data_bytes} bytes of tensors"
            )));
        }
        if let Some(expected) = entry.bytes() {
            let expected =
                expected.ok_or_else(|| wrong(format!("has the impossible shape {:?}", entry.shape)))?;
            if expected != end - start {
                return Err(wrong(format!(
                    "of {} and shape {:?} takes {expected} bytes, but has {}",
                    entry.dtype,
                    entry.shape,
                    end - start
                )));
            }
        }
        if !seen.insert(name.clone()) {
            return Err(wrong("is there twice".to_owned()));
        }
        // Within the file, and so within 64 bits: checked above.
        let offset = 8 + json_bytes + start;
        tensors.push(Tensor { name, path: path.to_path_buf(), offset, bytes: end - start });
    }
    Ok(tensors)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), operation: "read", source }
}

fn read_json(path: &Path, file: &mut File, bytes: u64) -> Result<Vec<u8>> {
    if bytes > JSON_BYTES_MAX {
        let what = format!("{bytes} bytes of JSON, at most {JSON_BYTES_MAX} are read");
        return Err(Error::Malformed { path: path.to_path_buf(), what });
    }
    let mut text = vec![0; bytes as usize];
    file.read_exact(&mut text).map_err(|source| failed(path, source))?;
    Ok(text)
}

#[derive(Deserialize)]
struct Index {
    weight_map: Pairs<String>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Entry {
    /// The bytes that type and shape come to; `Some(None)` if that overflows, `None` for a type that is not known here.
    fn bytes(&self) -> Option<Option<u64>> {
        let bits: u64 = match self.dtype.as_str() {
            "F64" | "I64" | "U64" | "C64" => 64,
            "F32" | "I32" | "U32" => 32,
            "F16" | "BF16" | "I16" | "U16" => 16,
            "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
            _ => return None,
        };
        let elements = self.shape.iter().try_fold(1u64, |all, &dimension| all.checked_mul(dimension));
        Some(elements.and_then(|elements| elements.checked_mul(bits / 8)))
    }
}

/// An object's members in their order, those named twice among them: a map would keep one and say nothing.
struct Pairs<V = serde_json::Value>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Members<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Pairs(members))
            }
        }
        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}
