//! How a scheme quantizes each linear of a model.

use oq_formats::Quantization;
use oq_quant_core::{MixtureModel, QuantSpec, Role, Storage, TensorError, WeightSpec};

use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::structure::{Layer, Linear, LinearName};

/// How `scheme` quantizes the linears of a layer, in the layer's order.
///
/// # Errors
/// Names the first linear whose rows do not split into groups or blocks.
pub fn specs_of_layer(
    decoder: &dyn Decoder,
    scheme: QuantSpec,
    layer: usize,
) -> Result<Vec<(LinearName, WeightSpec)>, ModelError> {
    let layout = decoder.layer(layer);
    let of_linear = |linear: &Linear| {
        let found = spec_of(decoder, scheme, (layer, &layout), linear);
        let checked = found.and_then(|spec| spec.check_row(linear.in_features).map(|()| spec));
        checked.map(|spec| (linear.name, spec)).map_err(|source| {
            let linear = format!("{}{}", decoder.block_prefix(layer), linear.name.0);
            ModelError::Quantize { linear, source }
        })
    };
    layout.linears.iter().map(of_linear).collect()
}

/// The same for all linears of a model.
///
/// # Errors
/// As [`specs_of_layer`].
pub fn quantization_by(decoder: &dyn Decoder, scheme: QuantSpec) -> Result<Quantization, ModelError> {
    let layers = (0..decoder.dims().n_layers).map(|layer| {
        let prefix = decoder.block_prefix(layer);
        let specs = specs_of_layer(decoder, scheme, layer)?.into_iter();
        Ok(specs.map(move |(name, spec)| (format!("{prefix}{}", name.0), spec)))
    });
    let layers = layers.collect::<Result<Vec<_>, ModelError>>()?;
    if scheme.mixture.is_none() {
        return Ok(scheme.into());
    }
    let linears: Vec<_> = layers.into_iter().flatten().collect();
    // Under a name of which nothing would be in the model.
    if scheme.weight.storage == Storage::Super && !linears.iter().any(|(_, spec)| *spec == scheme.weight) {
        let layout = decoder.layer(0);
        let linear = &layout.linears[0];
        let source = TensorError::NoSuperBlocks { spec: scheme.weight, in_features: linear.in_features };
        return Err(ModelError::Quantize { linear: format!("{}{}", decoder.block_prefix(0), linear.name.0), source });
    }
    Ok(Quantization::of_linears(scheme.act, linears))
}

fn spec_of(
    decoder: &dyn Decoder,
    scheme: QuantSpec,
    (layer, layout): (usize, &Layer),
    linear: &Linear,
) -> Result<WeightSpec, TensorError> {
    let Some(mixture) = scheme.mixture else { return Ok(scheme.weight) };
    let role = Role::of_linear(linear.name.0).ok_or(TensorError::NoRole { mixture })?;
    let attention = layout.attention;
    let model = MixtureModel {
        layers: decoder.dims().n_layers,
        gqa: attention.n_heads / attention.n_kv_heads.max(1),
        // The only family whose queries, keys and values are one matrix.
        falcon: layout.linears.iter().any(|linear| Role::of_linear(linear.name.0) == Some(Role::QueryKeyValue)),
        tied: false, // Matters outside the blocks only.
    };
    let block = mixture.block(model, role, layer, linear.in_features);
    let none = TensorError::NoBlocks { mixture, in_features: linear.in_features };
    block.map(|block| block.spec()).ok_or(none)
}
