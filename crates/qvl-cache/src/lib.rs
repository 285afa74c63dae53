#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

#[cfg(feature = "async")]
mod asynchronous;
#[cfg_attr(not(feature = "rocksdb"), allow(dead_code, reason = "the warm tier says how much is kept"))]
mod buffers;
mod cache;
mod clock;
pub mod codec;
pub mod cold;
mod error;
mod flight;
#[cfg(feature = "rocksdb")]
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
mod hot;
pub mod key;
#[cfg_attr(not(feature = "rocksdb"), expect(dead_code, reason = "the warm tier is left out"))]
mod middle;
mod movement;
pub mod policy;
mod stats;
pub mod storage;
mod sync;
pub mod trace;
mod transit;
#[cfg(feature = "rocksdb")]
mod warm;

#[cfg(feature = "async")]
pub use asynchronous::AsyncCache;
#[cfg(feature = "rocksdb")]
pub use cache::WarmOptions;
pub use cache::{Budgets, Builder, Explanation, LateErrors, Place, Placed, TieredCache};
pub use clock::{Clock, ManualClock};
pub use codec::{Codec, Raw};
pub use cold::{Cold, ColdStats, Kept, Refusal};
pub use error::{Cause, Error, Result, SharedCause};
pub use key::{Key, KeyId};
pub use policy::{Policy, PolicyName};
pub use stats::{ColdTierStats, HotStats, Stats, WarmStats};
#[cfg(feature = "rocksdb")]
pub use warm::ReadMode;
