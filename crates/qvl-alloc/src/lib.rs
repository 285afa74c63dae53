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

pub use arena::Arena;
pub use backing::{Backing, HostBacking};
pub use blocks::{Block, BlockPool};
pub use error::{Error, OutOfMemory, OwnerUse, Result};
pub use governor::{Envelope, Governor, Mode, ResourcePlan, Signals, Target};
pub use owner::Owner;
pub use plan::{Packing, PlannedRun, Recorder, Trace, pack};
pub use pool::{Buffer, Debug, Pool, PoolSettings};
pub use power::Power;
pub use pressure::{Pressure, Watch};
