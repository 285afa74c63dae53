#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod calibrate;
mod copy;
pub mod device;
pub mod drive;
mod engine;
mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod layer_stream;
mod memory;
pub mod packed;
mod plan;
mod queue;
pub mod source;
mod stats;
mod sync;
mod ticket;
pub mod trace;
mod worker;

#[cfg(feature = "cuda")]
pub use device::cuda::CudaDevice;
pub use device::host::HostDevice;
pub use device::link::LinkDevice;
pub use device::{Device, Fence};
pub use drive::DriveFile;
pub use engine::{Io, Settings, Transfer, TransferEngine};
pub use error::{Error, Failed, Result};
pub use layer_stream::LayerStream;
pub use memory::HostMemory;
pub use source::Source;
pub use stats::{Report, Stats};
pub use ticket::{Done, Outcome, Priority, Submitted, Ticket};
pub use trace::Trace;
