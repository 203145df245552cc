//! What is to be exported, as far as a format has to know it.

use std::collections::BTreeSet;
use std::fmt;

use oq_formats::packed::{Experts, experts_of};
use oq_formats::{FormatError, PackedCheckpoint, is_rotated_online};
use oq_quant_core::{ActSpec, Mixture, QuantSpec, WeightSpec};

/// A scheme, or a model with its schemes and shapes. Formats decide by it whether they hold the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// Without duplicates; never empty.
    weights: Vec<WeightSpec>,
    act: ActSpec,
    rotated_online: bool,
    /// Linears of different shapes and settings, each by the name of one of them.
    linears: Vec<Tensor>,
    /// `model_type` of its config, if there is a model.
    architecture: Option<String>,
    /// The mixture that the schemes are from.
    mixture: Option<Mixture>,
    /// Matrices outside the blocks that are quantized.
    outer: Vec<Tensor>,
    /// Whether some linears are in full precision.
    left_out: bool,
}

/// A linear, or a matrix outside the blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its name in the checkpoint, without `.weight`.
    pub name: String,
    /// `[out, in]`
    pub shape: [usize; 2],
    /// How it is quantized; none in full precision.
    pub weight: Option<WeightSpec>,
}

impl Tensor {
    /// What lies in a block has the block's number in its name.
    fn is_in_block(&self) -> bool {
        self.name.split('.').any(|part| part.parse::<usize>().is_ok())
    }

    /// Whether it is the head, by its name in all families.
    pub(crate) fn is_head(&self) -> bool {
        self.name == "lm_head"
    }
}

impl From<QuantSpec> for Subject {
    /// Any model of this scheme.
    fn from(spec: QuantSpec) -> Self {
        Self { mixture: spec.mixture, ..Self::new(spec.act, [spec.weight]) }
    }
}

impl Subject {
    /// Any model whose linears are quantized by one of `weights` each.
    ///
    /// # Panics
    /// When there are none.
    pub fn new(act: ActSpec, weights: impl IntoIterator<Item = WeightSpec>) -> Self {
        let mut distinct = Vec::new();
        for weight in weights {
            if !distinct.contains(&weight) {
                distinct.push(weight);
            }
        }
        assert!(!distinct.is_empty(), "a subject: no scheme given");
        Self {
            weights: distinct,
            act,
            rotated_online: false,
            linears: Vec::new(),
            architecture: None,
            mixture: None,
            outer: Vec::new(),
            left_out: false,
        }
    }

    /// A packed model.
    ///
    /// # Errors
    /// When a linear has no valid shape, or there are no linears.
    pub fn of(model: &PackedCheckpoint) -> Result<Self, FormatError> {
        let tensor = |name: &str| {
            let (shape, weight) = (model.linear_shape(name)?, Some(model.weight(name)?));
            Ok(Tensor { name: name.to_owned(), shape, weight })
        };
        let tensors = model.linear_names().map(tensor).collect::<Result<Vec<_>, FormatError>>()?;
        if tensors.is_empty() {
            return Err(FormatError::NotPacked { dir: model.checkpoint().dir().to_owned() });
        }
        // What is left out of the blocks has no codes, and is told by the config.
        let left_out = model.quantization().left_out().next().is_some();
        let architecture = model.config()["model_type"].as_str().unwrap_or_default();
        let subject = Self::of_tensors(model.quantization().act(), architecture, tensors);
        Ok(Self { left_out, rotated_online: is_rotated_online(model.config()), ..subject })
    }

    /// A model by the `model_type` of its config and its tensors. A linear that may be quantized in several ways stands there once for each.
    ///
    /// # Panics
    /// When none is quantized.
    pub fn of_tensors(act: ActSpec, architecture: &str, tensors: impl IntoIterator<Item = Tensor>) -> Self {
        let (blocks, outer): (Vec<_>, Vec<_>) = tensors.into_iter().partition(Tensor::is_in_block);
        let mut linears: Vec<Tensor> = Vec::new();
        let left_out = blocks.iter().any(|tensor| tensor.weight.is_none());
        for tensor in blocks.into_iter().filter(|tensor| tensor.weight.is_some()) {
            if !linears.iter().any(|known| (known.shape, known.weight) == (tensor.shape, tensor.weight)) {
                linears.push(tensor);
            }
        }
        let outer: Vec<_> = outer.into_iter().filter(|tensor| tensor.weight.is_some()).collect();
        // Others' models may have nothing else.
        let quantized = if linears.is_empty() { &outer } else { &linears };
        let all = Self::new(act, quantized.iter().filter_map(|tensor| tensor.weight));
        Self { linears, outer, left_out, architecture: Some(architecture.to_owned()), ..all }
    }

    /// Sets whether activations are rotated at run time.
    pub fn rotated_online(self, rotated_online: bool) -> Self {
        Self { rotated_online, ..self }
    }

    /// Sets the `model_type` of the config, and the linears with their shapes `[out, in]`, each of any of the schemes.
    pub fn of_model(self, architecture: &str, linears: impl IntoIterator<Item = (String, [usize; 2])>) -> Self {
        let mut seen = BTreeSet::new();
        let linears = linears.into_iter().filter(|(_, shape)| seen.insert(*shape));
        let linears = linears.map(|(name, shape)| Tensor { name, shape, weight: None }).collect();
        Self { linears, architecture: Some(architecture.to_owned()), ..self }
    }

    /// The same model with its linears quantized otherwise, and nothing else.
    pub(crate) fn quantized(&self, act: ActSpec, weights: impl IntoIterator<Item = WeightSpec>) -> Self {
        let linears = self.linears.iter().map(|tensor| (tensor.name.clone(), tensor.shape));
        let all = Self::new(act, weights).rotated_online(self.rotated_online);
        let subject = all.of_model("", linears);
        Self { architecture: self.architecture.clone(), left_out: self.left_out, ..subject }
    }

    /// The different settings of its linears.
    pub fn weights(&self) -> &[WeightSpec] {
        &self.weights
    }

    /// The same, and those of matrices outside the blocks.
    pub(crate) fn all_weights(&self) -> impl Iterator<Item = WeightSpec> {
        self.weights.iter().copied().chain(self.outer.iter().filter_map(|tensor| tensor.weight))
    }

    /// The setting of all linears that are quantized, if they are alike.
    pub fn uniform(&self) -> Option<WeightSpec> {
        (self.weights.len() == 1).then(|| self.weights[0])
    }

    /// How activations are quantized.
    pub fn act(&self) -> ActSpec {
        self.act
    }

    /// Whether some linears of its blocks are in full precision.
    pub fn leaves_out(&self) -> bool {
        self.left_out
    }

    /// Quantized matrices outside the blocks.
    pub fn outer(&self) -> &[Tensor] {
        &self.outer
    }

    pub(crate) fn is_rotated_online(&self) -> bool {
        self.rotated_online
    }

    fn is_any_of(&self, architectures: &[&str]) -> bool {
        self.architecture().is_some_and(|architecture| architectures.contains(&architecture))
    }

    /// How other programs store its experts, if it has some.
    pub(crate) fn experts(&self) -> Option<Experts> {
        self.architecture().and_then(experts_of)
    }

    /// Whether exports of such a model were opened with every program; those of others were opened with transformers.
    pub(crate) fn is_well_known(&self) -> bool {
        self.architecture().is_none() || self.is_any_of(&["llama", "mistral", "qwen2", "qwen3", "opt", "falcon"])
    }

    /// Shapes of its linears and matrices outside the blocks, with their settings or, where these are not known, each of all settings.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (&str, [usize; 2], WeightSpec)> {
        self.linears.iter().chain(&self.outer).flat_map(|tensor| {
            let own = tensor.weight.as_slice();
            let weights = if own.is_empty() { &self.weights } else { own };
            weights.iter().map(|&weight| (tensor.name.as_str(), tensor.shape, weight))
        })
    }

    /// `model_type` of its config; none if only a scheme is known.
    pub fn architecture(&self) -> Option<&str> {
        self.architecture.as_deref()
    }
}

impl fmt::Display for Subject {
    /// All settings, the fewest bits first: `w2a16g64, w4a16g64`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mixture) = self.mixture {
            return mixture.fmt(f);
        }
        let mut weights = self.weights.clone();
        weights.sort_by_key(|weight| weight.bits);
        for (idx, &weight) in weights.iter().enumerate() {
            let comma = if idx > 0 { ", " } else { "" };
            write!(f, "{comma}{}", QuantSpec::uniform(weight, self.act))?;
        }
        for tensor in &self.outer {
            if let Some(weight) = tensor.weight {
                write!(f, ", {} {weight}", tensor.name)?;
            }
        }
        Ok(())
    }
}
