//! What a GGUF pair says is checked key by key: a file that is something else, two files that do not belong
//! together, and each value that cannot be honoured is one error that names file and key.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

mod common;

use common::gguf::{Meta, Pair, Store, Tensor};
use common::{Network, Random};
use proptest::prelude::*;
use qvl_model::checkpoint::Checkpoint;
use qvl_model::{Cpu, Error, Model, Residency};

fn pair(network: &Network) -> Pair {
    Pair::convert(network.folder().path(), Store::Bf16)
}

/// Opens a pair, which must fail with a one-line message that has all the `parts`.
#[track_caller]
fn check_pair(pair: &Pair, parts: &[&str]) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let (model, mmproj) = pair.write(folder.path());
    let loaded = Checkpoint::open_gguf(model, Some(&mmproj))
        .and_then(|checkpoint| Model::load(checkpoint, Cpu::new(1).unwrap(), Residency::Resident));
    let Err(error) = loaded else { panic!("a wrong pair was accepted, expected {parts:?}") };
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message:?} is more than a line");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    error
}

/// The same of a valid pair with a change.
#[track_caller]
fn check(change: impl FnOnce(&mut Pair), parts: &[&str]) -> Error {
    let mut pair = pair(&Network::dense());
    change(&mut pair);
    check_pair(&pair, parts)
}

const MODEL: &str = "/model.gguf: ";
const MMPROJ: &str = "/mmproj-model.gguf: ";

#[test]
fn the_files_the_other_way_round() {
    check(
        |pair| std::mem::swap(&mut pair.model, &mut pair.mmproj),
        &[MODEL, "general.architecture is \"clip\"", "this is an mmproj; give the language model"],
    );
    check(
        |pair| pair.mmproj = pair.model.clone(),
        &[MMPROJ, "general.architecture is \"qwen3vl\"", "this is a language model; give its mmproj"],
    );
}

#[test]
fn another_architecture() {
    let set = |value: &str| Meta::text(value);
    check(
        |pair| pair.model.set("general.architecture", set("llama")),
        &[MODEL, "general.architecture is \"llama\"", "\"qwen3vl\" or \"qwen3vlmoe\""],
    );
    check(|pair| pair.model.remove("general.architecture"), &[MODEL, "general.architecture is absent"]);
    check(
        |pair| pair.mmproj.set("general.architecture", set("llama")),
        &[MMPROJ, "general.architecture is \"llama\"", "expected \"clip\""],
    );
    check(
        |pair| pair.mmproj.set("clip.projector_type", set("qwen2vl_merger")),
        &[MMPROJ, "clip.projector_type is \"qwen2vl_merger\"", "\"qwen3vl_merger\""],
    );
    check(|pair| pair.mmproj.remove("clip.projector_type"), &[MMPROJ, "clip.projector_type is absent"]);
    check(|pair| pair.mmproj.set("clip.use_gelu", Meta::Bool(false)), &[MMPROJ, "clip.use_gelu is false"]);
    check(
        |pair| pair.model.set("split.count", Meta::U32(3)),
        &[MODEL, "split.count is 3", "llama-gguf-split --merge"],
    );
}

#[test]
fn the_mmproj_of_another_model() {
    let (small, large) = (pair(&Network::dense()), pair(&Network { hidden: 64, ..Network::dense() }));
    check_pair(
        &Pair { model: large.model, mmproj: small.mmproj },
        &[
            MMPROJ,
            "clip.vision.projection_dim is 40, expected 64",
            "qwen3vl.embedding_length of",
            "/model.gguf; this mmproj belongs to another model",
        ],
    );
    check(
        |pair| pair.model.set("qwen3vl.n_deepstack_layers", Meta::U32(3)),
        &[MMPROJ, "clip.vision.is_deepstack_layers is 2 blocks, expected 3", "belongs to another model"],
    );
}

#[test]
fn a_key_that_is_absent() {
    for key in [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.dimension_sections",
    ] {
        let key = format!("qwen3vl.{key}");
        check(|pair| pair.model.remove(&key), &[MODEL, &format!("{key} is absent")]);
    }
    for key in [
        "projection_dim",
        "image_size",
        "patch_size",
        "embedding_length",
        "feed_forward_length",
        "block_count",
        "attention.head_count",
        "image_mean",
        "image_std",
    ] {
        let key = format!("clip.vision.{key}");
        check(|pair| pair.mmproj.remove(&key), &[MMPROJ, &format!("{key} is absent")]);
    }
    for key in ["model", "pre", "tokens", "token_type", "merges", "eos_token_id"] {
        let key = format!("tokenizer.ggml.{key}");
        check(|pair| pair.model.remove(&key), &[MODEL, &format!("{key} is absent")]);
    }
}

#[test]
fn a_value_that_cannot_be_honoured() {
    let model = |key: &'static str, value: Meta| {
        move |pair: &mut Pair| pair.model.set(&format!("qwen3vl.{key}"), value)
    };
    check(model("block_count", Meta::U32(0)), &[MODEL, "qwen3vl.block_count is 0"]);
    check(model("block_count", Meta::U64(u64::MAX)), &[MODEL, "qwen3vl.block_count is 18446744073709551615"]);
    check(model("block_count", Meta::text("many")), &[MODEL, "qwen3vl.block_count is a string"]);
    check(
        model("attention.head_count", Meta::I32s(vec![4; 3])),
        &[MODEL, "attention.head_count is an array"],
    );
    check(model("attention.head_count_kv", Meta::U32(3)), &[MODEL, "qwen3vl.attention.head_count_kv is 3"]);
    check(model("attention.key_length", Meta::U32(25)), &[MODEL, "qwen3vl.attention.value_length is 24"]);
    check(model("rope.freq_base", Meta::F32(-1.0)), &[MODEL, "qwen3vl.rope.freq_base is -1"]);
    check(model("rope.freq_base", Meta::F32(f32::NAN)), &[MODEL, "qwen3vl.rope.freq_base is NaN"]);
    check(model("rope.scaling.type", Meta::text("yarn")), &[MODEL, "qwen3vl.rope.scaling.type is \"yarn\""]);
    check(
        model("rope.dimension_sections", Meta::I32s(vec![5, 4, 4, 0])),
        &[MODEL, "qwen3vl.rope.dimension_sections is [5, 4, 4]", "12"],
    );
    check(
        model("rope.dimension_sections", Meta::I32s(vec![5, 4, -3, 0])),
        &[MODEL, "qwen3vl.rope.dimension_sections is -3 in item 2"],
    );
    check(
        model("attention.layer_norm_rms_epsilon", Meta::F32(f32::INFINITY)),
        &[MODEL, "qwen3vl.attention.layer_norm_rms_epsilon is inf"],
    );

    let mmproj = |key: &'static str, value: Meta| {
        move |pair: &mut Pair| pair.mmproj.set(&format!("clip.vision.{key}"), value)
    };
    check(mmproj("patch_size", Meta::U32(0)), &[MMPROJ, "clip.vision.image_size is 96"]);
    check(mmproj("image_size", Meta::U32(112)), &[MMPROJ, "clip.vision.image_size is 112", "36 positions"]);
    check(mmproj("attention.head_count", Meta::U32(7)), &[MMPROJ, "clip.vision.embedding_length is 40"]);
    check(
        mmproj("attention.layer_norm_epsilon", Meta::F32(1e-5)),
        &[MMPROJ, "clip.vision.attention.layer_norm_epsilon", "expected 0.000001"],
    );
    check(
        mmproj("is_deepstack_layers", Meta::Bools([vec![false; 9], vec![true; 2]].concat())),
        &[MMPROJ, "clip.vision.is_deepstack_layers is [9, 10]", "below depth 3"],
    );
    check(mmproj("image_mean", Meta::F32s(vec![0.5])), &[MMPROJ, "clip.vision.image_mean is [0.5]"]);
}

#[test]
fn a_mixture_of_experts_without_its_numbers() {
    for key in ["expert_count", "expert_used_count", "expert_feed_forward_length"] {
        let mut pair = pair(&Network::moe());
        let key = format!("qwen3vlmoe.{key}");
        pair.model.remove(&key);
        check_pair(&pair, &[MODEL, &format!("{key} is absent")]);
    }
    let mut pair = pair(&Network::moe());
    pair.model.set("qwen3vlmoe.expert_used_count", Meta::U32(6));
    check_pair(&pair, &[MODEL, "qwen3vlmoe.expert_used_count is 6", "at most num_experts 5"]);
}

#[test]
fn a_tensor_that_is_missing_or_has_another_shape() {
    let remove = |name: &'static str| {
        move |pair: &mut Pair| {
            for file in [&mut pair.model, &mut pair.mmproj] {
                file.tensors.retain(|tensor| tensor.name != name);
            }
        }
    };
    for (file, name) in [
        (MODEL, "blk.1.attn_q.weight"),
        (MODEL, "blk.2.ffn_norm.weight"),
        (MODEL, "token_embd.weight"),
        (MODEL, "output_norm.weight"),
        (MMPROJ, "v.blk.1.attn_qkv.bias"),
        (MMPROJ, "v.deepstack.2.fc1.weight"),
        (MMPROJ, "v.patch_embd.weight.1"),
        (MMPROJ, "v.patch_embd.bias"),
        (MMPROJ, "v.position_embd.weight"),
        (MMPROJ, "mm.2.weight"),
    ] {
        let error = check(remove(name), &[file, &format!("tensor {name} is missing")]);
        assert!(matches!(error, Error::MissingTensor { .. }), "{error:?}");
    }
    for (file, name, shape) in [
        (MODEL, "blk.1.attn_q.weight", vec![1920, 2]),
        (MODEL, "blk.2.ffn_norm.weight", vec![4, 10]),
        (MMPROJ, "v.post_ln.weight", vec![2, 20]),
        (MMPROJ, "v.patch_embd.weight.1", vec![40, 3, 256]),
    ] {
        let change = |pair: &mut Pair| {
            let side = if file == MODEL { &mut pair.model } else { &mut pair.mmproj };
            side.tensor(name).shape = shape;
        };
        let error = check(change, &[file, &format!("tensor {name} has shape [")]);
        assert!(matches!(error, Error::TensorShape { .. }), "{error:?}");
    }
}

#[test]
fn a_tensor_of_a_type_that_is_not_read() {
    for (file, name) in [
        (MODEL, "blk.1.ffn_down.weight"),
        (MODEL, "token_embd.weight"),
        (MMPROJ, "v.blk.0.ffn_up.weight"),
        (MMPROJ, "v.patch_embd.weight"),
    ] {
        let change = |pair: &mut Pair| {
            let side = if file == MODEL { &mut pair.model } else { &mut pair.mmproj };
            side.tensor(name).type_id = 11;
        };
        let expected = format!("tensor {name} is stored as Q3_K, expected F32, F16, BF16, Q8_0");
        let error = check(change, &[file, &expected]);
        assert!(matches!(error, Error::TensorDtype { .. }), "{error:?}");
    }
    // Nobody needs this one.
    let mut pair = pair(&Network::dense());
    pair.model.tensors.push(Tensor { type_id: 11, ..Tensor::new("extra", Store::F32, &[2], &[0.0; 2]) });
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = pair.write(folder.path());
    assert!(Model::open(path, Cpu::new(1).unwrap()).is_ok());
}

#[test]
fn a_vocabulary_that_cannot_be_used() {
    let set = |key: &'static str, value: Meta| {
        move |pair: &mut Pair| pair.model.set(&format!("tokenizer.ggml.{key}"), value)
    };
    check(
        set("model", Meta::text("llama")),
        &[MODEL, "tokenizer.ggml.model is \"llama\", expected \"gpt2\""],
    );
    check(set("pre", Meta::text("gpt-2")), &[MODEL, "tokenizer.ggml.pre is \"gpt-2\", expected \"qwen2\""]);
    check(set("eos_token_id", Meta::U32(100_000)), &[MODEL, "tokenizer.ggml.eos_token_id is 100000"]);
    check(set("token_type", Meta::I32s(vec![1; 3])), &[MODEL, "tokenizer.ggml.token_type is a list of 3"]);
    check(
        set("token_type", Meta::I32s(vec![6; common::VOCAB])),
        &[MODEL, "tokenizer.ggml.token_type is 6 in item 0"],
    );
    check(
        set("token_type", Meta::I32s(vec![1; common::VOCAB])),
        &[MODEL, "tokenizer.ggml.tokens is without <|image_pad|>", "the vocabulary of a Qwen3-VL"],
    );
    let texts = |texts: &[&str]| Meta::Texts(texts.iter().map(|&text| text.to_owned()).collect());
    check(set("merges", texts(&["th"])), &[MODEL, "merge \"th\" is not two tokens"]);
    check(set("merges", texts(&["t zzz"])), &[MODEL, "the vocabulary cannot be used"]);
    let change_tokens = |change: fn(&mut Vec<String>)| {
        move |pair: &mut Pair| {
            let (_, value) =
                pair.model.metadata.iter_mut().find(|(key, _)| key == "tokenizer.ggml.tokens").unwrap();
            let Meta::Texts(tokens) = value else { panic!("{value:?}") };
            change(tokens);
        }
    };
    check(change_tokens(|tokens| tokens[5] = tokens[4].clone()), &[MODEL, "has the ids 4 and 5"]);
    check(
        |pair| pair.model.set("tokenizer.chat_template", Meta::U32(1)),
        &[MODEL, "tokenizer.chat_template is 1"],
    );
    // None at all is fine, if the file says so.
    let mut unmerged = pair(&Network::dense());
    unmerged.model.set("tokenizer.ggml.merges", texts(&[]));
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = unmerged.write(folder.path());
    let model = Model::open(path, Cpu::new(1).unwrap()).unwrap();
    assert_eq!(model.tokenizer().encode("the").unwrap().len(), 3);
    // More tokens than the network has rows for.
    check(
        |pair| {
            change_tokens(|tokens| tokens.push("more".to_owned()))(pair);
            pair.model.set("tokenizer.ggml.token_type", Meta::I32s(types(common::VOCAB + 1)));
        },
        &[MODEL, "its highest id is"],
    );
}

/// The types of the test vocabulary, filled up with ordinary tokens.
fn types(count: usize) -> Vec<i32> {
    let specials = common::FIRST_SPECIAL as usize..common::FIRST_SPECIAL as usize + common::SPECIALS.len();
    (0..count).map(|id| if specials.contains(&id) { 3 } else { 1 }).collect()
}

#[test]
fn a_path_that_is_no_pair() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = pair(&Network::dense()).write(folder.path());
    let message = |model: &std::path::Path, mmproj: &std::path::Path| {
        Checkpoint::open_gguf(model, Some(mmproj)).unwrap_err().to_string()
    };
    assert!(message(folder.path(), &model).contains("it is a folder, expected the .gguf file"));
    assert!(message(&model, &folder.path().join("none.gguf")).contains("none.gguf: cannot be read"));
    std::fs::write(folder.path().join("text.gguf"), "hello there").unwrap();
    assert!(message(&folder.path().join("text.gguf"), &model).contains("begins with \"hell\""));
    let missing = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("config.json"), "{missing}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever is changed in the headers of a pair: an error, or a model that loads. Never a panic.
    #[test]
    fn changed_bytes_never_panic(seed in any::<u64>(), changes in 1usize..6) {
        let pair = pair(&Network::dense());
        let mut files = [pair.model.bytes(), pair.mmproj.bytes()];
        let weights = [&pair.model, &pair.mmproj]
            .map(|file| file.tensors.iter().map(|tensor| tensor.bytes.len().next_multiple_of(32)).sum::<usize>());
        let mut random = Random::new(&seed.to_string());
        for _ in 0..changes {
            let which = random.below(2) as usize;
            let bytes = &mut files[which];
            let at = random.below((bytes.len() - weights[which]) as u64) as usize;
            match random.below(3) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                _ => bytes[at] = bytes[at].wrapping_add(1),
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let (model, mmproj) = pair.write(folder.path());
        std::fs::write(&model, &files[0]).unwrap();
        std::fs::write(&mmproj, &files[1]).unwrap();
        let loaded = Checkpoint::open_gguf(model, Some(&mmproj))
            .and_then(|checkpoint| Model::load(checkpoint, Cpu::new(1).unwrap(), Residency::Resident));
        if let Err(error) = loaded {
            prop_assert!(!error.to_string().contains('\n'), "{error} is more than a line");
        }
    }
}
