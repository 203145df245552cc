//! What a format is: its limits, its tensors, and its part of `config.json`.

use oq_formats::{Dtype, PackedCheckpoint};
use oq_quant_core::{QuantSpec, QuantizedTensor, WeightSpec};
use serde_json::Value;

use crate::subject::Subject;

/// A format that packed models can be exported to; a row of [`FORMATS`](crate::FORMATS).
#[derive(Debug)]
pub struct Format {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it holds, in a line.
    pub about: &'static str,
    /// Why it cannot hold a model of these schemes.
    pub(crate) holds: fn(&Subject) -> Result<(), String>,
    /// Why it cannot hold a linear of this shape, `[out, in]`.
    pub(crate) fits: fn(WeightSpec, [usize; 2]) -> Result<(), String>,
    /// What it is written as.
    pub(crate) container: Container,
}

/// What a format is written as.
#[derive(Debug)]
pub(crate) enum Container {
    /// A directory in the form of Hugging Face.
    Directory(Layout),
    /// A GGUF file.
    Gguf,
}

/// What is in the directory of a format.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The tensors of one linear of this shape, `[out, in]`.
    pub(crate) tensors: fn(QuantSpec, [usize; 2]) -> Tensors,
    /// Tells loaders in `config.json`, from which the packed model's `quantization_config` has been removed, what is in the files.
    pub(crate) configure: fn(&PackedCheckpoint, &mut Value),
    /// The type that tensors outside of the linears are converted to; none leaves them as they are.
    pub(crate) others: Option<Dtype>,
}

/// The tensors of an exported linear.
#[derive(Clone, Debug)]
pub(crate) enum Tensors {
    /// Those of the packed model, byte for byte.
    AsPacked,
    /// Others.
    Parts(Vec<Part>),
}

/// A tensor of an exported linear.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// What follows the linear's name and a dot.
    pub(crate) name: &'static str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Its bytes, or why the format cannot hold them.
    pub(crate) fill: fn(&QuantizedTensor) -> Result<Vec<u8>, String>,
}
