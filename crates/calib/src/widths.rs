//! How the linears of a run are quantized: all alike, or each in its own way.

use std::collections::BTreeMap;

use oq_formats::Quantization;
use oq_models::{Decoder, LinearName, ModelError, specs_of_layer};
use oq_quant_core::{ActSpec, QuantSpec, WeightSpec};

/// How each linear of a model is quantized.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Widths {
    act: ActSpec,
    /// Block by block.
    blocks: Vec<BTreeMap<LinearName, WeightSpec>>,
}

impl Widths {
    /// As a scheme says.
    pub(crate) fn of_scheme(decoder: &dyn Decoder, scheme: QuantSpec) -> Result<Self, ModelError> {
        let of_block = |block| Ok(specs_of_layer(decoder, scheme, block)?.into_iter().collect());
        let blocks = (0..decoder.dims().n_layers).map(of_block).collect::<Result<_, ModelError>>()?;
        Ok(Self { act: scheme.act, blocks })
    }

    /// All linears, block by block.
    pub(crate) fn of_blocks(act: ActSpec, blocks: Vec<BTreeMap<LinearName, WeightSpec>>) -> Self {
        Self { act, blocks }
    }

    /// How a linear is quantized.
    pub(crate) fn of(&self, block: usize, linear: LinearName) -> WeightSpec {
        self.blocks[block][&linear]
    }

    /// The same for the packed model's config.
    pub(crate) fn quantization(&self, decoder: &dyn Decoder) -> Quantization {
        let linears = self.blocks.iter().enumerate().flat_map(|(block, specs)| {
            let prefix = decoder.block_prefix(block);
            specs.iter().map(move |(name, &spec)| (format!("{prefix}{}", name.0), spec))
        });
        Quantization::of_linears(self.act, linears)
    }
}
