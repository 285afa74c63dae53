//! Where samples come from: a numbered list of things that can be read in any order, from any thread.

pub(crate) mod files;
pub(crate) mod frames;
mod listing;
pub(crate) mod manifest;
#[cfg(feature = "parquet")]
pub(crate) mod parquet;
pub(crate) mod tar;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::buffer::{Buffer, Buffers};
use crate::storage::{Extent, Reader};
use crate::{Error, Result};

/// A list of samples. Implement it for data of your own; it is small on purpose.
///
/// ```
/// use qvl_dataload::storage::Reader;
/// use qvl_dataload::{Result, Source};
///
/// /// The numbers below `self.0`, as if they were dear to come by.
/// struct Numbers(usize);
///
/// impl Source for Numbers {
///     type Sample = u64;
///
///     fn len(&self) -> usize {
///         self.0
///     }
///
///     fn name(&self, index: usize) -> String {
///         format!("number {index}")
///     }
///
///     fn read(&self, index: usize, _: &mut Reader<'_>) -> Result<u64> {
///         Ok(index as u64)
///     }
/// }
/// ```
pub trait Source: Send + Sync + 'static {
    /// What one read gives.
    type Sample: Send + 'static;

    /// How many there are. It does not change.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a sample is called in errors: a path, `shard.tar: 0001.jpg`, `list.jsonl: line 7`.
    fn name(&self, index: usize) -> String;

    /// Bytes of memory that a sample takes once it is read into `buffers`, as far as that can be said without reading
    /// it. The prefetch reserves them before it reads.
    ///
    /// # Errors
    /// Whatever makes reading impossible: a file that has vanished.
    fn sample_bytes(&self, index: usize, buffers: &dyn Buffers) -> Result<usize> {
        let _ = (index, buffers);
        Ok(0)
    }

    /// Reads a sample. The same index gives the same sample each time.
    ///
    /// # Errors
    /// Whatever makes reading impossible, with the name of the sample.
    fn read(&self, index: usize, reader: &mut Reader<'_>) -> Result<Self::Sample>;

    /// Where in which files `read` will read, so that it can be read ahead: all that it asks of its reader, in that
    /// order. None if that is not known.
    fn extents(&self, index: usize) -> Vec<Extent> {
        let _ = index;
        Vec::new()
    }

    /// A number that changes with the list: resuming with another list is refused. By default that of the length.
    fn fingerprint(&self) -> u64 {
        fingerprint([self.len().to_le_bytes()])
    }
}

impl<S: Source + ?Sized> Source for Arc<S> {
    type Sample = S::Sample;

    fn len(&self) -> usize {
        (**self).len()
    }

    fn name(&self, index: usize) -> String {
        (**self).name(index)
    }

    fn sample_bytes(&self, index: usize, buffers: &dyn Buffers) -> Result<usize> {
        (**self).sample_bytes(index, buffers)
    }

    fn read(&self, index: usize, reader: &mut Reader<'_>) -> Result<Self::Sample> {
        (**self).read(index, reader)
    }

    fn extents(&self, index: usize) -> Vec<Extent> {
        (**self).extents(index)
    }

    fn fingerprint(&self) -> u64 {
        (**self).fingerprint()
    }
}

/// The bytes of a file, or of a part of one, with the name they have in errors.
pub struct Encoded {
    /// A path, or a shard and the name inside it.
    pub name: Arc<str>,
    /// The bytes as stored.
    pub bytes: Buffer,
}

impl Encoded {
    /// What one takes whose name has about `name_bytes` bytes.
    pub(crate) fn bytes_of(name_bytes: usize, bytes: usize, buffers: &dyn Buffers) -> usize {
        size_of::<Self>() + name_bytes + buffers.footprint(bytes)
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoded").field("name", &self.name).field("bytes", &self.bytes.len()).finish()
    }
}

/// Bytes of memory a value takes, with what it points to.
///
/// What goes through the prefetch queue is counted with it. For a type of your own add up its fields, or give the
/// loader the size with the transform.
pub trait Footprint {
    /// Bytes in all.
    fn footprint(&self) -> usize;
}

macro_rules! of_fixed_size {
    ($($kind:ty),*) => { $(
        impl Footprint for $kind {
            fn footprint(&self) -> usize {
                size_of::<Self>()
            }
        }
    )* };
}

of_fixed_size!((), bool, char, u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64);

impl<T: Footprint> Footprint for Vec<T> {
    fn footprint(&self) -> usize {
        size_of::<Self>() + self.iter().map(Footprint::footprint).sum::<usize>()
    }
}

impl<T: Footprint, const N: usize> Footprint for [T; N] {
    fn footprint(&self) -> usize {
        self.iter().map(Footprint::footprint).sum()
    }
}

impl<T: Footprint> Footprint for Box<T> {
    fn footprint(&self) -> usize {
        size_of::<Self>() + (**self).footprint()
    }
}

impl<T: Footprint> Footprint for Option<T> {
    fn footprint(&self) -> usize {
        self.as_ref().map_or(size_of::<Self>(), Footprint::footprint)
    }
}

impl<T: Footprint> Footprint for Arc<T> {
    fn footprint(&self) -> usize {
        size_of::<Self>() + (**self).footprint()
    }
}

impl<A: Footprint, B: Footprint> Footprint for (A, B) {
    fn footprint(&self) -> usize {
        self.0.footprint() + self.1.footprint()
    }
}

impl<A: Footprint, B: Footprint, C: Footprint> Footprint for (A, B, C) {
    fn footprint(&self) -> usize {
        self.0.footprint() + self.1.footprint() + self.2.footprint()
    }
}

impl Footprint for String {
    fn footprint(&self) -> usize {
        size_of::<Self>() + self.capacity()
    }
}

impl Footprint for Buffer {
    fn footprint(&self) -> usize {
        size_of::<Self>() + Self::footprint(self)
    }
}

impl Footprint for Encoded {
    fn footprint(&self) -> usize {
        size_of::<Self>() + self.name.len() + self.bytes.footprint()
    }
}

impl Footprint for crate::vision::Still {
    fn footprint(&self) -> usize {
        size_of::<Self>() + self.rgb().len()
    }
}

impl Footprint for crate::vision::Video {
    fn footprint(&self) -> usize {
        let frame = |frame: &crate::vision::Frame| size_of_val(frame) + frame.rgb().len();
        size_of::<Self>() + self.frames().iter().map(frame).sum::<usize>()
    }
}

impl Footprint for crate::vision::Patches {
    fn footprint(&self) -> usize {
        size_of::<Self>() + size_of_val(&self.pixel_values[..])
    }
}

impl Footprint for crate::vision::VideoPatches {
    fn footprint(&self) -> usize {
        size_of::<Self>() + size_of_val(&self.pixel_values[..]) + size_of_val(&self.timestamps[..])
    }
}

/// Values in memory; a sample is a clone of one of them.
#[derive(Clone, Debug)]
pub struct Memory<T> {
    values: Arc<[T]>,
}

impl<T> Memory<T> {
    /// These values, in their order.
    pub fn new(values: impl Into<Arc<[T]>>) -> Self {
        Self { values: values.into() }
    }
}

impl<T: Clone + Footprint + Send + Sync + 'static> Source for Memory<T> {
    type Sample = T;

    fn len(&self) -> usize {
        self.values.len()
    }

    fn name(&self, index: usize) -> String {
        format!("item {index} in memory")
    }

    fn sample_bytes(&self, index: usize, _: &dyn Buffers) -> Result<usize> {
        self.values.get(index).map(Footprint::footprint).ok_or_else(|| self.beyond(index))
    }

    fn read(&self, index: usize, _: &mut Reader<'_>) -> Result<T> {
        self.values.get(index).cloned().ok_or_else(|| self.beyond(index))
    }
}

impl<T> Memory<T> {
    fn beyond(&self, index: usize) -> Error {
        Error::Index { what: "the values in memory".to_owned(), index, len: self.values.len() }
    }
}

/// A stable hash of a list of byte strings (FNV-1a, with their lengths), for [`Source::fingerprint`].
pub fn fingerprint<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    for part in parts {
        let part = part.as_ref();
        part.iter().copied().for_each(&mut add);
        (part.len() as u64).to_le_bytes().into_iter().for_each(&mut add);
    }
    hash
}

/// A path for messages: what is not UTF-8 in it is shown with replacement characters.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_depends_on_every_byte_and_border() {
        let parts = |list: &[&str]| fingerprint(list.iter().map(|s| s.as_bytes()));
        assert_eq!(parts(&["a", "bc"]), parts(&["a", "bc"]));
        for other in [&["ab", "c"][..], &["a", "bd"], &["a"], &["a", "bc", ""]] {
            assert_ne!(parts(&["a", "bc"]), parts(other));
        }
    }

    #[test]
    fn footprints_count_what_is_pointed_to() {
        assert_eq!(vec![0f32; 10].footprint(), size_of::<Vec<f32>>() + 40);
        assert!(vec![vec![0u8; 100]; 3].footprint() >= 300);
        assert_eq!((1u8, 2u16).footprint(), 3);
    }
}
