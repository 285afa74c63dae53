#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod error;
pub mod vision;

pub use error::{Cause, Error, Result};
