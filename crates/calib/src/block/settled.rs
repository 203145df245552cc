//! Experts that too few tokens reach are quantized before the rest of their block learns, a few at a time. After that they take no
//! memory for statistics, offsets and gradients, however many they are.

use std::collections::BTreeMap;

use oq_models::{BlockWeights, Compute, Layer, LinearName, dequantized};
use oq_quant_core::{QuantizedTensor, WeightSpec};
use oq_ranks::Ranks;
use tch::Device;

use crate::block::inputs::{Inputs, products_of};
use crate::block::learned::{Clipped, Learned};
use crate::block::start::{StartError, started};
use crate::merged::Merged;

/// Bytes of products of input channels that experts settled together may take. One expert may take more.
const TOGETHER: u64 = 256 << 20;

/// Experts in groups that are settled together.
pub(crate) fn together(experts: &[usize], layout: &Layer) -> Vec<Vec<usize>> {
    together_within(TOGETHER, experts, layout)
}

fn together_within(bytes: u64, experts: &[usize], layout: &Layer) -> Vec<Vec<usize>> {
    let inputs = layout.groups();
    let bytes_of = |expert: usize| {
        let inputs = inputs.iter().filter(|linears| layout.experts[expert].contains(&linears[0].name));
        inputs.map(|linears| size_of::<f32>() as u64 * products_of(linears[0].in_features)).sum::<u64>()
    };
    let (mut groups, mut held): (Vec<Vec<usize>>, u64) = (Vec::new(), 0);
    for &expert in experts {
        let more = bytes_of(expert);
        match groups.last_mut().filter(|_| held + more <= bytes) {
            Some(group) => group.push(expert),
            None => {
                groups.push(vec![expert]);
                held = 0;
            }
        }
        held += more;
    }
    groups
}

/// Linears whose codes are final before the rest of the block learns.
#[derive(Default)]
pub(crate) struct Settled {
    codes: BTreeMap<LinearName, QuantizedTensor>,
    clips: BTreeMap<LinearName, Clipped>,
}

impl Settled {
    /// Quantizes linears as they start from the statistics of their inputs.
    pub(crate) fn add(
        &mut self,
        weights: &BlockWeights,
        linears: &[LinearName],
        specs: &dyn Fn(LinearName) -> WeightSpec,
        seen: &Inputs,
        (device, ranks): (Device, &Ranks),
    ) -> Result<(), StartError> {
        for (name, clip) in started(weights, linears, specs, seen, (device, ranks))? {
            let weight = weights.weight(name);
            let codes = clip.quantize(weight).map_err(|source| StartError::Linear { linear: name, source })?;
            self.codes.insert(name, codes);
            self.clips.insert(name, Clipped::of(clip, weight));
        }
        Ok(())
    }

    /// Those of the linears that are not settled.
    pub(crate) fn rest_of(&self, linears: &[LinearName]) -> Vec<LinearName> {
        linears.iter().copied().filter(|name| !self.codes.contains_key(name)).collect()
    }

    /// The block with the settled linears quantized, in the type of the products.
    pub(crate) fn within(&self, weights: &BlockWeights, compute: Compute) -> BlockWeights {
        let mut with = weights.cast(&[], Compute::F32);
        for (&name, codes) in &self.codes {
            with.set(name.weight(), compute.cast(dequantized(codes, weights.weight(name).device())));
        }
        with
    }

    /// Adds the settled linears to what the rest of the block learned.
    pub(crate) fn join(self, merged: &mut Merged, learned: &mut Learned) {
        merged.codes.extend(self.codes);
        learned.clips.extend(self.clips);
    }
}

#[cfg(test)]
mod tests {
    use oq_models::{Attention, Linear};

    use super::*;

    fn layer(experts: usize) -> Layer {
        let name = |expert: usize, which: &str| LinearName(oq_models::intern(&format!("experts.{expert}.{which}")));
        let linear = |expert, which, out_features, in_features| Linear {
            name: name(expert, which),
            out_features,
            in_features,
            bias: false,
        };
        Layer {
            linears: (0..experts)
                .flat_map(|e| [linear(e, "gate", 64, 32), linear(e, "up", 64, 32), linear(e, "down", 32, 64)])
                .collect(),
            params: Vec::new(),
            together: (0..experts).map(|e| vec![name(e, "gate"), name(e, "up")]).collect(),
            experts: (0..experts).map(|e| ["gate", "up", "down"].map(|which| name(e, which)).to_vec()).collect(),
            chosen: 1,
            attention: Attention { n_heads: 1, n_kv_heads: 1, head_dim: 32, scale: None, softcap: None, sinks: false },
            intermediate: 64,
        }
    }

    #[test]
    fn experts_are_settled_in_groups_within_a_budget() {
        // Each expert reads one input of 32 channels and one of 64.
        let each = 4 * (32 * 32 + 64 * 64);
        let groups = |bytes| together_within(bytes, &[0, 2, 3, 5, 6], &layer(7));
        assert_eq!(groups(2 * each), [vec![0, 2], vec![3, 5], vec![6]]);
        assert_eq!(groups(3 * each - 1), [vec![0, 2], vec![3, 5], vec![6]]);
        assert_eq!(groups(1), [vec![0], vec![2], vec![3], vec![5], vec![6]], "one expert may take more");
        assert_eq!(groups(5 * each), [vec![0, 2, 3, 5, 6]]);
    }
}
