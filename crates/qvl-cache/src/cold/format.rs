//! How a value lies in a file or an object: one header that says all, the key, the bytes.
//!
//! Little-endian throughout:
//!
//! ```text
//!  0   4  magic "QVLv"
//!  4   2  version (1)
//!  6   1  compression: 0 none, 1 lz4 block, 2 zstd frame
//!  7   1  zero
//!  8   4  bytes of the key
//! 12   4  cost to make the value again, seconds, f32
//! 16   8  bytes of the value
//! 24   8  bytes as they are stored
//! 32   8  XXH3-64 of the stored bytes
//! 40   8  XXH3-64 of the 40 bytes before, followed by the key
//! 48      the key, then zeros up to a multiple of 64
//! ...     the stored bytes, to the end of the file
//! ```
//!
//! The stored bytes begin at a multiple of 64, so a value that is not compressed and lies in a page-aligned buffer can
//! be read in place by vector instructions. The sums find damage; they are no signature, and whoever may write into
//! the folder may write a valid value: see the bounds on lengths in [`Header::parse`].

use bytes::Bytes;
use twox_hash::XxHash3_64;

use crate::buffers::Buffers;

/// The version written, and the only one read.
pub const VERSION: u16 = 1;

/// Bytes of the header without the key.
pub const HEADER_BYTES: usize = 48;

/// What the stored bytes are aligned to in the file.
pub const ALIGN_BYTES: usize = 64;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1 << 20;

const MAGIC: [u8; 4] = *b"QVLv";

/// How the bytes of one value are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// As they are.
    None,
    /// One lz4 block.
    Lz4,
    /// One zstd frame.
    Zstd,
}

/// Why what was read is not the value that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It does not begin as a value does.
    NotAValue,
    /// Another version of this format, or a compression that this build lacks.
    Unknown,
    /// The header or the key do not have their checksum.
    Header,
    /// It is shorter or longer than the header says.
    Length,
    /// The stored bytes do not have their checksum.
    Checksum,
    /// It is the value of another key.
    OtherKey,
    /// The value is larger than this tier reads.
    TooLarge,
    /// The stored bytes do not decompress to the length that the header says.
    Decompression,
}

/// The first 48 bytes of a stored value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header {
    /// How the bytes are stored.
    pub compression: Compression,
    /// Bytes of the key.
    pub key_bytes: u32,
    /// Cost to make the value again, in seconds.
    pub cost: f32,
    /// Bytes of the value.
    pub value_bytes: u64,
    /// Bytes as they are stored.
    pub stored_bytes: u64,
    /// XXH3-64 of the stored bytes.
    pub stored_sum: u64,
}

impl Header {
    /// The header of a value: `stored` is what `value_bytes` bytes became.
    ///
    /// Reads all of `stored` once, for the checksum. `None` if the key is longer than [`KEY_BYTES_MAX`].
    pub fn new(
        key: &[u8],
        compression: Compression,
        stored: &[u8],
        value_bytes: u64,
        cost: f32,
    ) -> Option<Self> {
        let key_bytes = u32::try_from(key.len()).ok().filter(|_| key.len() <= KEY_BYTES_MAX)?;
        let stored_sum = XxHash3_64::oneshot(stored);
        Some(Self {
            compression,
            key_bytes,
            cost,
            value_bytes,
            stored_bytes: stored.len() as u64,
            stored_sum,
        })
    }

    /// Bytes before the stored bytes: header, key and zeros.
    pub fn lead_bytes(&self) -> usize {
        (HEADER_BYTES + self.key_bytes as usize).next_multiple_of(ALIGN_BYTES)
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        (self.lead_bytes() as u64).saturating_add(self.stored_bytes)
    }

    /// What comes before the stored bytes, given the key that the header was made for.
    pub fn encode(&self, key: &[u8]) -> Vec<u8> {
        let mut lead = Vec::with_capacity(self.lead_bytes());
        lead.extend_from_slice(&MAGIC);
        lead.extend_from_slice(&VERSION.to_le_bytes());
        lead.push(match self.compression {
            Compression::None => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        });
        lead.push(0);
        lead.extend_from_slice(&self.key_bytes.to_le_bytes());
        lead.extend_from_slice(&self.cost.to_le_bytes());
        lead.extend_from_slice(&self.value_bytes.to_le_bytes());
        lead.extend_from_slice(&self.stored_bytes.to_le_bytes());
        lead.extend_from_slice(&self.stored_sum.to_le_bytes());
        let sum = lead_sum(&lead, key);
        lead.extend_from_slice(&sum.to_le_bytes());
        lead.extend_from_slice(key);
        lead.resize(self.lead_bytes(), 0);
        lead
    }

    /// Reads the header of a whole file, and checks it with the key and the file's length. The stored bytes are not
    /// looked at.
    ///
    /// # Errors
    ///
    /// What is damaged; [`Damage::TooLarge`] if value or stored bytes are more than `value_bytes_max`.
    pub fn parse(file: &[u8], value_bytes_max: u64) -> Result<Self, Damage> {
        let (Some(fixed), Some(at)) = (file.first_chunk::<HEADER_BYTES>(), Fields(file).into_fields()) else {
            return Err(Damage::Length);
        };
        if at.magic != MAGIC {
            return Err(Damage::NotAValue);
        }
        if at.version != VERSION {
            return Err(Damage::Unknown);
        }
        if at.key_bytes as usize > KEY_BYTES_MAX {
            return Err(Damage::Header);
        }
        let key = file.get(HEADER_BYTES..HEADER_BYTES + at.key_bytes as usize).ok_or(Damage::Length)?;
        if lead_sum(&fixed[..HEADER_BYTES - 8], key) != at.sum || at.zero != 0 {
            return Err(Damage::Header);
        }
        let compression = match at.compression {
            0 => Compression::None,
            1 => Compression::Lz4,
            2 => Compression::Zstd,
            _ => return Err(Damage::Unknown),
        };
        let header = Self {
            compression,
            key_bytes: at.key_bytes,
            cost: at.cost,
            value_bytes: at.value_bytes,
            stored_bytes: at.stored_bytes,
            stored_sum: at.stored_sum,
        };
        if header.value_bytes.max(header.stored_bytes) > value_bytes_max {
            return Err(Damage::TooLarge);
        }
        if header.file_bytes() != file.len() as u64 {
            return Err(Damage::Length);
        }
        if compression == Compression::None && header.stored_bytes != header.value_bytes {
            return Err(Damage::Header);
        }
        let zeros = &file[HEADER_BYTES + key.len()..header.lead_bytes()];
        if zeros.iter().any(|&byte| byte != 0) {
            return Err(Damage::Header);
        }
        Ok(header)
    }
}

/// The value in a whole file, and its cost in seconds, if it is the one of `key`.
///
/// Uncompressed values are a part of `file`, not a copy; others are decompressed into exactly as many bytes as the
/// header says, taken from `buffers`, and no more than `value_bytes_max`.
///
/// # Errors
///
/// What is damaged.
pub(crate) fn open(
    file: &Bytes,
    key: &[u8],
    value_bytes_max: u64,
    buffers: &Buffers,
) -> Result<(Bytes, f32), Damage> {
    let header = Header::parse(file, value_bytes_max)?;
    // Within the file: `parse` compared the lengths.
    if file[HEADER_BYTES..HEADER_BYTES + header.key_bytes as usize] != *key {
        return Err(Damage::OtherKey);
    }
    let stored = file.slice(header.lead_bytes()..);
    if XxHash3_64::oneshot(&stored) != header.stored_sum {
        return Err(Damage::Checksum);
    }
    let value = match header.compression {
        Compression::None => stored,
        compression => decompressed(compression, &stored, header.value_bytes, buffers)?,
    };
    Ok((value, header.cost))
}

#[cfg(feature = "compression")]
fn decompressed(
    compression: Compression,
    stored: &[u8],
    value_bytes: u64,
    buffers: &Buffers,
) -> Result<Bytes, Damage> {
    let len = usize::try_from(value_bytes).map_err(|_| Damage::TooLarge)?;
    let mut buffer = buffers.take(len);
    let complete = super::compress::decompress(compression, stored, &mut buffer.bytes_mut()[..len]);
    if complete { Ok(buffer.share(0..len)) } else { Err(Damage::Decompression) }
}

#[cfg(not(feature = "compression"))]
fn decompressed(_: Compression, _: &[u8], _: u64, _: &Buffers) -> Result<Bytes, Damage> {
    Err(Damage::Unknown)
}

/// What the header's checksum is over.
fn lead_sum(fixed: &[u8], key: &[u8]) -> u64 {
    let mut hash = XxHash3_64::new();
    std::hash::Hasher::write(&mut hash, fixed);
    std::hash::Hasher::write(&mut hash, key);
    std::hash::Hasher::finish(&hash)
}

/// Bytes read one field after the other.
struct Fields<'a>(&'a [u8]);

struct RawHeader {
    magic: [u8; 4],
    version: u16,
    compression: u8,
    zero: u8,
    key_bytes: u32,
    cost: f32,
    value_bytes: u64,
    stored_bytes: u64,
    stored_sum: u64,
    sum: u64,
}

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn into_fields(mut self) -> Option<RawHeader> {
        Some(RawHeader {
            magic: self.next()?,
            version: u16::from_le_bytes(self.next()?),
            compression: self.next::<1>()?[0],
            zero: self.next::<1>()?[0],
            key_bytes: u32::from_le_bytes(self.next()?),
            cost: f32::from_le_bytes(self.next()?),
            value_bytes: u64::from_le_bytes(self.next()?),
            stored_bytes: u64::from_le_bytes(self.next()?),
            stored_sum: u64::from_le_bytes(self.next()?),
            sum: u64::from_le_bytes(self.next()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(key: &[u8], value: &[u8]) -> Bytes {
        let header = Header::new(key, Compression::None, value, value.len() as u64, 1.5).unwrap();
        let mut file = header.encode(key);
        file.extend_from_slice(value);
        assert_eq!(file.len() as u64, header.file_bytes());
        Bytes::from(file)
    }

    fn read(file: &[u8], key: &[u8]) -> Result<(Bytes, f32), Damage> {
        open(&Bytes::copy_from_slice(file), key, 1 << 20, &Buffers::new(0))
    }

    #[test]
    fn a_value_comes_back_with_its_cost() {
        for key_bytes in [0, 1, 15, 16, 17, 80, 1000] {
            for value_bytes in [0, 1, 63, 64, 65, 5000] {
                let key = vec![7; key_bytes];
                let value: Vec<u8> = (0..value_bytes).map(|i| (i % 251) as u8).collect();
                let (read, cost) = read(&file(&key, &value), &key).unwrap();
                assert_eq!((&read[..], cost), (&value[..], 1.5), "key {key_bytes}, value {value_bytes}");
            }
        }
    }

    #[test]
    fn the_stored_bytes_are_aligned_in_the_file() {
        let buffers = Buffers::new(0);
        let whole = file(b"a key of some length", &[1; 100]);
        let mut buffer = buffers.take(whole.len());
        buffer.bytes_mut()[..whole.len()].copy_from_slice(&whole);
        let (value, _) =
            open(&buffer.share(0..whole.len()), b"a key of some length", 1000, &buffers).unwrap();
        assert_eq!(value.as_ptr() as usize % ALIGN_BYTES, 0);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let whole = file(b"the key", b"the value, of a few bytes");
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&flipped, b"the key").is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_and_every_tail_is_seen() {
        let whole = file(b"the key", b"the value, of a few bytes");
        for len in 0..whole.len() {
            assert!(read(&whole[..len], b"the key").is_err(), "{len} bytes");
        }
        let mut longer = whole.to_vec();
        longer.push(0);
        assert_eq!(read(&longer, b"the key"), Err(Damage::Length));
    }

    #[test]
    fn another_keys_value_is_not_given() {
        assert_eq!(read(&file(b"the key", b"value"), b"the kez"), Err(Damage::OtherKey));
        assert_eq!(read(&file(b"the key", b"value"), b"the key "), Err(Damage::OtherKey));
    }

    #[test]
    fn a_value_over_the_bound_is_not_read() {
        let whole = file(b"k", &[0; 100]);
        assert_eq!(open(&whole, b"k", 99, &Buffers::new(0)), Err(Damage::TooLarge));
        assert!(open(&whole, b"k", 100, &Buffers::new(0)).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn a_header_of_any_numbers_with_a_right_checksum_is_damage_and_no_panic(
            compression: u8, key_bytes: u32, short_key in 0u32..100, use_short: bool,
            value_bytes: u64, stored_bytes: u64, stored_sum: u64, rest: Vec<u8>,
        ) {
            let key_bytes = if use_short { short_key } else { key_bytes };
            let mut file = [&MAGIC[..], &VERSION.to_le_bytes(), &[compression % 4, 0]].concat();
            file.extend(key_bytes.to_le_bytes());
            file.extend(0f32.to_le_bytes());
            [value_bytes, stored_bytes, stored_sum].iter().for_each(|number| file.extend(number.to_le_bytes()));
            let key = rest.get(..key_bytes as usize).unwrap_or(&rest);
            file.extend(lead_sum(&file, key).to_le_bytes());
            file.extend(&rest);
            for value_bytes_max in [1 << 20, u64::MAX] {
                let found = open(&Bytes::from(file.clone()), key, value_bytes_max, &Buffers::new(0));
                proptest::prop_assert!(found.is_err());
            }
        }
    }

    #[cfg(feature = "compression")]
    #[test]
    fn a_header_that_lies_about_the_length_is_seen() {
        let value = vec![3u8; 10_000];
        for compression in [Compression::Lz4, Compression::Zstd] {
            let stored = super::super::compress::compress(compression, &value).unwrap();
            for (claimed, right) in [(10_000, true), (9_999, false), (10_001, false), (0, false)] {
                let header = Header::new(b"k", compression, &stored, claimed, 0.0).unwrap();
                let mut whole = header.encode(b"k");
                whole.extend_from_slice(&stored);
                let read = read(&whole, b"k");
                if right {
                    assert_eq!(read.unwrap().0, value);
                } else {
                    assert_eq!(read, Err(Damage::Decompression), "{compression:?} {claimed}");
                }
            }
            assert_eq!(Header::new(&vec![0; KEY_BYTES_MAX + 1], compression, &stored, 1, 0.0), None);
        }
    }
}
