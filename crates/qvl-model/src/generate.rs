//! Prefill and decode of one request.

use crate::backend::Backend;
use crate::decoder::{Chunk, LogitRows, VisualRows};
use crate::error::{Error, Result};
use crate::kv::KvCache;
use crate::model::Model;
use crate::prompt::Prompt;
use crate::sampling::{Sampler, Sampling};
use crate::tokenizer::TextStream;
use crate::vision::VisionOutput;

/// How an answer is made.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens of the answer.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Tokens of the prompt processed in one step; 0 is all at once. Changes memory and speed, not the
    /// answer.
    pub prefill_chunk: usize,
    /// Go on after an end token, up to `max_new_tokens`.
    pub ignore_eos: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 256, sampling: Sampling::default(), prefill_chunk: 0, ignore_eos: false }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The network said an end token.
    Stop,
    /// `max_new_tokens` or the context was reached.
    Length,
    /// The caller stopped asking.
    Cancelled,
}

/// One token of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The characters that are complete with it; often none or several.
    pub text: String,
}

/// An answer in the making: an iterator over its tokens. End tokens are not among them.
pub struct Generation<'m, B: Backend> {
    model: &'m Model<B>,
    cache: KvCache<B>,
    sampler: Sampler,
    stream: TextStream<'m>,
    /// Logits from which the next token is chosen, or from which the last one was.
    logits: Vec<f32>,
    /// The last token, which the decoder has not seen yet: its step waits until another token is wanted.
    undecoded: Option<u32>,
    left: usize,
    ignore_eos: bool,
    finish: Option<FinishReason>,
}

impl<'m, B: Backend> Generation<'m, B> {
    /// Encodes the pictures and prefills the prompt.
    pub(crate) fn start(model: &'m Model<B>, prompt: &Prompt, options: &GenerateOptions) -> Result<Self> {
        let sampler = Sampler::new(options.sampling.clone(), &prompt.ids)?;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let visual = model.encode(prompt)?;
        let mut cache = model.kv_cache();
        let logits =
            prefill(model, &mut cache, prompt, visual.as_ref(), options.prefill_chunk, LogitRows::Last)?;
        Ok(Self {
            model,
            cache,
            sampler,
            stream: TextStream::new(model.tokenizer()),
            logits,
            undecoded: None,
            left: options.max_new_tokens,
            ignore_eos: options.ignore_eos,
            finish: None,
        })
    }

    /// Why it ended, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Logits from which the last token was chosen, after penalties, `[vocab_size]`; before the first token,
    /// those from which it will be.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// What is left when the answer ended inside a character.
    pub fn rest(&mut self) -> String {
        self.stream.finish()
    }

    /// The next token, or why there is none.
    fn step(&mut self) -> Result<Result<Token, FinishReason>> {
        let context = self.model.config().text.max_position_embeddings;
        if self.left == 0 || (self.undecoded.is_some() && self.cache.len() >= context) {
            return Ok(Err(FinishReason::Length));
        }
        if let Some(id) = self.undecoded.take() {
            self.decode(id)?;
        }
        let id = self.sampler.choose(&mut self.logits)?;
        if !self.ignore_eos && self.model.generation_config().eos_token_ids.contains(&id) {
            return Ok(Err(FinishReason::Stop));
        }
        self.left -= 1;
        self.undecoded = Some(id);
        Ok(Ok(Token { id, text: self.stream.push(id) }))
    }

    fn decode(&mut self, id: u32) -> Result<()> {
        let position = self.cache.next_position();
        let chunk = Chunk {
            cache: &mut self.cache,
            ids: &[id],
            positions: &[position],
            visual: None,
            logits: LogitRows::Last,
        };
        self.model.forward_into(&mut [chunk], &mut self.logits)
    }
}

impl<B: Backend> Iterator for Generation<'_, B> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        if self.finish.is_some() {
            return None;
        }
        match self.step() {
            Ok(Ok(token)) => Some(Ok(token)),
            Ok(Err(reason)) => {
                self.finish = Some(reason);
                None
            }
            Err(error) => {
                // What comes after a failed step would not be this answer.
                self.left = 0;
                self.undecoded = None;
                Some(Err(error))
            }
        }
    }
}

/// Runs a whole prompt through the decoder, `chunk_tokens` at a time (0: all at once). `logits` says what
/// is wanted of it: of the last token or of every one, `[L, vocab_size]`.
pub(crate) fn prefill<B: Backend>(
    model: &Model<B>,
    cache: &mut KvCache<B>,
    prompt: &Prompt,
    visual: Option<&VisionOutput<B>>,
    chunk_tokens: usize,
    logits: LogitRows,
) -> Result<Vec<f32>> {
    let tokens = visual.map_or(0, |output| output.tokens);
    if tokens != prompt.visual_tokens.len() {
        let reason = format!(
            "the prompt has {} visual tokens, but the vision tower's output has {tokens}: encode this prompt",
            prompt.visual_tokens.len()
        );
        return Err(Error::NotThisPrompt { reason });
    }
    if !cache.is_empty() {
        let reason = format!("a prompt starts an empty cache, this one holds {} tokens", cache.len());
        return Err(Error::NotThisPrompt { reason });
    }
    let chunk_tokens = if chunk_tokens == 0 { prompt.len().max(1) } else { chunk_tokens };
    let mut collected = Vec::new();
    let mut start = 0;
    while start < prompt.len() {
        let end = (start + chunk_tokens).min(prompt.len());
        let rows = prompt.visual_rows(start..end);
        let visual = visual.filter(|_| !rows.is_empty()).map(|output| VisualRows { output, rows: &rows });
        let wanted = if logits == LogitRows::Last && end < prompt.len() { LogitRows::None } else { logits };
        let chunk = Chunk {
            cache,
            ids: &prompt.ids[start..end],
            positions: &prompt.positions[start..end],
            visual,
            logits: wanted,
        };
        collected.extend(model.forward(&mut [chunk])?);
        start = end;
    }
    cache.set_rope_delta(prompt.rope_delta);
    Ok(collected)
}
