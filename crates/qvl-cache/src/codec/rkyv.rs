//! Values in the rkyv format, read in place.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

use super::Codec;
use crate::error::Cause;

/// What archived values are aligned to: as much as any primitive type needs.
const ALIGN_BYTES: usize = 16;

/// A codec for [`RkyvValue`]s: nothing is decoded, and nothing copied where the bytes are aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rkyv;

/// A value kept as the bytes of its archive, and read in place.
///
/// Clones share the bytes. The bytes were checked when this was made.
///
/// ```
/// use qvl_cache::codec::RkyvValue;
///
/// let value = RkyvValue::new(&vec![1.5_f32, 2.5])?;
/// assert_eq!(value.get()?[1], 2.5);
/// # Ok::<(), qvl_cache::Cause>(())
/// ```
pub struct RkyvValue<T> {
    bytes: Bytes,
    value: PhantomData<fn() -> T>,
}

impl<T> RkyvValue<T>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
{
    /// Archives a value.
    ///
    /// # Errors
    ///
    /// What the value's own serialisation says.
    pub fn new(value: &T) -> Result<Self, Cause>
    where
        T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
    {
        let bytes = rkyv::to_bytes::<rancor::Error>(value)?;
        Self::from_bytes(Bytes::from_owner(bytes))
    }

    /// Takes the bytes of an archive, and copies them if they are not aligned to 16 bytes.
    ///
    /// # Errors
    ///
    /// If they are no archive of this type.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, Cause> {
        let bytes = if (bytes.as_ptr() as usize).is_multiple_of(ALIGN_BYTES) {
            bytes
        } else {
            let mut aligned = AlignedVec::<ALIGN_BYTES>::with_capacity(bytes.len());
            aligned.extend_from_slice(&bytes);
            Bytes::from_owner(aligned)
        };
        let checked = Self { bytes, value: PhantomData };
        checked.get()?;
        Ok(checked)
    }

    /// The value, in place.
    ///
    /// The bytes are checked again each time, since safe Rust cannot remember that they were. For numbers that is a
    /// look at their pointers; for many strings it is a pass over all of them, so keep what this gives.
    ///
    /// # Errors
    ///
    /// None, for bytes that nobody changes; they were checked when this was made.
    pub fn get(&self) -> Result<&T::Archived, Cause> {
        Ok(rkyv::access::<T::Archived, rancor::Error>(&self.bytes)?)
    }
}

impl<T> RkyvValue<T> {
    /// The bytes of the archive.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl<T> Clone for RkyvValue<T> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for RkyvValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RkyvValue({} bytes)", self.bytes.len())
    }
}

impl<T> Codec<RkyvValue<T>> for Rkyv
where
    T: Archive + 'static,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
{
    fn encode(&self, value: &RkyvValue<T>) -> Result<Bytes, Cause> {
        Ok(value.bytes.clone())
    }

    fn decode(&self, bytes: Bytes) -> Result<RkyvValue<T>, Cause> {
        RkyvValue::from_bytes(bytes)
    }

    fn bytes(&self, value: &RkyvValue<T>) -> u64 {
        value.bytes.len() as u64
    }

    fn name(&self) -> &'static str {
        "rkyv"
    }
}
