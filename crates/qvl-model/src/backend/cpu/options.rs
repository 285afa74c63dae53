//! What a CPU backend is asked for.

use std::fmt;
use std::str::FromStr;

use super::isa::Isa;
use crate::backend::Role;
use crate::error::{Error, Result};
use crate::quant::BlockFormat;

/// In how many bits the weights of a checkpoint are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// As the checkpoint stores them, in place: nothing is copied.
    #[default]
    Stored,
    /// The same, and an error for whatever is not stored as bfloat16.
    Bf16,
    /// 8 bits and a scale for each 32 weights (Q8_0), made when the checkpoint is loaded.
    Q8,
    /// 4 bits with two levels of scales (Q4_K), the head and the most sensitive layers in 6 bits (Q6_K),
    /// made when the checkpoint is loaded. It is the mixture known as Q4_K_M.
    Q4,
}

impl WeightFormat {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Stored, Self::Bf16, Self::Q8, Self::Q4];

    /// `stored`, `bf16`, `q8` or `q4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// How a matrix with `inputs` inputs is kept; `None`: as stored. What is not whole blocks of the format
    /// meant takes the next one that fits, as GGUF files do.
    pub(super) fn block(self, role: Role, inputs: usize) -> Option<BlockFormat> {
        let wanted: &[BlockFormat] = match (self, role) {
            (_, Role::Table) | (Self::Stored | Self::Bf16, _) => &[],
            (Self::Q4, Role::Decoder) => &[BlockFormat::Q4K, BlockFormat::Q8_0],
            (Self::Q4, Role::DecoderSensitive | Role::Head) => &[BlockFormat::Q6K, BlockFormat::Q8_0],
            (Self::Q4, Role::Vision) | (Self::Q8, _) => &[BlockFormat::Q8_0],
        };
        wanted.iter().copied().find(|format| inputs.is_multiple_of(format.block_len()))
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|format| format.name() == name);
        known.ok_or_else(|| Error::WeightFormat { name: name.to_owned() })
    }
}

/// What a CPU backend is asked for. The default is as many threads as there are cores, the best instructions, weights
/// as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuOptions {
    /// Compute threads; 0 takes one for each physical core the process may use.
    pub threads: usize,
    /// The instruction set; `None` takes the best one, or what `QVL_ISA` names.
    pub isa: Option<Isa>,
    /// The decoder's weights.
    pub weights: WeightFormat,
    /// The vision tower's weights; [`Q4`](WeightFormat::Q4) keeps them in 8 bits too.
    pub vision_weights: WeightFormat,
    /// Activations, keys and values in f32 throughout, whatever the weights are: the mode of the parity tests.
    /// Without it, activations meet quantised weights in 8 bits, keys and values are kept in bfloat16, and where there
    /// is AMX activations meet bfloat16 weights, and each other in attention, in bfloat16.
    pub exact: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mixture_is_that_of_q4_k_m_and_falls_back_by_width() {
        let q4 = |role, inputs| WeightFormat::Q4.block(role, inputs);
        assert_eq!(q4(Role::Decoder, 2048), Some(BlockFormat::Q4K));
        assert_eq!(q4(Role::DecoderSensitive, 6144), Some(BlockFormat::Q6K));
        assert_eq!(q4(Role::Head, 2048), Some(BlockFormat::Q6K));
        assert_eq!(q4(Role::Decoder, 96), Some(BlockFormat::Q8_0));
        assert_eq!(q4(Role::Decoder, 40), None);
        assert_eq!(q4(Role::Table, 2048), None);
        assert_eq!(WeightFormat::Q8.block(Role::Vision, 4304), None, "not whole blocks of 32");
        assert_eq!(WeightFormat::Stored.block(Role::Head, 2048), None);
    }

    #[test]
    fn a_format_is_found_by_its_name() {
        for format in WeightFormat::ALL {
            assert_eq!(format.name().parse::<WeightFormat>().unwrap(), format);
        }
        let message = "q3".parse::<WeightFormat>().unwrap_err().to_string();
        assert!(message.contains("q3") && message.contains("q4"), "{message}");
    }
}
