//! Why a matrix was refused.

use crate::mixture::Mixture;
use crate::pack::PackError;
use crate::spec::{Storage, WeightSpec};

/// Why a matrix was not quantized or was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// Groups must split a row into equal parts.
    #[error("group {group} does not divide in_features {in_features}; take {}", one_that_does(*group, *in_features))]
    GroupDoesNotDivide {
        /// Channels of a group.
        group: usize,
        /// Channels of a row.
        in_features: usize,
    },
    /// A part has the wrong length.
    #[error("{part}: {expected} values expected for [{rows}, {cols}], got {got}")]
    Length {
        /// Which part.
        part: &'static str,
        /// Output channels.
        rows: usize,
        /// Input channels.
        cols: usize,
        /// Expected number of values.
        expected: usize,
        /// Actual number of values.
        got: usize,
    },
    /// NaN or infinity among the weights.
    #[error("weight [{row}, {col}] is {value}")]
    NotFinite {
        /// Output channel.
        row: usize,
        /// Input channel.
        col: usize,
        /// The value.
        value: f32,
    },
    /// A row that is not a whole number of super-blocks.
    #[error("{spec} has super-blocks of {}, which do not divide in_features {in_features}; take {}", Storage::SUPER, instead_of(*spec))]
    NoSuperBlocks {
        /// How the matrix was to be quantized.
        spec: WeightSpec,
        /// Channels of a row.
        in_features: usize,
    },
    /// A row that is no whole number of the smallest blocks of a mixture.
    #[error("{mixture} has blocks of 32, which do not divide in_features {in_features}; take a scheme such as w4a16")]
    NoBlocks {
        /// The mixture.
        mixture: Mixture,
        /// Channels of a row.
        in_features: usize,
    },
    /// A linear of which no mixture says what type it has.
    #[error("{mixture} has no rule for this linear; take {mixture}_pure or a scheme such as w4a16g64")]
    NoRole {
        /// The mixture.
        mixture: Mixture,
    },
    /// A combination of bits, group, symmetry and storage that no format has, or parts of another storage.
    #[error("{spec:?} is not a grid that exists")]
    NoSuchGrid {
        /// What was asked for.
        spec: WeightSpec,
    },
    /// A scale that is no scale of this grid.
    #[error("scale {index} is {value}, not a positive number")]
    BadScale {
        /// Which group.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A zero point beyond the largest code.
    #[error("zero point {index} is {value}, beyond the largest code {max_code}")]
    BadZeroPoint {
        /// Which group.
        index: usize,
        /// The value.
        value: u8,
        /// Largest code.
        max_code: u8,
    },
    /// A zero point other than the centre code, although quantization is symmetric.
    #[error("zero point {index} is {value}, but symmetric quantization has zero point {centre}")]
    OffCentre {
        /// Which group.
        index: usize,
        /// The value.
        value: u8,
        /// The centre code.
        centre: u8,
    },
    /// A clipping fraction outside of [0, 1].
    #[error("{part} {index} is {value}, not between 0 and 1")]
    BadClip {
        /// `clip.hi` or `clip.lo`.
        part: &'static str,
        /// Which group.
        index: usize,
        /// The value.
        value: f32,
    },
    /// An offset that is not a number.
    #[error("offset [{row}, {col}] is {value}")]
    BadOffset {
        /// Output channel.
        row: usize,
        /// Input channel.
        col: usize,
        /// The value.
        value: f32,
    },
    /// The bit stream does not fit.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// The largest power of two that is at most `group`, if groups of this size are worth their scales.
fn one_that_does(group: usize, in_features: usize) -> String {
    const LEAST: u32 = 3; // 8 channels.
    let largest = in_features.trailing_zeros().min(group.checked_ilog2().unwrap_or(0));
    match in_features {
        1.. if largest >= LEAST => format!("one that does, such as g{}", 1usize << largest),
        _ => "one that does, or leave `g` out for one group per channel".to_owned(),
    }
}

/// What to take where rows are no whole super-blocks.
fn instead_of(spec: WeightSpec) -> &'static str {
    match spec.bits.get() {
        2 | 3 => "q4_0, the smallest type of such rows",
        4 => "q4_0, q5_0, or a scheme such as w4a16g128",
        5 => "q5_1",
        _ => "q8_0",
    }
}
