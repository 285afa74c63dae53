//! Tar shards: archives of samples, each of which is some members that lie together and are named alike.
//!
//! An archive is scanned once, from header to header; after that any sample can be read in any order. The scan can
//! be saved beside the shard.

pub(crate) mod member;
mod saved;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use member::{Member, Scan};

use crate::buffer::{Buffer, Buffers};
use crate::source::files::{MAX_FILE_BYTES, whole};
use crate::source::{Encoded, Footprint, Source, fingerprint, shown};
use crate::storage::{DataFile, Extent, Reader};
use crate::{Error, Result};

/// The most shards that are kept open. Of more each is opened for each read, since a process may often have no more
/// than 1,024 files open.
const KEPT_OPEN: usize = 256;

/// Tar archives in the layout of WebDataset.
///
/// Members that follow each other and have the same name up to the first dot of its last part are one sample: its
/// key is that name, its fields are what comes after the dot, in small letters. `train/0001.jpg` and
/// `train/0001.seg.png` make the sample `train/0001` with the fields `jpg` and `seg.png`. A key that comes back
/// later in the archive is another sample. Members without such a name (no dot, or nothing before it) are passed over
/// and counted, links and folders are passed over.
///
/// Scanning reads 16 KiB or less for each member, and about 50 bytes a member are kept.
#[derive(Clone)]
pub struct TarShards {
    index: Arc<Index>,
}

/// How shards are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarOptions {
    /// Takes what is complete of a shard that is cut off or damaged, and reports the rest in
    /// [`TarShards::damage`]. Without this such a shard is an error.
    pub allow_truncated: bool,
    /// Uses the index that [`TarShards::save_index`] left beside a shard, if the shard has not changed since.
    pub use_index: bool,
    /// The longest member that is read, in bytes.
    pub max_field_bytes: u64,
}

impl Default for TarOptions {
    /// Whole archives, a saved index if there is one, members of 256 MiB.
    fn default() -> Self {
        Self { allow_truncated: false, use_index: true, max_field_bytes: MAX_FILE_BYTES }
    }
}

/// What of a shard cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardDamage {
    /// The shard.
    pub shard: String,
    /// Where in it the damage begins, in bytes. Nothing after it is read.
    pub offset: u64,
    /// Bytes of the shard from there on.
    pub lost_bytes: u64,
    /// What is wrong there.
    pub what: String,
    /// The last sample before the damage, if it was left out: it may have had more fields.
    pub dropped: Option<String>,
}

/// A sample of a shard.
#[derive(Debug)]
pub struct TarSample {
    /// The name that its members share, as in the archive.
    pub key: String,
    /// The archive.
    pub shard: Arc<str>,
    /// Its fields in the order of the archive.
    pub fields: Vec<(String, Buffer)>,
}

impl TarSample {
    /// The bytes of a field.
    pub fn field(&self, name: &str) -> Option<&Buffer> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, bytes)| bytes)
    }
}

impl Footprint for TarSample {
    fn footprint(&self) -> usize {
        let field = |(name, bytes): &(String, Buffer)| {
            size_of::<(String, Buffer)>() + name.len() + Buffer::footprint(bytes)
        };
        size_of::<Self>() + self.key.len() + self.shard.len() + self.fields.iter().map(field).sum::<usize>()
    }
}

impl TarShards {
    /// Opens shards and finds their samples.
    ///
    /// # Errors
    /// [`Error::Archive`] for one that is no tar archive, or cut off or damaged; [`Error::NoSamples`] if there is no
    /// sample in any of them; [`Error::Missing`], [`Error::Folder`] and [`Error::Read`].
    pub fn open<P: AsRef<Path>>(shards: impl IntoIterator<Item = P>) -> Result<Self> {
        Self::open_with(shards, &TarOptions::default())
    }

    /// Opens shards as the options say.
    ///
    /// # Errors
    /// As [`TarShards::open`].
    pub fn open_with<P: AsRef<Path>>(
        shards: impl IntoIterator<Item = P>,
        options: &TarOptions,
    ) -> Result<Self> {
        let mut index = Index { max_field_bytes: options.max_field_bytes, ..Index::default() };
        let mut names = FieldNames::default();
        let shards: Vec<P> = shards.into_iter().collect();
        let as_file: fn(&Path) -> DataFile =
            if shards.len() <= KEPT_OPEN { |path| DataFile::kept(path) } else { |path| DataFile::once(path) };
        for path in &shards {
            index.open(as_file(path.as_ref()), options, &mut names)?;
        }
        index.fields = names.names;
        if index.samples.is_empty() {
            let name =
                index.shards.first().map_or_else(|| "the list of shards".to_owned(), |s| s.name.to_string());
            let what = match index.shards.len() {
                0 => "is empty".to_owned(),
                count => format!(
                    "no sample in {count} shard(s): no complete file whose name has a dot with something before it \
                     ({} other file(s) passed by)",
                    index.passed
                ),
            };
            return Err(Error::NoSamples { name, what });
        }
        let shards = index.shards.iter().map(|shard| shard.name.as_bytes().to_vec());
        let samples = index.samples.iter().map(|s| [&s.key[..], &s.members.end.to_le_bytes()].concat());
        index.fingerprint = fingerprint(shards.chain(samples));
        Ok(Self { index: Arc::new(index) })
    }

    /// What could not be read of the shards, if [`TarOptions::allow_truncated`] let them be opened all the same.
    pub fn damage(&self) -> &[ShardDamage] {
        &self.index.damage
    }

    /// Files in the shards that belong to no sample, since their names have no dot with something before it.
    pub fn passed_by(&self) -> usize {
        self.index.passed
    }

    /// Writes an index beside each shard, `shard.tar.index`, with which the shard opens without a scan until it
    /// changes. Damaged shards get none. Takes the time of a scan.
    ///
    /// # Errors
    /// [`Error::Storage`] if one cannot be written, and what scanning returns.
    pub fn save_index(&self) -> Result<()> {
        for shard in &self.index.shards {
            // Read before the scan: a change during it makes the index stale and not wrong.
            let state = saved::State::of(shard.file.path()).map_err(|e| shard.file.failed(e))?;
            let scan = scan(&shard.file, state.length)?;
            if scan.damage.is_none() {
                saved::save(shard.file.path(), state, &scan.members)?;
            }
        }
        Ok(())
    }

    /// The pictures of the samples: of each the first field of these that it has.
    ///
    /// ```no_run
    /// use qvl_dataload::TarShards;
    ///
    /// let pictures = TarShards::open(["train-000.tar", "train-001.tar"])?.field(&["jpg", "jpeg", "png"]);
    /// # Ok::<(), qvl_dataload::Error>(())
    /// ```
    pub fn field(self, fields: &[&str]) -> TarField {
        TarField { shards: self, fields: fields.iter().map(|field| (*field).to_owned()).collect() }
    }

    fn sample(&self, index: usize) -> Result<&Sample> {
        let (what, len) = ("the tar shards".to_owned(), self.index.samples.len());
        self.index.samples.get(index).ok_or(Error::Index { what, index, len })
    }
}

impl Source for TarShards {
    type Sample = TarSample;

    fn len(&self) -> usize {
        self.index.samples.len()
    }

    fn name(&self, index: usize) -> String {
        self.sample(index).map_or_else(|_| format!("sample {index}"), |sample| self.index.name(sample))
    }

    fn sample_bytes(&self, index: usize, buffers: &dyn Buffers) -> Result<usize> {
        let sample = self.sample(index)?;
        let field = |(name, extent): (&str, Extent)| {
            size_of::<(String, Buffer)>() + name.len() + buffers.footprint(extent.bytes)
        };
        let fields: usize = self.index.extents(sample)?.into_iter().map(field).sum();
        let names = sample.shown().len() + self.index.shards[sample.shard].name.len();
        Ok(size_of::<TarSample>() + names + fields)
    }

    fn read(&self, index: usize, reader: &mut Reader<'_>) -> Result<TarSample> {
        let sample = self.sample(index)?;
        let fields = self.index.extents(sample)?;
        let fields = fields
            .into_iter()
            .map(|(name, extent)| Ok((name.to_owned(), reader.read(&extent)?)))
            .collect::<Result<_>>()?;
        let shard = Arc::clone(&self.index.shards[sample.shard].name);
        Ok(TarSample { key: sample.shown(), shard, fields })
    }

    fn extents(&self, index: usize) -> Vec<Extent> {
        let fields = self.sample(index).and_then(|sample| self.index.extents(sample)).unwrap_or_default();
        fields.into_iter().map(|(_, extent)| extent).collect()
    }

    fn fingerprint(&self) -> u64 {
        self.index.fingerprint
    }
}

impl fmt::Debug for TarShards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TarShards")
            .field("shards", &self.index.shards.len())
            .field("samples", &self.index.samples.len())
            .field("damage", &self.index.damage)
            .finish_non_exhaustive()
    }
}

/// One field of each sample of some shards; see [`TarShards::field`]. A sample without it is an error,
/// [`Error::Field`], of that sample.
#[derive(Clone, Debug)]
pub struct TarField {
    shards: TarShards,
    fields: Vec<String>,
}

impl TarField {
    /// What the field is called in the sample, and where it is.
    fn find(&self, index: usize) -> Result<(String, Extent)> {
        let sample = self.shards.sample(index)?;
        let mut extents = self.shards.index.extents(sample)?;
        let position =
            self.fields.iter().find_map(|field| extents.iter().position(|(name, _)| name == field));
        match position.map(|position| extents.swap_remove(position)) {
            Some((name, extent)) => Ok((name.to_owned(), extent)),
            None => Err(Error::Field {
                name: self.shards.name(index),
                field: self.fields.join(" or "),
                present: extents.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
            }),
        }
    }
}

impl Source for TarField {
    type Sample = Encoded;

    fn len(&self) -> usize {
        self.shards.len()
    }

    fn name(&self, index: usize) -> String {
        self.shards.name(index)
    }

    fn sample_bytes(&self, index: usize, buffers: &dyn Buffers) -> Result<usize> {
        let (field, extent) = self.find(index)?;
        Ok(Encoded::bytes_of(self.shards.name(index).len() + 1 + field.len(), extent.bytes, buffers))
    }

    fn read(&self, index: usize, reader: &mut Reader<'_>) -> Result<Encoded> {
        let (field, extent) = self.find(index)?;
        Ok(Encoded {
            name: format!("{}.{field}", self.shards.name(index)).into(),
            bytes: reader.read(&extent)?,
        })
    }

    fn extents(&self, index: usize) -> Vec<Extent> {
        self.find(index).map(|(_, extent)| extent).into_iter().collect()
    }

    fn fingerprint(&self) -> u64 {
        let fields = self.fields.iter().map(|field| field.as_bytes().to_vec());
        fingerprint(fields.chain([self.shards.fingerprint().to_le_bytes().to_vec()]))
    }
}

#[derive(Default)]
struct Index {
    shards: Vec<Shard>,
    samples: Vec<Sample>,
    /// Of all samples, one after the other.
    members: Vec<FieldPlace>,
    /// The names that fields have.
    fields: Vec<Box<str>>,
    damage: Vec<ShardDamage>,
    passed: usize,
    max_field_bytes: u64,
    fingerprint: u64,
}

struct Shard {
    file: DataFile,
    name: Arc<str>,
}

struct Sample {
    key: Box<[u8]>,
    shard: usize,
    members: Range<usize>,
}

impl Sample {
    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.key).into_owned()
    }
}

struct FieldPlace {
    /// In the list of names.
    name: usize,
    offset: u64,
    bytes: u64,
}

/// Names of fields, each kept once: a shard has few of them and a member each.
#[derive(Default)]
struct FieldNames {
    numbers: HashMap<Box<str>, usize>,
    names: Vec<Box<str>>,
}

impl FieldNames {
    fn number(&mut self, name: &str) -> usize {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        self.names.push(name.into());
        self.numbers.insert(name.into(), self.names.len() - 1);
        self.names.len() - 1
    }
}

impl Index {
    fn open(&mut self, file: DataFile, options: &TarOptions, names: &mut FieldNames) -> Result<()> {
        whole(&file, u64::MAX)?;
        let path = file.path();
        let name: Arc<str> = shown(path).into();
        let state = saved::State::of(path).map_err(|e| file.failed(e))?;
        let loaded = if options.use_index { saved::load(path, state) } else { None };
        let scan = match loaded {
            Some(members) => Scan { members, damage: None },
            None => scan(&file, state.length)?,
        };
        if let Some(flaw) = &scan.damage
            && !options.allow_truncated
        {
            let (offset, what) = (flaw.offset, flaw.what.clone());
            return Err(Error::Archive { name: name.to_string(), kind: "tar", offset, what });
        }
        self.shards.push(Shard { file: file.clone(), name: Arc::clone(&name) });
        self.group(&scan.members, names);
        if let Some(flaw) = scan.damage {
            let dropped = self.drop_incomplete(flaw.member.as_deref());
            let lost_bytes = state.length.saturating_sub(flaw.offset);
            let shard = name.to_string();
            self.damage.push(ShardDamage {
                shard,
                offset: flaw.offset,
                lost_bytes,
                what: flaw.what,
                dropped,
            });
        }
        Ok(())
    }

    /// Makes samples of the members of the shard that was added last.
    fn group(&mut self, members: &[Member], names: &mut FieldNames) {
        let (shard, first) = (self.shards.len() - 1, self.samples.len());
        for member in members {
            let Some((key, field)) = key_and_field(&member.name) else {
                self.passed += 1;
                continue;
            };
            let name = names.number(&String::from_utf8_lossy(field).to_ascii_lowercase());
            let end = self.members.len() + 1;
            self.members.push(FieldPlace { name, offset: member.offset, bytes: member.bytes });
            match self.samples[first..].last_mut().filter(|sample| *sample.key == *key) {
                Some(sample) => sample.members.end = end,
                None => self.samples.push(Sample { key: key.into(), shard, members: end - 1..end }),
            }
        }
    }

    /// Takes away the last sample of the last shard if more of its fields may have been where the damage is: it is
    /// complete only if what comes next is known to belong to another one.
    fn drop_incomplete(&mut self, damaged: Option<&[u8]>) -> Option<String> {
        let last = self.samples.last().filter(|sample| sample.shard + 1 == self.shards.len())?;
        let next = damaged.and_then(key_and_field).map(|(key, _)| key);
        if next.is_some_and(|key| *key != *last.key) {
            return None;
        }
        let sample = self.samples.pop()?;
        self.members.truncate(sample.members.start);
        Some(sample.shown())
    }

    fn name(&self, sample: &Sample) -> String {
        format!("{}: {}", self.shards[sample.shard].name, sample.shown())
    }

    /// The fields of a sample with their names.
    fn extents(&self, sample: &Sample) -> Result<Vec<(&str, Extent)>> {
        let members = &self.members[sample.members.clone()];
        let mut numbers: Vec<usize> = members.iter().map(|member| member.name).collect();
        numbers.sort_unstable();
        if let Some(twice) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            let what = format!("the sample {} has the field {} twice", sample.shown(), self.fields[twice[0]]);
            let (name, offset) = (self.name(sample), members[0].offset);
            return Err(Error::Archive { name, kind: "tar", offset, what });
        }
        let limit_bytes = self.max_field_bytes;
        let extent = |member: &FieldPlace| {
            let field = &*self.fields[member.name];
            let too_long = || Error::FileSize {
                name: format!("{}.{field}", self.name(sample)),
                bytes: member.bytes,
                limit_bytes,
            };
            let bytes = usize::try_from(member.bytes).map_err(|_| too_long())?;
            if member.bytes > limit_bytes {
                return Err(too_long());
            }
            Ok((field, Extent { file: self.shards[sample.shard].file.clone(), offset: member.offset, bytes }))
        };
        members.iter().map(extent).collect()
    }
}

fn scan(file: &DataFile, length: u64) -> Result<Scan> {
    File::open(file.path()).and_then(|archive| Scan::of(archive, length)).map_err(|e| file.failed(e))
}

/// The parts of a name before and after the first dot of its last part; none if nothing is before it.
fn key_and_field(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let base = name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].iter().position(|byte| *byte == b'.')?;
    (dot > base).then(|| (&name[..dot], &name[dot + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_divided_at_the_first_dot_of_their_last_part() {
        let divided = |name: &'static str| {
            key_and_field(name.as_bytes())
                .map(|(key, field)| (str::from_utf8(key).unwrap(), str::from_utf8(field).unwrap()))
        };
        assert_eq!(divided("0001.jpg"), Some(("0001", "jpg")));
        assert_eq!(divided("a.b/0001.seg.png"), Some(("a.b/0001", "seg.png")));
        assert_eq!(divided("./0001."), Some(("./0001", "")));
        for none in ["", "a", "a.b/c", ".hidden", "a/.hidden.jpg", "a/"] {
            assert_eq!(divided(none), None, "{none}");
        }
    }
}
