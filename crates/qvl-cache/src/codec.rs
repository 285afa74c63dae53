//! Codecs: how a value becomes bytes for the tiers below memory, and bytes a value.

#[cfg(feature = "postcard")]
mod postcard;
#[cfg(feature = "rkyv")]
mod rkyv;

#[cfg(feature = "postcard")]
pub use self::postcard::Postcard;
#[cfg(feature = "rkyv")]
pub use self::rkyv::{Rkyv, RkyvValue};

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Cause;

/// Turns values of one type into bytes and back.
///
/// Decoding gets exactly what encoding gave, checked by the tiers' checksums, unless another program or an older
/// version of this one wrote it: so [`decode`](Self::decode) must take any bytes without a panic, and answer with an
/// error what it does not understand. The cache counts that as a miss.
pub trait Codec<V>: Send + Sync + 'static {
    /// The value as bytes. Called on threads of the cache, when a value moves down.
    ///
    /// # Errors
    ///
    /// If the value has no bytes. It then stays in memory only.
    fn encode(&self, value: &V) -> Result<Bytes, Cause>;

    /// The value of these bytes, which it may keep and read in place. They are aligned to 64 bytes when they come from a
    /// file; from other tiers they come as they lie.
    ///
    /// # Errors
    ///
    /// If they are not what [`encode`](Self::encode) gives.
    fn decode(&self, bytes: Bytes) -> Result<V, Cause>;

    /// What the value takes in memory, in bytes, for the budget of the hot tier. Called once for every value that
    /// comes in, so it should be cheap.
    fn bytes(&self, value: &V) -> u64;

    /// The codec's name, for messages and to tell apart what other codecs wrote.
    fn name(&self) -> &'static str;
}

/// Values that are bytes already: nothing is copied where the type allows it.
///
/// [`Bytes`] are handed through both ways. For `Arc<[u8]>` and `Vec<u8>` the bytes are copied when they come up from a
/// lower tier; `Arc<[u8]>` goes down without a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Raw;

impl Codec<Bytes> for Raw {
    fn encode(&self, value: &Bytes) -> Result<Bytes, Cause> {
        Ok(value.clone())
    }

    fn decode(&self, bytes: Bytes) -> Result<Bytes, Cause> {
        Ok(bytes)
    }

    fn bytes(&self, value: &Bytes) -> u64 {
        value.len() as u64
    }

    fn name(&self) -> &'static str {
        "raw"
    }
}

impl Codec<Arc<[u8]>> for Raw {
    fn encode(&self, value: &Arc<[u8]>) -> Result<Bytes, Cause> {
        Ok(Bytes::from_owner(Arc::clone(value)))
    }

    fn decode(&self, bytes: Bytes) -> Result<Arc<[u8]>, Cause> {
        Ok(Arc::from(&bytes[..]))
    }

    fn bytes(&self, value: &Arc<[u8]>) -> u64 {
        value.len() as u64
    }

    fn name(&self) -> &'static str {
        "raw"
    }
}

impl Codec<Vec<u8>> for Raw {
    fn encode(&self, value: &Vec<u8>) -> Result<Bytes, Cause> {
        Ok(Bytes::copy_from_slice(value))
    }

    fn decode(&self, bytes: Bytes) -> Result<Vec<u8>, Cause> {
        Ok(bytes.into())
    }

    fn bytes(&self, value: &Vec<u8>) -> u64 {
        value.capacity() as u64
    }

    fn name(&self) -> &'static str {
        "raw"
    }
}
