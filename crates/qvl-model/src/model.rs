//! A checkpoint made ready to answer.

use std::path::Path;
use std::sync::Arc;

use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, EmbeddedCheckpoint};
use crate::config::{Config, GenerationConfig};
use crate::decoder::{Chunk, Decoder, LogitRows};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Generation, prefill};
use crate::kv::KvCache;
use crate::prompt::{Prompt, VisualInput};
use crate::template::{ChatTemplate, Message};
use crate::tokenizer::Tokenizer;
use crate::vision::{VisionOutput, VisionTower};
use crate::weights::{LayerSource, OnDemand, Resident, WeightLoader};

/// Where the layers are between two uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// With the backend, from the start.
    #[default]
    Resident,
    /// In the checkpoint; each is taken when its turn comes and dropped after it.
    OnDemand,
}

/// A Qwen3-VL network with its tokenizer and template.
pub struct Model<B: Backend> {
    config: Config,
    generation_config: GenerationConfig,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    vision: VisionTower<B>,
    decoder: Decoder<B>,
    layers: Box<dyn LayerSource<B>>,
    backend: Arc<B>,
}

impl<B: Backend + 'static> Model<B> {
    /// Opens a checkpoint: a folder, or a `.gguf` file with its mmproj beside it; see [`Checkpoint::open`].
    ///
    /// With the CPU backend this costs reading the tokenizer; weights are mapped, not read.
    ///
    /// # Errors
    /// Whatever is missing or wrong in its files, by name.
    pub fn open(path: impl AsRef<Path>, backend: B) -> Result<Self> {
        Self::load(Checkpoint::open(path)?, backend, Residency::Resident)
    }

    /// A checkpoint that is part of the program.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn embedded(files: &EmbeddedCheckpoint, backend: B) -> Result<Self> {
        Self::load(Checkpoint::embedded(files)?, backend, Residency::Resident)
    }

    /// A checkpoint opened before.
    ///
    /// # Errors
    /// The first tensor that is missing or has a wrong shape or type; a tokenizer or template that does not
    /// fit. With [`Residency::OnDemand`], a layer's tensors are only looked at when it is used.
    pub fn load(checkpoint: Checkpoint, backend: B, residency: Residency) -> Result<Self> {
        Self::load_with(checkpoint, backend, residency, &|_, _| {})
    }

    /// The same. `progress` is told how many parts (the blocks and layers, tower and decoder without them) have
    /// been given to the backend, and of how many; a backend that quantises takes its time for each.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(
        checkpoint: Checkpoint,
        backend: B,
        residency: Residency,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self> {
        let config = checkpoint.config()?;
        let generation_config = checkpoint.generation_config(&config)?;
        let tokenizer = checkpoint.tokenizer(&config)?;
        let template = checkpoint.chat_template()?.map(ChatTemplate::parse).transpose()?;
        let backend = Arc::new(backend);
        let loader = WeightLoader { tensors: checkpoint.tensors(), config: &config, backend: &*backend };
        let layers = match residency {
            Residency::Resident => config.vision.depth + config.text.num_hidden_layers,
            Residency::OnDemand => 0,
        };
        let parts = layers + 2;
        progress(0, parts);
        let vision = VisionTower::new(config.vision.clone(), Arc::clone(&backend), loader.vision_stem()?);
        progress(1, parts);
        let decoder = Decoder::new(config.text.clone(), Arc::clone(&backend), loader.decoder_stem()?);
        progress(2, parts);
        let layers: Box<dyn LayerSource<B>> = match residency {
            Residency::Resident => Box::new(Resident::load(&loader, &|done| progress(2 + done, parts))?),
            Residency::OnDemand => {
                let backend = Arc::clone(&backend);
                Box::new(OnDemand { checkpoint: Arc::new(checkpoint), config: config.clone(), backend })
            }
        };
        Ok(Self { config, generation_config, tokenizer, template, vision, decoder, layers, backend })
    }
}

impl<B: Backend> Model<B> {
    /// Dimensions.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// End tokens and the recommended way of sampling.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The prompt of a conversation. `inputs`: its stills and videos, each kind in order of appearance.
    ///
    /// # Errors
    /// [`Error::Template`] also when the checkpoint has no template; [`Error::Placeholders`],
    /// [`Error::Patches`], [`Error::ContextLength`].
    pub fn prompt(&self, messages: &[Message], inputs: Vec<VisualInput>) -> Result<Prompt> {
        let Some(template) = &self.template else {
            return Err(Error::Template {
                file: "chat_template.jinja".to_owned(),
                reason: "the checkpoint has none, neither in that file nor in chat_template.json nor in \
                         tokenizer_config.json nor as tokenizer.chat_template of a GGUF file"
                    .to_owned(),
            });
        };
        self.prompt_from_text(&template.render(messages)?, inputs)
    }

    /// The prompt of an already rendered text with `<|image_pad|>` and `<|video_pad|>` placeholders.
    ///
    /// # Errors
    /// [`Error::Placeholders`], [`Error::Patches`], [`Error::ContextLength`].
    pub fn prompt_from_text(&self, text: &str, inputs: Vec<VisualInput>) -> Result<Prompt> {
        Prompt::new(text, inputs, &self.tokenizer, &self.config)
    }

    /// Runs the vision tower on the prompt's inputs; `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Patches`].
    pub fn encode(&self, prompt: &Prompt) -> Result<Option<VisionOutput<B>>> {
        match &prompt.inputs[..] {
            [] => Ok(None),
            [only] => self.encode_patches(&only.pixel_values, &[only.grid]).map(Some),
            several => {
                let all: Vec<f32> = several.iter().flat_map(|input| &input.pixel_values).copied().collect();
                self.encode_patches(&all, &prompt.grids()).map(Some)
            }
        }
    }

    /// Runs the vision tower. `pixel_values`: `[P, patch_values]`, the patches of all grids.
    ///
    /// # Errors
    /// [`Error::Patches`].
    pub fn encode_patches(
        &self,
        pixel_values: &[f32],
        grids: &[crate::vision::Grid],
    ) -> Result<VisionOutput<B>> {
        self.vision.forward(&*self.layers, pixel_values, grids)
    }

    /// The values of a buffer, for instance of [`VisionOutput::embeds`].
    pub fn download(&self, x: &B::Buffer) -> Vec<f32> {
        self.backend.download(x)
    }

    /// An empty cache for a new sequence.
    pub fn kv_cache(&self) -> KvCache<B> {
        self.decoder.kv_cache()
    }

    /// One step of the decoder over any mixture of sequences; see [`Decoder::forward`].
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn forward(&self, chunks: &mut [Chunk<'_, B>]) -> Result<Vec<f32>> {
        self.decoder.forward(&*self.layers, chunks)
    }

    /// The same with the logits in place of what is in `logits`.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn forward_into(&self, chunks: &mut [Chunk<'_, B>], logits: &mut Vec<f32>) -> Result<()> {
        self.decoder.forward_into(&*self.layers, chunks, logits)
    }

    /// Fills a cache with a whole prompt and returns the logits of all its tokens, `[L, vocab_size]`, or of
    /// the last one. `chunk_tokens`: tokens a step, 0 for all at once.
    ///
    /// # Errors
    /// [`Error::NotThisPrompt`] if the cache is not empty or `visual` is not what [`encode`](Self::encode) made
    /// of this prompt; as [`Decoder::forward`].
    pub fn prefill(
        &self,
        cache: &mut KvCache<B>,
        prompt: &Prompt,
        visual: Option<&VisionOutput<B>>,
        chunk_tokens: usize,
        logits: LogitRows,
    ) -> Result<Vec<f32>> {
        prefill(self, cache, prompt, visual, chunk_tokens, logits)
    }

    /// Starts an answer: encodes the pictures, prefills the prompt, and returns an iterator over the tokens.
    ///
    /// # Errors
    /// [`Error::Sampling`], [`Error::EmptyPrompt`], [`Error::Patches`], [`Error::ContextLength`].
    pub fn generate(&self, prompt: &Prompt, options: &GenerateOptions) -> Result<Generation<'_, B>> {
        Generation::start(self, prompt, options)
    }
}
