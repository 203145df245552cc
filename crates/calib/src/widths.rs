//! How the linears of a run are quantized: all alike, or each with its own width.

use std::collections::BTreeMap;

use oq_formats::Quantization;
use oq_models::{Decoder, LinearName};
use oq_quant_core::{Bits, QuantSpec, WeightSpec};

/// How each linear of a model is quantized.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Widths {
    spec: QuantSpec,
    /// Widths of the linears of each block; empty if all have the scheme's.
    blocks: Vec<BTreeMap<LinearName, Bits>>,
}

impl Widths {
    /// All linears as `spec` says.
    pub(crate) fn uniform(spec: QuantSpec) -> Self {
        Self { spec, blocks: Vec::new() }
    }

    /// Widths of all linears, block by block; everything else as `spec` says.
    pub(crate) fn of_blocks(spec: QuantSpec, blocks: Vec<BTreeMap<LinearName, Bits>>) -> Self {
        Self { spec, blocks }
    }

    /// How a linear is quantized.
    pub(crate) fn of(&self, block: usize, linear: LinearName) -> WeightSpec {
        let bits = self.blocks.get(block).map_or(self.spec.weight.bits, |widths| widths[&linear]);
        WeightSpec { bits, ..self.spec.weight }
    }

    /// The same for the packed model's config.
    pub(crate) fn quantization(&self, decoder: &dyn Decoder) -> Quantization {
        if self.blocks.is_empty() {
            return self.spec.into();
        }
        let linears = (0..self.blocks.len()).flat_map(|block| {
            let prefix = decoder.block_prefix(block);
            let names = self.blocks[block].keys();
            names.map(move |&name| (format!("{prefix}{}", name.0), self.of(block, name))).collect::<Vec<_>>()
        });
        Quantization::of_linears(self.spec.act, linears)
    }
}
