//! The bytes on the drive: a stored value with its footer, a record of the index, the order that outlives a restart.
//!
//! ```text
//! stored value   value | key | tail                          one file, or one RocksDB value if it is small;
//!                value and footer (key | tail)               a file each, if it is large
//! tail           magic 8 | format 4 | key bytes 4 | value bytes 8 | generation 8 | cost 4 | 0 4
//!                | hash of the value 16 | hash of the key and the tail before it 8                  64 bytes
//! ```
//!
//! The value comes first, so that it begins on a page: it can be mapped and read past the page cache. The tail comes
//! last and says the rest, so that a file describes itself and the index can be made again from the files. A large value
//! has a file of its own: with a footer, 1 MiB would be one block more, which costs a fifth of the time of a read past
//! the page cache. What its reads check is in the record, and so in memory.
//!
//! The hash of a value is XXH3-128 over the XXH3-64 of each 256 KiB of it: pieces are hashed as they arrive, in any
//! order, by any thread, while they are in the processor's cache. All numbers are little-endian.

use twox_hash::{XxHash3_64, XxHash3_128};

use crate::key::KeyId;

/// The version of all of this. Another one is not read.
pub(crate) const FORMAT: u32 = 1;

/// Bytes that are hashed at once. 64 KiB to 512 KiB measure the same; 256 KiB fit the second-level cache of most.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// Bytes of the tail.
pub(crate) const TAIL_BYTES: usize = 64;

/// Bytes of a key that the record of a large value has, at most: it is in memory too. A longer key is compared with the
/// footer's.
pub(crate) const SHORT_KEY_BYTES: usize = 32;

/// The version of an index record.
const RECORD_VERSION: u8 = 2;
/// Bytes of a record's fields that each has.
const RECORD_FIELDS_BYTES: usize = 40;

const MAGIC: [u8; 8] = *b"qvlvalu1";
const ORDER_MAGIC: [u8; 8] = *b"qvlorde1";

/// What a footer says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tail {
    pub(crate) key_bytes: u32,
    pub(crate) value_bytes: u64,
    pub(crate) generation: u64,
    pub(crate) cost: f32,
    pub(crate) value_hash: u128,
}

impl Tail {
    /// Of a value; `None` if no file is that long, or the key has more than 4 GiB.
    pub(crate) fn of(key: &[u8], value: &[u8], generation: u64, cost: f32) -> Option<Self> {
        let (key_bytes, value_bytes) = (u32::try_from(key.len()).ok()?, value.len() as u64);
        stored_bytes(value_bytes, key_bytes)?;
        Some(Self { key_bytes, value_bytes, generation, cost, value_hash: value_hash(value) })
    }

    /// Bytes of the value, its key and the tail; `None` if no file is that long.
    pub(crate) fn stored_bytes(&self) -> Option<u64> {
        stored_bytes(self.value_bytes, self.key_bytes)
    }
}

/// Bytes of a footer.
pub(crate) fn footer_bytes(key_bytes: u32) -> u64 {
    u64::from(key_bytes) + TAIL_BYTES as u64
}

/// Bytes of a value with its footer.
pub(crate) fn stored_bytes(value_bytes: u64, key_bytes: u32) -> Option<u64> {
    value_bytes.checked_add(footer_bytes(key_bytes)).filter(|all| *all < 1 << 48)
}

/// What is wrong with bytes that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// There are fewer than there must be.
    Short,
    /// The footer is none, or damaged.
    Footer,
    /// The value is not what was stored.
    Value,
    /// Another generation's or another length than the index says.
    NotIndexed,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Short => "shorter than it was written",
            Self::Footer => "the footer is damaged",
            Self::Value => "the value's checksum is wrong",
            Self::NotIndexed => "not the value that the index names",
        })
    }
}

/// The hash of one chunk, at most [`CHUNK_BYTES`] long.
pub(crate) fn chunk_hash(chunk: &[u8]) -> u64 {
    XxHash3_64::oneshot(chunk)
}

/// The hash of a value from those of its chunks in order.
pub(crate) fn value_hash_of(chunk_hashes: &[u64]) -> u128 {
    let bytes: Vec<u8> = chunk_hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
    XxHash3_128::oneshot(&bytes)
}

/// The hash of a value.
pub(crate) fn value_hash(value: &[u8]) -> u128 {
    value_hash_of(&value.chunks(CHUNK_BYTES).map(chunk_hash).collect::<Vec<_>>())
}

/// Key and tail, as they stand behind the value.
pub(crate) fn encode_footer(key: &[u8], tail: &Tail) -> Vec<u8> {
    let mut footer = Vec::with_capacity(key.len() + TAIL_BYTES);
    footer.extend_from_slice(key);
    footer.extend_from_slice(&MAGIC);
    footer.extend_from_slice(&FORMAT.to_le_bytes());
    footer.extend_from_slice(&tail.key_bytes.to_le_bytes());
    footer.extend_from_slice(&tail.value_bytes.to_le_bytes());
    footer.extend_from_slice(&tail.generation.to_le_bytes());
    footer.extend_from_slice(&tail.cost.to_le_bytes());
    footer.extend_from_slice(&[0; 4]);
    footer.extend_from_slice(&tail.value_hash.to_le_bytes());
    let hash = XxHash3_64::oneshot(&footer);
    footer.extend_from_slice(&hash.to_le_bytes());
    footer
}

/// The tail as it stands, without the check that needs the key: to learn how long the key is.
pub(crate) fn peek_tail(tail: &[u8]) -> Result<Tail, Wrong> {
    let mut fields = Fields(tail);
    let wrong = Wrong::Footer;
    if fields.take::<8>().ok_or(Wrong::Short)? != MAGIC || fields.u32().ok_or(wrong)? != FORMAT {
        return Err(wrong);
    }
    let tail = Tail {
        key_bytes: fields.u32().ok_or(wrong)?,
        value_bytes: fields.u64().ok_or(wrong)?,
        generation: fields.u64().ok_or(wrong)?,
        cost: f32::from_bits(fields.u32().ok_or(wrong)?),
        value_hash: {
            if fields.u32().ok_or(wrong)? != 0 {
                return Err(wrong);
            }
            u128::from_le_bytes(fields.take().ok_or(wrong)?)
        },
    };
    tail.stored_bytes().ok_or(wrong)?;
    Ok(tail)
}

/// Reads a footer (key and tail, nothing else) and checks its hash. The value is not looked at.
pub(crate) fn decode_footer(footer: &[u8]) -> Result<(&[u8], Tail), Wrong> {
    let tail_start = footer.len().checked_sub(TAIL_BYTES).ok_or(Wrong::Short)?;
    let tail = peek_tail(&footer[tail_start..])?;
    if tail.key_bytes as usize != tail_start {
        return Err(Wrong::Footer);
    }
    let (hashed, hash) = footer.split_at(footer.len() - 8);
    if XxHash3_64::oneshot(hashed).to_le_bytes() != hash {
        return Err(Wrong::Footer);
    }
    Ok((&footer[..tail_start], tail))
}

/// Reads a whole stored value: value, key and what the tail says, all of it checked.
pub(crate) fn decode_stored(stored: &[u8]) -> Result<(&[u8], &[u8], Tail), Wrong> {
    let tail_start = stored.len().checked_sub(TAIL_BYTES).ok_or(Wrong::Short)?;
    let tail = peek_tail(&stored[tail_start..])?;
    if tail.stored_bytes() != Some(stored.len() as u64) {
        return Err(Wrong::Short);
    }
    let (value, footer) = stored.split_at(tail.value_bytes as usize);
    let (key, tail) = decode_footer(footer)?;
    if value_hash(value) != tail.value_hash {
        return Err(Wrong::Value);
    }
    Ok((value, key, tail))
}

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In RocksDB, under its key's id.
    Inline,
    /// In a file named for its generation, with its footer.
    File,
    /// In a file named for its generation, beside which a second one has the footer.
    Alone,
}

impl Place {
    fn code(self) -> u8 {
        match self {
            Self::Inline => 1,
            Self::File => 2,
            Self::Alone => 3,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Inline),
            2 => Some(Self::File),
            3 => Some(Self::Alone),
            _ => None,
        }
    }
}

/// One value in the index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) place: Place,
    pub(crate) key_bytes: u32,
    pub(crate) value_bytes: u64,
    pub(crate) generation: u64,
    pub(crate) cost: f32,
    /// What this value replaced, until it is on the drive for sure: to fall back on after a power loss.
    pub(crate) before: Option<(Place, u64)>,
    /// What a read of a value that is [`Place::Alone`] is compared with; others have none.
    pub(crate) check: Option<Check>,
}

/// What a value without a footer must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Check {
    pub(crate) value_hash: u128,
    /// The key, if it is a short one.
    key: [u8; SHORT_KEY_BYTES],
}

impl Record {
    /// Of a value whose footer has this key and tail.
    pub(crate) fn of(place: Place, key: &[u8], tail: &Tail) -> Self {
        let check = (place == Place::Alone).then(|| Check::of(key, tail.value_hash));
        let Tail { key_bytes, value_bytes, generation, cost, .. } = *tail;
        Self { place, key_bytes, value_bytes, generation, cost, before: None, check }
    }

    /// Bytes of the file that has the value.
    pub(crate) fn file_bytes(&self) -> Option<u64> {
        let stored = stored_bytes(self.value_bytes, self.key_bytes)?;
        Some(if self.place == Place::Alone { self.value_bytes } else { stored })
    }

    /// The key, if the record has it.
    pub(crate) fn short_key(&self) -> Option<&[u8]> {
        self.check.as_ref()?.key.get(..self.key_bytes as usize)
    }

    /// The record as it is stored under `id`.
    pub(crate) fn encode(&self, id: KeyId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(RECORD_FIELDS_BYTES + 16 + SHORT_KEY_BYTES + 8);
        let before = self.before.map_or(0, |(place, _)| place.code());
        bytes.extend_from_slice(&[RECORD_VERSION, self.place.code(), before, 0]);
        bytes.extend_from_slice(&self.key_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.value_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.before.map_or(0, |(_, generation)| generation).to_le_bytes());
        bytes.extend_from_slice(&self.cost.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        if let Some(check) = &self.check {
            bytes.extend_from_slice(&check.value_hash.to_le_bytes());
            bytes.extend_from_slice(self.short_key().unwrap_or_default());
        }
        let hash = record_hash(&bytes, id);
        bytes.extend_from_slice(&hash.to_le_bytes());
        bytes
    }

    /// `None` if these are not the bytes of a record of `id`.
    pub(crate) fn decode(bytes: &[u8], id: KeyId) -> Option<Self> {
        let (body, hash) = bytes.split_last_chunk::<8>()?;
        if record_hash(body, id).to_le_bytes() != *hash {
            return None;
        }
        let mut fields = Fields(body);
        let [RECORD_VERSION, place, before_place, 0] = fields.take()? else { return None };
        let (key_bytes, value_bytes, generation) = (fields.u32()?, fields.u64()?, fields.u64()?);
        let (before, cost) = (fields.u64()?, f32::from_bits(fields.u32()?));
        let 0 = fields.u32()? else { return None };
        stored_bytes(value_bytes, key_bytes)?;
        let place = Place::of_code(place)?;
        let before = match before_place {
            0 if before == 0 => None,
            0 => return None,
            code => Some((Place::of_code(code)?, before)),
        };
        let check = match place {
            Place::Inline | Place::File => None,
            Place::Alone => {
                let value_hash = u128::from_le_bytes(fields.take()?);
                let key = std::mem::take(&mut fields.0);
                let short_bytes = if key_bytes as usize <= SHORT_KEY_BYTES { key_bytes } else { 0 };
                if key.len() != short_bytes as usize {
                    return None;
                }
                Some(Check::of(key, value_hash))
            }
        };
        let record = Self { place, key_bytes, value_bytes, generation, cost, before, check };
        fields.0.is_empty().then_some(record)
    }
}

impl Check {
    fn of(key: &[u8], value_hash: u128) -> Self {
        let mut short = [0; SHORT_KEY_BYTES];
        if let Some(short) = short.get_mut(..key.len()) {
            short.copy_from_slice(key);
        }
        Self { value_hash, key: short }
    }
}

fn record_hash(fields: &[u8], id: KeyId) -> u64 {
    XxHash3_64::oneshot_with_seed(id.0 as u64 ^ (id.0 >> 64) as u64, fields)
}

/// Keys with their uses, those that would leave first coming first.
pub(crate) fn encode_order(order: &[(KeyId, u32)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24 + order.len() * 20);
    bytes.extend_from_slice(&ORDER_MAGIC);
    bytes.extend_from_slice(&(order.len() as u64).to_le_bytes());
    for (id, uses) in order {
        bytes.extend_from_slice(&id.0.to_le_bytes());
        bytes.extend_from_slice(&uses.to_le_bytes());
    }
    let hash = XxHash3_64::oneshot(&bytes);
    bytes.extend_from_slice(&hash.to_le_bytes());
    bytes
}

/// `None` if it is damaged: then there is no order from before.
pub(crate) fn decode_order(bytes: &[u8]) -> Option<Vec<(KeyId, u32)>> {
    let (body, hash) = bytes.split_last_chunk::<8>()?;
    if XxHash3_64::oneshot(body).to_le_bytes() != *hash {
        return None;
    }
    let mut fields = Fields(body);
    if fields.take::<8>()? != ORDER_MAGIC {
        return None;
    }
    let count = usize::try_from(fields.u64()?).ok()?;
    if count.checked_mul(20)? != fields.0.len() {
        return None;
    }
    let mut order = Vec::with_capacity(count);
    for _ in 0..count {
        order.push((KeyId(u128::from_le_bytes(fields.take()?)), fields.u32()?));
    }
    Some(order)
}

/// Takes fields off the front, as long as there are bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(key: &[u8], value: &[u8]) -> Vec<u8> {
        let tail = Tail::of(key, value, 7, 0.25).unwrap();
        [value, &encode_footer(key, &tail)].concat()
    }

    #[test]
    fn what_is_stored_is_read_back() {
        for value_bytes in [0, 1, 100, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let value: Vec<u8> = (0..value_bytes).map(|i| (i % 251) as u8).collect();
            for key in [&b""[..], b"key", &[9; 70_000]] {
                let stored = stored(key, &value);
                let (read, read_key, tail) = decode_stored(&stored).unwrap();
                assert!(read == value && read_key == key);
                assert_eq!((tail.generation, tail.cost), (7, 0.25));
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_missing_byte_of_a_stored_value_is_noticed() {
        let good = stored(b"a key", b"a value of some bytes");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_stored(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(decode_stored(&good[..len]).is_err(), "the first {len} bytes");
            assert!(decode_stored(&good[good.len() - len..]).is_err(), "the last {len} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_record_and_another_key_are_noticed() {
        let id = KeyId::of(b"key");
        for key in [&b"key"[..], b"", &[7; SHORT_KEY_BYTES], &[8; SHORT_KEY_BYTES + 1]] {
            for place in [Place::Inline, Place::File, Place::Alone] {
                for before in
                    [None, Some((Place::Inline, 4)), Some((Place::File, 5)), Some((Place::Alone, 5))]
                {
                    let tail = Tail::of(key, b"the value", 6, 1.5).unwrap();
                    let record = Record { before, ..Record::of(place, key, &tail) };
                    let good = record.encode(id);
                    let read = Record::decode(&good, id).unwrap();
                    assert_eq!(read, record);
                    let short = place == Place::Alone && key.len() <= SHORT_KEY_BYTES;
                    assert_eq!(read.short_key(), short.then_some(key));
                    assert_eq!(Record::decode(&good, KeyId::of(b"other")), None);
                    for bit in 0..good.len() * 8 {
                        let mut bad = good.clone();
                        bad[bit / 8] ^= 1 << (bit % 8);
                        assert_eq!(Record::decode(&bad, id), None, "bit {bit}");
                    }
                    for len in 0..good.len() {
                        assert_eq!(Record::decode(&good[..len], id), None);
                    }
                }
            }
        }
    }

    #[test]
    fn a_damaged_order_is_none() {
        let order: Vec<_> = (0..5_u32).map(|i| (KeyId::of(&i.to_le_bytes()), i)).collect();
        let good = encode_order(&order);
        assert_eq!(decode_order(&good), Some(order));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_order(&bad), None, "bit {bit}");
        }
        for len in 0..good.len() {
            assert_eq!(decode_order(&good[..len]), None);
        }
    }

    #[test]
    fn a_length_that_no_file_has_is_refused() {
        assert_eq!(stored_bytes(u64::MAX, 1), None);
        assert_eq!(stored_bytes(1 << 60, 1), None);
        assert_eq!(stored_bytes(10, 1), Some(75));
    }
}
