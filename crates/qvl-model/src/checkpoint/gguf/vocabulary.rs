//! The tokenizer in a GGUF file.
//!
//! The file has the tokens by id, the type of each, and the merges; what it leaves out is fixed by the name in
//! `tokenizer.ggml.pre`. For `qwen2` that is what Qwen's own `tokenizer.json` says: NFC, the pattern below,
//! byte-level BPE. Ids are those that `tokenizer.json` gives. One thing is the converter's: tokens of the form
//! `<|...|>` count as special there, also the few that `tokenizer.json` lists as ordinary added tokens
//! (`<|fim_prefix|>` and its like), so decoding leaves them out.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::GgufFile;
use crate::error::{Error, Result};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// How `qwen2` cuts a text before the merges.
const QWEN2_PATTERN: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\
     \\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// What a token is, by its number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenType {
    /// Made by merges.
    Normal,
    /// Found before anything else, left out when decoding.
    Control,
    /// Found before anything else.
    UserDefined,
    /// Fills the vocabulary.
    Unused,
}

impl GgufFile {
    /// The tokens with their types, by id.
    fn tokens(&self) -> Result<impl Iterator<Item = Result<(u32, &str, TokenType)>>> {
        let tokens = self.required(TOKENS, self.texts(TOKENS)?, "the vocabulary")?;
        let types = self.required(TYPES, self.unsigneds(TYPES)?, "the type of each token")?;
        if tokens.len() != types.len() {
            let expected = format!("{}, the number of tokens", tokens.len());
            return Err(self.wrong(TYPES, format!("a list of {}", types.len()), expected));
        }
        Ok(tokens.zip(types).zip(0..).map(|((token, kind), id)| {
            let kind = match kind {
                1 => TokenType::Normal,
                3 => TokenType::Control,
                4 => TokenType::UserDefined,
                5 => TokenType::Unused,
                other => {
                    let got = format!("{other} in item {id}");
                    return Err(self.wrong(
                        TYPES,
                        got,
                        "1 (normal), 3 (control), 4 (user defined) or 5 (unused)",
                    ));
                }
            };
            Ok((id, token?, kind))
        }))
    }

    /// Ids of the given control tokens, `None` for those that are not there.
    pub(super) fn control_tokens<const N: usize>(&self, names: [&str; N]) -> Result<[Option<u32>; N]> {
        let mut ids = [None; N];
        for token in self.tokens()? {
            let (id, token, kind) = token?;
            if kind == TokenType::Control
                && let Some(index) = names.iter().position(|name| *name == token)
            {
                ids[index] = Some(id);
            }
        }
        Ok(ids)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Config`] for an entry that is absent or not what it must be; [`Error::Tokenizer`] if the
    /// entries do not fit each other.
    pub(super) fn tokenizer(&self) -> Result<tokenizers::Tokenizer> {
        for (key, expected) in [(MODEL, "gpt2"), (PRE, "qwen2")] {
            let value = self.required(key, self.text(key)?, &format!("{expected:?}"))?;
            if value != expected {
                let expected = format!("{expected:?}, as every Qwen3-VL has");
                return Err(self.wrong(key, format!("{value:?}"), expected));
            }
        }
        let fail = |reason: String| Error::Tokenizer { file: self.name().to_owned(), reason };
        // Added tokens are in the vocabulary of the merges too, where no merge makes them: so each has the id
        // that the file gives it, whatever lies between.
        let mut vocab = Vocab::default();
        let mut added = Vec::new();
        for token in self.tokens()? {
            let (id, token, kind) = token?;
            match kind {
                TokenType::Unused => continue,
                TokenType::Normal => {}
                TokenType::Control | TokenType::UserDefined => {
                    let special = kind == TokenType::Control;
                    added.push(AddedToken::from(token, special).normalized(false));
                }
            }
            if let Some(other) = vocab.insert(token.to_owned(), id) {
                return Err(fail(format!("token {token:?} has the ids {other} and {id}")));
            }
        }
        let merges = self.required(MERGES, self.texts(MERGES)?, "the merges")?;
        let merges = merges
            .map(|merge| {
                let merge = merge?;
                let pair = merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
                pair.ok_or_else(|| {
                    fail(format!("merge {merge:?} is not two tokens with a blank between them"))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let library = |error: tokenizers::Error| fail(format!("the vocabulary cannot be used: {error}"));
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).build().map_err(library)?;
        let split = Split::new(
            SplitPattern::Regex(QWEN2_PATTERN.to_owned()),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .map_err(library)?;
        let mut tokenizer = tokenizers::Tokenizer::new(bpe);
        tokenizer
            .with_normalizer(Some(NFC))
            .with_pre_tokenizer(Some(Sequence::new(vec![
                PreTokenizerWrapper::Split(split),
                PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)),
            ])))
            .with_decoder(Some(ByteLevel::default()));
        tokenizer.add_tokens(&added);
        Ok(tokenizer)
    }
}
