//! A checkpoint in GGUF is the network it was converted from: the same configuration, and the same bits where the
//! stored values are the same.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::Path;

use common::gguf::{File, Meta, Pair, Store, Tensor};
use common::{ExpertLayout, Network, Stored, assert_same_bits, change_weights, long_prompt, open_with};
use qvl_model::backend::Backend;
use qvl_model::checkpoint::{Checkpoint, Dtype};
use qvl_model::decoder::LogitRows;
use qvl_model::quant::BlockFormat;
use qvl_model::{Cpu, CpuOptions, Model, Prompt, Reference, Residency, WeightFormat};

/// Rows of 64 and more, so that blocks of 32 fit.
fn wide(moe: bool) -> Network {
    let narrow = if moe { Network::moe() } else { Network::dense() };
    Network {
        hidden: 64,
        head_dim: 32,
        mrope_section: [6, 5, 5],
        vision_heads: 2,
        vision_head_dim: 32,
        ..narrow
    }
}

/// A model on the CPU, and what it makes of a prompt with pictures. Exact: a file has the patch embedding as F32
/// whatever the folder has, and elsewhere the stored type decides how activations are rounded.
fn cpu(path: &Path) -> Model<Cpu> {
    let options = CpuOptions { threads: 2, exact: true, ..CpuOptions::default() };
    Model::open(path, Cpu::with(options).unwrap()).unwrap()
}

fn logits<B: Backend>(model: &Model<B>, prompt: &Prompt) -> Vec<f32> {
    let visual = model.encode(prompt).unwrap();
    model.prefill(&mut model.kv_cache(), prompt, visual.as_ref(), 0, LogitRows::All).unwrap()
}

/// What the naive backend, which decodes everything first, makes of the prompt.
fn reference_logits(path: &Path, prompt: &Prompt) -> Vec<f32> {
    let checkpoint = Checkpoint::open(path).unwrap();
    logits(&Model::load(checkpoint, Reference, Residency::Resident).unwrap(), prompt)
}

#[test]
fn with_the_same_configuration_and_bits() {
    for network in [Network::dense(), Network::moe(), wide(false), wide(true)] {
        let folder = network.folder();
        let original = cpu(folder.path());
        let prompt = long_prompt(&original);
        let expected = logits(&original, &prompt);
        for store in [Store::F32, Store::F16, Store::Bf16] {
            let written = tempfile::tempdir().unwrap();
            let (path, _) = Pair::convert(folder.path(), store).write(written.path());
            let model = cpu(&path);
            assert_eq!(model.config(), original.config());
            assert_eq!(model.generation_config().eos_token_ids, [common::IM_END, common::FIRST_SPECIAL]);
            assert_eq!(long_prompt(&model).ids, prompt.ids);
            let what = format!("{store:?}, hidden {}, moe {}", network.hidden, network.moe);
            assert_same_bits(&what, &logits(&model, &prompt), &expected);
        }
    }
}

#[test]
fn blocks_are_the_values_they_decode_to() {
    for format in BlockFormat::ALL {
        for moe in [false, true] {
            let network =
                Network { experts: ExpertLayout::OutIn, store: safetensors::Dtype::F32, ..wide(moe) };
            let (folder, written) = (network.folder(), tempfile::tempdir().unwrap());
            let (path, _) = Pair::convert(folder.path(), Store::Block(format)).write(written.path());
            let checkpoint = Checkpoint::open(&path).unwrap();
            let tensors = checkpoint.tensors();
            let in_blocks =
                tensors.names().filter(|name| tensors.find(name).unwrap().dtype() == Dtype::Block(format));
            assert!(in_blocks.count() >= 6, "{format}");

            // The same values in the folder.
            let values = |name: &str| tensors.find(name).unwrap().to_f32();
            change_weights(folder.path(), |weights| {
                for (name, stored) in weights {
                    let decoded = match name.strip_suffix("gate_up_proj") {
                        None => values(name),
                        Some(experts) => {
                            let (gate, up) = (
                                values(&format!("{experts}gate_proj")),
                                values(&format!("{experts}up_proj")),
                            );
                            let half = gate.len() / stored.shape[0];
                            gate.chunks(half)
                                .zip(up.chunks(half))
                                .flat_map(|(gate, up)| [gate, up].concat())
                                .collect()
                        }
                    };
                    *stored = Stored::new(safetensors::Dtype::F32, &stored.shape.clone(), &decoded);
                }
            });
            let prompt = long_prompt(&cpu(folder.path()));
            let (got, expected) =
                (reference_logits(&path, &prompt), reference_logits(folder.path(), &prompt));
            assert_same_bits(format.name(), &got, &expected);
        }
    }
}

#[test]
fn blocks_in_the_file_are_those_made_at_loading() {
    for moe in [false, true] {
        // In the type that a file has the patch embedding in, so that the rest is all that differs.
        let network = Network { store: safetensors::Dtype::F32, ..wide(moe) };
        let (folder, written) = (network.folder(), tempfile::tempdir().unwrap());
        // The decoder's alone: loading would make the patch embedding 8 bits too.
        let pair = Pair::convert_with(folder.path(), |name, row| match name {
            name if name.starts_with("v.") || name.starts_with("mm.") => Store::F32,
            _ if row.is_multiple_of(32) => Store::Block(BlockFormat::Q8_0),
            _ => Store::F32,
        });
        let (path, _) = pair.write(written.path());
        let prompt = long_prompt(&cpu(folder.path()));
        let run = |path: &Path, weights: WeightFormat, exact: bool| {
            let options = CpuOptions { threads: 2, weights, exact, ..CpuOptions::default() };
            logits(&open_with(path, options, Residency::Resident), &prompt)
        };
        for exact in [false, true] {
            let made = run(folder.path(), WeightFormat::Q8, exact);
            assert_same_bits("as stored", &run(&path, WeightFormat::Stored, exact), &made);
            assert_same_bits("8 bits asked for", &run(&path, WeightFormat::Q8, exact), &made);
        }
    }
}

/// Puts the rows of several tensors of a layer behind one another, in each of `groups` groups.
fn fuse(file: &mut File, parts: &[&str], groups: usize, into: &str) {
    for layer in 0..common::LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        if !file.tensors.iter().any(|tensor| tensor.name == name(parts[0])) {
            continue;
        }
        let tensors: Vec<Tensor> = parts.iter().map(|part| file.tensor(&name(part)).clone()).collect();
        let mut fused = Tensor { name: name(into), bytes: Vec::new(), ..tensors[0].clone() };
        let rows = fused.shape.len() - 2;
        fused.shape[rows] = tensors.iter().map(|tensor| tensor.shape[rows]).sum();
        for group in 0..groups {
            for tensor in &tensors {
                let size = tensor.bytes.len() / groups;
                fused.bytes.extend(&tensor.bytes[group * size..][..size]);
            }
        }
        file.tensors.retain(|tensor| parts.iter().all(|part| tensor.name != name(part)));
        file.tensors.push(fused);
    }
}

#[test]
fn fused_tensors_are_the_same_as_apart() {
    for (network, store) in [(Network::moe(), Store::Bf16), (wide(true), Store::Block(BlockFormat::Q8_0))] {
        let (folder, apart, fused) =
            (network.folder(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut pair = Pair::convert(folder.path(), store);
        let (apart, _) = pair.write(apart.path());
        fuse(&mut pair.model, &["attn_q", "attn_k", "attn_v"], 1, "attn_qkv");
        fuse(&mut pair.model, &["ffn_gate_exps", "ffn_up_exps"], common::EXPERTS, "ffn_gate_up_exps");
        let (fused, _) = pair.write(fused.path());
        let prompt = long_prompt(&cpu(folder.path()));
        assert_same_bits("fused", &reference_logits(&fused, &prompt), &reference_logits(&apart, &prompt));
    }
}

#[test]
fn the_mmproj_is_found_beside_the_model_or_given() {
    let (folder, here, there) =
        (Network::dense().folder(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pair = Pair::convert(folder.path(), Store::Bf16);
    let (model, mmproj) = pair.write(here.path());
    assert_eq!(Checkpoint::open(&model).unwrap().tensors().files().len(), 2);
    // By its first bytes, whatever its name.
    let renamed = here.path().join("model.bin");
    std::fs::rename(&model, &renamed).unwrap();
    assert!(Checkpoint::open(&renamed).is_ok());

    let elsewhere = there.path().join("vision.gguf");
    std::fs::rename(&mmproj, &elsewhere).unwrap();
    assert!(Checkpoint::open_gguf(&renamed, Some(&elsewhere)).is_ok());
    let message = Checkpoint::open(&renamed).unwrap_err().to_string();
    assert!(message.contains("no mmproj*.gguf") && message.contains("--mmproj FILE"), "{message}");

    for name in ["mmproj-a.gguf", "MMPROJ-b.GGUF"] {
        std::fs::copy(&elsewhere, here.path().join(name)).unwrap();
    }
    let message = Checkpoint::open(&renamed).unwrap_err().to_string();
    assert!(message.contains("mmproj-a.gguf") && message.contains("MMPROJ-b.GGUF"), "{message}");
    assert!(Checkpoint::open_gguf(&renamed, Some(&elsewhere)).is_ok());
}

#[test]
fn what_it_says_about_pictures_is_kept() {
    let (folder, written) = (Network::dense().folder(), tempfile::tempdir().unwrap());
    assert!(Checkpoint::open(folder.path()).unwrap().image_settings().is_none());
    let mut pair = Pair::convert(folder.path(), Store::Bf16);
    pair.mmproj.set("clip.vision.image_mean", Meta::F32s(vec![0.481_454_66, 0.457_827_5, 0.408_210_73]));
    pair.mmproj.set("clip.vision.image_max_pixels", Meta::U32(36864));
    let (path, _) = pair.write(written.path());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let settings = checkpoint.image_settings().unwrap();
    assert_eq!(settings.mean, [0.481_454_66_f32, 0.457_827_5, 0.408_210_73].map(f64::from));
    assert_eq!(settings.std, [0.5; 3]);
    assert_eq!((settings.min_pixels, settings.max_pixels), (None, Some(36864)));
}
