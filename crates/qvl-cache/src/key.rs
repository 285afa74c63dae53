//! Keys: what a value is called, and the 128 bits that stand for it below the hot tier.

use std::borrow::Cow;
use std::fmt;
use std::hash::Hash;

/// What values are stored under.
///
/// The bytes name the value on drives and in object stores, so they must be the same in every run, and different for
/// different keys. They may be long (64 KiB and more); the tiers below know a key by its [`KeyId`], store the bytes
/// beside the value and compare them on every read.
pub trait Key: Clone + Eq + Hash + Send + Sync + 'static {
    /// The key as bytes.
    fn bytes(&self) -> Cow<'_, [u8]>;
}

impl Key for Vec<u8> {
    fn bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self)
    }
}

impl Key for bytes::Bytes {
    fn bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self)
    }
}

impl Key for String {
    fn bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.as_bytes())
    }
}

impl<const N: usize> Key for [u8; N] {
    fn bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self)
    }
}

impl Key for u64 {
    /// Little-endian: where the machine is, nothing is allocated.
    fn bytes(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::bytes_of(self))
        } else {
            Cow::Owned(self.to_le_bytes().to_vec())
        }
    }
}

impl Key for u128 {
    /// Little-endian: where the machine is, nothing is allocated.
    fn bytes(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::bytes_of(self))
        } else {
            Cow::Owned(self.to_le_bytes().to_vec())
        }
    }
}

/// 128 bits (XXH3) of a key's bytes.
///
/// Two keys with the same id are two names for one slot: the later one replaces the earlier, which is then a miss,
/// never another key's value, since the key itself is stored and compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u128);

impl KeyId {
    /// The id of a key's bytes.
    pub fn of(key: &[u8]) -> Self {
        Self(twox_hash::XxHash3_128::oneshot(key))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key as an error shows it: text where it is text, else hexadecimal, cut to a line.
pub(crate) fn shown(key: &[u8]) -> String {
    const BYTES_MAX: usize = 48;
    let cut = &key[..key.len().min(BYTES_MAX)];
    let more = if key.len() > BYTES_MAX { format!("… ({} bytes)", key.len()) } else { String::new() };
    match std::str::from_utf8(cut) {
        Ok(text) if text.chars().all(|c| !c.is_control()) => format!("{text:?}{more}"),
        _ => cut.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + &more,
    }
}
