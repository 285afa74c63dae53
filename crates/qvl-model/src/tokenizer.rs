//! Text to token ids and back. The algorithm is the `tokenizers` crate's; here are the checks that the
//! tokenizer belongs to the network, and decoding in a stream, which never splits a character.

use tokenizers::DecoderWrapper;

use crate::checkpoint::TextFile;
use crate::config::Config;
use crate::error::{Error, Result};

/// The tokenizer of a checkpoint.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    name: String,
    /// The byte a character of the vocabulary stands for, by code point; the alphabet ends below 0x144.
    byte_of_char: Vec<Option<u8>>,
}

impl Tokenizer {
    /// Parses `tokenizer.json` and checks it against the network: byte-level decoding, no id beyond the
    /// vocabulary, and the four vision tokens at the ids that `config.json` gives them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] names the file and the first thing that does not fit.
    pub fn parse(file: &TextFile, config: &Config) -> Result<Self> {
        let fail = |reason: String| Error::Tokenizer { file: file.name.clone(), reason };
        if file.text.trim().is_empty() {
            return Err(fail("the file is empty; download it again".to_owned()));
        }
        let inner = tokenizers::Tokenizer::from_bytes(file.text.as_bytes())
            .map_err(|error| fail(format!("not a tokenizer of the tokenizers library: {error}")))?;
        Self::from_library(inner, &file.name, config)
    }

    /// The same checks for a tokenizer that was built from the file `name`.
    pub(crate) fn from_library(inner: tokenizers::Tokenizer, name: &str, config: &Config) -> Result<Self> {
        let fail = |reason: String| Error::Tokenizer { file: name.to_owned(), reason };
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(fail("its decoder is not ByteLevel, as every Qwen tokenizer's is".to_owned()));
        }
        for (token, expected, field) in [
            ("<|vision_start|>", config.vision_start_token_id, "vision_start_token_id"),
            ("<|vision_end|>", config.vision_end_token_id, "vision_end_token_id"),
            ("<|image_pad|>", config.image_token_id, "image_token_id"),
            ("<|video_pad|>", config.video_token_id, "video_token_id"),
        ] {
            match inner.token_to_id(token) {
                None => {
                    return Err(fail(format!(
                        "it has no token {token}; this is a text model's tokenizer, take the one of the \
                         Qwen3-VL checkpoint"
                    )));
                }
                Some(id) if id != expected => {
                    return Err(fail(format!(
                        "{token} has id {id}, but config.json says {field} {expected}"
                    )));
                }
                Some(_) => {}
            }
        }
        let highest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if highest as usize >= config.text.vocab_size {
            return Err(fail(format!(
                "its highest id is {highest}, but the network knows {} ids (vocab_size)",
                config.text.vocab_size
            )));
        }
        Ok(Self { inner, name: name.to_owned(), byte_of_char: byte_of_char() })
    }

    /// Token ids of a text; special tokens written out in it become their ids.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library cannot encode it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// Token ids of a text in the middle of a prompt: nothing is put before or after it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub(crate) fn encode_piece(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        match self.inner.encode_fast(text, add_special_tokens) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(Error::Tokenizer { file: self.name.clone(), reason: error.to_string() }),
        }
    }

    /// The text of some ids, special tokens left out; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The id of a token by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Tokens it has.
    pub fn token_count(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The bytes a token adds to the text; none for special tokens and for ids the tokenizer does not have
    /// (networks have a few more rows than their tokenizer has tokens).
    fn bytes(&self, id: u32) -> Vec<u8> {
        if self.inner.get_added_vocabulary().is_special_token(&self.inner.id_to_token(id).unwrap_or_default())
        {
            return Vec::new();
        }
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        let mapped: Option<Vec<u8>> =
            token.chars().map(|c| self.byte_of_char.get(c as usize).copied().flatten()).collect();
        mapped.unwrap_or_else(|| token.into_bytes())
    }
}

/// Byte-level BPE writes each byte as a printable character: printable Latin-1 as itself, the other 68
/// bytes, in order, as the code points from 256 on.
///
/// Source: openai/gpt-2, `bytes_to_unicode`.
fn byte_of_char() -> Vec<Option<u8>> {
    let mut byte_of_char = vec![None; 256 + 68];
    let mut next = 256;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let place = if printable { usize::from(byte) } else { next };
        next += usize::from(!printable);
        byte_of_char[place] = Some(byte);
    }
    byte_of_char
}

/// Decodes ids one by one into text that only ever ends between characters.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    pending: Vec<u8>,
}

impl<'a> TextStream<'a> {
    /// An empty stream.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, pending: Vec::new() }
    }

    /// Adds a token; returns the characters that are complete now.
    pub fn push(&mut self, id: u32) -> String {
        self.pending.extend(self.tokenizer.bytes(id));
        let mut text = String::new();
        let mut kept = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            // Bytes at the very end may be the start of a character; elsewhere they never become one.
            if chunks.peek().is_none() && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none())
            {
                kept = invalid.len();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..self.pending.len() - kept);
        text
    }

    /// What is left when the stream ends inside a character: U+FFFD, or nothing.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}
