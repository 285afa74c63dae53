//! What reads bytes from a drive, as functions of bytes alone: for fuzzing, and for tests of the same inputs.
//!
//! Not part of the interface; it changes without notice. Each returns whether the bytes were accepted.

pub use crate::packed::fuzzed as packed;
