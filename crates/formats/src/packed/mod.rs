//! The output format: a Hugging Face directory in compressed-tensors' `pack-quantized` layout.
//!
//! Each quantized linear `L` of `[out, in]` becomes
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `L.weight_packed` | I32 | `[out, ceil(in * bits / 32)]`: a row's codes as one bit stream |
//! | `L.weight_scale` | F16 | `[out, groups]` |
//! | `L.weight_zero_point` | I32 | `[ceil(out * bits / 32), groups]`: a column's zero points as one bit stream; asymmetric only |
//! | `L.weight_shape` | I64 | `[2]` = out, in |
//!
//! and every other tensor (biases, norms, embeddings, head) keeps its type, unless it was transformed, tuned or rotated: then vectors are
//! F32, and matrices F16 unless they were F32. Loaders: transformers 5 with pip `compressed-tensors` from 0.18 on (0.17 packs 3, 5, 6 and 7
//! bits differently). vLLM and SGLang read this format too, in most releases at 4 and 8 bits; that is not tested here.
//!
//! **Groups.** If linears are quantized differently, `config_groups` lists them by name, with a group for each spec. Names, patterns
//! (`re:.*down_proj`) and `Linear` can be read ([`Quantization`] has their precedence). transformers 5.23 loads such a model if
//! quantization is symmetric. It refuses asymmetric ones, because `"dequantize"`, below, decodes all linears by the first group.
//!
//! **The type in `config.json`.** Loaders may convert scales to the model's type, whatever the file holds. f16 and f32 hold our f16 scales
//! exactly; bf16 would cut three of their eleven bits, an error of up to 0.4 % that all weights of a group share. So a model that computed
//! in bf16 asks for `float16` once it is packed (its bf16 tensors are cast on loading), and one that computed in f32 still asks for
//! `float32`. To run in bf16 nevertheless, tell the loader so.
//!
//! **`"dequantize": true`.** Without it, transformers first creates empty modules for the packed tensors, and up to compressed-tensors 0.20
//! it gives `weight_zero_point` its unpacked shape there. Asymmetric models then fail to load, and Falcon's linears fail in any case. With
//! it, each linear is decoded as it is read, into the memory that it would need from the first forward on. The one disadvantage:
//! activations are then not quantized. So the flag is set for all models except those with quantized activations and symmetric weights.
//! Asymmetric models with quantized activations run in transformers with float activations.

pub(crate) mod config;
pub(crate) mod fields;
pub(crate) mod layout;
mod online;
mod reader;
pub(crate) mod scheme;
mod writer;

pub use config::{quantization_config, quantization_of};
pub use layout::{packed_linear, packed_tensors};
pub use online::is_rotated_online;
pub use reader::PackedCheckpoint;
pub use scheme::Quantization;
pub use writer::PackedWriter;
