//! The canonical output: a Hugging Face directory in compressed-tensors' `pack-quantized` layout.
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
//! and every other tensor (biases, norms, embeddings, head) stays as it is in its own type, unless it was transformed, tuned or rotated: then
//! vectors are F32, and matrices F16 where they were not F32. Loaders: transformers 5 with pip
//! `compressed-tensors` from 0.18 on (0.17 packs 3, 5, 6 and 7 bits otherwise). vLLM and SGLang read this format too, at 4 and 8 bits in
//! most releases; that is not tested here.
//!
//! **Groups.** Linears that are not all quantized alike stand in `config_groups` by their names, a group for each spec. Names, patterns
//! (`re:.*down_proj`) and `Linear` are read ([`Quantization`] says in which order they count). transformers 5.23 loads such a model if its
//! grids are symmetric. Asymmetric ones it refuses: `"dequantize"`, below, decodes all linears by the first group.
//!
//! **The type that `config.json` asks for.** Loaders may keep scales in the model's type, whatever the file holds. f16 and f32
//! hold our f16 scales exactly; bf16 would cut three of their eleven digits, an error of up to 0.4 % that all weights of a group
//! share. So a model that computed in bf16 asks for `float16` once it is packed (its bf16 tensors are cast on loading), and one
//! that computed in f32 still asks for `float32`. Whoever prefers bf16 at run time says so to the loader.
//!
//! **`"dequantize": true`.** transformers, unless told this, first lays out empty modules for the packed tensors, and up to
//! compressed-tensors 0.20 gives `weight_zero_point` its unpacked shape there: asymmetric models fail to load, Falcon's linears
//! fail in any case. Told this, it decodes each linear as it reads it, into the same memory that it would need from the first
//! forward on. The one loss: it then leaves activations alone. So it is said for all models but those with quantized activations
//! and symmetric weights; asymmetric ones with quantized activations run in transformers with float activations.

mod config;
mod layout;
mod online;
mod reader;
mod scheme;
mod writer;

pub use config::{quantization_config, quantization_of};
pub use layout::{packed_linear, packed_tensors};
pub use online::is_rotated_online;
pub use reader::PackedCheckpoint;
pub use scheme::Quantization;
pub use writer::PackedWriter;
