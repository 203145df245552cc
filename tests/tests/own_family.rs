//! A family defined outside of `oq-models`, with two kinds of layers: the code that it needs, and a check that everything works with it.
//!
//! Even layers have sliding-window attention with rotary embeddings. Odd layers have full attention without positions, smaller heads, a
//! scale and softcap of scores, and a wider MLP. Logits have a softcap.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Range;

use oq_let::Site;
use oq_models::layers::{rms_norm, split_heads};
use oq_models::{
    ActPoint, Attention, BlockOps, Context, Decoder, Dims, Layer, LayerContext, LayerResidual, Linear, LinearName,
    Logits, Model, ModelError, OuterOps, Param, Residual, Scores,
};
use oq_quant_core::{RotateKind, SiteKind};
use oq_tests::{check_family, write_random};
use tch::{Device, Kind, Tensor};

const HIDDEN: usize = 64;
const VOCAB: usize = 96;
const WINDOW: i64 = 4;
const Q: LinearName = LinearName("q");
const K: LinearName = LinearName("k");
const V: LinearName = LinearName("v");
const O: LinearName = LinearName("o");
const UP: LinearName = LinearName("up");
const DOWN: LinearName = LinearName("down");

struct Alternating;

impl Decoder for Alternating {
    fn dims(&self) -> Dims {
        let (n_heads, n_kv_heads, head_dim, intermediate) = (4, 2, 16, 128);
        Dims {
            n_layers: 4,
            hidden: HIDDEN,
            intermediate,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab: VOCAB,
            max_positions: 64,
        }
    }
    fn block_prefix(&self, layer: usize) -> String {
        format!("layers.{layer}.")
    }
    fn layer(&self, layer: usize) -> Layer {
        let (head_dim, intermediate, scale, softcap) =
            if layer.is_multiple_of(2) { (16, 128, None, None) } else { (8, 192, Some(0.25), Some(3.0)) };
        let linear = |name, out_features, in_features| Linear { name, out_features, in_features, bias: false };
        Layer {
            linears: vec![
                linear(Q, 4 * head_dim, HIDDEN),
                linear(K, 2 * head_dim, HIDDEN),
                linear(V, 2 * head_dim, HIDDEN),
                linear(O, HIDDEN, 4 * head_dim),
                linear(UP, intermediate, HIDDEN),
                linear(DOWN, HIDDEN, intermediate),
            ],
            params: ["norm1.weight", "norm2.weight"].map(|name| Param::new(name, [HIDDEN])).to_vec(),
            together: vec![vec![Q, K, V]],
            attention: Attention { n_heads: 4, n_kv_heads: 2, head_dim, scale, softcap, sinks: false },
            intermediate,
            experts: Vec::new(),
        }
    }
    fn sites(&self, _layer: usize, kind: SiteKind) -> Result<Vec<Site>, &'static str> {
        let norm = |norm, readers: &[LinearName]| Site::free(kind, HIDDEN, norm, readers.iter().map(|r| r.0), false);
        match kind {
            SiteKind::Norm => Ok(vec![norm("norm1", &[Q, K, V]), norm("norm2", &[UP])]),
            _ => Err("it is not written"),
        }
    }
    fn residual(&self) -> Result<Residual, &'static str> {
        Ok(Residual { centred: false, tables: &["embed.weight"], last_norm: Some("norm") })
    }
    fn residual_of(&self, _layer: usize) -> LayerResidual {
        LayerResidual {
            readers: vec![("norm1", vec![Q, K, V]), ("norm2", vec![UP])],
            writers: vec![O, DOWN],
            inner: vec![DOWN],
        }
    }
    fn outer_params(&self) -> Vec<Param> {
        let matrix = |name| Param::new(name, [VOCAB, HIDDEN]);
        vec![matrix("embed.weight"), Param::new("norm.weight", [HIDDEN]), matrix("lm_head.weight")]
    }
    fn head(&self) -> &'static str {
        "lm_head.weight"
    }
    fn logits(&self) -> Logits {
        Logits { scale: 1.0, softcap: Some(4.0) }
    }
    fn context_at(&self, positions: Range<usize>, device: Device) -> Context {
        let [start, end] = [positions.start, positions.end].map(|n| n as i64);
        let at = |from| Tensor::arange_start(from, end, (Kind::Int64, device));
        let distance = at(start).unsqueeze(1) - at(0); // [t, end]
        let mask = |hidden: Tensor| hidden.to_kind(Kind::Float).masked_fill(&hidden, f64::NEG_INFINITY).unsqueeze(0);
        let window = mask(distance.lt(0).logical_or(&distance.ge(WINDOW)));
        Context::of_kinds(vec![LayerContext { mask: Some(window), ..LayerContext::default() }, LayerContext::default()])
    }
    fn mask_heads(&self, layer: usize, _t: usize) -> usize {
        1 - layer % 2
    }
    fn embed_at(&self, outer: &dyn OuterOps, ids: &Tensor, _first: usize) -> Result<Tensor, ModelError> {
        outer.rows("embed.weight", ids)
    }
    fn block(&self, layer: usize, ops: &dyn BlockOps, ctx: &Context, x: &Tensor) -> Tensor {
        let Attention { head_dim, scale, softcap, .. } = self.layer(layer).attention;
        let h = ops.act(ActPoint::LinearInput, rms_norm(x, &ops.param("norm1.weight"), 1e-6));
        let heads: Vec<Tensor> = ops.linears(&[Q, K, V], &h).iter().map(|x| split_heads(x, head_dim)).collect();
        let scores = Scores { mask: ctx.of(layer % 2).mask.as_ref(), scale, softcap, sinks: None };
        let mixed = ops.attention(&heads[0], &heads[1], &heads[2], &scores);
        let x = x + ops.linear(O, &ops.act(ActPoint::LinearInput, mixed));
        let h = ops.act(ActPoint::LinearInput, rms_norm(&x, &ops.param("norm2.weight"), 1e-6));
        &x + ops.linear(DOWN, &ops.act(ActPoint::Inner, ops.linear(UP, &h).relu()))
    }
    fn finish(&self, outer: &dyn OuterOps, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(rms_norm(x, &outer.param("norm.weight")?, 1e-6))
    }
}

#[test]
fn layers_of_two_kinds_are_learned_packed_and_run() {
    let dir = tempfile::tempdir().unwrap();
    write_random(dir.path(), &Alternating, "alternating");
    check_family(dir.path(), |_| Ok(Box::new(Alternating)));
    // Heads of two sizes cannot share a rotation.
    let model = Model::with_decoder(dir.path(), |_| Ok(Box::new(Alternating))).unwrap();
    let refused = model.rotated(RotateKind::Merged, 1).err().unwrap();
    assert!(refused.to_string().contains("its layers differ in the size of heads"), "{refused}");
}
