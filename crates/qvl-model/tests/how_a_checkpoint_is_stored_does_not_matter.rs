//! The same values in another type, layout, key style or number of files give the same bits.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{ExpertLayout, Keys, Network, assert_same_bits, long_prompt, open_with};
use qvl_model::checkpoint::Checkpoint;
use qvl_model::decoder::LogitRows;
use qvl_model::{CpuOptions, Residency};
use safetensors::Dtype;

fn logits(network: &Network, exact: bool) -> Vec<f32> {
    let folder = network.folder();
    let options = CpuOptions { threads: 2, exact, ..CpuOptions::default() };
    let model = open_with(folder.path(), options, Residency::Resident);
    let prompt = long_prompt(&model);
    let visual = model.encode(&prompt).unwrap();
    model.prefill(&mut model.kv_cache(), &prompt, visual.as_ref(), 0, LogitRows::All).unwrap()
}

fn check(what: &str, one: &Network, other: &Network) {
    // Where there are instructions for bfloat16, weights stored so are multiplied with rounded activations.
    let same_type = one.store == other.store;
    for exact in [true, false].into_iter().filter(|exact| *exact || same_type) {
        assert_same_bits(what, &logits(one, exact), &logits(other, exact));
    }
}

#[test]
fn bf16_f16_or_f32() {
    for network in [Network::dense(), Network::moe()] {
        for store in [Dtype::F16, Dtype::F32] {
            check(&format!("{store:?}"), &Network { store, ..network.clone() }, &network);
        }
    }
}

#[test]
fn experts_as_linear_layers_or_as_published() {
    for store in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let published = Network { store, ..Network::moe() };
        assert_eq!(published.experts, ExpertLayout::InOut);
        check("layout", &Network { experts: ExpertLayout::OutIn, ..published.clone() }, &published);
    }
}

#[test]
fn rope_scaling_or_rope_parameters() {
    for network in [Network::dense(), Network::moe()] {
        check("keys", &Network { keys: Keys::Merged, ..network.clone() }, &network);
    }
}

#[test]
fn one_file_or_shards() {
    let single = Network::dense();
    let sharded = Network { shards: 4, ..single.clone() };
    check("shards", &sharded, &single);
    let (one, four) = (single.folder(), sharded.folder());
    let (one, four) = (Checkpoint::open(one.path()).unwrap(), Checkpoint::open(four.path()).unwrap());
    assert_eq!((one.tensors().files().len(), four.tensors().files().len()), (1, 4));
    assert_eq!(one.tensors().parameter_count(), four.tensors().parameter_count());
    assert_eq!(one.tensors().weight_bytes(), 2 * one.tensors().parameter_count());
}
