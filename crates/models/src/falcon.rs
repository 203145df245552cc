//! Falcon: 7B, 11B, 40B, 180B and the RW models (Almazrouei et al. 2023, arXiv 2311.16867).
//!
//! Names and shapes are those of Hugging Face's `modeling_falcon.py`. One linear computes queries, keys and values. Attention and MLP run
//! in parallel on the same hidden state (in RW, one after the other). Positions are rotary embeddings over whole heads (in RW, ALiBi).

use std::ops::Range;

use oq_let::{Action, Port, Site};
use oq_quant_core::SiteKind;
use serde_json::Value;
use tch::{Device, Tensor};

use crate::act::ActPoint;
use crate::attention::Scores;
use crate::block::BlockOps;
use crate::config::Config;
use crate::decoder::{Context, Decoder, Family, LM_HEAD, LayerContext, OuterOps};
use crate::error::ModelError;
use crate::layers::{Activation, layer_norm};
use crate::mask;
use crate::rope::{self, Rope};
use crate::structure::{Attention, Dims, Layer, LayerResidual, Linear, LinearName, Param, Residual, module};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["falcon"], read: |json| Ok(Box::new(read(json)?)) };

const QKV: LinearName = LinearName("self_attention.query_key_value");
const DENSE: LinearName = LinearName("self_attention.dense");
const UP: LinearName = LinearName("mlp.dense_h_to_4h");
const DOWN: LinearName = LinearName("mlp.dense_4h_to_h");
const INPUT_NORM: Norm = ["input_layernorm.weight", "input_layernorm.bias"];
const POST_ATTENTION_NORM: Norm = ["post_attention_layernorm.weight", "post_attention_layernorm.bias"];
const ATTENTION_NORM: Norm = ["ln_attn.weight", "ln_attn.bias"];
const MLP_NORM: Norm = ["ln_mlp.weight", "ln_mlp.bias"];
const EMBED: &str = "transformer.word_embeddings.weight";
const LAST_NORM: Norm = ["transformer.ln_f.weight", "transformer.ln_f.bias"];

/// Names of a norm's weight and bias.
type Norm = [&'static str; 2];

/// How attention and MLP are connected.
#[derive(Clone, Copy)]
enum Arrangement {
    /// One norm feeds both (7B, 11B).
    Parallel,
    /// Each has its own norm (40B, 180B).
    ParallelTwoNorms,
    /// The MLP follows attention (RW).
    Sequential,
}

/// How positions are encoded.
enum Positions {
    Rotary(Rope),
    Alibi,
}

struct Falcon {
    dims: Dims,
    norm_eps: f64,
    activation: Activation,
    arrangement: Arrangement,
    positions: Positions,
    bias: bool,
    tied: bool,
}

fn read(json: &Value) -> Result<Falcon, ModelError> {
    let config = Config::new(json);
    let hidden = config.size("hidden_size")?;
    let n_heads = config.size("num_attention_heads")?;
    if !hidden.is_multiple_of(n_heads) {
        return Err(config.wrong("num_attention_heads", format!("must divide hidden_size = {hidden}")));
    }
    // The "new" decoder architecture is that of 40B and 180B.
    let is_new = config.flag_or("new_decoder_architecture", false)?;
    let n_kv_heads = match (is_new, config.flag_or("multi_query", true)?) {
        (true, _) => config.size_or("num_kv_heads", n_heads)?,
        (false, true) => 1,
        (false, false) => n_heads,
    };
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(config.wrong("num_kv_heads", format!("must divide num_attention_heads = {n_heads}")));
    }
    let arrangement =
        match (is_new, config.flag_or("parallel_attn", true)?, config.size_or_none("num_ln_in_parallel_attn")?) {
            (true, true, None | Some(2)) => Arrangement::ParallelTwoNorms,
            (true, true, Some(1)) | (false, true, None | Some(1)) => Arrangement::Parallel,
            (false, false, _) => Arrangement::Sequential,
            (true, false, _) => return Err(config.wrong("parallel_attn", "must be true with new_decoder_architecture")),
            (true, ..) => return Err(config.wrong("num_ln_in_parallel_attn", "must be 1 or 2")),
            (false, ..) => {
                return Err(config.wrong("num_ln_in_parallel_attn", "must be 1 without new_decoder_architecture"));
            }
        };
    let head_dim = hidden / n_heads;
    let dims = Dims {
        n_layers: config.layers("num_hidden_layers")?,
        hidden,
        intermediate: config.size_or("ffn_hidden_size", 4 * hidden)?,
        n_heads,
        n_kv_heads,
        head_dim,
        vocab: config.size("vocab_size")?,
        max_positions: config.size_or("max_position_embeddings", 2048)?,
    };
    let positions = match config.flag_or("alibi", false)? {
        true => Positions::Alibi,
        false if head_dim.is_multiple_of(2) => {
            Positions::Rotary(rope::read(&config, &rope::Defaults::of(&dims), None)?)
        }
        false => {
            let expected =
                format!("hidden_size / num_attention_heads = {head_dim} must be even for a rotary embedding");
            return Err(config.wrong("num_attention_heads", expected));
        }
    };
    Ok(Falcon {
        dims,
        norm_eps: config.number_or("layer_norm_epsilon", 1e-5)?,
        activation: Activation::read(&config, "activation", Activation::Gelu)?,
        arrangement,
        positions,
        bias: config.flag_or("bias", false)?,
        tied: config.flag_or("tie_word_embeddings", true)?,
    })
}

impl Falcon {
    fn norm_params(&self, norm: Norm) -> [Param; 2] {
        norm.map(|name| Param::new(name, [self.dims.hidden]))
    }

    fn norm(&self, ops: &dyn BlockOps, norm: Norm, x: &Tensor) -> Tensor {
        let [weight, bias] = norm.map(|name| ops.param(name));
        layer_norm(x, Some(&weight), Some(&bias), self.norm_eps)
    }

    /// The norms, each with the linears that read it.
    fn norm_readers(&self) -> &'static [(Norm, &'static [LinearName])] {
        match self.arrangement {
            Arrangement::Parallel => &[(INPUT_NORM, &[QKV, UP])],
            Arrangement::ParallelTwoNorms => &[(ATTENTION_NORM, &[QKV]), (MLP_NORM, &[UP])],
            Arrangement::Sequential => &[(INPUT_NORM, &[QKV]), (POST_ATTENTION_NORM, &[UP])],
        }
    }

    /// Rows of the fused linear, each with its key/value head and channel. The fused linear has, for each key/value head, a sequence of
    /// slots: its query heads, its key head, its value head. `slots` selects some of them.
    fn fused_rows(&self, slots: std::ops::Range<usize>) -> impl Iterator<Item = (usize, usize, usize)> {
        let Dims { n_heads, n_kv_heads, head_dim: d, .. } = self.dims;
        let heads = n_heads / n_kv_heads + 2;
        (0..n_kv_heads).flat_map(move |group| {
            slots.clone().flat_map(move |slot| (0..d).map(move |c| ((group * heads + slot) * d + c, group, c)))
        })
    }

    /// `h [b, t, hidden]`, ready for a product -> `[b, t, hidden]`.
    fn attention(&self, ops: &dyn BlockOps, ctx: &LayerContext, h: &Tensor) -> Tensor {
        let (b, t, _) = h.size3().expect("hidden states are [b, t, hidden]");
        let [n_heads, groups, d] = [self.dims.n_heads, self.dims.n_kv_heads, self.dims.head_dim].map(|n| n as i64);
        let heads_per_kv = n_heads / groups;
        // For each key/value head: the query heads that read it, the key head, the value head.
        let fused = ops.linear(QKV, h).view([b, t, groups, heads_per_kv + 2, d]);
        let heads = |from, n| fused.narrow(3, from, n).reshape([b, t, groups * n, d]).transpose(1, 2);
        let q = ops.act(ActPoint::QueryKey, ctx.rotate(&heads(0, heads_per_kv))); // [b, n_heads, t, d]
        let k = ops.act(ActPoint::QueryKey, ctx.rotate(&heads(heads_per_kv, 1))); // [b, n_kv_heads, t, d]
        let v = ops.act(ActPoint::Value, heads(heads_per_kv + 1, 1)); // [b, n_kv_heads, t, d]
        ops.linear(
            DENSE,
            &ops.act(ActPoint::LinearInput, ops.attention(&q, &k, &v, &Scores::masked(ctx.mask.as_ref()))),
        )
    }

    /// `h [b, t, hidden]`, ready for a product -> `[b, t, hidden]`.
    fn mlp(&self, ops: &dyn BlockOps, h: &Tensor) -> Tensor {
        ops.linear(DOWN, &ops.act(ActPoint::Inner, self.activation.apply(&ops.linear(UP, h))))
    }
}

impl Decoder for Falcon {
    fn dims(&self) -> Dims {
        self.dims
    }

    fn block_prefix(&self, block_idx: usize) -> String {
        format!("transformer.h.{block_idx}.")
    }

    fn layer(&self, _layer: usize) -> Layer {
        let Dims { hidden, intermediate, n_heads, n_kv_heads, head_dim, .. } = self.dims;
        let linear = |name, out_features, in_features| Linear { name, out_features, in_features, bias: self.bias };
        Layer {
            linears: vec![
                linear(QKV, (n_heads + 2 * n_kv_heads) * head_dim, hidden),
                linear(DENSE, hidden, hidden),
                linear(UP, intermediate, hidden),
                linear(DOWN, hidden, intermediate),
            ],
            params: self.norm_readers().iter().flat_map(|&(norm, _)| self.norm_params(norm)).collect(),
            together: Vec::new(),
            attention: Attention { n_heads, n_kv_heads, head_dim, scale: None, softcap: None, sinks: false },
            experts: Vec::new(),
            intermediate,
        }
    }

    fn sites(&self, _layer: usize, kind: SiteKind) -> Result<Vec<Site>, &'static str> {
        let Dims { hidden, intermediate, n_heads, n_kv_heads, head_dim: d, .. } = self.dims;
        let heads_per_kv = n_heads / n_kv_heads;
        let (queries, keys, values) =
            (0..heads_per_kv, heads_per_kv..heads_per_kv + 1, heads_per_kv + 1..heads_per_kv + 2);
        match kind {
            SiteKind::Norm => {
                let site = |(norm, readers): &(Norm, &[LinearName])| {
                    Site::free(kind, hidden, module(norm[0]), readers.iter().map(|reader| reader.0), self.bias)
                };
                Ok(self.norm_readers().iter().map(site).collect())
            }
            SiteKind::Vo => {
                let values = self.fused_rows(values).map(|(row, group, c)| (row, group * d + c));
                let values = Port::some(QKV.0, Action::DivideOutput, values);
                let dense = Port::tied(DENSE.0, Action::MultiplyInput, hidden, |c| c / d / heads_per_kv * d + c % d);
                Ok(vec![Site { kind, n_scales: n_kv_heads * d, ports: vec![values, dense], can_shift: self.bias }])
            }
            SiteKind::Qk => {
                // The rotary embedding rotates channels in pairs, so both channels of a pair need the same scale.
                let free = if matches!(self.positions, Positions::Rotary(_)) { d / 2 } else { d };
                let port = |slots, action| {
                    let pairs = self.fused_rows(slots).map(|(row, group, c)| (row, group * free + c % free));
                    Port::some(QKV.0, action, pairs)
                };
                let ports = vec![port(queries, Action::DivideOutput), port(keys, Action::MultiplyOutput)];
                Ok(vec![Site { kind, n_scales: n_kv_heads * free, ports, can_shift: false }])
            }
            // relu(x / s) = relu(x) / s for every s > 0.
            SiteKind::Updown if self.activation == Activation::Relu => {
                Ok(vec![Site::free(kind, intermediate, UP.0, [DOWN.0], false)])
            }
            SiteKind::Updown => Err("its activation is not ReLU, so scales cannot pass through it"),
        }
    }

    fn residual(&self) -> Result<Residual, &'static str> {
        Ok(Residual { centred: true, tables: &[EMBED], last_norm: Some(module(LAST_NORM[0])) })
    }

    fn residual_of(&self, _layer: usize) -> LayerResidual {
        let readers = self.norm_readers().iter().map(|&(norm, readers)| (module(norm[0]), readers.to_vec()));
        LayerResidual { readers: readers.collect(), writers: vec![DENSE, DOWN], inner: vec![DOWN] }
    }

    fn outer_params(&self) -> Vec<Param> {
        let Dims { vocab, hidden, .. } = self.dims;
        let mut params = vec![Param::new(EMBED, [vocab, hidden])];
        params.extend(self.norm_params(LAST_NORM));
        if !self.tied {
            params.push(Param::new(LM_HEAD, [vocab, hidden]));
        }
        params
    }

    fn head(&self) -> &'static str {
        if self.tied { EMBED } else { LM_HEAD }
    }

    fn context_at(&self, positions: Range<usize>, device: Device) -> Context {
        let Dims { n_heads, head_dim, .. } = self.dims;
        match &self.positions {
            Positions::Rotary(rope) => Context::uniform(Some(rope.tables(positions, device)), None),
            Positions::Alibi => {
                let scale = (head_dim as f64).powf(-0.5);
                Context::uniform(None, Some(mask::alibi(n_heads, scale, positions, device)))
            }
        }
    }

    fn mask_heads(&self, _layer: usize, _t: usize) -> usize {
        if matches!(self.positions, Positions::Alibi) { self.dims.n_heads } else { 0 }
    }

    fn embed_at(&self, outer: &dyn OuterOps, ids: &Tensor, _first: usize) -> Result<Tensor, ModelError> {
        outer.rows(EMBED, ids)
    }

    fn block(&self, _layer: usize, ops: &dyn BlockOps, ctx: &Context, x: &Tensor) -> Tensor {
        let ctx = ctx.of(0);
        let input = |norm, x: &Tensor| ops.act(ActPoint::LinearInput, self.norm(ops, norm, x));
        match self.arrangement {
            Arrangement::Parallel => {
                let h = input(INPUT_NORM, x);
                x + self.attention(ops, ctx, &h) + self.mlp(ops, &h)
            }
            Arrangement::ParallelTwoNorms => {
                let mixed = self.attention(ops, ctx, &input(ATTENTION_NORM, x));
                x + mixed + self.mlp(ops, &input(MLP_NORM, x))
            }
            Arrangement::Sequential => {
                let x = x + self.attention(ops, ctx, &input(INPUT_NORM, x));
                &x + self.mlp(ops, &input(POST_ATTENTION_NORM, &x))
            }
        }
    }

    fn finish(&self, outer: &dyn OuterOps, x: &Tensor) -> Result<Tensor, ModelError> {
        let [weight, bias] = LAST_NORM;
        Ok(layer_norm(x, Some(&outer.param(weight)?), Some(&outer.param(bias)?), self.norm_eps))
    }
}
