//! A checkpoint folder in the Hugging Face layout: which files there are and which tensor is in which.
//!
//! Nothing is read here but headers; tensors are views into memory maps (or into bytes the program
//! carries) until a backend takes them.

mod names;
mod safetensors;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use names::Names;
pub use safetensors::{Dtype, SafetensorsFile, TensorView};

use crate::error::{Error, Result};

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

/// An opened checkpoint: its small files as text, its tensors as views.
///
/// Cost of opening: the JSON files are read, the weight files are mapped and their headers checked; no
/// weight is touched.
#[derive(Debug)]
pub struct Checkpoint {
    /// `config.json`.
    pub config: TextFile,
    /// `tokenizer.json`.
    pub tokenizer: TextFile,
    /// The chat template's source, wherever it was found; `None` if the checkpoint has none.
    pub chat_template: Option<TextFile>,
    /// `generation_config.json`.
    pub generation_config: Option<TextFile>,
    tensors: Tensors,
}

impl Checkpoint {
    /// Opens a folder with `config.json`, `tokenizer.json` and `model.safetensors` (or
    /// `model.safetensors.index.json` and its shards).
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] names what is absent; [`Error::Header`] and [`Error::Json`] what is broken.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = Self::read_config(dir)?;
        let tokenizer = required(
            dir,
            "tokenizer.json",
            "download the checkpoint's tokenizer.json too (vocab.json with merges.txt is not read)",
        )?;
        let tensors = Tensors::open(dir)?;
        Ok(Self {
            config,
            tokenizer,
            chat_template: chat_template(dir)?,
            generation_config: optional(dir, "generation_config.json")?,
            tensors,
        })
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
                    hint: "it is a file: give the folder that holds config.json and model.safetensors",
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
        Ok(Self {
            config: text("config.json", files.config),
            tokenizer: text("tokenizer.json", files.tokenizer),
            chat_template: Some(text("chat_template.jinja", files.chat_template)),
            generation_config: Some(text("generation_config.json", files.generation_config)),
            tensors: Tensors::single(weights),
        })
    }

    /// The tensors.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }
}

/// All tensors of a checkpoint by name, over one file or many.
#[derive(Debug)]
pub struct Tensors {
    /// The single file, or the index: what messages about absent tensors name.
    source: String,
    files: Vec<SafetensorsFile>,
    /// Tensor name to the index of its file.
    by_name: HashMap<String, usize>,
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
            return Ok(Self::single(SafetensorsFile::open(&single)?));
        }
        let Some(index_text) = optional(dir, "model.safetensors.index.json")? else {
            return Err(Error::NotACheckpoint {
                dir: dir.to_owned(),
                missing: "model.safetensors or model.safetensors.index.json",
                hint: "download the weights too",
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
        let mut by_name = HashMap::with_capacity(parsed.weight_map.len());
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
        for (tensor, shard_name) in &parsed.weight_map {
            let Ok(file_index) = shard_names.binary_search(&shard_name) else { continue };
            let file = &files[file_index];
            if file.get(tensor).is_none() && file.unreadable_dtype(tensor).is_none() {
                return Err(Error::MissingTensor {
                    file: files[file_index].name().to_owned(),
                    tensor: tensor.clone(),
                    hint: format!("{} says it is there; download this shard again", index.display()),
                });
            }
            by_name.insert(tensor.clone(), file_index);
        }
        Ok(Self { source: index_text.name, files, by_name })
    }

    fn single(file: SafetensorsFile) -> Self {
        let by_name = file.names().map(|name| (name.to_owned(), 0)).collect();
        Self { source: file.name().to_owned(), files: vec![file], by_name }
    }

    /// The tensor called `name`, whatever its shape.
    pub fn find(&self, name: &str) -> Option<TensorView> {
        self.by_name.get(name).and_then(|&file_index| self.files[file_index].get(name))
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
                tensor: name.to_owned(),
                got: view.shape().to_vec(),
                expected: shape.to_vec(),
            });
        }
        Ok(view)
    }

    /// The error for an absent tensor, with the nearest guess at why.
    pub(crate) fn missing(&self, name: &str) -> Error {
        if let Some((file, dtype)) =
            self.files.iter().find_map(|file| file.unreadable_dtype(name).map(|dtype| (file, dtype)))
        {
            return Error::TensorDtype {
                file: file.name().to_owned(),
                tensor: name.to_owned(),
                got: dtype.to_owned(),
            };
        }
        let hint = match self.by_name.keys().min() {
            None => "the file has no tensors".to_owned(),
            Some(first) => format!(
                "it holds {} tensors, the first is {first}; is this another model, or a part of one?",
                self.by_name.len()
            ),
        };
        Error::MissingTensor { file: self.source.clone(), tensor: name.to_owned(), hint }
    }

    /// Tensors stored in a type this crate does not read, with that type: an error only for whoever needs one.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().flat_map(SafetensorsFile::unreadable)
    }

    /// Names of all tensors that can be read, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The weight files.
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// Values in all tensors.
    pub fn parameter_count(&self) -> u64 {
        self.views().map(|view| view.shape().iter().map(|&d| d as u64).product::<u64>()).sum()
    }

    /// Bytes of all tensors as stored.
    pub fn weight_bytes(&self) -> u64 {
        self.views().map(|view| view.bytes().len() as u64).sum()
    }

    fn views(&self) -> impl Iterator<Item = TensorView> {
        self.by_name.iter().filter_map(|(name, &file_index)| self.files[file_index].get(name))
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
