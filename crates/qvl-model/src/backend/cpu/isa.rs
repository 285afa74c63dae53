//! Which instructions the kernels may use, as a value that proves this CPU has them.

#[cfg(target_arch = "x86_64")]
use super::amx;
use crate::error::{Error, Result};

/// The environment variable that forces a lower instruction set than the best one: `QVL_ISA=avx2`.
pub const ISA_VARIABLE: &str = "QVL_ISA";

/// Proof of what this CPU can do; only made by detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

/// Instruction sets, worst first. Each has all of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::backend::cpu) enum Level {
    Portable,
    /// AVX2, FMA, F16C: what laptops have.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL, VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same and AVX-512 BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// The same and AMX: tiles of bytes and of bfloat16.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Level {
    const ALL: &[Self] = &[
        Self::Portable,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Bf16,
        #[cfg(target_arch = "x86_64")]
        Self::Amx,
    ];
}

impl Isa {
    /// The best level of this CPU. The answer does not change while the program runs.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            let bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
            if bf16 && amx::available() {
                return Self(Level::Amx);
            }
            if bf16 {
                return Self(Level::Avx512Bf16);
            }
            if avx512 {
                return Self(Level::Avx512);
            }
            if avx2 {
                return Self(Level::Avx2);
            }
        }
        Self(Level::Portable)
    }

    /// Every level this CPU has, worst first.
    pub fn available() -> Vec<Self> {
        let best = Self::detect();
        Level::ALL.iter().copied().filter(|level| *level <= best.0).map(Self).collect()
    }

    /// The level that `QVL_ISA` names, or the best one if it is not set.
    ///
    /// # Errors
    /// [`Error::Isa`] if it names none, or one this CPU does not have.
    pub fn from_env() -> Result<Self> {
        match std::env::var_os(ISA_VARIABLE) {
            None => Ok(Self::detect()),
            Some(value) => Self::named(&value.to_string_lossy()),
        }
    }

    /// The level called `name`.
    ///
    /// # Errors
    /// [`Error::Isa`] if there is none of that name, or this CPU does not have it.
    pub fn named(name: &str) -> Result<Self> {
        let available = Self::available();
        available.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| Error::Isa {
            name: name.to_owned(),
            available: available.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// `portable`, `avx2`, `avx512`, `avx512bf16` or `amx`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Level::Amx => "amx",
        }
    }

    pub(in crate::backend::cpu) fn level(self) -> Level {
        self.0
    }
}

/// Compiles a body for each level as `$name(isa, ...)`: one expression for all levels, or one each for
/// portable, AVX2 and AVX-512 (which also serves the levels above).
///
/// Bodies must be `#[inline(always)]` functions, or they are not compiled for the level.
macro_rules! dispatched {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $portable:expr, $avx2:expr, $avx512:expr) => {
        $(#[$doc])*
        pub(in crate::backend::cpu) fn $name(isa: $crate::backend::cpu::Isa, $($arg: $type),*) {
            use $crate::backend::cpu::isa::Level;
            match isa.level() {
                Level::Portable => $portable($($arg),*),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => {
                    #[target_feature(enable = "avx2,fma,f16c")]
                    fn compiled($($arg: $type),*) {
                        $avx2($($arg),*);
                    }
                    // SAFETY: a value of this level is only made after these features were detected.
                    unsafe { compiled($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Avx512Bf16 | Level::Amx => {
                    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
                    fn compiled($($arg: $type),*) {
                        $avx512($($arg),*);
                    }
                    // SAFETY: a value of these levels is only made after these features were detected.
                    unsafe { compiled($($arg),*) }
                }
            }
        }
    };
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:expr) => {
        dispatched!($(#[$doc])* fn $name($($arg: $type),*) = $body, $body, $body);
    };
}
pub(in crate::backend::cpu) use dispatched;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_has_a_name_and_is_found_by_it() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(isa.name()).unwrap(), isa);
        }
        assert_eq!(Isa::available().last().copied(), Some(Isa::detect()));
    }

    #[test]
    fn an_unknown_level_names_those_there_are() {
        let message = Isa::named("sse2").unwrap_err().to_string();
        assert!(message.contains("sse2") && message.contains("portable"), "{message}");
    }
}
