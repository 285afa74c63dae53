//! Values that serde knows, in the postcard format: compact, not self-describing.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Codec;
use crate::error::Cause;

/// A codec for values that serde knows.
///
/// Postcard has no names and no types in its bytes: a value written by a program with another definition of the type is
/// an error or, where the bytes happen to fit, another value. Put the version of the type into the fingerprint of the
/// tier.
///
/// What a value takes in memory is taken to be its size and what it takes serialised, which costs a pass over it. Where
/// that is far off, or dear, say it with [`measured`](Self::measured).
///
/// ```
/// use qvl_cache::codec::{Codec, Postcard};
///
/// let value = vec![("a caption".to_owned(), 7_u32)];
/// let bytes = Postcard::new().encode(&value)?;
/// let back: Vec<(String, u32)> = Postcard::new().decode(bytes)?;
/// assert_eq!(back, value);
/// # Ok::<(), qvl_cache::Cause>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Postcard<F = ()> {
    measure: F,
}

impl Postcard {
    /// The codec.
    pub fn new() -> Self {
        Self { measure: () }
    }

    /// The codec, with what says how many bytes a value takes in memory.
    pub fn measured<F>(measure: F) -> Postcard<F> {
        Postcard { measure }
    }
}

impl<V: Serialize + DeserializeOwned> Codec<V> for Postcard<()> {
    fn encode(&self, value: &V) -> Result<Bytes, Cause> {
        encode(value)
    }

    fn decode(&self, bytes: Bytes) -> Result<V, Cause> {
        decode(&bytes)
    }

    fn bytes(&self, value: &V) -> u64 {
        // What cannot be serialised stays in memory, and its size is all that is known of it.
        let serialised = ::postcard::serialize_with_flavor(value, ::postcard::ser_flavors::Size::default());
        size_of::<V>() as u64 + serialised.unwrap_or(0) as u64
    }

    fn name(&self) -> &'static str {
        NAME
    }
}

impl<V, F> Codec<V> for Postcard<F>
where
    V: Serialize + DeserializeOwned,
    F: Fn(&V) -> u64 + Send + Sync + 'static,
{
    fn encode(&self, value: &V) -> Result<Bytes, Cause> {
        encode(value)
    }

    fn decode(&self, bytes: Bytes) -> Result<V, Cause> {
        decode(&bytes)
    }

    fn bytes(&self, value: &V) -> u64 {
        (self.measure)(value)
    }

    fn name(&self) -> &'static str {
        NAME
    }
}

const NAME: &str = "postcard";

fn encode<V: Serialize>(value: &V) -> Result<Bytes, Cause> {
    Ok(::postcard::to_stdvec(value)?.into())
}

fn decode<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, Cause> {
    let (value, rest) = ::postcard::take_from_bytes(bytes)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(format!("{} of {} bytes are left over after the value", rest.len(), bytes.len()).into())
    }
}
