//! How the linears of a run are quantized: all alike, or each in its own way.

use std::collections::BTreeMap;

use oq_formats::Quantization;
use oq_models::{Decoder, LinearName, LinearSpec, ModelError, OuterSpecs, specs_of_layer};
use oq_quant_core::{ActSpec, QuantSpec, RotateKind, Scheme, WeightSpec};
use oq_recipe::Recipe;

/// How each linear of a model is quantized.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Widths {
    act: ActSpec,
    /// Block by block; none in full precision.
    blocks: Vec<BTreeMap<LinearName, Option<WeightSpec>>>,
    outer: OuterSpecs,
}

impl Widths {
    /// As a recipe says.
    pub(crate) fn of_recipe(decoder: &dyn Decoder, recipe: &Recipe) -> Result<Self, ModelError> {
        Self::new(decoder, recipe.quantization(), recipe.scheme.act, outer_specs(decoder, recipe)?)
    }

    /// As a scheme says, which quantizes all linears.
    pub(crate) fn of_scheme(decoder: &dyn Decoder, scheme: QuantSpec) -> Result<Self, ModelError> {
        Self::new(decoder, scheme.into(), scheme.act, OuterSpecs::new(decoder, scheme, (None, None), false)?)
    }

    fn new(decoder: &dyn Decoder, scheme: Scheme<'_>, act: ActSpec, outer: OuterSpecs) -> Result<Self, ModelError> {
        let of_block = |block| {
            let specs = specs_of_layer(decoder, scheme, block)?;
            Ok(specs.into_iter().map(|spec| (spec.name, spec.weight)).collect())
        };
        let blocks = (0..decoder.dims().n_layers).map(of_block).collect::<Result<_, ModelError>>()?;
        Ok(Self { act, blocks, outer })
    }

    /// The same with a width of its own for one linear.
    pub(crate) fn set(&mut self, block: usize, linear: LinearName, weight: WeightSpec) {
        self.blocks[block].insert(linear, Some(weight));
    }

    /// How a linear is quantized; none in full precision.
    pub(crate) fn of(&self, block: usize, linear: LinearName) -> Option<WeightSpec> {
        self.blocks[block][&linear]
    }

    /// The linears of a block that are quantized and those that are not, both in the layer's order.
    pub(crate) fn parted(&self, decoder: &dyn Decoder, block: usize) -> (Vec<LinearName>, Vec<LinearName>) {
        let names = decoder.layer(block).linears.into_iter().map(|linear| linear.name);
        names.partition(|&name| self.of(block, name).is_some())
    }

    /// How a tensor outside the blocks is quantized; none in full precision.
    pub(crate) fn of_outer(&self, decoder: &dyn Decoder, tensor: &str) -> Option<WeightSpec> {
        self.outer.of(decoder, tensor)
    }

    /// The same for the packed model's config.
    pub(crate) fn quantization(&self, decoder: &dyn Decoder) -> Quantization {
        let linears = self.blocks.iter().enumerate().flat_map(|(block, specs)| {
            let prefix = decoder.block_prefix(block);
            specs.iter().map(move |(name, &spec)| (format!("{prefix}{}", name.0), spec))
        });
        let outer = decoder.outer_params().into_iter().filter_map(|param| {
            let spec = self.of_outer(decoder, param.name)?;
            Some((param.name.trim_end_matches(".weight").to_owned(), spec))
        });
        Quantization::of_linears(self.act, linears).with(outer)
    }
}

/// How a recipe quantizes the matrices outside the blocks.
///
/// # Errors
/// As [`OuterSpecs::new`].
pub fn outer_specs(decoder: &dyn Decoder, recipe: &Recipe) -> Result<OuterSpecs, ModelError> {
    let bits = (recipe.outer.head_bits, recipe.outer.embed_bits);
    OuterSpecs::new(decoder, recipe.scheme, bits, recipe.rotate.kind != RotateKind::None)
}

/// What a choice of widths is about.
#[derive(Debug, Default)]
pub(crate) struct Open {
    /// The linears whose widths are chosen, by block, with their grids.
    pub(crate) linears: BTreeMap<(usize, LinearName), WeightSpec>,
    /// Weights of these.
    weights: u64,
    /// Weights of the linears whose widths overrides say, and the bits of all of these.
    pinned: (u64, u64),
}

impl Open {
    pub(crate) fn of(decoder: &dyn Decoder, recipe: &Recipe) -> Result<Self, ModelError> {
        let mut open = Self::default();
        for block in 0..decoder.dims().n_layers {
            let specs = specs_of_layer(decoder, recipe.quantization(), block)?;
            for (linear, LinearSpec { name, weight, is_pinned }) in decoder.layer(block).linears.iter().zip(specs) {
                let n = (linear.out_features * linear.in_features) as u64;
                match weight {
                    None => {}
                    Some(weight) if is_pinned => {
                        open.pinned.0 += n;
                        open.pinned.1 += n * u64::from(weight.bits.get());
                    }
                    Some(weight) => {
                        open.weights += n;
                        open.linears.insert((block, name), weight);
                    }
                }
            }
        }
        Ok(open)
    }

    /// Average bits that the open linears may have if all quantized weights are to have `overall`.
    pub(crate) fn share(&self, overall: f64) -> f64 {
        if self.pinned.0 == 0 {
            return overall;
        }
        let all = overall * (self.weights + self.pinned.0) as f64;
        (all - self.pinned.1 as f64) / self.weights as f64
    }

    /// Average bits of all quantized weights if the open ones take `bits`.
    pub(crate) fn overall(&self, bits: u64) -> f64 {
        (bits + self.pinned.1) as f64 / (self.weights + self.pinned.0) as f64
    }
}
