//! The quantizer on slices: settings ([`QuantSpec`]), MinMax grids ([`Grid`]), how files store them ([`Stored`]), bit-stream packing
//! ([`pack_row`]) and packed matrices ([`QuantizedTensor`]).
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
mod error;
mod grid;
mod mixture;
mod overrides;
mod pack;
mod rotate;
mod scheme;
mod site;
mod small_floats;
mod spec;
mod stored;
mod tensor;

pub use bf16::{from_bf16, to_bf16};
pub use error::TensorError;
pub use grid::{Grid, Ideal, Range, SCALE_MAX, SCALE_MIN, f16_toward_zero};
pub use mixture::{Block, Mixture, MixtureModel, Role};
pub use overrides::{Layers, Override, OwnWeight, Scheme};
pub use pack::{PackError, pack_row, packed_words, unpack_row};
pub use rotate::RotateKind;
pub use scheme::{ActSpec, QuantSpec};
pub use site::{SiteKind, UnknownSite};
pub use small_floats::{E2M1_MAX, from_e2m1, from_e4m3, from_e8m0, to_e2m1, to_e4m3, to_e8m0};
pub use spec::{Bits, GroupSize, SpecError, Storage, Symmetry, WeightSpec};
pub use stored::{Stored, global_scale, round_stored};
pub use tensor::{Clip, QuantizedTensor};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
