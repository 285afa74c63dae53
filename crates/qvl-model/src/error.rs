//! The crate's one error type. Every variant names the file, tensor or field it is about, what was
//! found and what was expected.

use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a checkpoint folder and an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{}: cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder is not a checkpoint: a file it must have is absent.
    #[error("{}: no {missing} in this folder; {hint}", dir.display())]
    NotACheckpoint {
        /// The folder.
        dir: PathBuf,
        /// What was looked for.
        missing: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// A file is not JSON, or a key has another type than it must have.
    #[error("{file}: {reason}")]
    Json {
        /// The file.
        file: String,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A configuration value that this implementation cannot honour.
    #[error("{file}: {field} is {got}, expected {expected}")]
    Config {
        /// The file.
        file: String,
        /// Dotted path of the key.
        field: String,
        /// The value found.
        got: String,
        /// What it must be.
        expected: String,
    },
    /// The header of a weight file is broken.
    #[error("{file}: {reason}")]
    Header {
        /// The file.
        file: String,
        /// What is wrong with it, with the numbers.
        reason: String,
    },
    /// A tensor the network needs is in no file of the checkpoint.
    #[error("{file}: tensor {tensor} is missing; {hint}")]
    MissingTensor {
        /// The checkpoint's weight file or index.
        file: String,
        /// The tensor.
        tensor: String,
        /// Why that may be.
        hint: String,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("{file}: tensor {tensor} has shape {got:?}, expected {expected:?} from the configuration")]
    TensorShape {
        /// The file that holds it.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape found.
        got: Vec<usize>,
        /// The shape the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor is stored in a type this crate does not read.
    #[error("{file}: tensor {tensor} is stored as {got}, expected {expected}")]
    TensorDtype {
        /// The file that holds it.
        file: String,
        /// The tensor.
        tensor: String,
        /// The type found.
        got: String,
        /// The types that files of this format may have.
        expected: &'static str,
    },
    /// A language model in GGUF without its vision tower, or with several to choose from.
    #[error(
        "{}: the vision tower is in a file of its own, and beside this one there {}; say which with --mmproj FILE",
        model.display(), listed(found)
    )]
    Mmproj {
        /// The language model.
        model: PathBuf,
        /// The files beside it that may be meant: none, or more than one.
        found: Vec<PathBuf>,
    },
    /// The tokenizer cannot be used with this checkpoint.
    #[error("{file}: {reason}")]
    Tokenizer {
        /// The tokenizer file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The chat template could not be parsed or rendered.
    #[error("{file}: the chat template failed: {reason}")]
    Template {
        /// The file the template came from.
        file: String,
        /// What the template engine or the template itself said.
        reason: String,
    },
    /// The prompt has another number of image or video placeholders than pictures were given.
    #[error(
        "the prompt has {placeholders} {kind} placeholder(s), but {given} {kind}(s) were given; \
         give one for each"
    )]
    Placeholders {
        /// `image` or `video`.
        kind: &'static str,
        /// Placeholders in the rendered prompt.
        placeholders: usize,
        /// Pictures or videos given.
        given: usize,
    },
    /// A cache or the output of the vision tower does not belong to the prompt.
    #[error("{reason}")]
    NotThisPrompt {
        /// What does not fit, with both numbers.
        reason: String,
    },
    /// The patches of a picture do not fit the network or their own grid.
    #[error("{what}: {reason}")]
    Patches {
        /// Which input.
        what: String,
        /// What is wrong, with both numbers.
        reason: String,
    },
    /// There is nothing to answer: the rendered prompt has no token.
    #[error("the prompt has no token; does the chat template leave the messages out?")]
    EmptyPrompt,
    /// The prompt does not fit the context.
    #[error(
        "the prompt has {tokens} tokens, but the context of this model holds {limit}; shorten the text or \
         give fewer or smaller pictures"
    )]
    ContextLength {
        /// Tokens of the prompt, pictures included.
        tokens: usize,
        /// Most tokens a sequence may have.
        limit: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        id: u32,
        /// Number of ids the network knows.
        vocab_size: usize,
    },
    /// A sampling option outside its range.
    #[error("{option} is {got}, expected {expected}")]
    Sampling {
        /// The option.
        option: &'static str,
        /// The value given.
        got: String,
        /// Its range.
        expected: &'static str,
    },
    /// The network produced a value that is not a number.
    #[error(
        "{place}: the activations are not finite (first at row {row}); the weights or the input are broken"
    )]
    NotFinite {
        /// Where it was noticed.
        place: String,
        /// First row with such a value.
        row: usize,
    },
    /// The pool of compute threads could not be made.
    #[error("cannot start {threads} compute threads: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },

    /// An instruction set was asked for that this CPU does not have.
    #[error("QVL_ISA: no instruction set {name:?} here; this CPU has {available}")]
    Isa {
        /// What was asked for.
        name: String,
        /// What there is, worst first.
        available: String,
    },

    /// A name that no weight format has.
    #[error("no weight format {name:?}; there are stored, bf16, q8 and q4")]
    WeightFormat {
        /// What was asked for.
        name: String,
    },

    /// A weight that cannot be quantised.
    #[error("{file}: tensor {tensor}, row {row}: {source}")]
    Quantize {
        /// Its file.
        file: String,
        /// Its tensor.
        tensor: String,
        /// Its row.
        row: usize,
        /// What is wrong with it.
        source: crate::quant::Unquantizable,
    },

    /// There is no memory for a packed matrix.
    #[error("tensor {tensor}: no memory to pack it: {source}")]
    PackMemory {
        /// The tensor.
        tensor: String,
        /// What the system said.
        source: std::io::Error,
    },

    /// bfloat16 weights were asked for, and a matrix is stored otherwise.
    #[error("{file}: tensor {tensor} is stored as {got}, not as BF16; ask for weights as stored")]
    NotBf16 {
        /// Its file.
        file: String,
        /// Its tensor.
        tensor: String,
        /// How it is stored.
        got: String,
    },
}

/// For [`Error::Mmproj`].
fn listed(found: &[PathBuf]) -> String {
    let names: Vec<_> =
        found.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy()).collect();
    match &names[..] {
        [] => "is no mmproj*.gguf".to_owned(),
        names => format!("are {}", names.join(", ")),
    }
}
