//! Chunks, batches, threads, instruction sets, where the layers lie and what was computed before: none of it
//! changes a bit of the result.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::ops::Range;

use common::{Network, assert_same_bits, long_prompt, open, open_on, short_prompt, still};
use qvl_model::backend::cpu::Isa;
use qvl_model::decoder::{Chunk, LogitRows, VisualRows};
use qvl_model::kv::KvCache;
use qvl_model::vision::VisionOutput;
use qvl_model::{Cpu, GenerateOptions, Model, Prompt, Residency};

/// Runs `test` on a dense network and on one with experts.
fn check(test: impl Fn(&Network)) {
    for network in [Network::dense(), Network::moe()] {
        test(&network);
    }
}

/// Logits of every token of a prompt.
fn all_logits(model: &Model<Cpu>, prompt: &Prompt, chunk_tokens: usize) -> Vec<f32> {
    let visual = model.encode(prompt).unwrap();
    model.prefill(&mut model.kv_cache(), prompt, visual.as_ref(), chunk_tokens, LogitRows::All).unwrap()
}

#[test]
fn a_prompt_prefilled_whole_or_in_chunks() {
    check(|network| {
        let folder = network.folder();
        let model = open(folder.path());
        let prompt = long_prompt(&model);
        assert!(prompt.len() > 64, "{} tokens: 64 at a time would be all at once", prompt.len());
        let whole = all_logits(&model, &prompt, 0);
        assert!(whole.iter().all(|logit| logit.is_finite()));
        for chunk_tokens in [1, 7, 64] {
            assert_same_bits(
                &format!("chunks of {chunk_tokens}"),
                &all_logits(&model, &prompt, chunk_tokens),
                &whole,
            );
        }
    });
}

#[test]
fn any_number_of_threads() {
    check(|network| {
        let folder = network.folder();
        let on = |threads| open_on(folder.path(), threads, Isa::detect(), Residency::Resident);
        let one = on(1);
        let prompt = long_prompt(&one);
        let expected = all_logits(&one, &prompt, 0);
        for threads in [2, 3, 8] {
            assert_same_bits(&format!("{threads} threads"), &all_logits(&on(threads), &prompt, 0), &expected);
        }
    });
}

#[test]
fn layers_in_memory_or_taken_when_their_turn_comes() {
    check(|network| {
        let folder = network.folder();
        let resident = open(folder.path());
        let on_demand = open_on(folder.path(), 2, Isa::detect(), Residency::OnDemand);
        let prompt = long_prompt(&resident);
        assert_same_bits(
            "on demand",
            &all_logits(&on_demand, &prompt, 0),
            &all_logits(&resident, &prompt, 0),
        );
    });
}

#[test]
fn stills_encoded_together_or_each_alone() {
    let folder = Network::dense().folder();
    let model = open(folder.path());
    let stills = [still("a", 2, 2), still("b", 8, 4), still("c", 2, 12), still("d", 6, 6)];
    let all: Vec<f32> = stills.iter().flat_map(|still| &still.pixel_values).copied().collect();
    let together = model.encode_patches(&all, &stills.each_ref().map(|still| still.grid)).unwrap();
    let parts = |output: &VisionOutput<Cpu>| -> Vec<Vec<f32>> {
        [&output.embeds].into_iter().chain(&output.deepstack).map(|buffer| model.download(buffer)).collect()
    };
    let mut alone = vec![Vec::new(); 3];
    for still in &stills {
        let output = model.encode_patches(&still.pixel_values, &[still.grid]).unwrap();
        for (all, part) in alone.iter_mut().zip(parts(&output)) {
            all.extend(part);
        }
    }
    for (name, (got, expected)) in
        ["embeds", "deepstack 0", "deepstack 1"].iter().zip(parts(&together).iter().zip(&alone))
    {
        assert_same_bits(name, got, expected);
    }
    let two_frames = [still("b", 8, 4).pixel_values, still("e", 8, 4).pixel_values].concat();
    let video = model.encode_patches(&two_frames, &[qvl_model::Grid { t: 2, h: 8, w: 4 }]).unwrap();
    let first = model.encode_patches(&stills[1].pixel_values, &[stills[1].grid]).unwrap();
    let first = model.download(&first.embeds);
    assert_same_bits("a frame of a video", &model.download(&video.embeds)[..first.len()], &first);
}

#[test]
fn prefill_and_decode_or_all_computed_anew() {
    check(|network| {
        let folder = network.folder();
        let model = open(folder.path());
        let mut prompt = short_prompt(&model, "What a thé?", vec![still("p", 4, 6)]);
        let options = GenerateOptions { max_new_tokens: 6, ignore_eos: true, ..GenerateOptions::default() };
        let mut generation = model.generate(&prompt, &options).unwrap();
        let mut steps = Vec::new();
        while let Some(token) = generation.next() {
            steps.push((generation.logits().to_vec(), token.unwrap().id));
        }
        assert_eq!(steps.len(), 6);
        for (step, (logits, id)) in steps.into_iter().enumerate() {
            let anew = all_logits(&model, &prompt, 0);
            assert_same_bits(&format!("step {step}"), &logits, &anew[anew.len() - common::VOCAB..]);
            // A text token behind the prompt stands at its index plus the prompt's delta, on all axes.
            let position = u32::try_from(prompt.len() as i64 + prompt.rope_delta).unwrap();
            prompt.ids.push(id);
            prompt.positions.push([position; 3]);
        }
    });
}

#[test]
fn a_cache_cut_back_and_filled_again() {
    check(|network| {
        let folder = network.folder();
        let model = open(folder.path());
        let prompt = long_prompt(&model);
        let whole = all_logits(&model, &prompt, 0);
        let visual = model.encode(&prompt).unwrap();
        let other = short_prompt(&model, "something else entirely", Vec::new());
        for kept in [0, 1, 15, 16, 17, 50] {
            let mut sequence = Sequence::new(&model, &prompt, visual.as_ref());
            sequence.run(&model, 0..kept, LogitRows::None);
            // Something else behind it, which is then given up.
            let mut intruder = Sequence { prompt: &other, visual: None, cache: sequence.cache };
            intruder.run(&model, 0..other.len(), LogitRows::None);
            intruder.cache.truncate(kept);
            assert_eq!(intruder.cache.len(), kept);
            let mut sequence = Sequence { prompt: &prompt, visual: visual.as_ref(), cache: intruder.cache };
            let rest = sequence.run(&model, kept..prompt.len(), LogitRows::All);
            assert_same_bits(&format!("{kept} tokens kept"), &rest, &whole[kept * common::VOCAB..]);
        }
    });
}

/// A prompt on its way through the decoder.
struct Sequence<'a> {
    prompt: &'a Prompt,
    visual: Option<&'a VisionOutput<Cpu>>,
    cache: KvCache<Cpu>,
}

impl<'a> Sequence<'a> {
    fn new(model: &Model<Cpu>, prompt: &'a Prompt, visual: Option<&'a VisionOutput<Cpu>>) -> Self {
        Self { prompt, visual, cache: model.kv_cache() }
    }

    /// Which tokens of a range are visual, and their rows of the tower's output.
    fn rows(&self, range: &Range<usize>) -> Vec<(usize, usize)> {
        let tokens = self.prompt.visual_tokens.iter().enumerate();
        tokens
            .filter(|(_, token)| range.contains(token))
            .map(|(row, token)| (token - range.start, row))
            .collect()
    }

    fn chunk<'s>(
        &'s mut self,
        rows: &'s [(usize, usize)],
        range: Range<usize>,
        logits: LogitRows,
    ) -> Chunk<'s, Cpu> {
        Chunk {
            cache: &mut self.cache,
            ids: &self.prompt.ids[range.clone()],
            positions: &self.prompt.positions[range],
            visual: self.visual.map(|output| VisualRows { output, rows }),
            logits,
        }
    }

    /// One step of this sequence alone.
    fn run(&mut self, model: &Model<Cpu>, range: Range<usize>, logits: LogitRows) -> Vec<f32> {
        let rows = self.rows(&range);
        model.forward(&mut [self.chunk(&rows, range, logits)]).unwrap()
    }
}

/// A sequence in a step: what is in its cache before, what the step appends, and what is wanted of it.
struct Part<'a> {
    prompt: &'a Prompt,
    before: usize,
    tokens: usize,
    logits: LogitRows,
}

#[test]
fn a_sequence_alone_or_among_others() {
    check(|network| {
        let folder = network.folder();
        let model = open(folder.path());
        let long = long_prompt(&model);
        let short = short_prompt(&model, "a thé", vec![still("s", 2, 6)]);
        let text = short_prompt(&model, "Words only, and not few of them.", Vec::new());
        let parts = [
            // A decode row, a chunk with visual tokens, a whole prompt, a chunk of which nothing is wanted, and
            // a second decode row.
            Part { prompt: &text, before: text.len() - 1, tokens: 1, logits: LogitRows::Last },
            Part { prompt: &long, before: 13, tokens: 30, logits: LogitRows::All },
            Part { prompt: &short, before: 0, tokens: short.len(), logits: LogitRows::Last },
            Part { prompt: &long, before: 0, tokens: 7, logits: LogitRows::None },
            Part { prompt: &short, before: short.len() - 1, tokens: 1, logits: LogitRows::Last },
        ];
        let visual: Vec<_> = parts.iter().map(|part| model.encode(part.prompt).unwrap()).collect();
        let prepare = |index: usize| {
            let mut sequence = Sequence::new(&model, parts[index].prompt, visual[index].as_ref());
            if parts[index].before > 0 {
                sequence.run(&model, 0..parts[index].before, LogitRows::None);
            }
            sequence
        };
        let range = |part: &Part<'_>| part.before..part.before + part.tokens;
        let decode_twice = |sequence: &mut Sequence<'_>, part: &Part<'_>| {
            let next = range(part).end;
            let position = [u32::try_from(next).unwrap(); 3];
            let chunk = Chunk {
                cache: &mut sequence.cache,
                ids: &[65, 66],
                positions: &[position, position],
                visual: None,
                logits: LogitRows::All,
            };
            model.forward(&mut [chunk]).unwrap()
        };
        let alone: Vec<(Vec<f32>, Vec<f32>)> = (0..parts.len())
            .map(|index| {
                let mut sequence = prepare(index);
                let logits = sequence.run(&model, range(&parts[index]), parts[index].logits);
                (logits, decode_twice(&mut sequence, &parts[index]))
            })
            .collect();
        for (count, reversed) in [(2, false), (3, true), (4, false), (5, false), (5, true)] {
            let mut order: Vec<usize> = (0..count).collect();
            if reversed {
                order.reverse();
            }
            let mut sequences: Vec<Sequence<'_>> = order.iter().map(|&index| prepare(index)).collect();
            let rows: Vec<_> =
                order.iter().zip(&sequences).map(|(&index, s)| s.rows(&range(&parts[index]))).collect();
            let mut chunks: Vec<Chunk<'_, Cpu>> = sequences
                .iter_mut()
                .zip(&rows)
                .zip(&order)
                .map(|((sequence, rows), &index)| {
                    sequence.chunk(rows, range(&parts[index]), parts[index].logits)
                })
                .collect();
            let together = model.forward(&mut chunks).unwrap();
            let expected: Vec<f32> = order.iter().flat_map(|&index| &alone[index].0).copied().collect();
            assert_same_bits(&format!("{order:?} in one step"), &together, &expected);
            for (sequence, &index) in sequences.iter_mut().zip(&order) {
                let after = decode_twice(sequence, &parts[index]);
                assert_same_bits(&format!("after {order:?}, sequence {index}"), &after, &alone[index].1);
            }
        }
    });
}
