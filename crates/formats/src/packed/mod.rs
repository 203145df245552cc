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
//! `float32`. To run in bf16 nevertheless, tell the loader so. Float codes (MXFP4, NVFP4) ask
//! for `bfloat16`, the only type that compressed-tensors 0.20 decodes them to.
//!
//! **`"dequantize": true`.** Without it, transformers first creates empty modules for the packed tensors, and up to compressed-tensors 0.20
//! it gives `weight_zero_point` its unpacked shape there. Asymmetric models then fail to load, and Falcon's linears fail in any case. With
//! it, each linear is decoded as it is read, into the memory that it would need from the first forward on.
//!
//! **Quantized activations.** We quantize the inputs of linears, and queries, keys and values. Loaders do neither with the flag above, and
//! without it the former only: on tiny-llama the logits of w8a8 differ by 5 % then, and those of w4a4sym by 48 % (transformers 5.24,
//! compressed-tensors 0.20). So such a model has a format name of its own, `pack-quantized-activations`, which these loaders refuse, instead
//! of computing something else in silence. `pack-quantized` with `input_activations` is read too.
//!
//! **`config.json` and the files beside it.** What has two names is there under both: `dtype` and `torch_dtype`, `rope_parameters` and
//! `rope_theta` (with `rope_scaling`). Tokenizer, chat template, generation defaults and terms of use are copied.

mod blocks;
pub(crate) mod config;
mod experts;
pub(crate) mod fields;
pub(crate) mod layout;
mod online;
pub(crate) mod parts;
mod portable;
mod reader;
pub(crate) mod scheme;
mod writer;

pub use config::{quantization_config, quantization_of};
pub use experts::{Experts, experts_of};
pub use layout::{packed_linear, packed_tensors};
pub use online::is_rotated_online;
pub use reader::PackedCheckpoint;
pub use scheme::Quantization;
pub use writer::PackedWriter;
