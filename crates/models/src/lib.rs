//! Decoder families: the tensors of a checkpoint, and one forward pass for calibration, evaluation and generation.
//!
//! A family (`llama`, `opt`, `falcon`) is one file with its config, the names of its tensors and its forward pass over [`BlockOps`]. The
//! implementation of [`BlockOps`] does the products: [`DenseOps`] with dense weights, [`PackedOps`] with packed ones, and `oq-calib`
//! has its own for learning. [`Model`] combines a family with a checkpoint on disk and loads one block at a time, in a given [`Form`].

mod act;
mod attention;
mod block;
mod card;
mod config;
mod decode;
mod decoder;
mod dequantized;
mod error;
mod falcon;
pub mod family;
mod form;
mod gemma;
mod glm4;
mod gpt_oss;
mod granite;
mod head;
pub mod layers;
mod llama;
mod llama_like;
mod mask;
mod mixtral;
mod model;
mod names;
mod olmo;
mod online;
mod opt;
mod packed;
mod phi3;
mod qwen_moe;
mod rope;
mod rotate;
mod schemes;
mod smollm3;
mod structure;
mod tensors;

pub use act::{ActPoint, fake_quantize_tokens, quantize_act};
pub use attention::{Mixed, Scores, attention, has_own_attention};
pub use block::{BlockOps, BlockWeights, Compute, DenseOps, multiply};
pub use decoder::{Context, Decoder, Family, LayerContext, Logits, OuterOps};
pub use dequantized::{dequantized, sent};
pub use error::{ModelError, OverrideError, RotateError};
pub use family::FAMILIES;
pub use form::{Block, Form, Kernels};
pub use head::{Head, HeadKind};
pub use model::{Model, Outer, ReadDecoder};
pub use online::Online;
pub use packed::{PackedOps, Prefill};
pub use rope::Rotary;
pub use rotate::Rotator;
pub use schemes::{LinearSpec, OuterSpecs, quantization_by, specs_of_layer};
pub use structure::{Attention, Dims, Fused, Layer, LayerResidual, Linear, LinearName, Param, Residual, intern};
pub use tensors::tensor_of;

/// What one thread has loaded another may run.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Model>();
    is_send::<Block>();
    is_send::<BlockWeights>();
    is_send::<PackedOps>();
    is_send::<Head>();
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
