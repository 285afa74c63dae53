#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adapters;
mod conversation;
pub mod distance;
mod embedded;
mod engine;
mod error;
pub mod evaluate;
pub mod inspect;
pub mod parity;

pub use conversation::{Conversation, Turn, TurnContent, TurnPart};
pub use embedded::{EMBEDDED, EMBEDDED_NAME};
pub use engine::{Answer, Engine, Timings};
pub use error::{Error, Result};

pub use qvl_dataload;
pub use qvl_model;
