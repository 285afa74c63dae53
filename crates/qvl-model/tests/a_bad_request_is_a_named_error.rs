//! A request that cannot be answered is one error that says why, with both numbers; nothing panics and nothing
//! is answered instead.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{CONTEXT, IMAGE_PAD, Network, VOCAB, change_weights, open, short_prompt, still, video};
use half::bf16;
use qvl_model::decoder::{Chunk, LogitRows};
use qvl_model::{
    Cpu, Error, FinishReason, GenerateOptions, Grid, Message, Model, Part, Prompt, Sampling, VisualInput,
    VisualKind,
};
use tempfile::TempDir;

fn model() -> (TempDir, Model<Cpu>) {
    let folder = Network::dense().folder();
    let model = open(folder.path());
    (folder, model)
}

/// Makes a prompt of a rendered text, which must fail with a one-line message that has all the `parts`.
#[track_caller]
fn check(text: &str, inputs: Vec<VisualInput>, parts: &[&str]) -> Error {
    let (_folder, model) = model();
    let error = model.prompt_from_text(text, inputs).unwrap_err();
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message:?} is more than a line");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    error
}

#[test]
fn more_placeholders_than_pictures_and_the_reverse() {
    for (text, inputs, parts) in [
        ("<|image_pad|>", vec![], ["1 image placeholder(s)", "0 image(s)"]),
        ("<|image_pad|><|image_pad|>", vec![still("a", 2, 2)], ["2 image placeholder(s)", "1 image(s)"]),
        ("none", vec![still("a", 2, 2)], ["0 image placeholder(s)", "1 image(s)"]),
        ("<|video_pad|>", vec![still("a", 2, 2)], ["0 image placeholder(s)", "1 image(s)"]),
        ("<|image_pad|>", vec![video("a", 1, 2, 2)], ["1 image placeholder(s)", "0 image(s)"]),
        ("<|video_pad|>", vec![], ["1 video placeholder(s)", "0 video(s)"]),
        (
            "<|image_pad|><|video_pad|>",
            vec![still("a", 2, 2), video("b", 1, 2, 2), video("c", 1, 2, 2)],
            ["1 video placeholder(s)", "2 video(s)"],
        ),
    ] {
        let error = check(text, inputs, &parts);
        assert!(matches!(error, Error::Placeholders { .. }), "{error:?}");
    }
}

#[test]
fn a_placeholder_in_the_users_own_text() {
    let (_folder, model) = model();
    let message = Message::user([Part::Image, Part::text("What does <|image_pad|> mean?")]);
    let error = model.prompt(&[message], vec![still("a", 2, 2)]).unwrap_err();
    assert!(matches!(error, Error::Placeholders { placeholders: 2, given: 1, kind: "image" }), "{error:?}");
}

#[test]
fn an_input_that_does_not_fit_its_kind_or_grid() {
    let grid = |t, h, w| Grid { t, h, w };
    let image = |grid| VisualInput { kind: VisualKind::Image, grid, pixel_values: Vec::new() };
    for (text, input, parts) in [
        ("<|image_pad|>", image(grid(2, 2, 2)), ["visual input 0", "its grid has 2"]),
        ("<|image_pad|>", image(grid(1, 3, 2)), ["1 x 3 x 2", "multiples of 2"]),
        ("<|image_pad|>", image(grid(1, 0, 2)), ["1 x 0 x 2", "multiples of 2"]),
        (
            "<|video_pad|>",
            VisualInput { kind: VisualKind::Video { timestamps: vec![0.0; 3] }, ..video("a", 2, 2, 2) },
            ["3 timestamps", "2 temporal patches"],
        ),
        (
            "<|video_pad|>",
            VisualInput {
                kind: VisualKind::Video { timestamps: vec![0.0, f64::NAN] },
                ..video("a", 2, 2, 2)
            },
            ["NaN", "seconds from the start"],
        ),
        (
            "<|video_pad|>",
            VisualInput { kind: VisualKind::Video { timestamps: vec![-1.0, 0.0] }, ..video("a", 2, 2, 2) },
            ["-1.0", "seconds from the start"],
        ),
        (
            "<|image_pad|>",
            VisualInput { grid: grid(1, 2, 4), ..still("a", 2, 2) },
            ["6144 pixel values", "1 x 2 x 4 patches of 1536"],
        ),
        (
            "<|video_pad|>",
            VisualInput {
                kind: VisualKind::Video { timestamps: Vec::new() },
                grid: grid(0, 2, 2),
                pixel_values: Vec::new(),
            },
            ["0 x 2 x 2", "multiples of 2"],
        ),
    ] {
        let error = check(text, vec![input], &parts);
        assert!(matches!(error, Error::Patches { .. }), "{error:?}");
    }
}

#[test]
fn pixel_values_that_do_not_fill_the_grid() {
    let (_folder, model) = model();
    let grid = Grid { t: 1, h: 4, w: 2 };
    let values = vec![0.0; 8 * common::PATCH_VALUES];
    assert!(model.encode_patches(&values, &[grid]).is_ok());
    for broken in [&values[1..], &values[common::PATCH_VALUES..], &[]] {
        let message = model.encode_patches(broken, &[grid]).unwrap_err().to_string();
        let got = format!("{} values", broken.len());
        assert!(message.contains(&got) && message.contains("8 patches of 1536 = 12288"), "{message}");
    }
    let sides = |t, h, w| Grid { t, h, w };
    for (grid, part) in [
        (sides(1, 3, 2), "1 x 3 x 2"),
        (sides(0, 2, 2), "0 x 2 x 2"),
        (sides(u32::MAX, u32::MAX - 1, u32::MAX - 1), "is too large"),
        (sides(1, 1 << 16, 1 << 15), "is too large"),
    ] {
        let message = model.encode_patches(&values, &[grid]).unwrap_err().to_string();
        assert!(message.contains("visual input 0") && message.contains(part), "{message}");
    }
}

#[test]
fn a_prompt_longer_than_the_context() {
    let long = "x".repeat(CONTEXT + 1);
    let (got, limit) = (format!("{} tokens", CONTEXT + 1), format!("holds {CONTEXT}"));
    let error = check(&long, Vec::new(), &[&got, &limit]);
    assert!(matches!(error, Error::ContextLength { .. }), "{error:?}");
    // 42 x 42 patches are 441 visual tokens.
    check("<|image_pad|>", vec![still("a", 42, 42)], &["441 tokens", &limit]);
    let (_folder, model) = model();
    assert!(model.prompt_from_text(&long[1..], Vec::new()).is_ok());
}

#[test]
fn a_grid_too_large_for_any_memory() {
    for side in [1 << 20, u32::MAX - 1] {
        let grid = Grid { t: 1, h: side, w: side };
        let input = VisualInput { kind: VisualKind::Image, grid, pixel_values: Vec::new() };
        let error = check("<|image_pad|>", vec![input], &["0 pixel values", &side.to_string()]);
        assert!(matches!(error, Error::Patches { .. }), "{error:?}");
    }
}

#[test]
fn a_step_beyond_the_context_or_the_vocabulary() {
    let (_folder, model) = model();
    let mut cache = model.kv_cache();
    let mut step = |ids: &[u32]| {
        let positions = vec![[0; 3]; ids.len()];
        let chunk =
            Chunk { cache: &mut cache, ids, positions: &positions, visual: None, logits: LogitRows::Last };
        let result = model.forward(&mut [chunk]);
        (result, cache.len())
    };
    assert_eq!(step(&vec![1; CONTEXT - 2]).1, CONTEXT - 2);
    let (result, length) = step(&[1, 2, 3]);
    assert!(matches!(result, Err(Error::ContextLength { tokens, limit: CONTEXT }) if tokens == CONTEXT + 1));
    assert_eq!(length, CONTEXT - 2, "a refused step leaves the sequence as it was");
    let (result, length) = step(&[1, VOCAB as u32]);
    let message = result.unwrap_err().to_string();
    assert_eq!(message, format!("token id {VOCAB} is outside the vocabulary of {VOCAB}"));
    assert_eq!(length, CONTEXT - 2);
    assert_eq!(step(&[1, VOCAB as u32 - 1]).1, CONTEXT);
}

#[test]
fn an_answer_ends_where_the_context_does() {
    let (_folder, model) = model();
    let prompt = model.prompt_from_text(&"x".repeat(CONTEXT - 3), Vec::new()).unwrap();
    let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::default() };
    let mut generation = model.generate(&prompt, &options).unwrap();
    let tokens = generation.by_ref().collect::<Result<Vec<_>, _>>().unwrap();
    // Three fill the context; the fourth is chosen from the logits of the last and never enters it.
    assert_eq!(tokens.len(), 4);
    assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
}

#[test]
fn a_prompt_without_tokens() {
    let (_folder, model) = model();
    let prompt = model.prompt_from_text("", Vec::new()).unwrap();
    assert!(prompt.is_empty());
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let result = model.generate(&prompt, &GenerateOptions { sampling, ..GenerateOptions::default() });
        let Err(error) = result else { panic!("an answer to nothing") };
        assert!(matches!(error, Error::EmptyPrompt), "{error:?}");
    }
}

#[test]
fn a_cache_or_vision_output_of_another_prompt() {
    let (_folder, model) = model();
    let prompt = short_prompt(&model, "hello", vec![still("a", 2, 4)]);
    let other = short_prompt(&model, "hello", vec![still("a", 2, 2)]);
    let (visual, other_visual) = (model.encode(&prompt).unwrap(), model.encode(&other).unwrap());
    let mut cache = model.kv_cache();
    for (output, part) in [(None, "output has 0"), (other_visual.as_ref(), "output has 1")] {
        let error = model.prefill(&mut cache, &prompt, output, 0, LogitRows::Last).unwrap_err();
        assert!(matches!(error, Error::NotThisPrompt { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("2 visual tokens") && message.contains(part), "{message}");
    }
    assert!(cache.is_empty());
    model.prefill(&mut cache, &prompt, visual.as_ref(), 0, LogitRows::Last).unwrap();
    let error = model.prefill(&mut cache, &prompt, visual.as_ref(), 0, LogitRows::Last).unwrap_err();
    assert!(error.to_string().contains(&format!("holds {} tokens", prompt.len())), "{error}");
}

#[test]
fn no_tokens_wanted() {
    let (_folder, model) = model();
    let prompt = short_prompt(&model, "hello", Vec::new());
    let options = GenerateOptions { max_new_tokens: 0, ..GenerateOptions::default() };
    let mut generation = model.generate(&prompt, &options).unwrap();
    assert!(generation.next().is_none());
    assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
    assert!(generation.next().is_none());
}

#[test]
fn weights_that_are_not_numbers() {
    for (tensor, value) in [
        ("model.language_model.norm.weight", f32::NAN),
        ("model.language_model.layers.1.mlp.down_proj.weight", f32::NAN),
        ("model.visual.merger.linear_fc2.bias", f32::NAN),
        ("model.language_model.layers.0.self_attn.o_proj.weight", f32::INFINITY),
    ] {
        let folder = Network::dense().folder();
        change_weights(folder.path(), |weights| {
            let bytes = &mut weights.get_mut(tensor).unwrap().bytes;
            bytes[..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
        });
        let model = open(folder.path());
        let prompt = short_prompt(&model, "hello", vec![still("a", 2, 2)]);
        for temperature in [0.0, 1.0] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let options = GenerateOptions { sampling, ..GenerateOptions::default() };
            let mut generation = model.generate(&prompt, &options).unwrap();
            let error = generation.next().unwrap().unwrap_err();
            assert!(matches!(error, Error::NotFinite { .. }), "{tensor}: {error:?}");
            assert!(error.to_string().contains("answer token 0"), "{tensor}: {error}");
            assert!(generation.next().is_none(), "an answer goes on after its error");
        }
    }
}

#[test]
fn sampling_options_out_of_their_range() {
    let (_folder, model) = model();
    let prompt = short_prompt(&model, "hello", Vec::new());
    let default = Sampling::default;
    for (sampling, parts) in [
        (Sampling { temperature: -0.5, ..default() }, ["temperature is -0.5", "0 or more"]),
        (Sampling { temperature: f32::NAN, ..default() }, ["temperature is NaN", "0 or more"]),
        (Sampling { temperature: f32::INFINITY, ..default() }, ["temperature is inf", "0 or more"]),
        (Sampling { top_p: 0.0, ..default() }, ["top_p is 0", "above 0, at most 1"]),
        (Sampling { top_p: 1.5, ..default() }, ["top_p is 1.5", "above 0, at most 1"]),
        (Sampling { top_p: f32::NAN, ..default() }, ["top_p is NaN", "above 0, at most 1"]),
        (Sampling { min_p: -0.1, ..default() }, ["min_p is -0.1", "0 to 1"]),
        (Sampling { min_p: f32::NAN, ..default() }, ["min_p is NaN", "0 to 1"]),
        (Sampling { repetition_penalty: 0.0, ..default() }, ["repetition_penalty is 0", "above 0"]),
        (
            Sampling { repetition_penalty: f32::INFINITY, ..default() },
            ["repetition_penalty is inf", "above 0"],
        ),
        (Sampling { presence_penalty: f32::NAN, ..default() }, ["presence_penalty is NaN", "a number"]),
    ] {
        let Err(error) = model.generate(&prompt, &GenerateOptions { sampling, ..GenerateOptions::default() })
        else {
            panic!("accepted: {parts:?}");
        };
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message:?} does not say {parts:?}");
    }
}

#[test]
fn more_threads_than_any_machine_has() {
    let error = Cpu::new(1_000_000).unwrap_err();
    assert!(matches!(error, Error::Threads { threads: 1_000_000, .. }), "{error:?}");
    assert!(error.to_string().contains("1000000 compute threads"), "{error}");
}

#[test]
fn a_video_names_the_time_of_each_of_its_patches() {
    let (_folder, model) = model();
    let kind = VisualKind::Video { timestamps: vec![0.25, 1.75] };
    let input = VisualInput { kind, ..video("a", 2, 2, 4) };
    let prompt: Prompt = model.prompt_from_text("a<|video_pad|>b", vec![input]).unwrap();
    let id = |token: &str| model.tokenizer().id(token).unwrap();
    let (start, end, pad) = (id("<|vision_start|>"), id("<|vision_end|>"), id("<|video_pad|>"));
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    // Ties go to the even digit, as Python's formatting has it.
    let mut expected = bytes("a<0.2 seconds>");
    expected.extend([start, pad, pad, end]);
    expected.extend(bytes("<1.8 seconds>"));
    expected.extend([start, pad, pad, end, u32::from(b'b')]);
    assert_eq!(prompt.ids, expected);
    assert_eq!(prompt.visual_tokens, [15, 16, 32, 33]);
    assert_ne!(pad, IMAGE_PAD);
}
