#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod buffers;
mod error;
pub mod key;
pub mod policy;
pub mod storage;

pub use error::{Cause, Error, Result, SharedCause};
pub use key::{Key, KeyId};
