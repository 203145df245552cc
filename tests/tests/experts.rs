//! A mixture-of-experts family defined outside of `oq-models`. Its layers differ: some have an MLP, some have experts. Learning, packing
//! and running work for it, even with an expert that no token is routed to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::{ControlFlow, Range};

use oq_calib::{Options, quantize};
use oq_let::{Action, Port, Site};
use oq_models::intern;
use oq_models::layers::{rms_norm, split_heads};
use oq_models::{
    ActPoint, Attention, BlockOps, Context, Decoder, Dims, Layer, LayerResidual, Linear, LinearName, Model, ModelError,
    OuterOps, Param, Residual, Scores,
};
use oq_quant_core::{Bits, SiteKind};
use oq_recipe::{Method, Overrides, Recipe};
use oq_tests::{check_family, write_random};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 96;
const HEAD_DIM: usize = 16;
const VOCAB: usize = 96;
const Q: LinearName = LinearName("q");
const K: LinearName = LinearName("k");
const V: LinearName = LinearName("v");
const O: LinearName = LinearName("o");
const ATTENTION: Attention =
    Attention { n_heads: 4, n_kv_heads: 4, head_dim: HEAD_DIM, scale: None, softcap: None, sinks: false };
/// Number of experts per token.
const CHOSEN: i64 = 2;

struct Experts;

/// Number of experts in a layer: 1 for a plain MLP, or several with a router.
fn experts(layer: usize) -> usize {
    if layer.is_multiple_of(2) { 1 } else { 5 }
}

fn up(expert: usize) -> LinearName {
    LinearName(intern(&format!("experts.{expert}.up")))
}

fn down(expert: usize) -> LinearName {
    LinearName(intern(&format!("experts.{expert}.down")))
}

impl Decoder for Experts {
    fn dims(&self) -> Dims {
        let Attention { n_heads, n_kv_heads, head_dim, .. } = ATTENTION;
        let (n_layers, hidden, intermediate, vocab, max_positions) = (4, HIDDEN, INTERMEDIATE, VOCAB, 64);
        Dims { n_layers, hidden, intermediate, n_heads, n_kv_heads, head_dim, vocab, max_positions }
    }
    fn block_prefix(&self, layer: usize) -> String {
        format!("layers.{layer}.")
    }
    fn layer(&self, layer: usize) -> Layer {
        let linear = |name, out_features, in_features| Linear { name, out_features, in_features, bias: false };
        let n = experts(layer);
        let mlp = (0..n).flat_map(|e| [linear(up(e), INTERMEDIATE, HIDDEN), linear(down(e), HIDDEN, INTERMEDIATE)]);
        let mut params: Vec<Param> = ["norm1.weight", "norm2.weight"].map(|name| Param::new(name, [HIDDEN])).into();
        if n > 1 {
            params.push(Param::new("router.weight", [n, HIDDEN]));
        }
        Layer {
            linears: [Q, K, V, O].map(|name| linear(name, HIDDEN, HIDDEN)).into_iter().chain(mlp).collect(),
            params,
            together: vec![vec![Q, K, V]],
            experts: if n > 1 { (0..n).map(|e| vec![up(e), down(e)]).collect() } else { Vec::new() },
            attention: ATTENTION,
            intermediate: INTERMEDIATE,
        }
    }
    fn sites(&self, layer: usize, kind: SiteKind) -> Result<Vec<Site>, &'static str> {
        if kind != SiteKind::Norm {
            return Err("it is not written");
        }
        let mut mlp = Site::free(kind, HIDDEN, "norm2", (0..experts(layer)).map(|e| up(e).0), false);
        if experts(layer) > 1 {
            mlp.ports.push(Port::free("router", Action::MultiplyInput, HIDDEN));
        }
        Ok(vec![Site::free(kind, HIDDEN, "norm1", [Q, K, V].map(|reader| reader.0), false), mlp])
    }
    fn residual(&self) -> Result<Residual, &'static str> {
        Err("a router reads it")
    }
    fn residual_of(&self, _layer: usize) -> LayerResidual {
        unreachable!("it cannot be rotated")
    }
    fn outer_params(&self) -> Vec<Param> {
        let matrix = |name| Param::new(name, [VOCAB, HIDDEN]);
        vec![matrix("embed.weight"), Param::new("norm.weight", [HIDDEN]), matrix("lm_head.weight")]
    }
    fn head(&self) -> &'static str {
        "lm_head.weight"
    }
    fn context_at(&self, _positions: Range<usize>, _device: Device) -> Context {
        Context::uniform(None, None)
    }
    fn embed_at(&self, outer: &dyn OuterOps, ids: &Tensor, _first: usize) -> Result<Tensor, ModelError> {
        outer.rows("embed.weight", ids)
    }
    fn block(&self, layer: usize, ops: &dyn BlockOps, _ctx: &Context, x: &Tensor) -> Tensor {
        let h = ops.act(ActPoint::LinearInput, rms_norm(x, &ops.param("norm1.weight"), 1e-6));
        let heads: Vec<Tensor> = ops.linears(&[Q, K, V], &h).iter().map(|x| split_heads(x, HEAD_DIM)).collect();
        let mixed = ops.attention(&heads[0], &heads[1], &heads[2], &Scores::default());
        let x = x + ops.linear(O, &ops.act(ActPoint::LinearInput, mixed));
        let h = ops.act(ActPoint::LinearInput, rms_norm(&x, &ops.param("norm2.weight"), 1e-6));
        let expert = |e, h: &Tensor| ops.linear(down(e), &ops.act(ActPoint::Inner, ops.linear(up(e), h).relu()));
        let n = experts(layer);
        if n == 1 {
            return &x + expert(0, &h);
        }
        let rows = h.flatten(0, -2); // [tokens, hidden]
        let router = ops.param("router.weight");
        let scores = rows.to_kind(Kind::Float).matmul(&router.to_kind(Kind::Float).transpose(0, 1)); // [tokens, n]
        // The last expert is never chosen.
        let (weights, chosen) = scores.narrow(1, 0, n as i64 - 1).softmax(-1, Kind::Float).topk(CHOSEN, -1, true, true);
        let mut out = rows.zeros_like().to_kind(Kind::Float);
        for e in 0..n {
            let hit = chosen.eq(e as i64).nonzero(); // [hits, 2]: token, place
            if hit.size()[0] == 0 {
                continue;
            }
            let token = hit.select(1, 0);
            let weight = weights.index(&[Some(&token), Some(&hit.select(1, 1))]).unsqueeze(-1);
            let y = expert(e, &rows.index_select(0, &token).unsqueeze(0)).squeeze_dim(0);
            out = out.index_add(0, &token, &(y.to_kind(Kind::Float) * weight));
        }
        &x + out.view_as(&x)
    }
    fn finish(&self, outer: &dyn OuterOps, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(rms_norm(x, &outer.param("norm.weight")?, 1e-6))
    }
}

#[test]
fn layers_with_experts_are_learned_packed_and_run() {
    let dir = tempfile::tempdir().unwrap();
    write_random(dir.path(), &Experts, "experts");
    check_family(dir.path(), |_| Ok(Box::new(Experts)));
}

#[test]
fn experts_have_widths_of_their_own() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_random(dir.path(), &Experts, "experts");
    let model = Model::with_decoder(dir.path(), |_| Ok(Box::new(Experts))).unwrap();
    let overrides = Overrides::default().method(Method::Rtn).samples(4).seqlen(32).bits(3.0).bit_choices(widths());
    let recipe = Recipe::resolve("w3a16g32".parse().unwrap(), None, None, &overrides).unwrap();
    let ids: Vec<u32> = (0..128).map(|i: u32| (i * i * 31 + i / 7) % VOCAB as u32).collect();
    let segments: Vec<Vec<u32>> = ids.chunks(32).map(<[u32]>::to_vec).collect();
    let options = Options::new(out.path().join("packed"));
    quantize(&model, &recipe, &segments, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let chosen: Value =
        serde_json::from_slice(&std::fs::read(options.out.join("omniquant/bits.json")).unwrap()).unwrap();
    let units = chosen["units"].as_array().unwrap();
    let of = |linear: LinearName| units.iter().filter(move |unit| unit["linears"][0] == linear.0);
    assert!(of(up(3)).all(|unit| unit["divergence"][0].as_f64().unwrap() > 0.0));
    // An expert that no token is routed to has a divergence of 0 and gets the fewest bits.
    assert!(of(up(4)).count() == 2 && of(up(4)).all(|unit| unit["divergence"][0] == 0.0 && unit["bits"] == 2));
}

fn widths() -> Vec<Bits> {
    [2, 3, 4].map(|bits| Bits::new(bits).unwrap()).to_vec()
}
