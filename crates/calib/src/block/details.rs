//! What learning did to a block, for the record. Nothing that is computed here has an effect on the result.

use std::cell::RefCell;
use std::collections::BTreeMap;

use oq_let::{Transform, Values};
use oq_lwc::Lwc;
use oq_models::{ActPoint, BlockWeights, Compute, Decoder, DenseOps, LinearName, multiply, quantize_act};
use oq_quant_core::{ActSpec, WeightSpec};
use oq_recipe::{BlockDetails, Errors, LinearDetails, Loss, Quantiles, SiteDetails};
use tch::Tensor;

use crate::block::learn::error;
use crate::block::learned::{Learned, quantiles};
use crate::block::watch::Watched;
use crate::disk::states::Store;

/// Tokens that errors are measured on: the first ones of one segment. Fewer than a step has, so that measuring takes little time.
const TOKENS: i64 = 128;

/// Hidden states in front of a block in full precision, `[1, t, hidden]`.
pub(crate) struct Sample(Tensor);

impl Sample {
    /// Takes them from the first segment; none if there are no segments.
    pub(crate) fn of(states: &Store<'_>) -> Option<Self> {
        let first = (!states.is_empty()).then(|| states.get(0).narrow(0, 0, 1))?;
        let t = TOKENS.min(first.size()[1]);
        Some(Self(first.narrow(1, 0, t).copy()))
    }
}

/// A block before and after learning.
pub(crate) struct Subject<'a> {
    pub(crate) decoder: &'a dyn Decoder,
    pub(crate) layer: usize,
    pub(crate) act: ActSpec,
    /// How each of the linears named is quantized.
    pub(crate) linears: &'a [LinearName],
    pub(crate) specs: &'a dyn Fn(LinearName) -> WeightSpec,
    /// The original.
    pub(crate) weights: &'a BlockWeights,
    /// Everything learned merged into it.
    pub(crate) learned: &'a BlockWeights,
    pub(crate) transform: &'a Transform,
}

impl Subject<'_> {
    /// Measures a block on a sample; none if that has numbers that are not finite.
    pub(crate) fn details(&self, sample: &Sample, found: &Learned) -> Option<BlockDetails> {
        let before = self.beside(self.weights, &self.nearest(), sample);
        let rescaled = (!self.transform.sites().is_empty()).then(|| self.rescaled(&found.values));
        let after = self.beside(rescaled.as_ref().unwrap_or(self.weights), self.learned, sample);
        let errors = |nearest: Option<f64>, learned: Option<f64>| Some(Errors { nearest: nearest?, learned: learned? });
        let linears = self.linears.iter().map(|&name| {
            let (first, last) = (before.linears.get(&name), after.linears.get(&name));
            let clipped = &found.clips[&name];
            let error = errors(first.and_then(|seen| seen.error), last.and_then(|seen| seen.error));
            let is_rescaled = self.transform.sites().iter().any(|site| site.rescales_input_of(name.0));
            LinearDetails {
                name: name.0.to_owned(),
                bits: (self.specs)(name).bits.get(),
                weights: self.weights.weight(name).numel() as u64,
                error,
                clip_max: clipped.max,
                clip_min: clipped.min,
                moved: clipped.moved,
                input: first.and_then(|seen| seen.input),
                input_rescaled: last.filter(|_| is_rescaled).and_then(|seen| seen.input),
            }
        });
        let sites = self.transform.sites().iter().zip(&found.values.scales).filter_map(|(site, scales)| {
            let module = site.writers().next().map_or("", |port| port.module).to_owned();
            Some(SiteDetails { kind: site.kind, module, scales: quantiles(scales)? })
        });
        Some(BlockDetails {
            index: self.layer,
            tokens: sample.0.size()[1] as usize,
            error: errors(before.error, after.error)?,
            linears: linears.collect(),
            sites: sites.collect(),
        })
    }

    /// The original with its linears rounded to nearest.
    fn nearest(&self) -> BlockWeights {
        let mut rounded = copy(self.weights);
        for &name in self.linears {
            let weight = self.weights.weight(name);
            let (rows, cols) = weight.size2().expect("a weight is [out, in]");
            let clip = Lwc::whole_range(rows as usize, cols as usize, (self.specs)(name), weight.device());
            rounded.set(name.weight(), clip.expect("the groups divided the row before").fake_quantize(weight));
        }
        rounded
    }

    /// The original, transformed.
    fn rescaled(&self, values: &Values) -> BlockWeights {
        let mut rescaled = copy(self.weights);
        for (name, tensor) in self.transform.apply(values, |name| self.weights.find(name)) {
            rescaled.set(name, tensor);
        }
        rescaled
    }

    /// Runs a block in full precision, and beside each linear the one of the other block on the same input; then the other block.
    fn beside(&self, full: &BlockWeights, other: &BlockWeights, sample: &Sample) -> Seen {
        let ctx = self.decoder.context(sample.0.size()[1] as usize, sample.0.device());
        let linears = RefCell::new(BTreeMap::new());
        let see = |name: LinearName, x: &Tensor, y: &Tensor| {
            if self.linears.contains(&name) && x.numel() > 0 {
                let input = x.abs().flatten(0, -2).amax([0], false); // [in]
                let x = quantize_act(self.act, ActPoint::LinearInput, x.shallow_clone());
                let near = multiply(&x, other.weight(name), other.bias(name));
                let error = finite(&error(Loss::Relative, &near, y));
                linears.borrow_mut().insert(name, SeenLinear { error, input: quantiles(&input) });
            }
        };
        let dense = DenseOps::new(full);
        let exact = self.decoder.block(self.layer, &Watched { ops: &dense, see }, &ctx, &sample.0);
        let near = self.decoder.block(self.layer, &DenseOps::new(other).with_act(self.act), &ctx, &sample.0);
        Seen { error: finite(&error(Loss::Relative, &near, &exact)), linears: linears.into_inner() }
    }
}

/// What was seen of a block in full precision and another one beside it.
struct Seen {
    error: Option<f64>,
    linears: BTreeMap<LinearName, SeenLinear>,
}

struct SeenLinear {
    error: Option<f64>,
    input: Option<Quantiles>,
}

fn copy(weights: &BlockWeights) -> BlockWeights {
    weights.cast(&[], Compute::F32)
}

fn finite(x: &Tensor) -> Option<f64> {
    Some(x.double_value(&[])).filter(|value| value.is_finite())
}
