//! Whether packed bytes come faster than bytes as they are, on this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::PackedSource;
use crate::calibrate::{Figure, Measured, more};
use crate::drive::FileRange;
use crate::source::Source;
use crate::{Device, Error, Result, TransferEngine};

/// Whether unpacking gains anything, from rates in bytes a second: a drive that delivers `raw_bytes_per_s`, packed files
/// that have `ratio` of the bytes, and all workers together unpacking `unpack_bytes_per_s`, counted unpacked.
///
/// Reading and unpacking go on at once, so the slower of the two is what arrives; it must be more than the drive delivers
/// without.
pub fn is_worth(raw_bytes_per_s: f64, ratio: f64, unpack_bytes_per_s: f64) -> bool {
    (raw_bytes_per_s / ratio).min(unpack_bytes_per_s) > raw_bytes_per_s
}

/// What was measured of the same bytes, read as they are and read packed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// Whether to read them packed: it was faster by more than the noise.
    pub packed_is_faster: bool,
    /// As they are.
    pub raw: Measured,
    /// Packed; bytes are counted unpacked.
    pub packed: Measured,
    /// Why, in a sentence.
    pub why: String,
}

impl Choice {
    /// From two measured rates.
    pub fn of(raw: Measured, packed: Measured) -> Self {
        let packed_is_faster = packed.at_least() > raw.at_most();
        let gbs =
            |rate: Measured| format!("{:.2} GB/s ± {:.0} %", rate.bytes_per_s / 1e9, rate.noise * 100.0);
        let verdict = if packed_is_faster {
            "packed is faster"
        } else if packed.at_most() < raw.at_least() {
            "packed is slower"
        } else {
            "the difference is within the noise, so they are read as they are"
        };
        let why = format!("as they are {}, packed {}: {verdict}", gbs(raw), gbs(packed));
        Self { packed_is_faster, raw, packed, why }
    }

    /// Reads both by turns with an engine, for about as long as `time`: parts of up to `sample_bytes` (unpacked), each
    /// time the next. Both have the same bytes. Nothing else should be transferred meanwhile.
    ///
    /// # Errors
    /// [`Error::Setting`] if the two are not equally long or have nothing; those of transfers.
    pub fn measure<D: Device, S: Source>(
        engine: &TransferEngine<D>,
        raw: &FileRange,
        packed: &Arc<PackedSource<S>>,
        sample_bytes: usize,
        time: Duration,
    ) -> Result<Self> {
        if raw.len() != packed.len() || raw.is_empty() {
            return Err(Error::Setting {
                name: "packed",
                got: format!("{} bytes", packed.len()),
                expected: format!("the {} bytes of {}, and at least one", raw.len(), raw.name()),
            });
        }
        let block_bytes = packed.granularity();
        let sample_bytes = sample_bytes.next_multiple_of(block_bytes).min(raw.len() as usize);
        let mut memory = engine.device().allocate(sample_bytes)?;
        let [mut as_it_is, mut unpacked] = [(); 2].map(|()| Figure::default());
        let (begun, mut rounds, mut at) = (Instant::now(), 0, 0);
        while more(rounds, begun.elapsed(), time) {
            let bytes = (raw.len() - at).min(sample_bytes as u64);
            let part = Part { of: packed.clone(), at, bytes };
            memory = as_it_is.sample(engine, raw.of().range(raw.offset() + at, bytes)?, memory)?;
            memory = unpacked.sample(engine, part, memory)?;
            // A multiple of a block, or the end.
            at += bytes;
            if at == raw.len() {
                at = 0;
            }
            rounds += 1;
        }
        let (raw, packed) = (as_it_is.measured(), unpacked.measured());
        match (raw, packed) {
            (Some(raw), Some(packed)) => Ok(Self::of(raw, packed)),
            _ => Err(Error::Closed),
        }
    }
}

/// A part of packed bytes that begins with a block.
struct Part<S> {
    of: Arc<PackedSource<S>>,
    at: u64,
    bytes: u64,
}

impl<S: Source> Source for Part<S> {
    fn name(&self) -> String {
        self.of.name()
    }

    fn len(&self) -> u64 {
        self.bytes
    }

    fn fill(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.of.fill(self.at + at, into)
    }

    fn granularity(&self) -> usize {
        self.of.granularity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_is_worth_it_where_unpacking_outruns_the_drive() {
        // Two thirds of the bytes make the drive half as fast again, if the processor keeps up.
        assert!(is_worth(1.5e9, 0.66, 2.5e9));
        assert!(is_worth(1.5e9, 0.66, 1.6e9));
        assert!(!is_worth(1.5e9, 0.66, 1.5e9) && !is_worth(1.5e9, 0.66, 1.0e9));
        assert!(!is_worth(1.5e9, 1.0, 9e9) && !is_worth(1.5e9, 1.1, 9e9));
        assert!(!is_worth(f64::NAN, 0.66, 9e9));
    }

    #[test]
    fn a_difference_within_the_noise_is_none() {
        let rate = |bytes_per_s, noise| Measured { bytes_per_s, noise, samples: 7 };
        let of = |raw, packed| Choice::of(raw, packed);
        assert!(of(rate(1e9, 0.05), rate(1.4e9, 0.05)).packed_is_faster);
        let close = of(rate(1e9, 0.2), rate(1.2e9, 0.1));
        assert!(!close.packed_is_faster && close.why.contains("within the noise"), "{}", close.why);
        let slower = of(rate(1.4e9, 0.05), rate(1e9, 0.05));
        assert!(!slower.packed_is_faster && slower.why.contains("packed is slower"), "{}", slower.why);
    }
}
