//! Attention with rotary embedding: its linears, its forward pass, and the sites in it.

use oq_let::{Action, Port, Site};
use oq_quant_core::SiteKind;
use tch::Tensor;

use crate::act::ActPoint;
use crate::attention::Scores;
use crate::block::{BlockOps, linears};
use crate::decoder::LayerContext;
use crate::layers::{rms_norm, split_heads};
use crate::rope::Rope;
use crate::structure::{Attention, Linear, LinearName, Param, module};

const Q: LinearName = LinearName("self_attn.q_proj");
const K: LinearName = LinearName("self_attn.k_proj");
const V: LinearName = LinearName("self_attn.v_proj");
const O: LinearName = LinearName("self_attn.o_proj");
const SEPARATE: &[LinearName; 3] = &[Q, K, V];
/// Queries, keys and values of one linear, in this order.
const FUSED: LinearName = LinearName("self_attn.qkv_proj");
const Q_NORM: &str = "self_attn.q_norm.weight";
const K_NORM: &str = "self_attn.k_norm.weight";
const SINKS: &str = "self_attn.sinks";

/// The attention of a layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SelfAttention {
    pub(crate) shape: Attention,
    /// Whether one linear computes queries, keys and values.
    pub(crate) is_fused: bool,
    /// Whether queries, keys and values have a bias.
    pub(crate) qkv_bias: bool,
    /// Whether the output has a bias.
    pub(crate) out_bias: bool,
    pub(crate) norms: HeadNorms,
    /// Bound of queries, keys and values.
    pub(crate) clip: Option<f64>,
    /// None in layers without positions.
    pub(crate) rope: Option<Rope>,
    /// Length of the sliding window, including the position itself. `None` means causal attention over all positions.
    pub(crate) window: Option<usize>,
}

/// RMSNorm of queries and keys before the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadNorms {
    None,
    /// Of each head; all heads share a weight.
    OfEach,
    /// Of all heads together.
    OfAll,
}

/// Some outputs of a module: of all heads' queries, keys or values.
struct Outputs {
    module: &'static str,
    /// The first one.
    first: usize,
}

impl SelfAttention {
    /// Sets whether all of its linears have a bias.
    pub(crate) fn set_bias(&mut self, bias: bool) {
        (self.qkv_bias, self.out_bias) = (bias, bias);
    }

    /// Channels of all heads: queries, and keys.
    fn widths(&self) -> [usize; 2] {
        [self.shape.n_heads, self.shape.n_kv_heads].map(|heads| heads * self.shape.head_dim)
    }

    pub(crate) fn linears(&self, hidden: usize) -> Vec<Linear> {
        let [queries, keys] = self.widths();
        let linear = |name, out_features, in_features, bias| Linear { name, out_features, in_features, bias };
        let mut linears = if self.is_fused {
            vec![linear(FUSED, queries + 2 * keys, hidden, self.qkv_bias)]
        } else {
            let [q, k, v] =
                [(Q, queries), (K, keys), (V, keys)].map(|(name, n)| linear(name, n, hidden, self.qkv_bias));
            vec![q, k, v]
        };
        linears.push(linear(O, hidden, queries, self.out_bias));
        linears
    }

    pub(crate) fn params(&self, base: f64) -> Vec<Param> {
        let [queries, keys] = self.widths();
        let norms = |q, k| vec![Param::new(Q_NORM, [q]).above(base), Param::new(K_NORM, [k]).above(base)];
        let mut params = match self.norms {
            HeadNorms::None => Vec::new(),
            HeadNorms::OfEach => norms(self.shape.head_dim, self.shape.head_dim),
            HeadNorms::OfAll => norms(queries, keys),
        };
        if self.shape.sinks {
            params.push(Param::new(SINKS, [self.shape.n_heads]));
        }
        params
    }

    /// The linears that read the layer's input.
    pub(crate) fn readers(&self) -> Vec<LinearName> {
        if self.is_fused { vec![FUSED] } else { SEPARATE.to_vec() }
    }

    /// The linear whose output is added to the residual stream.
    pub(crate) fn writer(&self) -> LinearName {
        O
    }

    /// `h [b, t, hidden]`, ready for a product -> `[b, t, hidden]`.
    pub(crate) fn forward(&self, ops: &dyn BlockOps, ctx: &LayerContext, h: &Tensor, eps: f64) -> Tensor {
        let head_dim = self.shape.head_dim;
        let [q, k, v] = if self.is_fused {
            let [queries, keys] = self.widths().map(|n| n as i64);
            let all = ops.linear(FUSED, h);
            [(0, queries), (queries, keys), (queries + keys, keys)].map(|(first, n)| all.narrow(-1, first, n))
        } else {
            linears(ops, SEPARATE, h)
        };
        let clipped = |x: Tensor| self.clip.map_or(x.shallow_clone(), |bound| x.clamp(-bound, bound));
        let heads = |x: Tensor, norm| {
            let norm = |x: &Tensor| rms_norm(x, &ops.param(norm), eps);
            match self.norms {
                HeadNorms::None => split_heads(&clipped(x), head_dim),
                HeadNorms::OfEach => norm(&split_heads(&x, head_dim)),
                HeadNorms::OfAll => split_heads(&clipped(norm(&x)), head_dim),
            }
        };
        let q = ctx.rotate(&heads(q, Q_NORM));
        let q = match &ctx.query_scale {
            Some(scale) => q * scale,
            None => q,
        };
        let q = ops.act(ActPoint::QueryKey, q); // [b, n_heads, t, d]
        let k = ops.act(ActPoint::QueryKey, ctx.rotate(&heads(k, K_NORM))); // [b, n_kv_heads, t, d]
        let v = ops.act(ActPoint::Value, split_heads(&clipped(v), head_dim)); // [b, n_kv_heads, t, d]
        let sinks = self.shape.sinks.then(|| ops.param(SINKS));
        let Attention { scale, softcap, .. } = self.shape;
        let scores = Scores { mask: ctx.mask.as_ref(), scale, softcap, sinks: sinks.as_ref() };
        ops.linear(O, &ops.act(ActPoint::LinearInput, ops.attention(&q, &k, &v, &scores)))
    }

    /// Where queries, keys and values are written.
    fn outputs(&self) -> [Outputs; 3] {
        let [queries, keys] = self.widths();
        if self.is_fused {
            [0, queries, queries + keys].map(|first| Outputs { module: FUSED.0, first })
        } else {
            [Q, K, V].map(|name| Outputs { module: name.0, first: 0 })
        }
    }

    fn check_clip(&self) -> Result<(), &'static str> {
        if self.clip.is_some() {
            Err("it clamps queries, keys and values, which a scale would have to pass")
        } else {
            Ok(())
        }
    }

    /// The site between values and output. Query heads that read one value head share its scales.
    pub(crate) fn value_output(&self) -> Result<Site, &'static str> {
        self.check_clip()?;
        let Attention { n_heads, n_kv_heads, head_dim: d, .. } = self.shape;
        let heads_per_kv = n_heads / n_kv_heads;
        let [_, _, values] = self.outputs();
        let written = (0..n_kv_heads * d).map(|c| (values.first + c, c));
        let values = Port::some(values.module, Action::DivideOutput, written);
        let out = Port::tied(O.0, Action::MultiplyInput, n_heads * d, |c| c / d / heads_per_kv * d + c % d);
        // With sinks, the shares of the values do not add up to 1, so shifts do not pass.
        let can_shift = self.qkv_bias && self.out_bias && !self.shape.sinks;
        Ok(Site { kind: SiteKind::Vo, n_scales: n_kv_heads * d, ports: vec![values, out], can_shift })
    }

    /// The site between queries and keys. The two channels of a rotary pair share a scale, and so do all query heads of one key head.
    pub(crate) fn query_key(&self) -> Result<Site, &'static str> {
        self.check_clip()?;
        let Attention { n_heads, n_kv_heads, head_dim: d, .. } = self.shape;
        let heads_per_kv = n_heads / n_kv_heads;
        let pair = |channel| self.rope.as_ref().map_or(channel, |rope| rope.pair_of(channel));
        let pairs = (0..d).map(pair).max().map_or(0, |last| last + 1);
        let scale = |kv_head: usize, channel: usize| kv_head * pairs + pair(channel % d);
        let (n_scales, ports) = match self.norms {
            HeadNorms::OfEach => {
                let port = |norm, action| Port::tied(module(norm), action, d, pair);
                (pairs, vec![port(Q_NORM, Action::DivideOutput), port(K_NORM, Action::MultiplyOutput)])
            }
            HeadNorms::None | HeadNorms::OfAll => {
                let [queries, keys, _] = match self.norms {
                    HeadNorms::OfAll => [Q_NORM, K_NORM, ""].map(|norm| Outputs { module: module(norm), first: 0 }),
                    _ => self.outputs(),
                };
                let of_queries = (0..n_heads * d).map(|c| (queries.first + c, scale(c / d / heads_per_kv, c)));
                let of_keys = (0..n_kv_heads * d).map(|c| (keys.first + c, scale(c / d, c)));
                let queries = Port::some(queries.module, Action::DivideOutput, of_queries);
                (n_kv_heads * pairs, vec![queries, Port::some(keys.module, Action::MultiplyOutput, of_keys)])
            }
        };
        Ok(Site { kind: SiteKind::Qk, n_scales, ports, can_shift: false })
    }
}
