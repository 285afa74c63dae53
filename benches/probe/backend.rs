//! How the probe starts qvl: the one place that knows how weight formats are asked for.

use anyhow::{Context, Result};
use clap::ValueEnum;
use qvl_model::checkpoint::Checkpoint;
use qvl_model::config::{Config, TextConfig};
use qvl_model::{Cpu, CpuOptions, Model, Residency, WeightFormat};

use crate::ModelArgs;

/// How matrices are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsArg {
    /// As in the checkpoint: 16 bits a value.
    Bf16,
    /// Blocks of 8-bit values.
    Q8,
    /// Blocks of 4-bit values.
    Q4,
}

impl WeightsArg {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// Bits a value takes, its share of the block's scale included.
    pub(crate) fn bits(self) -> f64 {
        match self {
            Self::Bf16 => 16.0,
            Self::Q8 => 8.5,
            Self::Q4 => 4.5,
        }
    }
}

/// The CPU backend with weights in the given form.
fn cpu(threads: usize, weights: WeightsArg, vision: WeightsArg) -> Result<Cpu> {
    let format = |asked| match asked {
        WeightsArg::Bf16 => WeightFormat::Bf16,
        WeightsArg::Q8 => WeightFormat::Q8,
        WeightsArg::Q4 => WeightFormat::Q4,
    };
    let options = CpuOptions {
        threads,
        weights: format(weights),
        vision_weights: format(vision),
        ..CpuOptions::default()
    };
    Ok(Cpu::with(options)?)
}

/// Opens the checkpoint.
pub(crate) fn open(args: &ModelArgs) -> Result<(Model<Cpu>, Info)> {
    let cpu = cpu(args.threads, args.weights, args.vision_weights)?;
    let isa = cpu.isa().name();
    let threads = cpu.threads();
    let checkpoint = Checkpoint::open(&args.model)?;
    let stored_bytes = checkpoint.tensors().weight_bytes();
    let model = Model::load(checkpoint, cpu, Residency::Resident)
        .with_context(|| args.model.display().to_string())?;
    let info = Info {
        isa,
        threads,
        stored_bytes,
        decode_bytes: bytes(decode_values(&model.config().text), args.weights),
        weight_bytes: weight_bytes(model.config(), args),
    };
    Ok((model, info))
}

/// What is known of an opened checkpoint besides its network.
pub(crate) struct Info {
    /// The instruction set in use.
    pub(crate) isa: &'static str,
    /// Compute threads.
    pub(crate) threads: usize,
    /// Bytes of all tensors in the files.
    pub(crate) stored_bytes: u64,
    /// Bytes of matrices that each decoded token must read.
    pub(crate) decode_bytes: u64,
    /// Bytes of all matrices as they are held.
    pub(crate) weight_bytes: u64,
}

fn bytes(values: u64, format: WeightsArg) -> u64 {
    (values as f64 * format.bits() / 8.0) as u64
}

/// Values of the matrices that one token is multiplied with: every layer and the head. The embedding table
/// is read for one row only, which does not count.
fn decode_values(text: &TextConfig) -> u64 {
    let layers = (0..text.num_hidden_layers).map(|index| match text.experts_of(index) {
        Some(moe) => {
            let expert = 3 * text.hidden_size * moe.moe_intermediate_size;
            attention_values(text) + moe.num_experts * text.hidden_size + moe.num_experts_per_tok * expert
        }
        None => attention_values(text) + 3 * text.hidden_size * text.intermediate_size,
    });
    (layers.sum::<usize>() + text.vocab_size * text.hidden_size) as u64
}

fn attention_values(text: &TextConfig) -> usize {
    let heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads;
    heads * text.head_dim * text.hidden_size
}

/// All matrices: each expert counts, and the tower in its own form.
fn weight_bytes(config: &Config, args: &ModelArgs) -> u64 {
    let (text, vision) = (&config.text, &config.vision);
    let layers = (0..text.num_hidden_layers).map(|index| match text.experts_of(index) {
        Some(moe) => {
            let expert = 3 * text.hidden_size * moe.moe_intermediate_size;
            attention_values(text) + moe.num_experts * (text.hidden_size + expert)
        }
        None => attention_values(text) + 3 * text.hidden_size * text.intermediate_size,
    });
    let tables = if config.tie_word_embeddings { 1 } else { 2 };
    let decoder = layers.sum::<usize>() + tables * text.vocab_size * text.hidden_size;

    let width = vision.hidden_size;
    let merged = width * vision.merge_unit();
    let mergers = 1 + vision.deepstack_visual_indexes.len();
    let tower = width * vision.patch_values()
        + vision.num_position_embeddings * width
        + vision.depth * (4 * width * width + 2 * width * vision.intermediate_size)
        + mergers * merged * (merged + vision.out_hidden_size);
    bytes(decoder as u64, args.weights) + bytes(tower as u64, args.vision_weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 2B shape, as published.
    fn text_2b() -> TextConfig {
        TextConfig {
            vocab_size: 151_936,
            hidden_size: 2048,
            intermediate_size: 6144,
            num_hidden_layers: 28,
            num_attention_heads: 16,
            num_key_value_heads: 8,
            head_dim: 128,
            max_position_embeddings: 262_144,
            rms_norm_eps: 1e-6,
            rope_theta: 5e6,
            mrope_section: [24, 20, 20],
            moe: None,
        }
    }

    #[test]
    fn a_token_of_the_2b_shape_reads_3_4_gigabytes_in_bf16() {
        // 28 x (12,582,912 + 37,748,736) + 311,164,928 values, norms left out.
        let values = decode_values(&text_2b());
        assert_eq!(values, 1_720_451_072);
        assert_eq!(bytes(values, WeightsArg::Bf16), 3_440_902_144);
        assert_eq!(bytes(values, WeightsArg::Q8), 1_827_979_264);
    }
}
