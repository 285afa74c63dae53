//! Codecs: what was encoded decodes to the same value; any other bytes are an error or a value, never a panic.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use qvl_cache::{Codec, Raw};

fn cases() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn raw_bytes_are_not_copied() {
    let value = Bytes::from(vec![1, 2, 3]);
    let encoded = Raw.encode(&value).unwrap();
    assert_eq!(encoded.as_ptr(), value.as_ptr());
    let decoded: Bytes = Raw.decode(encoded).unwrap();
    assert_eq!(decoded.as_ptr(), value.as_ptr());
    let shared: Arc<[u8]> = Arc::from([1, 2, 3]);
    assert_eq!(Raw.encode(&shared).unwrap().as_ptr(), shared.as_ptr());
    assert_eq!((Raw.bytes(&value), Raw.bytes(&shared)), (3, 3));
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn raw_values_come_back(value: Vec<u8>) {
        let shared: Arc<[u8]> = Arc::from(&value[..]);
        let back: Arc<[u8]> = Raw.decode(Raw.encode(&shared).unwrap()).unwrap();
        prop_assert_eq!(&back, &shared);
        let back: Vec<u8> = Raw.decode(Raw.encode(&value).unwrap()).unwrap();
        prop_assert_eq!(back, value);
    }
}

#[cfg(feature = "postcard")]
mod postcard {
    use qvl_cache::codec::Postcard;

    use super::*;

    type Value = (String, Vec<(u32, Option<i64>)>, bool, f32);

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn postcard_values_come_back(value: (String, Vec<(u32, Option<i64>)>, bool, u32)) {
            let value: Value = (value.0, value.1, value.2, value.3 as f32);
            let encoded = Postcard::new().encode(&value).unwrap();
            prop_assert_eq!(Postcard::new().bytes(&value), (size_of::<Value>() + encoded.len()) as u64);
            let back: Value = Postcard::new().decode(encoded.clone()).unwrap();
            prop_assert_eq!(&back, &value);
            for len in 0..encoded.len() {
                let cut: Result<Value, _> = Postcard::new().decode(encoded.slice(..len));
                prop_assert!(cut.is_err(), "{} of {} bytes", len, encoded.len());
            }
            let longer = Bytes::from([&encoded[..], &[0]].concat());
            let longer: Result<Value, _> = Postcard::new().decode(longer);
            prop_assert!(longer.is_err());
        }

        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes: Vec<u8>) {
            if let Ok(value) = Codec::<Value>::decode(&Postcard::new(), bytes.into()) {
                prop_assert!(Postcard::new().encode(&value).is_ok());
            }
        }
    }

    #[test]
    fn an_announced_length_takes_no_memory() {
        // A list of 2^63 numbers, none of which follows.
        let bytes = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        assert!(Codec::<Vec<u64>>::decode(&Postcard::new(), bytes).is_err());
    }

    #[test]
    fn what_a_value_takes_can_be_said() {
        let codec = Postcard::measured(|value: &Vec<u64>| value.len() as u64 * 8);
        assert_eq!(codec.bytes(&vec![1; 10]), 80);
        let back: Vec<u64> = codec.decode(codec.encode(&vec![7]).unwrap()).unwrap();
        assert_eq!(back, [7]);
    }
}

#[cfg(feature = "rkyv")]
mod rkyv {
    use qvl_cache::codec::{Rkyv, RkyvValue};

    use super::*;

    type Value = (Vec<u64>, Vec<String>, Option<u32>);

    fn same(archived: &RkyvValue<Value>, value: &Value) -> bool {
        let found = archived.get().unwrap();
        found.0.iter().map(|number| number.to_native()).eq(value.0.iter().copied())
            && found
                .1
                .iter()
                .map(::rkyv::string::ArchivedString::as_str)
                .eq(value.1.iter().map(String::as_str))
            && found.2.as_ref().map(|number| number.to_native()) == value.2
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn archives_come_back_wherever_their_bytes_lie(value: Value, shift in 0usize..32) {
            let archived = RkyvValue::new(&value).unwrap();
            prop_assert!(same(&archived, &value));
            let encoded = Rkyv.encode(&archived).unwrap();
            prop_assert_eq!(encoded.as_ptr(), archived.as_bytes().as_ptr());
            prop_assert_eq!(Rkyv.bytes(&archived), encoded.len() as u64);
            let moved = Bytes::from([&vec![0; shift][..], &encoded].concat()).slice(shift..);
            let back: RkyvValue<Value> = Rkyv.decode(moved).unwrap();
            prop_assert!(same(&back, &value));
            prop_assert!(same(&back.clone(), &value));
        }

        #[test]
        fn any_bytes_are_an_archive_or_an_error(bytes: Vec<u8>) {
            if let Ok(value) = Codec::<RkyvValue<Value>>::decode(&Rkyv, bytes.into()) {
                prop_assert!(value.get().is_ok());
            }
        }

        #[test]
        fn a_damaged_archive_is_an_archive_or_an_error(value: Value, at: usize, with in 1u8..) {
            let mut bytes = RkyvValue::new(&value).unwrap().as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= with;
            if let Ok(value) = RkyvValue::<Value>::from_bytes(bytes.into()) {
                let found = value.get().unwrap();
                prop_assert!(found.1.iter().all(|text| text.chars().count() <= text.len()));
            }
        }
    }

    #[test]
    fn aligned_bytes_are_read_in_place() {
        let archived = RkyvValue::new(&vec![1.5f32; 100]).unwrap();
        let bytes = archived.as_bytes().clone();
        let back: RkyvValue<Vec<f32>> = Rkyv.decode(bytes.clone()).unwrap();
        assert_eq!(back.as_bytes().as_ptr(), bytes.as_ptr());
        assert_eq!(back.get().unwrap()[99], 1.5);
    }
}
