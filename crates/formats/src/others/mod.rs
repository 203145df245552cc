//! Packed layouts of other programs.
//!
//! | layout | tensors of a linear `[out, in]` | a weight |
//! |---|---|---|
//! | GPTQ, AutoRound | `qweight` I32 `[in n/32, out]`: each column's codes of n bits as one bit stream; `qzeros` I32 `[groups, out n/32]`, alike; `scales` `[groups, out]`; `g_idx` I32 `[in]`, the group of each channel, or runs of channels | `scale (code - zero)` |
//! | AWQ | `qweight` I32 `[in, out/8]`: 4-bit codes of columns 0, 2, 4, 6, 1, 3, 5, 7; `qzeros` I32 `[groups, out/8]`, alike; `scales` `[groups, out]` | `scale (code - zero)` |
//! | MLX | `weight` U32 `[out, in n/32]`: each row's codes as one bit stream; `scales` and `biases` `[out, groups]` | `scale code + bias` |
//! | `int-quantized` | `weight` I8 `[out, in]`; `weight_scale`, and `weight_zero_point` I8 if it is asymmetric, `[out, groups]` or `[1]` | `scale (code - zero)` |
//! | FP8 | `weight` F8_E4M3 `[out, in]`; `weight_scale` or `weight_scale_inv` for the matrix, each row, each group or each block | `scale e4m3` |
//!
//! Which linears are packed is read from the tensors: a linear that has a plain weight is dense, whatever `config.json` lists. What codes
//! mean is read from `config.json`, and sizes are compared with the tensors. Nothing is rounded: a linear whose scales or zero points our own
//! grids do not hold is decoded to f32 values ([`Matrix::Values`]).

mod awq;
mod config;
mod fp8;
mod gptq;
mod int8;
mod linear;
mod matrix;
mod mlx;
mod pack_quantized;
mod parts;

pub(crate) use config::{Layout, Packing, block, packing};
pub(crate) use linear::{Linear, Part, part_of};
pub use matrix::Matrix;
pub use parts::transposed;
