//! Blocks are decoded and encoded as the Python package `gguf` does it, bit for bit; where it has no encoder, the
//! error is bounded by that of ggml's own. Expected values: `xtask/python/make_block_cases.py`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

mod common;

use common::assert_same_bits;
use proptest::prelude::*;
use qvl_model::quant::{BlockFormat, KBlock, Q4Block, Q6Block, Q8Block, first_non_finite};

fn data(file: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/blocks/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn decoded(format: BlockFormat, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / format.block_bytes() * format.block_len()];
    format.dequantize(bytes, &mut values);
    values
}

fn encoded(format: BlockFormat, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; format.bytes_of(values.len()).unwrap()];
    format.quantize(values, &mut bytes).unwrap();
    bytes
}

/// Root of the mean squared error, relative to that of the values.
fn relative_error(values: &[f32], other: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = squares(&mut values.iter().zip(other).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    (error / squares(&mut values.iter().map(|&v| f64::from(v)))).sqrt()
}

#[test]
fn blocks_decode_to_the_same_bits() {
    for format in BlockFormat::ALL {
        let values = decoded(format, &data(&format!("{format}.blocks")));
        assert_same_bits(format.name(), &values, &floats(&data(&format!("{format}.f32"))));
    }
}

#[test]
fn q8_0_and_q4_0_encode_to_the_same_bytes() {
    let values = floats(&data("values.f32"));
    for format in [BlockFormat::Q8_0, BlockFormat::Q4_0] {
        let (got, expected) = (encoded(format, &values), data(&format!("{format}.encoded")));
        let size = format.block_bytes();
        for (index, (got, expected)) in got.chunks(size).zip(expected.chunks(size)).enumerate() {
            assert_eq!(got, expected, "{format}, block {index}");
        }
    }
}

#[test]
fn encoding_loses_no_more_than_ggml_does() {
    // The first twelve rows are as weights are.
    let values = &floats(&data("values.f32"))[..12 * 256];
    // ggml's own encoders (llama.cpp b11434, without an importance matrix) have these errors on these values.
    for (format, ggml) in [
        (BlockFormat::Q8_0, 0.005_870),
        (BlockFormat::Q4_0, 0.093_20),
        (BlockFormat::Q4K, 0.076_03),
        (BlockFormat::Q5K, 0.038_69),
        (BlockFormat::Q6K, 0.019_31),
    ] {
        let error = relative_error(values, &decoded(format, &encoded(format, values)));
        assert!(error <= ggml, "{format}: {error}, ggml has {ggml}");
    }
}

#[test]
fn what_a_format_holds_exactly_comes_back() {
    let zeros = vec![0.0; 256];
    let constant = vec![-0.25; 256];
    let steps: Vec<f32> = (0..256).map(|i| (i % 16) as f32 - 8.0).collect();
    for format in BlockFormat::ALL {
        assert_eq!(decoded(format, &encoded(format, &zeros)), zeros, "{format}");
        // -8 is where `Q4_0` has its code 0; in the others 16 steps are exact or nearly so.
        let error = relative_error(&steps, &decoded(format, &encoded(format, &steps)));
        assert!(error < 0.006, "{format}: {error}");
        let error = relative_error(&constant, &decoded(format, &encoded(format, &constant)));
        assert!(error < 0.001, "{format}: {error}");
    }
}

#[test]
fn a_value_that_cannot_be_held_is_named() {
    for format in BlockFormat::ALL {
        let mut out = vec![0; format.bytes_of(1024).unwrap()];
        for (index, value) in [(0, f32::NAN), (300, f32::INFINITY), (1023, f32::NEG_INFINITY), (700, 1e30)] {
            let mut values = vec![0.5; 1024];
            values[index] = value;
            let error = format.quantize(&values, &mut out).unwrap_err();
            assert_eq!((error.index, error.format), (index, format));
            assert_eq!(error.value.to_bits(), value.to_bits());
            let message = format!("value {index} is {value}, which {format} cannot hold");
            assert_eq!(error.to_string(), message);
            let broken = (!value.is_finite()).then_some(index);
            assert_eq!(first_non_finite(&values), broken);
        }
        // The first of several.
        let mut values = vec![0.5; 1024];
        (values[555], values[556]) = (f32::NAN, f32::NAN);
        assert_eq!(format.quantize(&values, &mut out).unwrap_err().index, 555);
    }
}

#[test]
fn sizes_are_those_of_the_formats() {
    let sizes = BlockFormat::ALL.map(|format| (format.block_len(), format.block_bytes()));
    assert_eq!(sizes, [(32, 34), (32, 18), (256, 144), (256, 176), (256, 210)]);
    assert_eq!(BlockFormat::Q4K.bytes_of(512), Some(288));
    assert_eq!(BlockFormat::Q4K.bytes_of(500), None);
    assert_eq!(BlockFormat::Q8_0.bytes_of(usize::MAX - 31), None);
}

proptest! {
    /// Unpacked and packed again, any block has its bytes; decoded through its codes, its values.
    #[test]
    fn unpacking_loses_nothing(bytes in prop::collection::vec(any::<u8>(), 210)) {
        fn first<const N: usize>(bytes: &[u8]) -> &[u8; N] {
            bytes.first_chunk().unwrap()
        }
        let same = |unpacked: &[f32], format: BlockFormat| {
            let values = decoded(format, &bytes[..format.block_bytes()]);
            unpacked.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
        };

        let (block, mut out) = (Q8Block::unpack(first(&bytes)), [0; 34]);
        block.pack(&mut out);
        prop_assert_eq!(&out[..], &bytes[..34]);
        prop_assert!(same(&block.values(), BlockFormat::Q8_0));

        let (block, mut out) = (Q4Block::unpack(first(&bytes)), [0; 18]);
        block.pack(&mut out);
        prop_assert_eq!(&out[..], &bytes[..18]);
        prop_assert!(block.codes.iter().all(|&code| code < 16));
        prop_assert!(same(&block.values(), BlockFormat::Q4_0));

        let (block, mut out) = (KBlock::unpack_q4(first(&bytes)), [0; 144]);
        block.pack_q4(&mut out);
        prop_assert_eq!(&out[..], &bytes[..144]);
        prop_assert!(block.codes.iter().all(|&code| code < 16));
        prop_assert!(block.scales.iter().chain(&block.mins).all(|&scale| scale < 64));
        prop_assert!(same(&block.values(), BlockFormat::Q4K));

        let (block, mut out) = (KBlock::unpack_q5(first(&bytes)), [0; 176]);
        block.pack_q5(&mut out);
        prop_assert_eq!(&out[..], &bytes[..176]);
        prop_assert!(block.codes.iter().all(|&code| code < 32));
        prop_assert!(same(&block.values(), BlockFormat::Q5K));

        let (block, mut out) = (Q6Block::unpack(first(&bytes)), [0; 210]);
        block.pack(&mut out);
        prop_assert_eq!(&out[..], &bytes[..]);
        prop_assert!(block.codes.iter().all(|&code| code < 64));
        prop_assert!(same(&block.values(), BlockFormat::Q6K));
    }

    /// Any bits: encoding ends with an error that names a value, or with blocks whose values are finite and near.
    #[test]
    fn any_values_are_encoded_or_named(
        bits in prop::collection::vec(any::<u32>(), 256),
        exponent in 0u32..256,
    ) {
        // With one exponent for all, most cases are finite and within a format's range.
        let shared = |bits: u32| f32::from_bits((bits & 0x807f_ffff) | (exponent << 23));
        for values in [
            bits.iter().map(|&bits| f32::from_bits(bits)).collect::<Vec<_>>(),
            bits.iter().map(|&bits| shared(bits)).collect(),
        ] {
            for format in BlockFormat::ALL {
                let mut out = vec![0; format.bytes_of(256).unwrap()];
                match format.quantize(&values, &mut out) {
                    Err(error) => prop_assert_eq!(error.value.to_bits(), values[error.index].to_bits()),
                    Ok(()) => {
                        let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                        // `Q4_0` has -8 to 7 steps: a value opposite to the largest is a step short. Scales are
                        // rounded, and below an IEEE half's range everything is zero.
                        let bound = 0.126 * largest + 1e-4;
                        for (value, got) in values.iter().zip(decoded(format, &out)) {
                            prop_assert!((value - got).abs() <= bound, "{format}: {value:e} became {got:e}");
                        }
                    }
                }
            }
        }
    }
}
