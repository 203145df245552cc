//! Packed models from what the authors' release of OmniQuant learned (`omni_parameters.pth`).
//!
//! The file has a dictionary of tensors for each block. For each linear it has `NAME.weight_quantizer.upbound_factor` and
//! `lowbound_factor`, `[out * groups, 1]`: their sigmoids are the fractions of a group's maximum and minimum at which it is clipped. If a
//! transformation was learned too, it has `PLACE_smooth_scale` and `PLACE_smooth_shift` for each of [`learned::PLACES`].
//!
//! Both are merged as the release merges them. It has a scale for each channel of queries and keys, where rotary embeddings would need one
//! for two. So before quantization the block does not compute quite what the original does, but this is the block that was learned.
//!
//! Two details differ, so that packed files can hold the result: ranges contain 0, and scales are f16 numbers. And where the release
//! computes in f16, this is in f32.

mod error;
mod learned;

use std::path::Path;

use oq_let::Transform;
use oq_models::Model;
use oq_quant_core::{QuantSpec, Storage, Symmetry, WeightSpec};
use tch::Device;

use self::learned::Learned;
use crate::disk::output::Output;
use crate::merged::merge;
use crate::nth::Nth;
use crate::widths::Widths;

pub use self::error::ReleaseError;

/// Writes the packed model of `scheme` to the directory `out`, transformed and clipped as the file `parameters` says: that of the release,
/// or the same tensors in safetensors, with the block's number before their names (`0.qkv_smooth_scale`). One block is in memory at a time.
/// `progress` is called before each.
///
/// # Errors
/// When the parameters are not those of such a model and scheme; nothing is written then.
pub fn merge_release(
    model: &Model,
    parameters: &Path,
    scheme: QuantSpec,
    out: &Path,
    progress: &mut dyn FnMut(Nth),
) -> Result<(), ReleaseError> {
    let WeightSpec { symmetry, storage, .. } = scheme.weight;
    if scheme.mixture.is_some() || storage != Storage::Half || symmetry == Symmetry::FullRange {
        return Err(ReleaseError::Scheme { scheme });
    }
    model.check_quantizable(scheme)?;
    let decoder = model.decoder();
    let widths = Widths::of_scheme(decoder, scheme)?;
    let learned = Learned::open(parameters, decoder, scheme, &widths)?;
    let output = Output::create(out, model, widths)?;
    let n_layers = decoder.dims().n_layers;
    for block in 0..n_layers {
        progress(Nth::new(block, n_layers));
        let weights = model.load_block(block, Device::Cpu)?;
        let (sites, values) = learned.transformation(decoder, block)?;
        let linears = decoder.layer(block).linears.into_iter().map(|linear| linear.name);
        let transform = Transform::new(sites, Device::Cpu);
        let quantize = |name, weight: &_| learned.quantize(block, name, weight, output.widths());
        let merged = merge(&weights, &transform, &values, linears, quantize);
        output.write_block(block, &merged.map_err(|(_, error)| error)?)?;
    }
    Ok(output.finish()?)
}
