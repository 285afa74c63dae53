#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod arena;
pub mod backing;
pub mod blocks;
mod error;
pub mod governor;
pub mod owner;
pub mod plan;
pub mod pool;
pub mod power;
pub mod pressure;
pub mod system;

pub use backing::Backing;
pub use error::{Error, OutOfMemory, OwnerUse, Result};
