//! The decoder that most families share: RMSNorm, attention with rotary embedding, a gated MLP or experts. What differs between families
//! and between layers is data.

mod attention;
mod experts;
pub(crate) mod keys;
mod mlp;

use std::ops::Range;

use oq_let::Site;
use oq_quant_core::SiteKind;
use tch::{Device, Tensor};

pub(crate) use self::attention::{HeadNorms, SelfAttention};
pub(crate) use self::experts::{Experts, Routing, Shared};
use self::keys::{Common, distinct};
pub(crate) use self::mlp::{GateUp, GatedMlp, Gating};
use crate::act::ActPoint;
use crate::block::BlockOps;
use crate::decoder::{Context, Decoder, LM_HEAD, LayerContext, Logits, OuterOps};
use crate::error::ModelError;
use crate::layers::rms_norm;
use crate::mask;
use crate::rope::Rope;
use crate::structure::{Attention, Dims, Fused, Layer, LayerResidual, Linear, LinearName, Param, Residual, module};

const EMBED: &str = "model.embed_tokens.weight";
const LAST_NORM: &str = "model.norm.weight";

/// A decoder of this kind.
pub(crate) struct LlamaLike {
    pub(crate) dims: Dims,
    pub(crate) eps: f64,
    /// What is added to the stored weights of norms.
    pub(crate) norm_base: f64,
    /// Whether the head is the embedding.
    pub(crate) tied: bool,
    /// Factor of embeddings.
    pub(crate) embed_scale: f64,
    /// Factor of what layers add to the residual stream.
    pub(crate) residual_scale: f64,
    pub(crate) logits: Logits,
    /// Factor of queries by their position, if there is one.
    pub(crate) query_scale: Option<QueryScale>,
    /// The layers that differ.
    pub(crate) kinds: Vec<LayerKind>,
    /// The kind of each layer.
    pub(crate) layers: Vec<usize>,
}

/// A layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerKind {
    pub(crate) norms: Norms,
    pub(crate) attention: SelfAttention,
    pub(crate) mlp: Mlp,
    /// Tensors that hold several linears in some checkpoints.
    pub(crate) fused: Vec<Fused>,
}

/// Names of the norms before and after a layer's two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Norms {
    pub(crate) before_attention: Option<&'static str>,
    pub(crate) after_attention: Option<&'static str>,
    pub(crate) before_mlp: Option<&'static str>,
    pub(crate) after_mlp: Option<&'static str>,
}

impl Norms {
    /// The norms of LLaMA.
    pub(crate) const BEFORE: Self = Self {
        before_attention: Some("input_layernorm.weight"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm.weight"),
        after_mlp: None,
    };

    fn names(self) -> impl Iterator<Item = &'static str> {
        [self.before_attention, self.after_attention, self.before_mlp, self.after_mlp].into_iter().flatten()
    }
}

/// What follows attention.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mlp {
    Gated(GatedMlp),
    Experts(Experts),
}

impl Mlp {
    fn all(&self) -> Vec<&GatedMlp> {
        match self {
            Self::Gated(mlp) => vec![mlp],
            Self::Experts(experts) => experts.all().collect(),
        }
    }

    /// The tensors that read its input: linears, and routers.
    fn readers(&self) -> Vec<LinearName> {
        let routers = match self {
            Self::Gated(_) => Vec::new(),
            // The router comes first, as it sees every token.
            Self::Experts(experts) => experts.routers().collect(),
        };
        routers.into_iter().chain(self.all().into_iter().flat_map(GatedMlp::readers)).collect()
    }

    /// Channels inside that a token has.
    fn width(&self) -> usize {
        match self {
            Self::Gated(mlp) => mlp.width,
            Self::Experts(Experts { mlps, chosen, shared, .. }) => {
                mlps.iter().take(*chosen).chain(shared.as_ref().map(|shared| &shared.mlp)).map(|mlp| mlp.width).sum()
            }
        }
    }

    /// `h [b, t, hidden]` -> `[b, t, hidden]`.
    fn forward(&self, ops: &dyn BlockOps, h: Tensor) -> Tensor {
        match self {
            Self::Gated(mlp) => mlp.forward(ops, &ops.act(ActPoint::LinearInput, h)),
            Self::Experts(experts) => experts.forward(ops, &h),
        }
    }
}

/// Queries are multiplied by `1 + beta * ln(1 + floor(position / positions))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct QueryScale {
    pub(crate) beta: f64,
    pub(crate) positions: f64,
}

impl QueryScale {
    /// `[t, 1]`.
    fn at(self, positions: Range<usize>, device: Device) -> Tensor {
        let factor = |position: usize| 1.0 + self.beta * (1.0 + (position as f64 / self.positions).floor()).ln();
        let factors: Vec<f32> = positions.map(|position| factor(position) as f32).collect();
        Tensor::from_slice(&factors).unsqueeze(-1).to_device(device)
    }
}

impl LayerKind {
    /// A layer of LLaMA.
    pub(crate) fn plain(common: &Common, rope: &Rope) -> Self {
        let Dims { n_heads, n_kv_heads, head_dim, intermediate, .. } = common.dims;
        Self {
            norms: Norms::BEFORE,
            attention: SelfAttention {
                shape: Attention { n_heads, n_kv_heads, head_dim, scale: None, softcap: None, sinks: false },
                is_fused: false,
                qkv_bias: false,
                out_bias: false,
                norms: HeadNorms::None,
                clip: None,
                rope: Some(rope.clone()),
                window: None,
            },
            mlp: Mlp::Gated(common.mlp("mlp.", intermediate)),
            fused: Vec::new(),
        }
    }

    /// Makes gate and up one linear.
    pub(crate) fn fuse_gate_up(&mut self) {
        if let Mlp::Gated(mlp) = &mut self.mlp {
            mlp.gate_up = GateUp::Halves(LinearName("mlp.gate_up_proj"));
        }
    }

    /// The same layer with another sliding window, or without one.
    pub(crate) fn with_window(&self, window: Option<usize>) -> Self {
        Self { attention: SelfAttention { window, ..self.attention.clone() }, ..self.clone() }
    }
}

impl LlamaLike {
    /// With all layers alike, and otherwise like LLaMA.
    pub(crate) fn uniform(common: &Common, layer: LayerKind) -> Self {
        Self::of_kinds(common, vec![layer], vec![0; common.dims.n_layers])
    }

    /// With layers that differ in something, which is given for each of them.
    pub(crate) fn of_layers<K: PartialEq>(
        common: &Common,
        layers: impl IntoIterator<Item = K>,
        kind: impl Fn(&K) -> LayerKind,
    ) -> Self {
        let (kinds, layers) = distinct(layers);
        Self::of_kinds(common, kinds.iter().map(kind).collect(), layers)
    }

    /// With sliding windows in the layers that `slides` says, and none in the others.
    pub(crate) fn with_windows(common: &Common, slides: Vec<bool>, windowed: &LayerKind, full: &LayerKind) -> Self {
        Self::of_layers(common, slides, |slides| if *slides { windowed.clone() } else { full.clone() })
    }

    fn of_kinds(common: &Common, kinds: Vec<LayerKind>, layers: Vec<usize>) -> Self {
        let ropes = kinds.iter().filter_map(|kind| kind.attention.rope.as_ref());
        let max_positions = ropes.map(|rope| rope.positions(common.dims.max_positions)).max();
        Self {
            dims: Dims { max_positions: max_positions.unwrap_or(common.dims.max_positions), ..common.dims },
            eps: common.eps,
            norm_base: 0.0,
            tied: common.tied,
            embed_scale: 1.0,
            residual_scale: 1.0,
            logits: Logits::default(),
            query_scale: None,
            kinds,
            layers,
        }
    }

    fn kind(&self, layer: usize) -> &LayerKind {
        &self.kinds[self.layers[layer]]
    }

    /// A norm, where there is one.
    fn norm(&self, ops: &dyn BlockOps, name: Option<&str>, x: Tensor) -> Tensor {
        match name {
            Some(name) => rms_norm(&x, &ops.param(name), self.eps),
            None => x,
        }
    }

    /// The residual stream with what a part of a layer adds to it.
    fn add(&self, x: &Tensor, y: Tensor) -> Tensor {
        if self.residual_scale == 1.0 { x + y } else { x + y * self.residual_scale }
    }

    /// The site between a norm and what reads it.
    fn norm_site(&self, norm: &'static str, readers: Vec<LinearName>) -> Site {
        Site::free(SiteKind::Norm, self.dims.hidden, module(norm), readers.iter().map(|reader| reader.0), false)
    }
}

impl Decoder for LlamaLike {
    fn dims(&self) -> Dims {
        self.dims
    }

    fn block_prefix(&self, block_idx: usize) -> String {
        format!("model.layers.{block_idx}.")
    }

    fn layer(&self, layer: usize) -> Layer {
        let hidden = self.dims.hidden;
        let LayerKind { norms, attention, mlp, .. } = self.kind(layer);
        let mut params: Vec<Param> =
            norms.names().map(|name| Param::new(name, [hidden]).above(self.norm_base)).collect();
        params.extend(attention.params(self.norm_base));
        let mut experts = Vec::new();
        let mut chosen = 0;
        if let Mlp::Experts(mixture) = mlp {
            params.extend(mixture.params(hidden));
            experts = mixture.mlps.iter().map(|mlp| names(&mlp.linears(hidden))).collect();
            chosen = mixture.chosen;
        }
        let mlps = mlp.all();
        let mut together = vec![attention.readers()];
        together.extend(mlps.iter().map(|mlp| mlp.readers()));
        together.retain(|names| names.len() > 1);
        let linears = attention.linears(hidden).into_iter();
        Layer {
            linears: linears.chain(mlps.iter().flat_map(|mlp| mlp.linears(hidden))).collect(),
            params,
            together,
            experts,
            chosen,
            attention: attention.shape,
            intermediate: mlp.width(),
        }
    }

    fn fused(&self, layer: usize) -> Vec<Fused> {
        self.kind(layer).fused.clone()
    }

    fn sites(&self, layer: usize, kind: SiteKind) -> Result<Vec<Site>, &'static str> {
        let LayerKind { norms, attention, mlp, .. } = self.kind(layer);
        match kind {
            SiteKind::Norm => {
                let of_attention = norms.before_attention.map(|norm| self.norm_site(norm, attention.readers()));
                let of_mlp = norms.before_mlp.map(|norm| self.norm_site(norm, mlp.readers()));
                let sites: Vec<Site> = of_attention.into_iter().chain(of_mlp).collect();
                if sites.is_empty() { Err("its norms come after attention and MLP") } else { Ok(sites) }
            }
            SiteKind::Vo => Ok(vec![attention.value_output()?]),
            SiteKind::Qk => Ok(vec![attention.query_key()?]),
            SiteKind::Updown => mlp.all().into_iter().map(GatedMlp::up_down).collect(),
        }
    }

    fn residual(&self) -> Result<Residual, &'static str> {
        if self.kinds.iter().any(|kind| kind.norms.after_attention.is_some() || kind.norms.after_mlp.is_some()) {
            return Err("it has norms behind attention and MLP, whose weights a rotation does not pass");
        }
        if self.kinds.iter().any(|kind| kind.attention.clip.is_some()) {
            return Err("it clamps values, which a rotation would have to pass");
        }
        Ok(Residual { centred: false, tables: &[EMBED], last_norm: Some(module(LAST_NORM)) })
    }

    fn residual_of(&self, layer: usize) -> LayerResidual {
        let LayerKind { norms, attention, mlp, .. } = self.kind(layer);
        let of_attention = norms.before_attention.map(|norm| (module(norm), attention.readers()));
        let of_mlp = norms.before_mlp.map(|norm| (module(norm), mlp.readers()));
        let inner: Vec<LinearName> = mlp.all().into_iter().map(|mlp| mlp.down).collect();
        LayerResidual {
            readers: of_attention.into_iter().chain(of_mlp).collect(),
            writers: [attention.writer()].into_iter().chain(inner.iter().copied()).collect(),
            inner,
        }
    }

    fn outer_params(&self) -> Vec<Param> {
        let Dims { vocab, hidden, .. } = self.dims;
        let mut params =
            vec![Param::new(EMBED, [vocab, hidden]), Param::new(LAST_NORM, [hidden]).above(self.norm_base)];
        if !self.tied {
            params.push(Param::new(LM_HEAD, [vocab, hidden]));
        }
        params
    }

    fn head(&self) -> &'static str {
        if self.tied { EMBED } else { LM_HEAD }
    }

    fn context_at(&self, positions: Range<usize>, device: Device) -> Context {
        let of_kind = |LayerKind { attention, .. }: &LayerKind| {
            let window = attention.window.filter(|&window| window < positions.end);
            LayerContext {
                rotary: attention.rope.as_ref().map(|rope| rope.tables(positions.clone(), device)),
                query_scale: self.query_scale.map(|scale| scale.at(positions.clone(), device)),
                mask: window.map(|window| mask::window(window, positions.clone(), device)),
            }
        };
        Context::of_kinds(self.kinds.iter().map(of_kind).collect())
    }

    fn mask_heads(&self, layer: usize, t: usize) -> usize {
        let SelfAttention { shape, window, .. } = &self.kind(layer).attention;
        match (shape.sinks, window.is_some_and(|window| window < t)) {
            (true, _) => shape.n_heads,
            (false, is_masked) => usize::from(is_masked),
        }
    }

    fn logits(&self) -> Logits {
        self.logits
    }

    fn embed_at(&self, outer: &dyn OuterOps, ids: &Tensor, _first: usize) -> Result<Tensor, ModelError> {
        let rows = outer.rows(EMBED, ids)?;
        Ok(if self.embed_scale == 1.0 { rows } else { rows * self.embed_scale })
    }

    fn block(&self, layer: usize, ops: &dyn BlockOps, ctx: &Context, x: &Tensor) -> Tensor {
        let LayerKind { norms, attention, mlp, .. } = self.kind(layer);
        let ctx = ctx.of(self.layers[layer]);
        let h = ops.act(ActPoint::LinearInput, self.norm(ops, norms.before_attention, x.shallow_clone()));
        let mixed = attention.forward(ops, ctx, &h, self.eps);
        let x = self.add(x, self.norm(ops, norms.after_attention, mixed));
        let h = self.norm(ops, norms.before_mlp, x.shallow_clone());
        let y = mlp.forward(ops, h);
        self.add(&x, self.norm(ops, norms.after_mlp, y))
    }

    fn finish(&self, outer: &dyn OuterOps, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(rms_norm(x, &outer.param(LAST_NORM)?, self.eps))
    }
}

fn names(linears: &[Linear]) -> Vec<LinearName> {
    linears.iter().map(|linear| linear.name).collect()
}
