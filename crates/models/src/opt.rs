//! OPT, 125M to 66B (Zhang et al. 2022, arXiv 2205.01068).
//!
//! Names and shapes are those of Hugging Face's `modeling_opt.py`. It has LayerNorm before attention and MLP (in 350M, after them), learned
//! positions, biases, multi-head attention and an MLP without a gate. In 350M, the embedding is narrower than the blocks.

use std::ops::Range;

use oq_let::{Action, Port, Site};
use oq_quant_core::SiteKind;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::act::ActPoint;
use crate::attention::Scores;
use crate::block::{BlockOps, linears};
use crate::config::Config;
use crate::decoder::{Context, Decoder, Family, LM_HEAD, OuterOps};
use crate::error::ModelError;
use crate::layers::{Activation, layer_norm, split_heads};
use crate::structure::{Attention, Dims, Layer, LayerResidual, Linear, LinearName, Param, Residual, module};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["opt"], read: |json| Ok(Box::new(read(json)?)) };

const Q: LinearName = LinearName("self_attn.q_proj");
const K: LinearName = LinearName("self_attn.k_proj");
const V: LinearName = LinearName("self_attn.v_proj");
const OUT: LinearName = LinearName("self_attn.out_proj");
const FC1: LinearName = LinearName("fc1");
const FC2: LinearName = LinearName("fc2");
const QKV: &[LinearName; 3] = &[Q, K, V];
const ATTENTION_NORM: Norm = ["self_attn_layer_norm.weight", "self_attn_layer_norm.bias"];
const MLP_NORM: Norm = ["final_layer_norm.weight", "final_layer_norm.bias"];
const EMBED: &str = "model.decoder.embed_tokens.weight";
const POSITIONS: &str = "model.decoder.embed_positions.weight";
const PROJECT_IN: &str = "model.decoder.project_in.weight";
const PROJECT_OUT: &str = "model.decoder.project_out.weight";
const LAST_NORM: Norm = ["model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"];

/// Number of unused rows at the start of the table of positions.
const POSITION_OFFSET: usize = 2;
/// PyTorch's default for LayerNorm; the config has no key for it.
const NORM_EPS: f64 = 1e-5;

/// Names of a norm's weight and bias.
type Norm = [&'static str; 2];

struct Opt {
    dims: Dims,
    /// Width of the embedding and of the head.
    embedding: usize,
    activation: Activation,
    bias: bool,
    norm_has_params: bool,
    norm_first: bool,
    last_norm: bool,
    tied: bool,
}

fn read(json: &Value) -> Result<Opt, ModelError> {
    let config = Config::new(json);
    let hidden = config.size("hidden_size")?;
    let n_heads = config.size("num_attention_heads")?;
    if !hidden.is_multiple_of(n_heads) {
        return Err(config.wrong("num_attention_heads", format!("must divide hidden_size = {hidden}")));
    }
    let norm_first = config.flag_or("do_layer_norm_before", true)?;
    Ok(Opt {
        dims: Dims {
            n_layers: config.layers("num_hidden_layers")?,
            hidden,
            intermediate: config.size("ffn_dim")?,
            n_heads,
            n_kv_heads: n_heads,
            head_dim: hidden / n_heads,
            vocab: config.size("vocab_size")?,
            max_positions: config.size_or("max_position_embeddings", 2048)?,
        },
        embedding: config.size_or("word_embed_proj_dim", hidden)?,
        activation: Activation::read(&config, "activation_function", Activation::Relu)?,
        bias: config.flag_or("enable_bias", true)?,
        norm_has_params: config.flag_or("layer_norm_elementwise_affine", true)?,
        norm_first,
        last_norm: norm_first && !config.flag_or("_remove_final_layer_norm", false)?,
        tied: config.flag_or("tie_word_embeddings", true)?,
    })
}

impl Opt {
    fn norm_params(&self, norm: Norm) -> Vec<Param> {
        let names = if self.norm_has_params { &norm[..] } else { &[] };
        names.iter().map(|name| Param::new(name, [self.dims.hidden])).collect()
    }

    fn norm(&self, ops: &dyn BlockOps, norm: Norm, x: &Tensor) -> Tensor {
        let [weight, bias] = norm.map(|name| self.norm_has_params.then(|| ops.param(name)));
        layer_norm(x, weight.as_ref(), bias.as_ref(), NORM_EPS)
    }

    /// Half a block: `x + f(norm(x))` with the norm first, else `norm(x + f(x))`.
    fn residual(&self, ops: &dyn BlockOps, norm: Norm, x: &Tensor, f: impl FnOnce(Tensor) -> Tensor) -> Tensor {
        if self.norm_first { x + f(self.norm(ops, norm, x)) } else { self.norm(ops, norm, &(x + f(x.shallow_clone()))) }
    }
}

impl Decoder for Opt {
    fn dims(&self) -> Dims {
        self.dims
    }

    fn block_prefix(&self, block_idx: usize) -> String {
        format!("model.decoder.layers.{block_idx}.")
    }

    fn layer(&self, _layer: usize) -> Layer {
        let Dims { hidden, intermediate, n_heads, n_kv_heads, head_dim, .. } = self.dims;
        let linear = |name, out_features, in_features| Linear { name, out_features, in_features, bias: self.bias };
        Layer {
            linears: vec![
                linear(Q, hidden, hidden),
                linear(K, hidden, hidden),
                linear(V, hidden, hidden),
                linear(OUT, hidden, hidden),
                linear(FC1, intermediate, hidden),
                linear(FC2, hidden, intermediate),
            ],
            params: [self.norm_params(ATTENTION_NORM), self.norm_params(MLP_NORM)].concat(),
            together: vec![QKV.to_vec()],
            attention: Attention { n_heads, n_kv_heads, head_dim, scale: None, softcap: None, sinks: false },
            experts: Vec::new(),
            intermediate,
        }
    }

    fn sites(&self, _layer: usize, kind: SiteKind) -> Result<Vec<Site>, &'static str> {
        let Dims { hidden, intermediate, .. } = self.dims;
        match kind {
            SiteKind::Norm if !self.norm_first => {
                Err("its norms come after attention and MLP, so the residual stream reads their outputs too")
            }
            SiteKind::Norm if !self.norm_has_params => Err("its norms have no weights"),
            SiteKind::Norm => Ok(vec![
                Site::free(kind, hidden, module(ATTENTION_NORM[0]), [Q.0, K.0, V.0], self.bias),
                Site::free(kind, hidden, module(MLP_NORM[0]), [FC1.0], self.bias),
            ]),
            SiteKind::Vo => Ok(vec![Site::free(kind, hidden, V.0, [OUT.0], self.bias)]),
            SiteKind::Qk => {
                let queries = Port::free(Q.0, Action::DivideOutput, hidden);
                let keys = Port::free(K.0, Action::MultiplyOutput, hidden);
                Ok(vec![Site { kind, n_scales: hidden, ports: vec![queries, keys], can_shift: false }])
            }
            // relu(x / s) = relu(x) / s for every s > 0.
            SiteKind::Updown if self.activation == Activation::Relu => {
                Ok(vec![Site::free(kind, intermediate, FC1.0, [FC2.0], false)])
            }
            SiteKind::Updown => Err("its activation is not ReLU, so scales cannot pass through it"),
        }
    }

    fn residual(&self) -> Result<Residual, &'static str> {
        if !self.norm_first {
            return Err("its norms come after attention and MLP, on the residual itself");
        }
        if self.embedding != self.dims.hidden {
            return Err("its embedding and its residual stream have different widths");
        }
        Ok(Residual {
            centred: true,
            tables: &[EMBED, POSITIONS],
            last_norm: (self.last_norm && self.norm_has_params).then(|| module(LAST_NORM[0])),
        })
    }

    fn residual_of(&self, _layer: usize) -> LayerResidual {
        LayerResidual {
            readers: vec![(module(ATTENTION_NORM[0]), QKV.to_vec()), (module(MLP_NORM[0]), vec![FC1])],
            writers: vec![OUT, FC2],
            inner: vec![FC2],
        }
    }

    fn outer_params(&self) -> Vec<Param> {
        let Dims { vocab, hidden, max_positions, .. } = self.dims;
        let param = |name, rows, cols| Param::new(name, [rows, cols]);
        let mut params =
            vec![param(EMBED, vocab, self.embedding), param(POSITIONS, max_positions + POSITION_OFFSET, hidden)];
        if self.embedding != hidden {
            params.extend([param(PROJECT_IN, hidden, self.embedding), param(PROJECT_OUT, self.embedding, hidden)]);
        }
        if self.last_norm {
            params.extend(self.norm_params(LAST_NORM));
        }
        if !self.tied {
            params.push(param(LM_HEAD, vocab, self.embedding));
        }
        params
    }

    fn head(&self) -> &'static str {
        if self.tied { EMBED } else { LM_HEAD }
    }

    fn context_at(&self, _positions: Range<usize>, _device: Device) -> Context {
        Context::uniform(None, None)
    }

    fn embed_at(&self, outer: &dyn OuterOps, ids: &Tensor, first: usize) -> Result<Tensor, ModelError> {
        let (tokens, positions) = (first + ids.size()[1] as usize, self.dims.max_positions);
        if tokens > positions {
            return Err(ModelError::TooLong { tokens, positions });
        }
        let mut x = outer.rows(EMBED, ids)?; // [b, t, embedding]
        if self.embedding != self.dims.hidden {
            x = x.linear(&outer.param(PROJECT_IN)?, None::<&Tensor>);
        }
        let rows = [first, tokens].map(|position| (position + POSITION_OFFSET) as i64);
        let rows = Tensor::arange_start(rows[0], rows[1], (Kind::Int64, Device::Cpu));
        Ok(x + outer.rows(POSITIONS, &rows)?) // [b, t, hidden] + [t, hidden]
    }

    fn block(&self, _layer: usize, ops: &dyn BlockOps, ctx: &Context, x: &Tensor) -> Tensor {
        let scores = Scores::masked(ctx.of(0).mask.as_ref());
        let input = |x: Tensor| ops.act(ActPoint::LinearInput, x);
        let x = self.residual(ops, ATTENTION_NORM, x, |h| {
            let h = input(h);
            // [b, n_heads, t, d]
            let [q, k, v] = linears(ops, QKV, &h).map(|x| split_heads(&x, self.dims.head_dim));
            let [q, k] = [q, k].map(|x| ops.act(ActPoint::QueryKey, x));
            let v = ops.act(ActPoint::Value, v);
            ops.linear(OUT, &input(ops.attention(&q, &k, &v, &scores)))
        });
        self.residual(ops, MLP_NORM, &x, |h| {
            let inner = self.activation.apply(&ops.linear(FC1, &input(h)));
            ops.linear(FC2, &ops.act(ActPoint::Inner, inner))
        })
    }

    fn finish(&self, outer: &dyn OuterOps, x: &Tensor) -> Result<Tensor, ModelError> {
        let mut x = x.shallow_clone();
        if self.last_norm {
            let param = |name| self.norm_has_params.then(|| outer.param(name)).transpose();
            let (weight, bias) = (param(LAST_NORM[0])?, param(LAST_NORM[1])?);
            x = layer_norm(&x, weight.as_ref(), bias.as_ref(), NORM_EPS);
        }
        if self.embedding != self.dims.hidden {
            x = x.linear(&outer.param(PROJECT_OUT)?, None::<&Tensor>);
        }
        Ok(x)
    }
}
