//! Linears that differ from most.

use std::collections::BTreeMap;

use oq_formats::PackedCheckpoint;
use oq_quant_core::WeightSpec;

/// The setting of most linears, and each linear that has another one or none, by name.
///
/// # Panics
/// When no linear is quantized.
pub(crate) fn own_settings(model: &PackedCheckpoint) -> (WeightSpec, BTreeMap<&str, Option<WeightSpec>>) {
    let linears: Vec<_> = model.linear_names().filter_map(|name| Some((name, model.weight(name).ok()?))).collect();
    let count = |spec: WeightSpec| linears.iter().filter(|(_, other)| *other == spec).count();
    // The last of the most frequent, whatever the order of names is.
    let most = linears.iter().map(|(_, spec)| *spec).max_by_key(|&spec| (count(spec), spec.bits));
    let most = most.expect("a packed model has quantized linears");
    let others = linears.iter().filter(|(_, spec)| *spec != most).map(|&(name, spec)| (name, Some(spec)));
    (most, others.chain(model.quantization().left_out().map(|name| (name, None))).collect())
}
