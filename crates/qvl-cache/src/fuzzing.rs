//! What reads bytes from a drive, as functions of bytes alone: for fuzzing, and for tests of the same inputs.
//!
//! Not part of the interface; it changes without notice. Each returns whether the bytes were accepted.

use twox_hash::XxHash3_64;

use crate::key::KeyId;
use crate::warm::format;

/// A stored value with its footer: as it is, and once more with right hashes, which changes made at random would
/// hardly ever hit.
pub fn stored_value(bytes: &[u8]) -> bool {
    let mut hashed = bytes.to_vec();
    if let Some(tail_start) = bytes.len().checked_sub(format::TAIL_BYTES)
        && let Ok(tail) = format::peek_tail(&bytes[tail_start..])
        && let Some(value) = usize::try_from(tail.value_bytes).ok().and_then(|len| bytes.get(..len))
        && value.len() <= tail_start
    {
        let hash = format::value_hash(value).to_le_bytes();
        let end = hashed.len();
        hashed[end - 24..end - 8].copy_from_slice(&hash);
        let hash = XxHash3_64::oneshot(&hashed[value.len()..end - 8]).to_le_bytes();
        hashed[end - 8..].copy_from_slice(&hash);
    }
    decode_stored(&hashed);
    decode_stored(bytes)
}

fn decode_stored(bytes: &[u8]) -> bool {
    match format::decode_stored(bytes) {
        Ok((value, key, tail)) => {
            assert_eq!(
                value.len() + key.len() + format::TAIL_BYTES,
                bytes.len(),
                "bytes that belong to nothing"
            );
            assert_eq!(
                format::encode_footer(key, &tail),
                bytes[value.len()..],
                "another footer says the same"
            );
            true
        }
        Err(_) => false,
    }
}

/// A record of the index, as it is and with a right hash.
pub fn record(bytes: &[u8]) -> bool {
    let id = KeyId(7);
    let mut hashed = bytes.to_vec();
    if let Some(body) = bytes.len().checked_sub(8) {
        let hash = XxHash3_64::oneshot_with_seed(7, &hashed[..body]).to_le_bytes();
        hashed[body..].copy_from_slice(&hash);
    }
    for bytes in [&hashed[..], bytes] {
        if let Some(record) = format::Record::decode(bytes, id) {
            assert!(
                format::stored_bytes(record.value_bytes, record.key_bytes).is_some(),
                "a length no file has"
            );
            assert_eq!(record.encode(id), bytes, "other bytes say the same");
        }
    }
    format::Record::decode(bytes, id).is_some()
}

/// The saved order, as it is and with a right hash.
pub fn order(bytes: &[u8]) -> bool {
    let mut hashed = bytes.to_vec();
    if let Some(body) = bytes.len().checked_sub(8) {
        let hash = XxHash3_64::oneshot(&bytes[..body]).to_le_bytes();
        hashed[body..].copy_from_slice(&hash);
    }
    for bytes in [&hashed[..], bytes] {
        if let Some(order) = format::decode_order(bytes) {
            assert_eq!(format::encode_order(&order), bytes, "other bytes say the same");
        }
    }
    format::decode_order(bytes).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few thousand inputs, damaged at random from whole ones: what the fuzzer does for longer.
    #[test]
    fn damaged_bytes_are_refused_without_a_panic() {
        let tail = format::Tail::of(b"key", &[5; 300], 9, 1.0).unwrap();
        let stored = [&[5; 300][..], &format::encode_footer(b"key", &tail)].concat();
        let before = Some((format::Place::Inline, 3));
        let record_of = |place, key: &[u8]| {
            let tail = format::Tail::of(key, &[5; 300], 9, 1.0).unwrap();
            format::Record { before, ..format::Record::of(place, key, &tail) }.encode(KeyId(7))
        };
        let record_bytes = record_of(format::Place::File, b"key");
        let (short, long) =
            (record_of(format::Place::Alone, b"key"), record_of(format::Place::Alone, &[4; 100]));
        let order_bytes = format::encode_order(&[(KeyId(1), 2), (KeyId(3), 4)]);
        assert!(stored_value(&stored) && record(&record_bytes) && order(&order_bytes));
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for (whole, check) in [
            (stored, stored_value as fn(&[u8]) -> bool),
            (record_bytes, record),
            (short, record),
            (long, record),
            (order_bytes, order),
        ] {
            for _ in 0..3000 {
                let mut bytes = whole.clone();
                for _ in 0..1 + random(4) {
                    let at = random(bytes.len());
                    bytes[at] = random(256) as u8;
                }
                bytes.truncate(bytes.len() - random(3) * random(bytes.len()) / 4);
                assert_eq!(check(&bytes), bytes == whole);
            }
        }
    }
}
