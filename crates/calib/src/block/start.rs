//! What the linears of a block start from: clipping that was searched for, and rounding that may be compensated.

use std::collections::BTreeMap;

use oq_lwc::{Lwc, LwcError};
use oq_models::{BlockWeights, LinearName};
use oq_quant_core::WeightSpec;
use oq_ranks::{Ranks, RanksError};
use tch::{Device, Tensor};

use crate::block::compensate::{self, Rounded};
use crate::block::inputs::Inputs;

/// Why linears have no start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The quantizer refused a linear.
    Linear { linear: LinearName, source: LwcError },
    /// Another rank failed, or is gone.
    Ranks(RanksError),
}

/// Clipping and rounding at their start for every linear named, quantized as `specs` says, with the statistics of its inputs where they
/// were collected. Without them, the whole range of each group is kept.
///
/// Linears are shared out to ranks by their inputs. Codes are decided here, and other processors or libraries may decide some otherwise:
/// so each is computed once, and sent to the others.
pub(crate) fn started(
    weights: &BlockWeights,
    linears: &[LinearName],
    specs: &dyn Fn(LinearName) -> WeightSpec,
    seen: &Inputs,
    (device, ranks): (Device, &Ranks),
) -> Result<BTreeMap<LinearName, Lwc>, StartError> {
    let owner_of = |name: LinearName| {
        seen.of_linears().position(|(names, _)| names.contains(&name.0)).map_or(0, |input| input % ranks.size())
    };
    let clips = linears
        .iter()
        .map(|&name| {
            let weight = weights.weight(name);
            let (out_features, in_features) = weight.size2().expect("a weight is [out, in]");
            let clip = Lwc::new(out_features as usize, in_features as usize, specs(name), device);
            let mut clip = clip.map_err(|source| StartError::Linear { linear: name, source })?;
            if let Some(moments) = seen.moments(name) {
                if owner_of(name) == ranks.rank() {
                    clip.start_from_search(weight, &moments.squares);
                }
                if !moments.products.is_empty() {
                    clip.offsets = Some(weight.zeros_like());
                }
            }
            Ok((name, clip))
        })
        .collect::<Result<BTreeMap<_, _>, _>>()?;
    // All of them are allocated before the first is filled in, so that temporary tensors leave no gaps between them.
    let own = seen.of_linears().skip(ranks.rank()).step_by(ranks.size());
    for (names, moments) in own {
        let rounded = clips.iter().filter_map(|(&name, clip)| {
            let offsets = clip.offsets.as_ref().filter(|_| names.contains(&name.0))?;
            Some(Rounded { weight: weights.weight(name), clip, offsets })
        });
        compensate::fill(&rounded.collect::<Vec<_>>(), moments);
    }
    for (&name, clip) in clips.iter().filter(|(name, _)| seen.moments(**name).is_some()) {
        let parts: Vec<&Tensor> = [&clip.gamma, &clip.beta].into_iter().chain(&clip.offsets).collect();
        ranks.broadcast(owner_of(name), &parts).map_err(StartError::Ranks)?;
    }
    Ok(clips)
}
