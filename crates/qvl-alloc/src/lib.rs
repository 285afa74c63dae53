#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod backing;
mod error;
pub mod owner;
pub mod pool;
pub mod system;

pub use backing::{Backing, HostBacking};
pub use error::{Error, OutOfMemory, OwnerUse, Result};
pub use owner::Owner;
pub use pool::{Buffer, Debug, Pool, PoolSettings};
