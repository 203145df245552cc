//! Whether a format holds a model, and what would do if it does not.

use std::fmt;

use oq_formats::packed::Experts;
use oq_quant_core::{ActSpec, Bits, GroupSize, Symmetry, WeightSpec};
use serde::Serialize;

use crate::format::Format;
use crate::subject::Subject;
use crate::table::FORMATS;

/// Why a format cannot hold a model, and what would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Refusal {
    /// The format.
    pub format: &'static str,
    /// The schemes of the model.
    pub schemes: String,
    /// What the format cannot hold.
    pub why: String,
    /// The nearest scheme that it holds.
    pub instead: Option<String>,
    /// The formats that hold the model as it is.
    pub elsewhere: Vec<&'static str>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, schemes, why, instead, elsewhere } = self;
        write!(f, "{format} cannot hold {schemes}: {why}")?;
        if let Some(instead) = instead {
            write!(f, "; {instead} would do")?;
        }
        match elsewhere[..] {
            [] => Ok(()),
            _ => write!(f, "; {schemes} goes to {}", elsewhere.join(", ")),
        }
    }
}

/// Whether `format` holds the model.
///
/// # Errors
/// The reason, the nearest scheme that it holds, and the formats that hold the model as it is.
pub fn check(format: &Format, subject: &Subject) -> Result<(), Refusal> {
    limits(format, subject).map_err(|why| Refusal {
        format: format.name,
        schemes: subject.to_string(),
        why,
        instead: nearest(format, subject).as_ref().map(ToString::to_string),
        elsewhere: FORMATS.iter().filter(|format| limits(format, subject).is_ok()).map(|format| format.name).collect(),
    })
}

fn limits(format: &Format, subject: &Subject) -> Result<(), String> {
    if subject.is_rotated_online() {
        let why =
            "its activations are rotated while it runs, which no format can say: quantize with --rotate merged or none";
        return Err(why.to_owned());
    }
    if subject.experts() == Some(Experts::Together) && format.name != "gguf" {
        return Err("its experts are one tensor to other programs, which would leave these linears out".to_owned());
    }
    (format.holds)(subject)?;
    for (name, shape, weight) in subject.shapes() {
        let named = |why| format!("{name} is {shape:?}, and {why}");
        let [_, in_features] = shape;
        if !weight.group.divides(in_features) {
            return Err(named(format!("groups of {} do not divide it", weight.group.len(in_features))));
        }
        (format.fits)(weight, shape).map_err(named)?;
    }
    Ok(())
}

/// The nearest schemes that `format` holds: the same, made symmetric, or else one for all linears.
fn nearest(format: &Format, subject: &Subject) -> Option<Subject> {
    let symmetric = subject.weights().iter().map(|&weight| made_symmetric(weight));
    let symmetric = subject.quantized(subject.act(), symmetric);
    if symmetric.weights().iter().all(|weight| weight.exists()) && limits(format, &symmetric).is_ok() {
        return Some(symmetric);
    }
    let uniform = uniform_candidates(subject).filter(|candidate| limits(format, candidate).is_ok());
    uniform.min_by(|a, b| distance(subject, a).total_cmp(&distance(subject, b)))
}

/// With 2 bits, all codes are used: leaving one of four out costs much (`benches/record`, `choices.md`).
fn made_symmetric(weight: WeightSpec) -> WeightSpec {
    let symmetry = if weight.bits.get() == 2 { Symmetry::FullRange } else { Symmetry::Symmetric };
    WeightSpec { symmetry, ..weight }
}

fn uniform_candidates(subject: &Subject) -> impl Iterator<Item = Subject> {
    let like = subject.weights()[0];
    let sizes = [32, 64, 128].map(|n| GroupSize::channels(n).expect("not 0"));
    let groups = [like.group, GroupSize::PerChannel].into_iter().chain(sizes);
    let eight = Bits::new(8).expect("a width of codes");
    let acts = [subject.act(), ActSpec::PerTokenSymmetric(eight), ActSpec::Float];
    let weights = Bits::ALL.into_iter().flat_map(move |bits| {
        let asymmetric = groups.clone().map(move |group| WeightSpec::integer(bits, group, Symmetry::Asymmetric));
        asymmetric.clone().chain(asymmetric.map(made_symmetric))
    });
    weights.flat_map(move |weight| acts.map(|act| subject.quantized(act, [weight])))
}

/// How far a scheme for all linears is from those of `subject`: first whether activations are quantized, then bits, then group and symmetry.
fn distance(subject: &Subject, candidate: &Subject) -> f64 {
    const ACTIVATIONS: f64 = 1000.0;
    const BITS: f64 = 10.0;
    const SYMMETRY: f64 = 2.0;
    let act = match (subject.act().bits(), candidate.act().bits()) {
        (None, None) => 0.0,
        (Some(a), Some(b)) => BITS * f64::from(a.get().abs_diff(b.get())),
        _ => ACTIVATIONS,
    };
    let to = candidate.weights()[0];
    let weights = subject.weights().iter().map(|from| {
        let bits = BITS * f64::from(from.bits.get().abs_diff(to.bits.get()));
        let group = (log2_of(from.group) - log2_of(to.group)).abs();
        let is_asymmetric = |weight: WeightSpec| weight.symmetry == Symmetry::Asymmetric;
        let symmetry = if is_asymmetric(*from) == is_asymmetric(to) { 0.0 } else { SYMMETRY };
        // Of two that are equally far, the one of more bits.
        let fewer = if to.bits < from.bits { 0.5 } else { 0.0 };
        bits + group + symmetry + fewer
    });
    act + weights.sum::<f64>()
}

/// Channels of a group; a row of a usual model if it is the group.
fn log2_of(group: GroupSize) -> f64 {
    (group.len(4096) as f64).log2()
}
