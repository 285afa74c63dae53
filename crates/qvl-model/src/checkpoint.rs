//! A checkpoint, a folder in the Hugging Face layout or a pair of GGUF files: which files there are and which
//! tensor is in which.
//!
//! Nothing is read here but headers; tensors are views into memory maps (or into bytes the program
//! carries) until a backend takes them.

mod gguf;
mod names;
mod safetensors;
mod storage;
mod tensor;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use gguf::pair::{Pair, is_gguf, mmproj_beside};

pub use gguf::GgufFile;
pub use names::Names;
pub use safetensors::SafetensorsFile;
pub use tensor::{Dtype, TensorView};

use crate::config::{Config, GenerationConfig};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// The texts of a checkpoint that the program carries inside itself instead of reading a folder.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedCheckpoint {
    /// How it is called in messages.
    pub name: &'static str,
    /// `config.json`.
    pub config: &'static str,
    /// `model.safetensors`.
    pub weights: &'static [u8],
    /// `tokenizer.json`.
    pub tokenizer: &'static str,
    /// `chat_template.jinja`.
    pub chat_template: &'static str,
    /// `generation_config.json`.
    pub generation_config: &'static str,
}

/// A named text of a checkpoint.
#[derive(Clone, Debug)]
pub struct TextFile {
    /// Path or name, for messages.
    pub name: String,
    /// Its content.
    pub text: String,
}

/// What a checkpoint in GGUF says about the pictures it was trained on. A folder has files of the image
/// processor's for that, which are not this crate's.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSettings {
    /// The file that says so.
    pub file: String,
    /// Mean of R, G and B.
    pub mean: [f64; 3],
    /// Standard deviation of R, G and B.
    pub std: [f64; 3],
    /// The fewest pixels after resizing; converters seldom write it.
    pub min_pixels: Option<u64>,
    /// The most pixels after resizing; converters seldom write it.
    pub max_pixels: Option<u64>,
}

/// An opened checkpoint: its small files as text, its tensors as views.
///
/// Cost of opening: the JSON files are read, the weight files are mapped and their headers checked; no
/// weight is touched. Of a GGUF pair the header holds the vocabulary too, and the patch embedding is copied.
#[derive(Debug)]
pub struct Checkpoint {
    source: Source,
    tensors: Tensors,
}

/// Where everything but the tensors is.
#[derive(Debug)]
enum Source {
    Folder {
        config: TextFile,
        tokenizer: TextFile,
        chat_template: Option<TextFile>,
        generation_config: Option<TextFile>,
    },
    Gguf(Box<Pair>),
}

impl Checkpoint {
    /// Opens a folder with `config.json`, `tokenizer.json` and `model.safetensors` (or
    /// `model.safetensors.index.json` and its shards), or a `.gguf` file of a language model that has exactly one
    /// `mmproj*.gguf` beside it.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] and [`Error::Mmproj`] name what is absent; [`Error::Header`] and [`Error::Json`]
    /// what is broken.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if is_gguf(path) { Self::open_gguf(path, None) } else { Self::open_folder(path) }
    }

    /// Opens a language model in GGUF with its vision tower, `mmproj`; `None` takes the one `mmproj*.gguf` beside
    /// it.
    ///
    /// # Errors
    /// [`Error::Mmproj`] if there is none, or more than one; [`Error::Header`] for a broken file;
    /// [`Error::Config`] for files that are something else, do not belong together, or hold a value that cannot
    /// be honoured.
    pub fn open_gguf(model: impl AsRef<Path>, mmproj: Option<&Path>) -> Result<Self> {
        let path = model.as_ref();
        if path.is_dir() {
            return Err(Error::Header {
                file: path.display().to_string(),
                reason: "it is a folder, expected the .gguf file of a language model".to_owned(),
            });
        }
        let model = GgufFile::open(path)?;
        Pair::check_model(&model)?;
        let mmproj = match mmproj {
            Some(mmproj) => GgufFile::open(mmproj)?,
            None => GgufFile::open(&mmproj_beside(path)?)?,
        };
        let (pair, tensors) = Pair::open(model, &mmproj)?;
        Ok(Self { source: Source::Gguf(Box::new(pair)), tensors })
    }

    fn open_folder(dir: &Path) -> Result<Self> {
        let config = Self::read_config(dir)?;
        let tokenizer = required(
            dir,
            "tokenizer.json",
            "download the checkpoint's tokenizer.json too (vocab.json with merges.txt is not read)",
        )?;
        let tensors = Tensors::open(dir)?;
        let source = Source::Folder {
            config,
            tokenizer,
            chat_template: chat_template(dir)?,
            generation_config: optional(dir, "generation_config.json")?,
        };
        Ok(Self { source, tensors })
    }

    /// Reads only `config.json` of a folder.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn read_config(dir: &Path) -> Result<TextFile> {
        match std::fs::metadata(dir) {
            Err(source) => return Err(Error::Io { path: dir.to_owned(), source }),
            Ok(meta) if !meta.is_dir() => {
                return Err(Error::NotACheckpoint {
                    dir: dir.to_owned(),
                    missing: "config.json",
                    hint: "it is a file: give the folder that holds config.json and model.safetensors, or a .gguf \
                           file",
                });
            }
            Ok(_) => {}
        }
        required(dir, "config.json", "give the folder of a downloaded Qwen3-VL checkpoint")
    }

    /// A checkpoint whose files are part of the program.
    ///
    /// # Errors
    /// [`Error::Header`] if the weights are not a valid safetensors file.
    pub fn embedded(files: &EmbeddedCheckpoint) -> Result<Self> {
        let text = |file: &str, text: &str| TextFile {
            name: format!("{}/{file}", files.name),
            text: text.to_owned(),
        };
        let weights =
            SafetensorsFile::from_static(&format!("{}/model.safetensors", files.name), files.weights)?;
        let source = Source::Folder {
            config: text("config.json", files.config),
            tokenizer: text("tokenizer.json", files.tokenizer),
            chat_template: Some(text("chat_template.jinja", files.chat_template)),
            generation_config: Some(text("generation_config.json", files.generation_config)),
        };
        Ok(Self { source, tensors: Tensors::single(&weights) })
    }

    /// The network's dimensions.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn config(&self) -> Result<Config> {
        match &self.source {
            Source::Folder { config, .. } => Config::parse(config),
            Source::Gguf(pair) => Ok(pair.config().clone()),
        }
    }

    /// What ends an answer, and how tokens are best chosen.
    ///
    /// # Errors
    /// As [`GenerationConfig::parse`]; [`Error::Config`] if a GGUF file names no end token.
    pub fn generation_config(&self, config: &Config) -> Result<GenerationConfig> {
        match &self.source {
            Source::Folder { config: config_file, generation_config, .. } => {
                GenerationConfig::parse(generation_config.as_ref(), config_file, config.text.vocab_size)
            }
            Source::Gguf(pair) => pair.generation_config(),
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::parse`]; [`Error::Config`] for an entry of a GGUF file that is not what it must be.
    pub fn tokenizer(&self, config: &Config) -> Result<Tokenizer> {
        match &self.source {
            Source::Folder { tokenizer, .. } => Tokenizer::parse(tokenizer, config),
            Source::Gguf(pair) => Tokenizer::from_library(pair.tokenizer()?, pair.name(), config),
        }
    }

    /// The chat template's source, wherever it was found; `None` if the checkpoint has none.
    ///
    /// # Errors
    /// [`Error::Config`] if the entry of a GGUF file is not a text.
    pub fn chat_template(&self) -> Result<Option<TextFile>> {
        match &self.source {
            Source::Folder { chat_template, .. } => Ok(chat_template.clone()),
            Source::Gguf(pair) => pair.chat_template(),
        }
    }

    /// What it says about pictures; `None` for a folder.
    pub fn image_settings(&self) -> Option<&ImageSettings> {
        match &self.source {
            Source::Folder { .. } => None,
            Source::Gguf(pair) => Some(pair.image_settings()),
        }
    }

    /// The tensors.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }
}

/// All tensors of a checkpoint by name, over one file or many. Names are those of published checkpoints, also
/// for files that have others.
#[derive(Debug, Default)]
pub struct Tensors {
    /// The single file, or the index: what messages about absent tensors name.
    source: String,
    files: Vec<String>,
    by_name: HashMap<String, TensorView>,
    /// File and stored type, by name, of tensors of types that are not read.
    unreadable: HashMap<String, (String, String)>,
    kind: Kind,
}

/// What the files are.
#[derive(Debug, Default)]
enum Kind {
    #[default]
    Safetensors,
    /// With the blocks tapped for DeepStack, which are in the names of tensors.
    Gguf { tapped: Vec<usize> },
}

impl Tensors {
    /// Opens the weight files of a folder.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(dir: &Path) -> Result<Self> {
        let index = dir.join("model.safetensors.index.json");
        let single = dir.join("model.safetensors");
        if single.is_file() {
            return Ok(Self::single(&SafetensorsFile::open(&single)?));
        }
        let Some(index_text) = optional(dir, "model.safetensors.index.json")? else {
            return Err(Error::NotACheckpoint {
                dir: dir.to_owned(),
                missing: "model.safetensors or model.safetensors.index.json",
                hint: "download the weights too; of a GGUF model give the .gguf file itself",
            });
        };
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        let parsed: Index = crate::config::parse_json(&index_text)?;
        let mut shard_names: Vec<&String> = parsed.weight_map.values().collect();
        shard_names.sort_unstable();
        shard_names.dedup();
        let mut files = Vec::with_capacity(shard_names.len());
        for shard_name in &shard_names {
            // A shard is a file beside the index: a name with a path in it would read elsewhere.
            if Path::new(shard_name.as_str()).file_name().is_none_or(|name| name != shard_name.as_str()) {
                return Err(Error::Header {
                    file: index_text.name,
                    reason: format!("weight_map names the shard {shard_name:?}, expected a plain file name"),
                });
            }
            files.push(SafetensorsFile::open(&dir.join(shard_name))?);
        }
        let mut tensors = Self { source: index_text.name, ..Self::default() };
        for (tensor, shard_name) in &parsed.weight_map {
            let Ok(file_index) = shard_names.binary_search(&shard_name) else { continue };
            let file = &files[file_index];
            if let Some(view) = file.get(tensor) {
                tensors.by_name.insert(tensor.clone(), view);
            } else if file.unreadable_dtype(tensor).is_none() {
                return Err(Error::MissingTensor {
                    file: file.name().to_owned(),
                    tensor: tensor.clone(),
                    hint: format!("{} says it is there; download this shard again", index.display()),
                });
            }
        }
        files.iter().for_each(|file| tensors.add_file(file));
        Ok(tensors)
    }

    fn single(file: &SafetensorsFile) -> Self {
        let mut tensors = Self { source: file.name().to_owned(), ..Self::default() };
        let views = file.names().filter_map(|name| Some((name.to_owned(), file.get(name)?)));
        tensors.by_name = views.collect();
        tensors.add_file(file);
        tensors
    }

    /// Notes the file itself and what it has that is not read.
    fn add_file(&mut self, file: &SafetensorsFile) {
        self.files.push(file.name().to_owned());
        for (name, dtype) in file.unreadable() {
            self.unreadable.insert(name.to_owned(), (file.name().to_owned(), dtype.to_owned()));
        }
    }

    /// The tensor called `name`, whatever its shape.
    pub fn find(&self, name: &str) -> Option<TensorView> {
        self.by_name.get(name).cloned()
    }

    /// The tensor called `name`, which must have the given shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorDtype`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<TensorView> {
        let view = self.find(name).ok_or_else(|| self.missing(name))?;
        if view.shape() != shape {
            return Err(Error::TensorShape {
                file: view.file().to_owned(),
                tensor: view.name().to_owned(),
                got: view.shape().to_vec(),
                expected: shape.to_vec(),
            });
        }
        Ok(view)
    }

    /// The error for an absent tensor, with the nearest guess at why.
    pub(crate) fn missing(&self, name: &str) -> Error {
        let (stored, file, expected) = match &self.kind {
            Kind::Safetensors => (name.to_owned(), &self.source, "BF16, F16 or F32"),
            Kind::Gguf { tapped } => {
                // The vision tower is in the second file.
                let file = &self.files[usize::from(name.starts_with("model.visual."))];
                (gguf::stored_name(name, tapped), file, gguf::READABLE)
            }
        };
        if let Some((file, dtype)) = self.unreadable.get(name) {
            return Error::TensorDtype { file: file.clone(), tensor: stored, got: dtype.clone(), expected };
        }
        let hint = match self.by_name.values().map(TensorView::name).min() {
            None => "the file has no tensors".to_owned(),
            Some(first) => format!(
                "it holds {} tensors, the first is {first}; is this another model, or a part of one?",
                self.by_name.len()
            ),
        };
        Error::MissingTensor { file: file.clone(), tensor: stored, hint }
    }

    /// Tensors stored in a type this crate does not read, with that type: an error only for whoever needs one.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.unreadable.iter().map(|(name, (_, dtype))| (name.as_str(), dtype.as_str()))
    }

    /// Names of all tensors that can be read, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Paths or names of the weight files.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Values in all tensors.
    pub fn parameter_count(&self) -> u64 {
        self.by_name.values().map(|view| view.shape().iter().map(|&d| d as u64).product::<u64>()).sum()
    }

    /// Bytes of all tensors as stored.
    pub fn weight_bytes(&self) -> u64 {
        self.by_name.values().map(|view| view.bytes().len() as u64).sum()
    }
}

fn required(dir: &Path, file: &'static str, hint: &'static str) -> Result<TextFile> {
    optional(dir, file)?.ok_or_else(|| Error::NotACheckpoint { dir: dir.to_owned(), missing: file, hint })
}

fn optional(dir: &Path, file: &str) -> Result<Option<TextFile>> {
    let path: PathBuf = dir.join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(TextFile { name: path.display().to_string(), text })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path, source }),
    }
}

/// The chat template of a folder, from the first of the three places where published checkpoints keep it.
fn chat_template(dir: &Path) -> Result<Option<TextFile>> {
    if let Some(file) = optional(dir, "chat_template.jinja")? {
        return Ok(Some(file));
    }
    #[derive(serde::Deserialize)]
    struct Holder {
        chat_template: Option<OneOrNamed>,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged, expecting = "chat_template must be a string or a list of named templates")]
    enum OneOrNamed {
        One(String),
        Named(Vec<Named>),
    }
    #[derive(serde::Deserialize)]
    struct Named {
        name: String,
        template: String,
    }
    for file_name in ["chat_template.json", "tokenizer_config.json"] {
        let Some(file) = optional(dir, file_name)? else { continue };
        let holder: Holder = crate::config::parse_json(&file)?;
        let text = match holder.chat_template {
            None => continue,
            Some(OneOrNamed::One(text)) => text,
            Some(OneOrNamed::Named(list)) => match list.into_iter().find(|entry| entry.name == "default") {
                Some(entry) => entry.template,
                None => continue,
            },
        };
        return Ok(Some(TextFile { name: file.name, text }));
    }
    Ok(None)
}
