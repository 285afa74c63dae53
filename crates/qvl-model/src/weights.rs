//! The weights as the network uses them, and the one trait they come through.
//!
//! A forward pass asks a [`LayerSource`] for one layer at a time and lets go of it afterwards, so weights
//! that stay in memory and weights that are read when their turn comes are the same code.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::{Backend, Expert, Experts, Layout, Linear, Role, WeightPart};
use crate::checkpoint::{Checkpoint, Names, TensorView, Tensors};
use crate::config::Config;
use crate::error::{Error, Result};

/// A LayerNorm's scale and shift, `[width]` each.
#[derive(Debug)]
pub struct LayerNorm<B: Backend> {
    /// Scale.
    pub weight: B::Vector,
    /// Shift.
    pub bias: B::Vector,
}

/// Turns a square of patches into one visual token.
#[derive(Debug)]
pub struct Merger<B: Backend> {
    /// Over one patch (`merger`) or over the whole square (`deepstack_merger_list`).
    pub norm: LayerNorm<B>,
    /// `[merge_unit * hidden_size, merge_unit * hidden_size]`
    pub linear_fc1: Linear<B>,
    /// `[out_hidden_size, merge_unit * hidden_size]`
    pub linear_fc2: Linear<B>,
}

/// What the vision tower has besides its blocks.
#[derive(Debug)]
pub struct VisionStem<B: Backend> {
    /// `[hidden_size, patch_values]`: the convolution whose stride is its kernel is a linear layer.
    pub patch_embed: Linear<B>,
    /// `[num_position_embeddings, hidden_size]`
    pub pos_embed: B::Matrix,
    /// Behind the last block.
    pub merger: Merger<B>,
    /// One for each tapped block.
    pub deepstack_merger_list: Vec<Merger<B>>,
}

/// One block of the vision tower.
#[derive(Debug)]
pub struct VisionBlock<B: Backend> {
    /// Before the attention.
    pub norm1: LayerNorm<B>,
    /// `[3 * hidden_size, hidden_size]`
    pub qkv: Linear<B>,
    /// `[hidden_size, hidden_size]`
    pub proj: Linear<B>,
    /// Before the MLP.
    pub norm2: LayerNorm<B>,
    /// `[intermediate_size, hidden_size]`
    pub linear_fc1: Linear<B>,
    /// `[hidden_size, intermediate_size]`
    pub linear_fc2: Linear<B>,
}

/// What the decoder has besides its layers.
#[derive(Debug)]
pub struct DecoderStem<B: Backend> {
    /// `[vocab_size, hidden_size]`: the table, and the head when it is tied.
    pub embed_tokens: Linear<B>,
    /// `[hidden_size]`: before the head.
    pub norm: B::Vector,
    /// `[vocab_size, hidden_size]`: the head when it is not tied.
    pub lm_head: Option<Linear<B>>,
}

impl<B: Backend> DecoderStem<B> {
    /// The matrix that makes logits.
    pub fn head(&self) -> &Linear<B> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

/// One layer of the decoder.
#[derive(Debug)]
pub struct DecoderLayer<B: Backend> {
    /// `[hidden_size]`: before the attention.
    pub input_layernorm: B::Vector,
    /// `[qkv_width, hidden_size]`: `q_proj`, `k_proj`, `v_proj` stacked.
    pub qkv_proj: Linear<B>,
    /// `[head_dim]`
    pub q_norm: B::Vector,
    /// `[head_dim]`
    pub k_norm: B::Vector,
    /// `[hidden_size, q_width]`
    pub o_proj: Linear<B>,
    /// `[hidden_size]`: before the MLP.
    pub post_attention_layernorm: B::Vector,
    /// The MLP.
    pub mlp: Mlp<B>,
}

/// The MLP of a decoder layer.
#[derive(Debug)]
pub enum Mlp<B: Backend> {
    /// SwiGLU.
    Dense {
        /// `[intermediate_size, hidden_size]`
        gate_proj: B::Matrix,
        /// `[intermediate_size, hidden_size]`
        up_proj: B::Matrix,
        /// `[hidden_size, intermediate_size]`
        down_proj: Linear<B>,
    },
    /// A mixture of experts.
    Experts(Experts<B>),
}

/// Where the layers come from.
pub trait LayerSource<B: Backend>: Send + Sync {
    /// Block `index` of the vision tower.
    ///
    /// # Errors
    /// What prevents it from being had; index is below the depth.
    fn vision_block(&self, index: usize) -> Result<Arc<VisionBlock<B>>>;

    /// Layer `index` of the decoder.
    ///
    /// # Errors
    /// What prevents it from being had; index is below the number of layers.
    fn decoder_layer(&self, index: usize) -> Result<Arc<DecoderLayer<B>>>;
}

/// All layers, taken by the backend once.
pub struct Resident<B: Backend> {
    vision_blocks: Vec<Arc<VisionBlock<B>>>,
    decoder_layers: Vec<Arc<DecoderLayer<B>>>,
}

impl<B: Backend> Resident<B> {
    /// Gives every layer to the backend. `progress` is told after each how many it has.
    ///
    /// # Errors
    /// The first tensor that is missing or has a wrong shape or type.
    pub fn load(loader: &WeightLoader<'_, B>, progress: &dyn Fn(usize)) -> Result<Self> {
        let (depth, layers) = (loader.config.vision.depth, loader.config.text.num_hidden_layers);
        let mut vision_blocks = Vec::with_capacity(depth);
        for index in 0..depth {
            vision_blocks.push(Arc::new(loader.vision_block(index)?));
            progress(index + 1);
        }
        let mut decoder_layers = Vec::with_capacity(layers);
        for index in 0..layers {
            decoder_layers.push(Arc::new(loader.decoder_layer(index)?));
            progress(depth + index + 1);
        }
        Ok(Self { vision_blocks, decoder_layers })
    }
}

impl<B: Backend> LayerSource<B> for Resident<B> {
    fn vision_block(&self, index: usize) -> Result<Arc<VisionBlock<B>>> {
        Ok(Arc::clone(&self.vision_blocks[index]))
    }

    fn decoder_layer(&self, index: usize) -> Result<Arc<DecoderLayer<B>>> {
        Ok(Arc::clone(&self.decoder_layers[index]))
    }
}

/// Each layer given to the backend when its turn comes, and dropped after it.
pub struct OnDemand<B: Backend> {
    /// The checkpoint.
    pub checkpoint: Arc<Checkpoint>,
    /// Its configuration.
    pub config: Config,
    /// Who takes the layers.
    pub backend: Arc<B>,
}

impl<B: Backend> OnDemand<B> {
    fn loader(&self) -> WeightLoader<'_, B> {
        WeightLoader { tensors: self.checkpoint.tensors(), config: &self.config, backend: &self.backend }
    }
}

impl<B: Backend> LayerSource<B> for OnDemand<B> {
    fn vision_block(&self, index: usize) -> Result<Arc<VisionBlock<B>>> {
        self.loader().vision_block(index).map(Arc::new)
    }

    fn decoder_layer(&self, index: usize) -> Result<Arc<DecoderLayer<B>>> {
        self.loader().decoder_layer(index).map(Arc::new)
    }
}

/// Finds the tensors of each part, checks their shapes against the configuration, hands them over.
#[derive(Clone, Copy)]
pub struct WeightLoader<'a, B: Backend> {
    /// The checkpoint's tensors.
    pub tensors: &'a Tensors,
    /// What they must look like.
    pub config: &'a Config,
    /// Who takes them.
    pub backend: &'a B,
}

impl<B: Backend> WeightLoader<'_, B> {
    /// The vision tower without its blocks.
    ///
    /// # Errors
    /// The first tensor that is missing or has a wrong shape or type.
    pub fn vision_stem(&self) -> Result<VisionStem<B>> {
        let vision = &self.config.vision;
        let kernel = [
            vision.hidden_size,
            vision.in_channels,
            vision.temporal_patch_size,
            vision.patch_size,
            vision.patch_size,
        ];
        let patch_weight = self.tensors.get(&format!("{}.weight", Names::PATCH_EMBED), &kernel)?;
        let patch_weight = patch_weight.reshaped(&[vision.hidden_size, vision.patch_values()])?;
        let pos_embed =
            self.tensors.get(Names::POS_EMBED, &[vision.num_position_embeddings, vision.hidden_size])?;
        Ok(VisionStem {
            patch_embed: Linear {
                weight: self.backend.matrix(&[WeightPart::whole(patch_weight, Role::Vision)])?,
                bias: Some(self.vector(&format!("{}.bias", Names::PATCH_EMBED), vision.hidden_size)?),
            },
            pos_embed: self.backend.matrix(&[WeightPart::whole(pos_embed, Role::Table)])?,
            merger: self.merger(Names::MERGER, vision.hidden_size)?,
            deepstack_merger_list: (0..vision.deepstack_visual_indexes.len())
                .map(|i| self.merger(&Names::deepstack_merger(i), vision.hidden_size * vision.merge_unit()))
                .collect::<Result<_>>()?,
        })
    }

    fn merger(&self, name: &str, norm_width: usize) -> Result<Merger<B>> {
        let vision = &self.config.vision;
        let width = vision.hidden_size * vision.merge_unit();
        Ok(Merger {
            norm: self.layer_norm(&format!("{name}.norm"), norm_width)?,
            linear_fc1: self.linear_with_bias(&format!("{name}.linear_fc1"), width, width)?,
            linear_fc2: self.linear_with_bias(
                &format!("{name}.linear_fc2"),
                vision.out_hidden_size,
                width,
            )?,
        })
    }

    /// Block `index` of the vision tower.
    ///
    /// # Errors
    /// The first tensor that is missing or has a wrong shape or type.
    pub fn vision_block(&self, index: usize) -> Result<VisionBlock<B>> {
        let (width, inner) = (self.config.vision.hidden_size, self.config.vision.intermediate_size);
        let name = |rest: &str| Names::vision_block(index, rest);
        Ok(VisionBlock {
            norm1: self.layer_norm(&name("norm1"), width)?,
            qkv: self.linear_with_bias(&name("attn.qkv"), 3 * width, width)?,
            proj: self.linear_with_bias(&name("attn.proj"), width, width)?,
            norm2: self.layer_norm(&name("norm2"), width)?,
            linear_fc1: self.linear_with_bias(&name("mlp.linear_fc1"), inner, width)?,
            linear_fc2: self.linear_with_bias(&name("mlp.linear_fc2"), width, inner)?,
        })
    }

    /// The decoder without its layers.
    ///
    /// # Errors
    /// The first tensor that is missing or has a wrong shape or type.
    pub fn decoder_stem(&self) -> Result<DecoderStem<B>> {
        let text = &self.config.text;
        let table = [text.vocab_size, text.hidden_size];
        Ok(DecoderStem {
            embed_tokens: self
                .stacked(&[(Names::EMBED_TOKENS.to_owned(), table[0], Role::Head)], table[1])?,
            norm: self.vector(Names::NORM, text.hidden_size)?,
            lm_head: if self.config.tie_word_embeddings {
                None
            } else {
                Some(self.stacked(&[(Names::LM_HEAD.to_owned(), table[0], Role::Head)], table[1])?)
            },
        })
    }

    /// Layer `index` of the decoder.
    ///
    /// # Errors
    /// The first tensor that is missing or has a wrong shape or type.
    pub fn decoder_layer(&self, index: usize) -> Result<DecoderLayer<B>> {
        let text = &self.config.text;
        let name = |rest: &str| Names::decoder_layer(index, rest);
        let q_width = text.num_attention_heads * text.head_dim;
        let kv_width = text.num_key_value_heads * text.head_dim;
        let sensitive = sensitive(index, text.num_hidden_layers);
        let qkv = [
            (name("self_attn.q_proj.weight"), q_width, Role::Decoder),
            (name("self_attn.k_proj.weight"), kv_width, Role::Decoder),
            (name("self_attn.v_proj.weight"), kv_width, sensitive),
        ];
        let hidden = text.hidden_size;
        Ok(DecoderLayer {
            input_layernorm: self.vector(&name("input_layernorm.weight"), hidden)?,
            qkv_proj: self.stacked(&qkv, hidden)?,
            q_norm: self.vector(&name("self_attn.q_norm.weight"), text.head_dim)?,
            k_norm: self.vector(&name("self_attn.k_norm.weight"), text.head_dim)?,
            o_proj: self.stacked(&[(name("self_attn.o_proj.weight"), hidden, Role::Decoder)], q_width)?,
            post_attention_layernorm: self.vector(&name("post_attention_layernorm.weight"), hidden)?,
            mlp: match text.experts_of(index) {
                Some(_) => Mlp::Experts(self.experts(index)?),
                None => {
                    let inner = text.intermediate_size;
                    let gate = (name("mlp.gate_proj.weight"), inner, Role::Decoder);
                    let up = (name("mlp.up_proj.weight"), inner, Role::Decoder);
                    let down = (name("mlp.down_proj.weight"), hidden, sensitive);
                    Mlp::Dense {
                        gate_proj: self.stacked(&[gate], hidden)?.weight,
                        up_proj: self.stacked(&[up], hidden)?.weight,
                        down_proj: self.stacked(&[down], inner)?,
                    }
                }
            },
        })
    }

    /// The experts of layer `index`, in either of the two layouts in use: `[E, 2I, H]` and `[E, H, I]` as
    /// linear layers are, or `[E, H, 2I]` and `[E, I, H]` as published. Both tensors are looked at, since
    /// one of them alone may be square.
    fn experts(&self, index: usize) -> Result<Experts<B>> {
        let text = &self.config.text;
        let Some(moe) = text.experts_of(index) else { unreachable!("asked only for layers with experts") };
        let (count, inner, width) = (moe.num_experts, moe.moe_intermediate_size, text.hidden_size);
        let name = |rest: &str| Names::decoder_layer(index, rest);
        if let Some(apart) = self.experts_apart(index)? {
            return Ok(apart);
        }
        let (gate_up_name, down_name) = (name("mlp.experts.gate_up_proj"), name("mlp.experts.down_proj"));
        let find = |name: &str| self.tensors.find(name).ok_or_else(|| self.tensors.missing(name));
        let (gate_up, down) = (find(&gate_up_name)?, find(&down_name)?);
        let shapes = (gate_up.shape(), down.shape());
        let layout = if shapes == (&[count, 2 * inner, width], &[count, width, inner]) {
            Layout::OutIn
        } else if shapes == (&[count, width, 2 * inner], &[count, inner, width]) {
            Layout::InOut
        } else {
            let (view, expected) =
                if down.shape() == [count, width, inner] || down.shape() == [count, inner, width] {
                    (gate_up, vec![count, width, 2 * inner])
                } else {
                    (down, vec![count, inner, width])
                };
            return Err(Error::TensorShape {
                file: view.file().to_owned(),
                tensor: view.name().to_owned(),
                got: view.shape().to_vec(),
                expected,
            });
        };
        let sensitive = sensitive(index, text.num_hidden_layers);
        let part = |stack: &TensorView, expert: usize, outputs: Range<usize>, role: Role| match stack
            .entry(expert)
        {
            Some(tensor) => self.backend.matrix(&[WeightPart { tensor, layout, outputs, role }]),
            None => unreachable!("the stack's first dimension was checked"),
        };
        let router = self.tensors.get(&name("mlp.gate.weight"), &[count, width])?;
        Ok(Experts {
            gate: self.backend.matrix(&[WeightPart::whole(router, Role::Table)])?,
            experts: (0..count)
                .map(|expert| {
                    Ok(Expert {
                        gate_proj: part(&gate_up, expert, 0..inner, Role::Decoder)?,
                        up_proj: part(&gate_up, expert, inner..2 * inner, Role::Decoder)?,
                        down_proj: part(&down, expert, 0..width, sensitive)?,
                    })
                })
                .collect::<Result<_>>()?,
            top_k: moe.num_experts_per_tok,
        })
    }

    /// The experts of layer `index` where gate and up are stacks of their own, `[E, I, H]`, as in GGUF files;
    /// `None` where they are one.
    fn experts_apart(&self, index: usize) -> Result<Option<Experts<B>>> {
        let text = &self.config.text;
        let Some(moe) = text.experts_of(index) else { return Ok(None) };
        let (count, inner, width) = (moe.num_experts, moe.moe_intermediate_size, text.hidden_size);
        let name = |rest: &str| Names::decoder_layer(index, rest);
        if self.tensors.find(&name("mlp.experts.gate_proj")).is_none() {
            return Ok(None);
        }
        let stack = |rest: &str, shape: [usize; 3]| self.tensors.get(&name(rest), &shape);
        let gate = stack("mlp.experts.gate_proj", [count, inner, width])?;
        let up = stack("mlp.experts.up_proj", [count, inner, width])?;
        let down = stack("mlp.experts.down_proj", [count, width, inner])?;
        let sensitive = sensitive(index, text.num_hidden_layers);
        let part = |stack: &TensorView, expert: usize, role: Role| match stack.entry(expert) {
            Some(tensor) => self.backend.matrix(&[WeightPart::whole(tensor, role)]),
            None => unreachable!("the stack's first dimension was checked"),
        };
        let router = self.tensors.get(&name("mlp.gate.weight"), &[count, width])?;
        Ok(Some(Experts {
            gate: self.backend.matrix(&[WeightPart::whole(router, Role::Table)])?,
            experts: (0..count)
                .map(|expert| {
                    Ok(Expert {
                        gate_proj: part(&gate, expert, Role::Decoder)?,
                        up_proj: part(&up, expert, Role::Decoder)?,
                        down_proj: part(&down, expert, sensitive)?,
                    })
                })
                .collect::<Result<_>>()?,
            top_k: moe.num_experts_per_tok,
        }))
    }

    fn vector(&self, name: &str, width: usize) -> Result<B::Vector> {
        self.backend.vector(&self.tensors.get(name, &[width])?)
    }

    fn layer_norm(&self, name: &str, width: usize) -> Result<LayerNorm<B>> {
        Ok(LayerNorm {
            weight: self.vector(&format!("{name}.weight"), width)?,
            bias: self.vector(&format!("{name}.bias"), width)?,
        })
    }

    fn linear_with_bias(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear<B>> {
        let weight = self.tensors.get(&format!("{name}.weight"), &[outputs, inputs])?;
        Ok(Linear {
            weight: self.backend.matrix(&[WeightPart::whole(weight, Role::Vision)])?,
            bias: Some(self.vector(&format!("{name}.bias"), outputs)?),
        })
    }

    /// Tensors `[rows, inputs]` stacked into one linear layer without bias.
    fn stacked(&self, parts: &[(String, usize, Role)], inputs: usize) -> Result<Linear<B>> {
        let parts = parts
            .iter()
            .map(|(name, rows, role)| Ok(WeightPart::whole(self.tensors.get(name, &[*rows, inputs])?, *role)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Linear { weight: self.backend.matrix(&parts)?, bias: None })
    }
}

/// The role of the value and down projections of layer `index` of `layers`: which layers are sensitive is
/// what the mixture Q4_K_M of llama.cpp assumes.
fn sensitive(index: usize, layers: usize) -> Role {
    let eighth = layers / 8;
    if index < eighth || index >= 7 * layers / 8 || (index - eighth) % 3 == 2 {
        Role::DecoderSensitive
    } else {
        Role::Decoder
    }
}
