//! How the probe starts qvl: formats of weights, and the network in parts, so that their bytes can be counted.

use std::sync::Arc;

use anyhow::{Context, Result};
use qvl_model::backend::{Experts, Linear};
use qvl_model::checkpoint::Checkpoint;
use qvl_model::config::Config;
use qvl_model::decoder::{Chunk, Decoder};
use qvl_model::kv::KvCache;
use qvl_model::tokenizer::Tokenizer;
use qvl_model::vision::VisionTower;
use qvl_model::weights::{DecoderLayer, LayerSource, Merger, Mlp, Resident, WeightLoader};
use qvl_model::{Cpu, CpuOptions, Model, Residency};

use crate::ModelArgs;

/// The CPU backend as asked for.
fn cpu(args: &ModelArgs) -> Result<Cpu> {
    let (weights, vision_weights) = (args.weights, args.vision_weights);
    Ok(Cpu::with(CpuOptions { threads: args.threads, weights, vision_weights, ..CpuOptions::default() })?)
}

/// The network as [`Model`] runs it.
pub(crate) struct Network {
    pub(crate) config: Config,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) decoder: Decoder<Cpu>,
    pub(crate) vision: VisionTower<Cpu>,
    pub(crate) layers: Resident<Cpu>,
    /// The instruction set in use.
    pub(crate) isa: &'static str,
    /// Compute threads.
    pub(crate) threads: usize,
    pub(crate) bytes: Bytes,
}

/// Bytes of matrices as they are held.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bytes {
    /// What each decoded token must read: every layer and the head. Of an embedding table that is not the
    /// head one row is read, which does not count; of experts those that a token goes through.
    pub(crate) per_token: usize,
    /// All of them, the tower's too.
    pub(crate) all: usize,
}

impl Network {
    pub(crate) fn open(args: &ModelArgs) -> Result<Self> {
        let backend = Arc::new(cpu(args)?);
        let (isa, threads) = (backend.isa().name(), backend.threads());
        let checkpoint = Checkpoint::open(&args.model)?;
        let config = checkpoint.config()?;
        let tokenizer = checkpoint.tokenizer(&config)?;
        let loader = WeightLoader { tensors: checkpoint.tensors(), config: &config, backend: &*backend };
        let (vision, decoder) = (loader.vision_stem()?, loader.decoder_stem()?);
        let layers = Resident::load(&loader, &|_| {})?;

        let mut bytes = Bytes::default();
        bytes.add(decoder.head().weight.bytes());
        if decoder.lm_head.is_some() {
            bytes.all += decoder.embed_tokens.weight.bytes();
        }
        for index in 0..config.text.num_hidden_layers {
            bytes.add_layer(&*layers.decoder_layer(index)?);
        }
        bytes.all += linear(&vision.patch_embed) + vision.pos_embed.bytes() + merger(&vision.merger);
        bytes.all += vision.deepstack_merger_list.iter().map(merger).sum::<usize>();
        for index in 0..config.vision.depth {
            let block = layers.vision_block(index)?;
            let linears = [&block.qkv, &block.proj, &block.linear_fc1, &block.linear_fc2];
            bytes.all += linears.into_iter().map(linear).sum::<usize>();
        }
        let decoder = Decoder::new(config.text.clone(), Arc::clone(&backend), decoder);
        let vision = VisionTower::new(config.vision.clone(), backend, vision);
        Ok(Self { config, tokenizer, decoder, vision, layers, isa, threads, bytes })
    }

    pub(crate) fn kv_cache(&self) -> KvCache<Cpu> {
        self.decoder.kv_cache()
    }

    pub(crate) fn forward(&self, chunks: &mut [Chunk<'_, Cpu>]) -> Result<Vec<f32>> {
        Ok(self.decoder.forward(&self.layers, chunks)?)
    }
}

impl Bytes {
    fn add(&mut self, bytes: usize) {
        self.per_token += bytes;
        self.all += bytes;
    }

    fn add_layer(&mut self, layer: &DecoderLayer<Cpu>) {
        self.add(linear(&layer.qkv_proj) + linear(&layer.o_proj));
        match &layer.mlp {
            Mlp::Dense { gate_proj, up_proj, down_proj } => {
                self.add(gate_proj.bytes() + up_proj.bytes() + linear(down_proj));
            }
            Mlp::Experts(Experts { gate, experts, top_k }) => {
                self.add(gate.bytes());
                let bytes = experts.iter().map(|expert| {
                    expert.gate_proj.bytes() + expert.up_proj.bytes() + expert.down_proj.bytes()
                });
                let bytes = bytes.sum::<usize>();
                self.all += bytes;
                self.per_token += bytes / experts.len().max(1) * top_k;
            }
        }
    }
}

fn linear(linear: &Linear<Cpu>) -> usize {
    linear.weight.bytes()
}

fn merger(merger: &Merger<Cpu>) -> usize {
    linear(&merger.linear_fc1) + linear(&merger.linear_fc2)
}

/// A whole model, as a program opens it.
pub(crate) fn open_model(args: &ModelArgs) -> Result<Model<Cpu>> {
    let checkpoint = Checkpoint::open(&args.model)?;
    Model::load(checkpoint, cpu(args)?, Residency::Resident).with_context(|| args.model.display().to_string())
}
