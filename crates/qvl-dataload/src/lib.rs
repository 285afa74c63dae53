#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod buffer;
mod error;
pub mod source;
pub mod storage;
pub mod vision;

pub use buffer::{Buffer, Buffers, Recycled};
pub use error::{Cause, Error, Result};
pub use source::{Encoded, Footprint, Memory, Source};
