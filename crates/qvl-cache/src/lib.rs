#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod buffers;
pub mod codec;
pub mod cold;
mod error;
pub mod key;
pub mod policy;
pub mod storage;

pub use codec::{Codec, Raw};
pub use cold::{Cold, ColdStats, Kept, Refusal};
pub use error::{Cause, Error, Result, SharedCause};
pub use key::{Key, KeyId};
