//! One linear of a packed model: which layout its tensors have, and its reader.

use oq_quant_core::{GroupSize, Storage, WeightSpec};
use safetensors::Dtype;

use super::config::{Layout, Packing};
use super::gptq::{self, Gptq};
use super::matrix::Matrix;
use super::mlx::{self, Mlx};
use super::parts::{Parts, finite};
use super::{awq, fp8, int8, pack_quantized};
use crate::error::PackedFault;
use crate::packed::layout::{packed_linear, packed_rows, read_shape};
use crate::packed::parts::{PACKED, SHAPE};
use crate::{Checkpoint, FormatError};

const WEIGHT: &str = "weight";
const QWEIGHT: &str = "qweight";

/// A linear, or an embedding, of a packed model.
pub(crate) struct Linear<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    kind: Kind,
}

/// How its tensors are laid out.
enum Kind {
    PackQuantized(WeightSpec),
    Gptq(Gptq),
    Awq(WeightSpec),
    Mlx(Mlx),
    Int8(WeightSpec),
    Mxfp4(WeightSpec),
    /// Rows and channels of a block.
    Fp8(Option<[usize; 2]>),
    Dense,
}

impl<'a> Linear<'a> {
    /// Looks at the types of its tensors.
    ///
    /// # Errors
    /// When it has no weight of any layout, or the config does not cover it.
    pub(crate) fn open(checkpoint: &'a Checkpoint, name: &'a str, packing: &Packing) -> Result<Self, FormatError> {
        let spec = || packing.quantization.weight(name).ok_or(PackedFault::NoGroup);
        let kind = kind_of(Parts::new(checkpoint, name), packing.layout, spec);
        Ok(Self { checkpoint, name, kind: kind.map_err(|fault| FormatError::packed(name, fault))? })
    }

    /// Bits of a stored weight, without scales; none if it is not packed.
    pub(crate) fn bits(&self) -> Option<u32> {
        match self.kind {
            Kind::PackQuantized(spec) | Kind::Awq(spec) | Kind::Int8(spec) | Kind::Mxfp4(spec) => Some(spec.bits.get()),
            Kind::Gptq(Gptq { spec, .. }) => Some(spec.bits.get()),
            Kind::Mlx(Mlx { bits, .. }) => Some(bits.get()),
            Kind::Fp8(_) => Some(8),
            Kind::Dense => None,
        }
    }

    /// `[out, in]`, without reading its weights.
    pub(crate) fn shape(&self) -> Result<[usize; 2], FormatError> {
        let parts = self.parts();
        let shape = match &self.kind {
            Kind::PackQuantized(spec) | Kind::Mxfp4(spec) => return read_shape(self.checkpoint, self.name, *spec),
            Kind::Gptq(gptq) => gptq::shape(parts, gptq.spec.bits),
            Kind::Awq(_) => awq::shape(parts),
            Kind::Mlx(mlx) => mlx::Packed::new(parts, *mlx).map(|packed| packed.shape()),
            Kind::Int8(_) | Kind::Fp8(_) | Kind::Dense => parts.matrix(WEIGHT),
        };
        shape.map_err(|fault| FormatError::packed(self.name, fault))
    }

    /// Its weight.
    pub(crate) fn matrix(&self) -> Result<Matrix, FormatError> {
        let parts = self.parts();
        let matrix = match &self.kind {
            Kind::PackQuantized(spec) => match packed_linear(self.checkpoint, self.name, *spec) {
                Ok(codes) => Ok(Matrix::Codes(codes)),
                // Other programs also store scales that are no f16 numbers.
                Err(FormatError::Packed { fault: PackedFault::InexactScale { .. }, .. }) => {
                    pack_quantized::read(parts, self.shape()?, *spec)
                }
                Err(other) => return Err(other),
            },
            Kind::Mxfp4(spec) => {
                return Ok(Matrix::Values(packed_linear(self.checkpoint, self.name, *spec)?.dequantize()));
            }
            Kind::Gptq(gptq) => gptq::read(parts, *gptq),
            Kind::Awq(spec) => awq::read(parts, *spec),
            Kind::Mlx(mlx) => mlx::Packed::new(parts, *mlx).and_then(|packed| packed.matrix()),
            Kind::Int8(spec) => int8::read(parts, *spec),
            Kind::Fp8(block) => fp8::read(parts, *block),
            Kind::Dense => parts.get(WEIGHT).and_then(|view| finite(WEIGHT, view)).map(Matrix::Values),
        };
        matrix.map_err(|fault| FormatError::packed(self.name, fault))
    }

    /// The values of some rows, `[rows.len(), in]`.
    ///
    /// # Panics
    /// When there is no such row.
    pub(crate) fn rows(&self, rows: &[usize]) -> Result<Vec<f32>, FormatError> {
        if let Kind::Mlx(mlx) = self.kind {
            let values = mlx::Packed::new(self.parts(), mlx).and_then(|packed| packed.rows(rows));
            return values.map_err(|fault| FormatError::packed(self.name, fault));
        }
        // Others' scales are no f16 numbers, and such weights are decoded below.
        if let Kind::PackQuantized(spec) = self.kind
            && spec.storage == Storage::Half
            && let Ok(values) = packed_rows(self.checkpoint, self.name, spec, rows)
        {
            return Ok(values);
        }
        let cols = self.shape()?[1];
        let all = self.matrix()?.into_values();
        Ok(rows.iter().flat_map(|row| &all[row * cols..][..cols]).copied().collect())
    }

    fn parts(&self) -> Parts<'a> {
        Parts::new(self.checkpoint, self.name)
    }
}

fn kind_of(
    parts: Parts<'_>,
    layout: Layout,
    spec: impl Fn() -> Result<WeightSpec, PackedFault>,
) -> Result<Kind, PackedFault> {
    if parts.find(PACKED).is_some() {
        if layout == Layout::Mxfp4 {
            return Ok(Kind::Mxfp4(WeightSpec::named("mxfp4").expect("it is the name of a type")));
        }
        return Ok(Kind::PackQuantized(spec()?));
    }
    if parts.find(QWEIGHT).is_some() {
        return match layout {
            Layout::Gptq { zero_offset } => Ok(Kind::Gptq(Gptq { spec: spec()?, zero_offset })),
            Layout::Awq => Ok(Kind::Awq(spec()?)),
            _ => Err(PackedFault::Missing { part: PACKED }),
        };
    }
    let missing = || PackedFault::Missing { part: if parts.find(SHAPE).is_some() { PACKED } else { WEIGHT } };
    let weight = parts.find(WEIGHT).ok_or_else(missing)?;
    match (weight.dtype, layout) {
        (Dtype::I8, Layout::Parts { .. }) => spec().map(Kind::Int8),
        (Dtype::F8_E4M3, Layout::Parts { block }) => Ok(Kind::Fp8(block)),
        (Dtype::U32, Layout::Mlx) => {
            let spec = spec()?;
            match spec.group {
                GroupSize::Channels(group) => Ok(Kind::Mlx(Mlx { bits: spec.bits, group: group.get() })),
                GroupSize::PerChannel => Err(PackedFault::NoGroup),
            }
        }
        (Dtype::F16 | Dtype::BF16 | Dtype::F32, _) => Ok(Kind::Dense),
        (got, _) => Err(PackedFault::PartType { part: WEIGHT, got, expected: "one that this method stores" }),
    }
}

/// What a tensor is to its linear.
pub(crate) enum Part {
    Codes,
    Scale,
    ZeroPoint,
    /// What stands for no weight, such as a shape.
    Other,
}

/// The linear that a tensor is a part of, by their names, if it is packed.
pub(crate) fn part_of(name: &str, dtype: Dtype) -> Option<(&str, Part)> {
    let (linear, part) = name.rsplit_once('.')?;
    let part = match part {
        PACKED | QWEIGHT => Part::Codes,
        WEIGHT if matches!(dtype, Dtype::I8 | Dtype::F8_E4M3 | Dtype::U32) => Part::Codes,
        "weight_scale" | "weight_outer_scale" | "weight_global_scale" | "weight_scale_inv" | "scales" => Part::Scale,
        "weight_zero_point" | "weight_min" | "weight_outer_min" | "qzeros" | "biases" => Part::ZeroPoint,
        "weight_shape" | "g_idx" | "weight_g_idx" | "input_scale" | "input_global_scale" => Part::Other,
        _ => return None,
    };
    Some((linear, part))
}
