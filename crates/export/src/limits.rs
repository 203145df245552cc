//! Limits that several formats share, with the words for what exceeds them.

use oq_quant_core::{GroupSize, Storage, Symmetry, WeightSpec};

use crate::subject::Subject;

/// The setting of all linears.
pub(crate) fn one_setting(subject: &Subject) -> Result<WeightSpec, String> {
    subject.uniform().ok_or_else(|| "all linears must be quantized alike".to_owned())
}

/// All settings, which have the same kind of zero point.
pub(crate) fn settings_alike(subject: &Subject) -> Result<Vec<WeightSpec>, String> {
    let weights: Vec<WeightSpec> = subject.all_weights().collect();
    let asymmetric = weights.iter().filter(|weight| weight.symmetry == Symmetry::Asymmetric).count();
    if asymmetric == 0 || asymmetric == weights.len() {
        return Ok(weights);
    }
    Err("all of its linears are symmetric, or none is".to_owned())
}

/// Nothing outside the blocks is quantized.
pub(crate) fn blocks_alone(subject: &Subject) -> Result<(), String> {
    subject.outer().first().map_or(Ok(()), |tensor| {
        let option = if tensor.is_head() { "--head-bits" } else { "--embed-bits" };
        Err(format!("its loaders take {} in full precision only: quantize without {option}", tensor.name))
    })
}

/// Nothing outside the blocks is quantized but the head.
pub(crate) fn blocks_and_head(subject: &Subject) -> Result<(), String> {
    let other = subject.outer().iter().find(|tensor| !tensor.is_head());
    other.map_or(Ok(()), |tensor| {
        Err(format!("its loaders take {} in full precision only: quantize without --embed-bits", tensor.name))
    })
}

/// Activations are not quantized.
pub(crate) fn float_activations(subject: &Subject) -> Result<(), String> {
    match subject.act().bits() {
        None => Ok(()),
        Some(bits) => Err(format!("it has no place for activations of {bits} bits")),
    }
}

/// Groups have an f16 scale and an integer zero point.
pub(crate) fn integer_grid(weight: WeightSpec) -> Result<(), String> {
    match weight.storage {
        Storage::Half => Ok(()),
        _ => {
            Err(format!("its groups have an f16 scale and an integer zero point each, and those of {weight} have not"))
        }
    }
}

/// transformers puts packed linears in the place of the model's.
pub(crate) fn replaceable(subject: &Subject) -> Result<(), String> {
    match subject.architecture() {
        Some("falcon") => {
            let why =
                "its loaders do not replace Falcon's own class of linears, and would run random weights in silence";
            Err(why.to_owned())
        }
        _ => Ok(()),
    }
}

/// Codes have one of these widths.
pub(crate) fn bits(weight: WeightSpec, allowed: &[u32]) -> Result<(), String> {
    let bits = weight.bits;
    if allowed.contains(&bits.get()) {
        return Ok(());
    }
    Err(format!("its codes have {} bits, not {bits}", listed(allowed)))
}

/// Groups have one of these sizes.
pub(crate) fn groups(weight: WeightSpec, allowed: &[usize], per_channel: bool) -> Result<(), String> {
    let rest = if per_channel { ", or are whole rows" } else { "" };
    match weight.group {
        GroupSize::PerChannel if per_channel => Ok(()),
        GroupSize::Channels(n) if allowed.contains(&n.get()) => Ok(()),
        GroupSize::PerChannel => Err(format!("its groups have {} channels, and are not whole rows", listed(allowed))),
        GroupSize::Channels(n) => Err(format!("its groups have {} channels{rest}, not {n}", listed(allowed))),
    }
}

/// Both sides of `[out, in]` are multiples.
pub(crate) fn multiples([out_features, in_features]: [usize; 2], of: [usize; 2]) -> Result<(), String> {
    for (name, side, of) in [("out_features", out_features, of[0]), ("in_features", in_features, of[1])] {
        if !side.is_multiple_of(of) {
            return Err(format!("{name} must be a multiple of {of}"));
        }
    }
    Ok(())
}

/// Any shape.
pub(crate) fn any_shape(_: WeightSpec, _: [usize; 2]) -> Result<(), String> {
    Ok(())
}

/// Groups as their number of channels, or -1 for whole rows, as most loaders have it.
pub(crate) fn group_size(group: GroupSize) -> i64 {
    match group {
        GroupSize::PerChannel => -1,
        GroupSize::Channels(n) => n.get() as i64,
    }
}

fn listed<T: ToString>(numbers: &[T]) -> String {
    let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    match &numbers[..] {
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
        [] => String::new(),
    }
}
