//! The choice of the CPU instruction set that this process computes with. One choice holds for all loops in this workspace that have
//! several implementations.
//!
//! [`Isa::chosen`] is the fastest instruction set that the processor has, detected at run time. `OMNIQUANT_KERNEL=<name>` in the
//! environment selects another one. A name that is unknown or that this processor cannot run is an error.
//!
//! | name | instructions |
//! |---|---|
//! | `avx512-bf16` | `avx512` plus AVX-512 VL, VNNI and BF16 |
//! | `avx512` | `avx2` plus AVX-512 F and BW |
//! | `avx2` | AVX2, FMA, F16C |
//! | `neon` | NEON |
//! | `scalar` | those that every processor has |

use std::fmt;
use std::sync::OnceLock;

/// Environment variable that names the instruction set to use, for tests and bug reports.
pub const VARIABLE: &str = "OMNIQUANT_KERNEL";

/// An instruction set that loops are written for. The order is by speed, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// AVX-512 with dot products of 16-bit integers and of bf16.
    Avx512Bf16,
    /// AVX-512.
    Avx512,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// NEON, on 64-bit ARM.
    Neon,
    /// No vector instructions; runs on every processor.
    Scalar,
}

/// Why no instruction set was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IsaError {
    /// No instruction set of this architecture has that name.
    #[error("there is no kernel `{name}`: choose one of {known}, or unset {VARIABLE}")]
    Unknown {
        /// The name that was given.
        name: String,
        /// All valid names.
        known: String,
    },
    /// The processor lacks the instructions.
    #[error("this processor cannot run kernel `{isa}`: choose another, or unset {VARIABLE}")]
    Unavailable {
        /// The instruction set that was requested.
        isa: Isa,
    },
}

impl Isa {
    /// All instruction sets of this architecture, fastest first. The last one runs on every processor.
    pub const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Bf16,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        Self::Scalar,
    ];

    /// Its name, as in the environment variable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Scalar => "scalar",
        }
    }

    /// Whether this processor can run it.
    #[inline]
    pub fn is_available(self) -> bool {
        // Each includes the instructions of those after it.
        Self::ALL.contains(&self) && self >= Self::fastest()
    }

    /// Whether the processor reports the instructions of a member of [`Self::ALL`].
    fn is_detected(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                Self::Avx512.is_detected()
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_detected() && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Self::Scalar => true,
            _ => false,
        }
    }

    /// The instruction set with that name.
    ///
    /// # Errors
    /// When [`Self::ALL`] has none with that name, or this processor cannot run it.
    pub fn named(name: &str) -> Result<Self, IsaError> {
        let found = Self::ALL.iter().find(|isa| isa.name() == name);
        let isa = *found.ok_or_else(|| IsaError::Unknown {
            name: name.to_owned(),
            known: Self::ALL.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })?;
        isa.checked()
    }

    /// The instruction set that `OMNIQUANT_KERNEL` names, else the fastest one of this processor. The variable is read once.
    ///
    /// # Errors
    /// When the variable names one that is unknown or that this processor cannot run.
    pub fn chosen() -> Result<Self, IsaError> {
        static CHOSEN: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
        let choose = || match std::env::var_os(VARIABLE) {
            Some(name) if !name.is_empty() => Self::named(&name.to_string_lossy()),
            _ => Ok(Self::fastest()),
        };
        CHOSEN.get_or_init(choose).clone()
    }

    /// The first of [`Self::ALL`] that this processor has. It is detected once.
    #[inline]
    pub fn fastest() -> Self {
        static FASTEST: OnceLock<Isa> = OnceLock::new();
        let detect = || *Self::ALL.iter().find(|isa| isa.is_detected()).expect("the last one runs everywhere");
        *FASTEST.get_or_init(detect)
    }

    /// Returns `self` if this processor can run it.
    ///
    /// # Errors
    /// When this processor cannot run it.
    pub fn checked(self) -> Result<Self, IsaError> {
        if self.is_available() { Ok(self) } else { Err(IsaError::Unavailable { isa: self }) }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_sets_are_found_by_name() {
        assert!(Isa::ALL.is_sorted());
        for &isa in Isa::ALL {
            assert_eq!(isa.is_available(), isa.is_detected(), "{isa}");
            let expected = if isa.is_available() { Ok(isa) } else { Err(IsaError::Unavailable { isa }) };
            assert_eq!(Isa::named(isa.name()), expected);
        }
        let error = Isa::named("mmx").expect_err("there is none").to_string();
        assert!(error.contains("`mmx`") && error.contains("scalar"), "{error}");
        assert!(Isa::Scalar.is_available());
        assert_eq!(Isa::ALL.last(), Some(&Isa::Scalar));
    }
}
