//! Weights in 8 and in 4 bits, with every instruction set: chunks, batches and threads change no bit of the
//! result, and a weight that cannot be quantised is named.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::ops::Range;

use common::{Network, VOCAB, assert_same_bits, long_prompt, open_with};
use proptest::prelude::*;
use qvl_model::backend::cpu::Isa;
use qvl_model::backend::{Backend, Linear, Role, WeightPart};
use qvl_model::checkpoint::SafetensorsFile;
use qvl_model::decoder::{Chunk, LogitRows, VisualRows};
use qvl_model::{Cpu, CpuOptions, Model, Prompt, Residency, WeightFormat};

/// Widths of whole blocks where the test networks allow it: with q4 its layers mix Q4_K, Q6_K, Q8_0 and stored
/// weights.
fn wide(network: Network) -> Network {
    Network { hidden: 256, head_dim: 32, mrope_section: [8, 4, 4], vision_head_dim: 32, ..network }
}

fn networks() -> [Network; 2] {
    [wide(Network::dense()), wide(Network::moe())]
}

/// Every format, with and without exact activations, on every instruction set.
fn every_way(mut test: impl FnMut(CpuOptions)) {
    for isa in Isa::available() {
        for (weights, exact) in [
            (WeightFormat::Stored, false),
            (WeightFormat::Q8, false),
            (WeightFormat::Q4, false),
            (WeightFormat::Q4, true),
        ] {
            let vision_weights = if weights == WeightFormat::Q8 { weights } else { WeightFormat::Stored };
            test(CpuOptions { threads: 2, isa: Some(isa), weights, vision_weights, exact });
        }
    }
}

/// Logits of every token of a prompt.
fn all_logits(model: &Model<Cpu>, prompt: &Prompt, chunk_tokens: usize) -> Vec<f32> {
    let visual = model.encode(prompt).unwrap();
    model.prefill(&mut model.kv_cache(), prompt, visual.as_ref(), chunk_tokens, LogitRows::All).unwrap()
}

#[test]
fn chunks_and_threads() {
    for network in networks() {
        let folder = network.folder();
        every_way(|options| {
            let on =
                |threads| open_with(folder.path(), CpuOptions { threads, ..options }, Residency::Resident);
            let model = on(1);
            let prompt = long_prompt(&model);
            let whole = all_logits(&model, &prompt, 0);
            assert!(whole.iter().all(|logit| logit.is_finite()));
            for chunk_tokens in [1, 7, 64, 256] {
                let got = all_logits(&model, &prompt, chunk_tokens);
                assert_same_bits(&format!("chunks of {chunk_tokens}, {options:?}"), &got, &whole);
            }
            for threads in [2, 3, 8] {
                let got = all_logits(&on(threads), &prompt, 0);
                assert_same_bits(&format!("{threads} threads, {options:?}"), &got, &whole);
            }
        });
    }
}

#[test]
fn a_row_alone_or_among_up_to_sixteen() {
    for network in networks() {
        let folder = network.folder();
        every_way(|options| {
            let model = open_with(folder.path(), options, Residency::Resident);
            let prompt = long_prompt(&model);
            let visual = model.encode(&prompt).unwrap().unwrap();
            let whole = all_logits(&model, &prompt, 0);
            // Sequences that have come differently far in the same prompt; each decodes its next token.
            for batch in [2, 3, 8, 16] {
                let lengths: Vec<usize> = (0..batch).map(|index| 5 + 3 * index).collect();
                let mut caches: Vec<_> = lengths.iter().map(|_| model.kv_cache()).collect();
                let rows = |range: Range<usize>| prompt.visual_rows(range);
                for (cache, &len) in caches.iter_mut().zip(&lengths) {
                    let rows = rows(0..len);
                    let chunk = Chunk {
                        cache,
                        ids: &prompt.ids[..len],
                        positions: &prompt.positions[..len],
                        visual: Some(VisualRows { output: &visual, rows: &rows }),
                        logits: LogitRows::None,
                    };
                    model.forward(&mut [chunk]).unwrap();
                }
                let next_rows: Vec<_> = lengths.iter().map(|&len| rows(len..len + 1)).collect();
                let mut chunks: Vec<_> = caches
                    .iter_mut()
                    .zip(&lengths)
                    .zip(&next_rows)
                    .map(|((cache, &len), rows)| Chunk {
                        cache,
                        ids: &prompt.ids[len..len + 1],
                        positions: &prompt.positions[len..len + 1],
                        visual: Some(VisualRows { output: &visual, rows }),
                        logits: LogitRows::Last,
                    })
                    .collect();
                let got = model.forward(&mut chunks).unwrap();
                for (logits, &len) in got.chunks_exact(VOCAB).zip(&lengths) {
                    assert_same_bits(
                        &format!("token {len} among {batch}, {options:?}"),
                        logits,
                        &whole[len * VOCAB..][..VOCAB],
                    );
                }
            }
        });
    }
}

/// A tensor `w` of a checkpoint.
fn tensor(rows: usize, cols: usize, values: &[f32]) -> WeightPart {
    let header = format!(
        r#"{{"w":{{"dtype":"F32","shape":[{rows},{cols}],"data_offsets":[0,{}]}}}}"#,
        4 * rows * cols
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let file = SafetensorsFile::from_static("made.safetensors", bytes.leak()).unwrap();
    WeightPart::whole(file.get("w").unwrap(), Role::Decoder)
}

#[test]
fn a_weight_that_cannot_be_quantised_is_named() {
    let mut values = vec![0.5f32; 40 * 256];
    values[33 * 256 + 7] = f32::NAN;
    for weights in [WeightFormat::Q8, WeightFormat::Q4] {
        let cpu = Cpu::with(CpuOptions { weights, ..CpuOptions::default() }).unwrap();
        let message = cpu.matrix(&[tensor(40, 256, &values)]).unwrap_err().to_string();
        for part in ["made.safetensors", "tensor w", "row 33", "NaN"] {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }
}

#[test]
fn bf16_is_not_given_where_something_else_is_stored() {
    let cpu = Cpu::with(CpuOptions { weights: WeightFormat::Bf16, ..CpuOptions::default() }).unwrap();
    let message = cpu.matrix(&[tensor(1, 32, &[1.0; 32])]).unwrap_err().to_string();
    assert!(message.contains("tensor w is stored as F32"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A linear layer of any shape and format: each row alone, and all together on 1, 2, 3 and 8 threads.
    #[test]
    fn a_row_of_any_linear_layer(
        outputs in 1usize..150,
        blocks in 1usize..5,
        odd in 0usize..32,
        rows in 1usize..17,
        weights in prop::sample::select(vec![WeightFormat::Stored, WeightFormat::Q8, WeightFormat::Q4]),
        whole_supers in any::<bool>(),
        seed in any::<u32>(),
    ) {
        let inputs = if whole_supers { 256 * blocks } else { 32 * blocks + odd };
        let mut state = seed;
        let mut noise = |count: usize| -> Vec<f32> {
            (0..count)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 23) as f32 - 1.0
                })
                .collect()
        };
        let values = noise(outputs * inputs);
        let x = noise(rows * inputs);
        for isa in Isa::available() {
            let mut expected: Option<Vec<f32>> = None;
            for threads in [1, 2, 3, 8] {
                let options = CpuOptions { threads, isa: Some(isa), weights, ..CpuOptions::default() };
                let cpu = Cpu::with(options).unwrap();
                let weight = cpu.matrix(&[tensor(outputs, inputs, &values)]).unwrap();
                let linear = Linear { weight, bias: None };
                let together = cpu.download(&cpu.linear(&linear, &cpu.upload(rows, inputs, &x)));
                for row in 0..rows {
                    let alone = cpu.upload(1, inputs, &x[row * inputs..][..inputs]);
                    let alone = cpu.download(&cpu.linear(&linear, &alone));
                    prop_assert_eq!(&alone[..], &together[row * outputs..][..outputs]);
                }
                prop_assert_eq!(expected.get_or_insert_with(|| together.clone()), &together);
            }
        }
    }
}
