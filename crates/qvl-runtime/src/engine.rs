//! One request after another: files in, tokens out.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use qvl_dataload::vision::{DecodeLimits, ProcessorConfig, Still, Video};
use qvl_model::backend::Backend;
use qvl_model::checkpoint::Checkpoint;
use qvl_model::{
    Content, Cpu, CpuOptions, FinishReason, GenerateOptions, Message, Model, Part, Prompt, Residency,
    VisualInput,
};

use crate::adapters;
use crate::conversation::{Conversation, TurnContent, TurnPart};
use crate::embedded::{self, EMBEDDED};
use crate::error::Result;

/// A checkpoint with its image processor.
pub struct Engine<B: Backend = Cpu> {
    model: Model<B>,
    processor: ProcessorConfig,
    limits: DecodeLimits,
}

/// A finished answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its text, special tokens left out.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it took.
    pub timings: Timings,
}

/// Where the time of one answer went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Decoding, resizing and cutting pictures, rendering and tokenising the prompt.
    pub prepare: Duration,
    /// Vision tower and prefill: the first token's logits are there.
    pub prefill: Duration,
    /// Choosing the tokens, and the decoder's step for each but the last.
    pub decode: Duration,
}

impl Engine<Cpu> {
    /// The embedded checkpoint on `threads` threads (0: all cores).
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn embedded(threads: usize) -> Result<Self> {
        Self::embedded_on(Cpu::new(threads)?)
    }

    /// A checkpoint on `threads` threads (0: all cores): a folder, or a `.gguf` file with its mmproj beside it.
    ///
    /// # Errors
    /// Whatever is missing or wrong in its files, by name.
    pub fn open(path: impl AsRef<Path>, threads: usize) -> Result<Self> {
        Self::open_on(path.as_ref(), None, Cpu::new(threads)?)
    }

    /// A checkpoint on the CPU as `options` say: a folder, a `.gguf` file with its mmproj beside it or given,
    /// or with `None` the embedded one. `progress` is told how many parts of the network are loaded, and of how
    /// many: loading takes long only when weights are quantised.
    ///
    /// # Errors
    /// Whatever is missing or wrong in its files, by name; what the options ask for and cannot have.
    pub fn open_with(
        path: Option<&Path>,
        mmproj: Option<&Path>,
        options: CpuOptions,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self> {
        let backend = Cpu::with(options)?;
        let (checkpoint, processor) = match path {
            Some(path) => adapters::open(path, mmproj)?,
            None => (Checkpoint::embedded(&EMBEDDED)?, embedded::processor()?),
        };
        Self::new(Model::load_with(checkpoint, backend, Residency::Resident, progress)?, processor)
    }

    /// A language model in GGUF and its mmproj on `threads` threads (0: all cores).
    ///
    /// # Errors
    /// Whatever is missing or wrong in the files, by name.
    pub fn open_gguf(model: impl AsRef<Path>, mmproj: impl AsRef<Path>, threads: usize) -> Result<Self> {
        Self::open_on(model.as_ref(), Some(mmproj.as_ref()), Cpu::new(threads)?)
    }
}

impl<B: Backend + 'static> Engine<B> {
    /// The embedded checkpoint on the given backend.
    ///
    /// # Errors
    /// If the backend cannot take the weights.
    pub fn embedded_on(backend: B) -> Result<Self> {
        Self::new(Model::embedded(&EMBEDDED, backend)?, embedded::processor()?)
    }

    /// A checkpoint on the given backend: a folder, or a `.gguf` file, with its mmproj beside it or given.
    ///
    /// # Errors
    /// Whatever is missing or wrong in its files, by name.
    pub fn open_on(path: &Path, mmproj: Option<&Path>, backend: B) -> Result<Self> {
        let (checkpoint, processor) = adapters::open(path, mmproj)?;
        Self::new(Model::load(checkpoint, backend, Residency::Resident)?, processor)
    }

    /// A network and an image processor, which must fit each other.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) if they do not.
    pub fn new(model: Model<B>, processor: ProcessorConfig) -> Result<Self> {
        adapters::check_fit(&processor, model.config())?;
        Ok(Self { model, processor, limits: DecodeLimits::default() })
    }
}

impl<B: Backend> Engine<B> {
    /// The network.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// The image processor.
    pub fn processor(&self) -> &ProcessorConfig {
        &self.processor
    }

    /// Reads and cuts the pictures of a conversation and makes its prompt.
    ///
    /// # Errors
    /// The first file that cannot be read or decoded, by name; [`qvl_model::Error::Placeholders`] if the text
    /// itself holds placeholders; [`qvl_model::Error::ContextLength`].
    pub fn prepare(&self, conversation: &Conversation) -> Result<Prompt> {
        let inputs = conversation.parts().filter_map(|part| self.input(part).transpose());
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let messages: Vec<Message> = conversation
            .turns
            .iter()
            .map(|turn| Message {
                role: turn.role.clone(),
                content: match &turn.content {
                    TurnContent::Text(text) => Content::Text(text.clone()),
                    TurnContent::Parts(parts) => Content::Parts(
                        parts
                            .iter()
                            .map(|part| match part {
                                TurnPart::Text(text) => Part::text(text),
                                TurnPart::Image(_) => Part::Image,
                                TurnPart::Video { .. } => Part::Video,
                            })
                            .collect(),
                    ),
                },
            })
            .collect();
        Ok(self.model.prompt(&messages, inputs)?)
    }

    fn input(&self, part: &TurnPart) -> Result<Option<VisualInput>> {
        match part {
            TurnPart::Text(_) => Ok(None),
            TurnPart::Image(path) => {
                let still = Still::open(path, &self.limits)?;
                Ok(Some(adapters::still(self.processor.image(&still)?)))
            }
            TurnPart::Video { frames, fps } => {
                let video = Video::open_frames(frames, *fps, &self.limits)?;
                Ok(Some(adapters::video(self.processor.video(&video)?)))
            }
        }
    }

    /// Answers a conversation; `on_text` gets each piece of text when its characters are complete,
    /// and says whether to go on.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare), and what the network fails with. Text given to `on_text` before an error
    /// is not an answer.
    pub fn answer(
        &self,
        conversation: &Conversation,
        options: &GenerateOptions,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let start = Instant::now();
        let prompt = self.prepare(conversation)?;
        self.answer_prompt(&prompt, options, start.elapsed(), on_text)
    }

    /// Answers a prompt that took `prepare` to make.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn answer_prompt(
        &self,
        prompt: &Prompt,
        options: &GenerateOptions,
        prepare: Duration,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let start = Instant::now();
        let mut generation = self.model.generate(prompt, options)?;
        let prefill = start.elapsed();
        let start = Instant::now();
        let (mut text, mut ids) = (String::new(), Vec::new());
        let mut give = |piece: &str| {
            text.push_str(piece);
            if piece.is_empty() { ControlFlow::Continue(()) } else { on_text(piece) }
        };
        let mut flow = ControlFlow::Continue(());
        while flow.is_continue()
            && let Some(token) = generation.next()
        {
            let token = token?;
            ids.push(token.id);
            flow = give(&token.text);
        }
        if flow.is_continue() {
            flow = give(&generation.rest());
        }
        let finish = match flow {
            ControlFlow::Break(()) => FinishReason::Cancelled,
            ControlFlow::Continue(()) => generation.finish_reason().unwrap_or(FinishReason::Length),
        };
        Ok(Answer { text, ids, finish, timings: Timings { prepare, prefill, decode: start.elapsed() } })
    }
}
