//! What the linears of a block start from: clipping that was searched for, and rounding that may be compensated.

use std::collections::BTreeMap;

use oq_lwc::{Lwc, LwcError};
use oq_models::{BlockWeights, LinearName};
use oq_quant_core::WeightSpec;
use tch::Device;

use crate::block::compensate::{self, Rounded};
use crate::block::inputs::Inputs;

/// Clipping and rounding at their start for every linear named, quantized as `specs` says, with the statistics of its inputs where they
/// were collected. Without them, the whole range of each group is kept.
pub(crate) fn started(
    weights: &BlockWeights,
    linears: &[LinearName],
    specs: &dyn Fn(LinearName) -> WeightSpec,
    seen: &Inputs,
    device: Device,
) -> Result<BTreeMap<LinearName, Lwc>, (LinearName, LwcError)> {
    let clips = linears
        .iter()
        .map(|&name| {
            let weight = weights.weight(name);
            let (out_features, in_features) = weight.size2().expect("a weight is [out, in]");
            let clip = Lwc::new(out_features as usize, in_features as usize, specs(name), device);
            let mut clip = clip.map_err(|error| (name, error))?;
            if let Some(moments) = seen.moments(name) {
                clip.start_from_search(weight, &moments.squares);
                if !moments.products.is_empty() {
                    clip.offsets = Some(weight.zeros_like());
                }
            }
            Ok((name, clip))
        })
        .collect::<Result<BTreeMap<_, _>, _>>()?;
    // All of them are allocated before the first is filled in, so that temporary tensors leave no gaps between them.
    for (names, moments) in seen.of_linears() {
        let rounded = clips.iter().filter_map(|(&name, clip)| {
            let offsets = clip.offsets.as_ref().filter(|_| names.contains(&name.0))?;
            Some(Rounded { weight: weights.weight(name), clip, offsets })
        });
        compensate::fill(&rounded.collect::<Vec<_>>(), moments);
    }
    Ok(clips)
}
