//! What is to be exported, as far as a format has to know it.

use std::collections::BTreeSet;
use std::fmt;

use oq_formats::{FormatError, PackedCheckpoint, is_rotated_online};
use oq_quant_core::{ActSpec, Mixture, QuantSpec, WeightSpec};

/// A scheme, or a model with its schemes and shapes. Formats decide by it whether they hold the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// Without duplicates; never empty.
    weights: Vec<WeightSpec>,
    act: ActSpec,
    rotated_online: bool,
    /// Linears of different shapes, `[out, in]`, each with the name of one of them.
    shapes: Vec<(String, [usize; 2])>,
    /// `model_type` of its config, if there is a model.
    architecture: Option<String>,
    /// The mixture that the schemes are from.
    mixture: Option<Mixture>,
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
        Self { weights: distinct, act, rotated_online: false, shapes: Vec::new(), architecture: None, mixture: None }
    }

    /// A packed model.
    ///
    /// # Errors
    /// When a linear has no valid shape, or there are no linears.
    pub fn of(model: &PackedCheckpoint) -> Result<Self, FormatError> {
        let (mut weights, mut linears) = (Vec::new(), Vec::new());
        for name in model.linear_names() {
            weights.push(model.weight(name)?);
            linears.push((name.to_owned(), model.linear_shape(name)?));
        }
        if weights.is_empty() {
            return Err(FormatError::NotPacked { dir: model.checkpoint().dir().to_owned() });
        }
        let architecture = model.config()["model_type"].as_str();
        let subject = Self::new(model.quantization().act(), weights).rotated_online(is_rotated_online(model.config()));
        Ok(subject.of_model(architecture.unwrap_or_default(), linears))
    }

    /// Sets whether activations are rotated at run time.
    pub fn rotated_online(self, rotated_online: bool) -> Self {
        Self { rotated_online, ..self }
    }

    /// Sets the `model_type` of the config, and the linears with their shapes `[out, in]`.
    pub fn of_model(self, architecture: &str, linears: impl IntoIterator<Item = (String, [usize; 2])>) -> Self {
        let mut seen = BTreeSet::new();
        let shapes = linears.into_iter().filter(|(_, shape)| seen.insert(*shape)).collect();
        Self { shapes, architecture: Some(architecture.to_owned()), ..self }
    }

    /// The same model, quantized otherwise.
    pub(crate) fn quantized(&self, act: ActSpec, weights: impl IntoIterator<Item = WeightSpec>) -> Self {
        Self { weights: Self::new(act, weights).weights, act, mixture: None, ..self.clone() }
    }

    /// The different settings of its linears.
    pub fn weights(&self) -> &[WeightSpec] {
        &self.weights
    }

    /// The setting of all linears, if they are alike.
    pub fn uniform(&self) -> Option<WeightSpec> {
        (self.weights.len() == 1).then(|| self.weights[0])
    }

    /// How activations are quantized.
    pub fn act(&self) -> ActSpec {
        self.act
    }

    pub(crate) fn is_rotated_online(&self) -> bool {
        self.rotated_online
    }

    pub(crate) fn shapes(&self) -> &[(String, [usize; 2])] {
        &self.shapes
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
        Ok(())
    }
}
