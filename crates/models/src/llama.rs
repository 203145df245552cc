//! LLaMA, LLaMA-2, LLaMA-3 and what shares their architecture.
//!
//! Touvron et al. 2023 (arXiv 2302.13971, 2307.09288); the names and shapes are those of Hugging Face's
//! `modeling_llama.py`. Pre-norm blocks with RMSNorm, rotary embedding on whole heads, grouped-query attention, gated MLP.

use serde_json::Value;
use tch::{Device, Tensor};

use crate::block::BlockOps;
use crate::config::Config;
use crate::error::ModelError;
use crate::family::{BlockLayout, Context, Decoder, Dims, Family, Linear, LinearName, OuterOps, Param};
use crate::layers::{Activation, attention, rms_norm, split_heads};
use crate::rope::{self, Rope};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { name: "LLaMA", model_types: &["llama"], read: |json| Ok(Box::new(read(json)?)) };

const Q: LinearName = LinearName("self_attn.q_proj");
const K: LinearName = LinearName("self_attn.k_proj");
const V: LinearName = LinearName("self_attn.v_proj");
const O: LinearName = LinearName("self_attn.o_proj");
const GATE: LinearName = LinearName("mlp.gate_proj");
const UP: LinearName = LinearName("mlp.up_proj");
const DOWN: LinearName = LinearName("mlp.down_proj");
const INPUT_NORM: &str = "input_layernorm.weight";
const POST_ATTENTION_NORM: &str = "post_attention_layernorm.weight";
const EMBED: &str = "model.embed_tokens.weight";
const LAST_NORM: &str = "model.norm.weight";
const LM_HEAD: &str = "lm_head.weight";

struct Llama {
    dims: Dims,
    rms_norm_eps: f64,
    activation: Activation,
    attention_bias: bool,
    mlp_bias: bool,
    tied: bool,
    rope: Rope,
}

fn read(json: &Value) -> Result<Llama, ModelError> {
    let config = Config::new(json);
    let hidden = config.size("hidden_size")?;
    let n_heads = config.size("num_attention_heads")?;
    let n_kv_heads = config.size_or("num_key_value_heads", n_heads)?;
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(config.wrong("num_key_value_heads", format!("must divide num_attention_heads = {n_heads}")));
    }
    let head_dim = match config.size_or_none("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => {
            let expected = format!("must divide hidden_size = {hidden} when there is no head_dim");
            return Err(config.wrong("num_attention_heads", expected));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(config.wrong("head_dim", "must be even for a rotary embedding"));
    }
    let activation = Activation::read(&config, "hidden_act", Activation::Silu)?;
    let max_positions = config.size_or("max_position_embeddings", 2048)?;
    Ok(Llama {
        dims: Dims {
            n_layers: config.size("num_hidden_layers")?,
            hidden,
            intermediate: config.size("intermediate_size")?,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab: config.size("vocab_size")?,
            max_positions,
        },
        rms_norm_eps: config.number_or("rms_norm_eps", 1e-6)?,
        activation,
        attention_bias: config.flag_or("attention_bias", false)?,
        mlp_bias: config.flag_or("mlp_bias", false)?,
        tied: config.flag_or("tie_word_embeddings", false)?,
        rope: rope::read(&config, head_dim, max_positions)?,
    })
}

impl Decoder for Llama {
    fn dims(&self) -> Dims {
        self.dims
    }

    fn block_prefix(&self, block_idx: usize) -> String {
        format!("model.layers.{block_idx}.")
    }

    fn block_layout(&self) -> BlockLayout {
        let Dims { hidden, intermediate, n_heads, n_kv_heads, head_dim, .. } = self.dims;
        let attention =
            |name, out_features, in_features| Linear { name, out_features, in_features, bias: self.attention_bias };
        let mlp = |name, out_features, in_features| Linear { name, out_features, in_features, bias: self.mlp_bias };
        let norm = |name| Param { name, shape: vec![hidden] };
        BlockLayout {
            linears: vec![
                attention(Q, n_heads * head_dim, hidden),
                attention(K, n_kv_heads * head_dim, hidden),
                attention(V, n_kv_heads * head_dim, hidden),
                attention(O, hidden, n_heads * head_dim),
                mlp(GATE, intermediate, hidden),
                mlp(UP, intermediate, hidden),
                mlp(DOWN, hidden, intermediate),
            ],
            params: vec![norm(INPUT_NORM), norm(POST_ATTENTION_NORM)],
        }
    }

    fn outer_params(&self) -> Vec<Param> {
        let Dims { vocab, hidden, .. } = self.dims;
        let mut params =
            vec![Param { name: EMBED, shape: vec![vocab, hidden] }, Param { name: LAST_NORM, shape: vec![hidden] }];
        if !self.tied {
            params.push(Param { name: LM_HEAD, shape: vec![vocab, hidden] });
        }
        params
    }

    fn head(&self) -> &'static str {
        if self.tied { EMBED } else { LM_HEAD }
    }

    fn context(&self, t: usize, device: Device) -> Context {
        Context { rotary: Some(self.rope.tables(t, device)), mask: None }
    }

    fn embed(&self, outer: &dyn OuterOps, ids: &Tensor) -> Result<Tensor, ModelError> {
        outer.rows(EMBED, ids)
    }

    fn block(&self, ops: &dyn BlockOps, ctx: &Context, x: &Tensor) -> Tensor {
        let head_dim = self.dims.head_dim;
        let h = rms_norm(x, &ops.param(INPUT_NORM), self.rms_norm_eps);
        let q = ctx.turn(&split_heads(&ops.linear(Q, &h), head_dim)); // [b, n_heads, t, d]
        let k = ctx.turn(&split_heads(&ops.linear(K, &h), head_dim)); // [b, n_kv_heads, t, d]
        let v = split_heads(&ops.linear(V, &h), head_dim); // [b, n_kv_heads, t, d]
        let x = x + ops.linear(O, &attention(&q, &k, &v, ctx.mask.as_ref()));

        let h = rms_norm(&x, &ops.param(POST_ATTENTION_NORM), self.rms_norm_eps);
        let gated = self.activation.apply(&ops.linear(GATE, &h)) * ops.linear(UP, &h); // [b, t, intermediate]
        x + ops.linear(DOWN, &gated)
    }

    fn finish(&self, outer: &dyn OuterOps, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(rms_norm(x, &outer.param(LAST_NORM)?, self.rms_norm_eps))
    }
}
