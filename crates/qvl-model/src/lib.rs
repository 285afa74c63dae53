#![doc = include_str!("../README.md")]
//!
//! # Dimension legend
//!
//! `P` patches, `T` rows of a step or visual tokens, `L` tokens of a prompt, `H` the decoder's width, `D` the
//! vision tower's width, `V` the vocabulary, `E` experts, `I` the width inside an MLP. `[a, b]` is a
//! row-major matrix. Weight fields carry the names of the checkpoint's tensors.

pub mod backend;
pub mod checkpoint;
pub mod config;
pub mod decoder;
mod error;
pub mod generate;
pub mod kv;
mod model;
pub mod moe;
pub mod mrope;
pub mod prompt;
pub mod quant;
pub mod sampling;
pub mod template;
pub mod tokenizer;
pub mod vision;
pub mod weights;

pub use backend::Backend;
pub use backend::cpu::{Cpu, CpuOptions, WeightFormat};
pub use backend::reference::Reference;
pub use error::{Error, Result};
pub use generate::{FinishReason, GenerateOptions, Generation, Token};
pub use model::{Model, Residency};
pub use prompt::{Prompt, VisualInput, VisualKind};
pub use sampling::Sampling;
pub use template::{Content, Message, Part};
pub use vision::Grid;
