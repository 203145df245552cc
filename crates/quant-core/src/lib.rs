//! The quantizer on slices: settings ([`QuantSpec`]), MinMax grids ([`Grid`]), bit-stream packing ([`pack_row`]) and packed matrices
//! ([`QuantizedTensor`]).
//!
//! No tensor library, no unsafe code, no state: every function takes slices and returns values.
//!
//! ```
//! use oq_quant_core::{QuantSpec, QuantizedTensor};
//!
//! let spec: QuantSpec = "w4a16g32".parse()?;
//! let weight: Vec<f32> = (0..2 * 64).map(|i| (i as f32 * 0.37).sin()).collect(); // [out 2, in 64]
//! let packed = QuantizedTensor::quantize(&weight, 2, 64, spec.weight)?;
//! let restored = packed.dequantize();
//! assert!(weight.iter().zip(&restored).all(|(a, b)| (a - b).abs() < 0.08));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bf16;
mod grid;
mod mixture;
mod pack;
mod rotate;
mod site;
mod spec;
mod tensor;

pub use bf16::{from_bf16, to_bf16};
pub use grid::{Grid, Range, SCALE_MAX, SCALE_MIN, f16_toward_zero};
pub use mixture::{Block, Mixture, MixtureModel, Role};
pub use pack::{PackError, pack_row, packed_words, unpack_row};
pub use rotate::RotateKind;
pub use site::{SiteKind, UnknownSite};
pub use spec::{ActSpec, Bits, GroupSize, QuantSpec, SpecError, Symmetry, WeightSpec};
pub use tensor::{Clip, QuantizedTensor, TensorError};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
