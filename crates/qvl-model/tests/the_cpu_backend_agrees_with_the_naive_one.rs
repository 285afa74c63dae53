//! The kernels against the formulas with sums in double precision, on networks whose widths fit no register.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{Network, long_prompt, open_with};
use qvl_model::backend::cpu::Isa;
use qvl_model::decoder::LogitRows;
use qvl_model::{CpuOptions, Model, Prompt, Reference, Residency};

/// Sums of a few hundred products in another order differ by some 1e-7; a wrong formula by more than 1e-3.
const TOLERANCE: f64 = 1e-5;

fn check(network: &Network) {
    let folder = network.folder();
    for isa in Isa::available() {
        let options = CpuOptions { threads: 2, isa: Some(isa), exact: true, ..CpuOptions::default() };
        check_with(network, folder.path(), options);
    }
}

fn check_with(network: &Network, dir: &std::path::Path, options: CpuOptions) {
    let cpu = open_with(dir, options, Residency::Resident);
    let prompt = long_prompt(&cpu);
    let got = everything(&cpu, &prompt);
    let expected = everything(&Model::open(dir, Reference).unwrap(), &prompt);
    assert_eq!(got.len(), 4);
    for ((name, got), (_, expected)) in got.iter().zip(&expected) {
        assert_eq!(got.len(), expected.len(), "{name}");
        let scale = expected.iter().fold(0.0, |max: f64, &value| max.max(f64::from(value).abs()));
        assert!(scale > 0.01, "{name}: all values are small, {scale}");
        for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            let error = (f64::from(got) - f64::from(expected)).abs() / scale;
            // Written so that NaN fails.
            assert!(error < TOLERANCE, "{name}[{index}]: {got:e}, expected {expected:e}, {network:?}");
        }
    }
}

fn everything<B: qvl_model::Backend + 'static>(model: &Model<B>, prompt: &Prompt) -> Vec<(String, Vec<f32>)> {
    let visual = model.encode(prompt).unwrap().unwrap();
    let mut tensors = vec![("embeds".to_owned(), model.download(&visual.embeds))];
    for (index, features) in visual.deepstack.iter().enumerate() {
        tensors.push((format!("deepstack {index}"), model.download(features)));
    }
    let mut cache = model.kv_cache();
    let logits = model.prefill(&mut cache, prompt, Some(&visual), 0, LogitRows::All).unwrap();
    tensors.push(("logits".to_owned(), logits));
    tensors
}

#[test]
fn dense() {
    check(&Network::dense());
}

#[test]
fn experts() {
    check(&Network::moe());
}

#[test]
fn heads_of_8_and_vision_heads_of_12() {
    check(&Network {
        hidden: 36,
        head_dim: 8,
        mrope_section: [2, 1, 1],
        vision_heads: 3,
        vision_head_dim: 12,
        ..Network::dense()
    });
}

#[test]
fn heads_of_10_and_vision_heads_of_72() {
    check(&Network {
        hidden: 33,
        head_dim: 10,
        mrope_section: [1, 2, 2],
        vision_heads: 1,
        vision_head_dim: 72,
        ..Network::moe()
    });
}
