//! The embedded checkpoint, converted to GGUF as llama.cpp's converter does it, is the same model: configuration,
//! vocabulary, template, logits, answers. Files the program is given by hand work too, and wrong ones are named.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::gguf::{Meta, Pair, Store};
use common::{file, qvl, sample};
use qvl_model::decoder::LogitRows;
use qvl_model::quant::BlockFormat;
use qvl_model::{CpuOptions, GenerateOptions, Message, Part};
use qvl_runtime::{Conversation, Engine};
use tempfile::TempDir;

const TINY: &str = "assets/tiny";

/// The embedded checkpoint as a pair in a folder of its own: the folder, the model.
fn converted(store: Store) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = Pair::convert(Path::new(&file(TINY)), store).write(folder.path());
    (folder, model)
}

fn logits(engine: &Engine, conversation: &Conversation) -> Vec<f32> {
    let prompt = engine.prepare(conversation).unwrap();
    let model = engine.model();
    let visual = model.encode(&prompt).unwrap();
    model.prefill(&mut model.kv_cache(), &prompt, visual.as_ref(), 0, LogitRows::All).unwrap()
}

#[test]
fn configuration_vocabulary_and_template() {
    let (_folder, path) = converted(Store::Bf16);
    let (original, other) = (Engine::open(file(TINY), 1).unwrap(), Engine::open(path, 1).unwrap());
    let (original, other) = (original.model(), other.model());
    assert_eq!(other.config(), original.config());
    assert_eq!(other.generation_config().eos_token_ids, original.generation_config().eos_token_ids);
    assert_eq!(other.tokenizer().token_count(), original.tokenizer().token_count());

    let mut texts: Vec<String> = [
        "",
        " ",
        "Read the number.",
        "a large purple circle left of a small blue square",
        "I'LL say 'tis   1234567,89 x\t\n\r\n\n  end  ",
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>hi<|im_end|>\n<|endoftext|>",
        "half <|im_sta and <|unknown|> and <|image_pad|><|image_pad|>x",
        "é e\u{301} Å A\u{30a} ﬁ Ω Ω 한국어 \u{1112}\u{1161}\u{11ab}",
        "我想在apple工作1314151天～ 😁🚀 👩‍👩‍👧 \u{200d}\u{fe0f} \u{a0}\u{3000}",
        "нещо на Български ''''''```````\"\"\"\"......!!!!!!??????",
        "\u{0}\u{1}\u{7f}\u{feff}\u{fffd}\u{10ffff}",
    ]
    .map(str::to_owned)
    .to_vec();
    // Texts of characters that the pieces of the pattern begin and end at.
    let characters: Vec<char> = "aZ é ñ'sTdlL09²\n\r\t.,!?-_😀我е\u{301}\u{a0}<|>Ġ".chars().collect();
    let mut state = 1u64;
    for length in 0..400 {
        let text = (0..length % 60).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            characters[(state >> 33) as usize % characters.len()]
        });
        texts.push(text.collect());
    }
    for text in &texts {
        let ids = original.tokenizer().encode(text).unwrap();
        assert_eq!(other.tokenizer().encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(other.tokenizer().decode(&ids), original.tokenizer().decode(&ids), "{text:?}");
    }
    for id in 0..original.config().text.vocab_size as u32 {
        assert_eq!(other.tokenizer().decode(&[id]), original.tokenizer().decode(&[id]), "{id}");
    }

    for messages in [
        vec![Message::user([Part::text("Hello")])],
        vec![Message::system("Be brief."), Message::user([Part::text("a b"), Part::text("c")])],
        vec![Message::user([Part::text("1")]), Message::assistant("one"), Message::user([Part::text("2")])],
    ] {
        let prompt = |model: &qvl_model::Model<_>| model.prompt(&messages, Vec::new()).unwrap().ids;
        assert_eq!(prompt(other), prompt(original));
    }
}

#[test]
fn logits_have_the_same_bits() {
    // Exact: a file has the patch embedding as F32, and the stored type decides how activations are rounded.
    let open = |path: &Path| {
        let options = CpuOptions { threads: 2, exact: true, ..CpuOptions::default() };
        Engine::open_with(Some(path), None, options, &|_, _| {}).unwrap()
    };
    let original = open(Path::new(&file(TINY)));
    let conversation =
        Conversation::question([sample("shapes-1.png"), sample("digits-1.png")].map(PathBuf::from), "What?");
    let expected = logits(&original, &conversation);
    for store in [Store::Bf16, Store::F32] {
        let (_folder, path) = converted(store);
        let got = logits(&open(&path), &conversation);
        assert_eq!(got.len(), expected.len());
        let first = got.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(first, None, "{store:?}");
    }
}

#[test]
fn eight_bits_answer_alike() {
    let (_folder, path) = converted(Store::Block(BlockFormat::Q8_0));
    let (original, other) = (Engine::open(file(TINY), 2).unwrap(), Engine::open(path, 2).unwrap());
    let options = GenerateOptions { max_new_tokens: 24, ..GenerateOptions::default() };
    for (picture, prompt) in [("digits-2.jpg", "Read the number."), ("shapes-1.png", "Describe the image.")] {
        let conversation = Conversation::question([PathBuf::from(sample(picture))], prompt);
        let ask = |engine: &Engine| {
            engine.answer(&conversation, &options, |_| ControlFlow::Continue(())).unwrap().text
        };
        assert_eq!(ask(&other), ask(&original));
    }
}

#[test]
fn the_program_takes_a_file_with_its_mmproj_beside_it_or_given() {
    let (folder, path) = converted(Store::Block(BlockFormat::Q8_0));
    let model = path.to_str().unwrap();
    let question = [&sample("digits-1.png"), "--prompt", "Read the number.", "--max-tokens", "8"];
    let describe = |more: &[&str]| qvl(["describe"].iter().chain(&question).chain(more));
    let original = describe(&[]).done().stdout;
    assert_eq!(describe(&["--model", model]).done().stdout, original);

    let elsewhere = tempfile::tempdir().unwrap();
    let mmproj = elsewhere.path().join("vision.gguf");
    fs::rename(folder.path().join("mmproj-model.gguf"), &mmproj).unwrap();
    let mmproj = mmproj.to_str().unwrap();
    describe(&["--model", model]).refused(&[model, "no mmproj*.gguf", "--mmproj FILE"]);
    assert_eq!(describe(&["--model", model, "--mmproj", mmproj]).done().stdout, original);

    describe(&["--model", mmproj, "--mmproj", mmproj]).refused(&[mmproj, "this is an mmproj"]);
    describe(&["--model", model, "--mmproj", model]).refused(&[model, "this is a language model"]);
    describe(&["--model", &file(TINY), "--mmproj", mmproj]).refused(&["it is a folder"]);
    let run = describe(&["--mmproj", mmproj]);
    assert_eq!(run.code, 2, "--mmproj alone means nothing: {run:?}");
    assert!(run.stderr.contains("--model"), "{run:?}");
}

#[test]
fn inspect_shows_formats_and_eval_answers() {
    let (_folder, path) = converted(Store::Block(BlockFormat::Q8_0));
    let model = path.to_str().unwrap();
    let run = qvl(["inspect", model, "--size", "128x96"]).done();
    for part in
        [model, "Qwen3-VL, dense", " F32, ", " Q8_0", "in 2 files", "head tied", "128 x 96: 12 tokens"]
    {
        assert!(run.stdout.contains(part), "{part:?}: {run:?}");
    }
    let report = qvl(["inspect", model, "--json"]).done().json();
    let original = qvl(["inspect", "--json"]).done().json();
    for key in
        ["parameters", "vision_parameters", "embedding_parameters", "decoder", "vision", "image_tokens"]
    {
        assert_eq!(report[key], original[key], "{key}");
    }
    assert!(report["weight_bytes"].as_u64() < original["weight_bytes"].as_u64(), "{report}");

    let manifest = tempfile::tempdir().unwrap();
    let heldout = fs::read_to_string(file("assets/heldout/manifest.jsonl")).unwrap();
    let some: String = heldout.lines().take(12).map(|line| format!("{line}\n")).collect();
    for index in 0..12 {
        let name = format!("{index:03}.png");
        fs::copy(file(&format!("assets/heldout/{name}")), manifest.path().join(name)).unwrap();
    }
    let manifest = manifest.path().join("manifest.jsonl");
    fs::write(&manifest, some).unwrap();
    let manifest = manifest.to_str().unwrap();
    let right = |more: &[&str]| {
        let report = qvl(["eval", "--manifest", manifest, "--json"].iter().chain(more)).done().json();
        report["all"]["right"].as_u64().unwrap()
    };
    assert!(right(&["--model", model]) + 1 >= right(&[]));
}

#[test]
fn pictures_are_cut_as_the_file_says() {
    let mut pair = Pair::convert(Path::new(&file(TINY)), Store::Bf16);
    pair.mmproj.set("clip.vision.image_mean", Meta::F32s(vec![0.25, 0.5, 0.75]));
    pair.mmproj.remove("clip.vision.image_min_pixels");
    pair.mmproj.remove("clip.vision.image_max_pixels");
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = pair.write(folder.path());
    let engine = Engine::open(&path, 1).unwrap();
    let processor = engine.processor();
    assert_eq!(processor.image.image_mean, [0.25, 0.5, 0.75]);
    assert_eq!(processor.video.image_mean, [0.25, 0.5, 0.75]);
    // Those of the published checkpoints, where the file does not say.
    assert_eq!((processor.image.min_pixels, processor.image.max_pixels), (65_536, 16_777_216));

    pair.mmproj.set("clip.vision.image_std", Meta::F32s(vec![0.5, 0.0, 0.5]));
    let (_, mmproj) = pair.write(folder.path());
    let mmproj = mmproj.to_str().unwrap();
    qvl(["inspect", path.to_str().unwrap()]).refused(&[mmproj, "pictures cannot be used", "image_std"]);
}
