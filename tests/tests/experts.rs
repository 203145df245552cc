//! A mixture-of-experts family defined outside of `oq-models`. Its layers differ: some have an MLP, some have experts. Learning, packing
//! and running work for it, even with an expert that no token is routed to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use oq_calib::{Options, quantize};
use oq_let::{Action, Port, Site};
use oq_models::layers::{rms_norm, split_heads};
use oq_models::{
    ActPoint, Attention, BlockOps, Context, Decoder, DenseOps, Dims, Layer, LayerResidual, Linear, LinearName, Model,
    ModelError, OuterOps, Param, Residual, Scores,
};
use oq_models::{Block, Compute, Form, HeadKind, Kernels, PackedOps, intern};
use oq_quant_core::{Bits, QuantSpec, SiteKind};
use oq_recipe::{Method, Overrides, Recipe, StarvedExpert};
use oq_tests::{check_family, fixture, write_random};
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
            chosen: if n > 1 { CHOSEN as usize } else { 0 },
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
        let weights = scores.zeros_like().scatter(1, &chosen, &weights); // [tokens, n]
        let mut out = rows.zeros_like().to_kind(Kind::Float);
        for e in 0..n {
            let hit = Vec::<i64>::try_from(chosen.eq(e as i64).any_dim(1, false).nonzero().view(-1)).unwrap();
            let token = ops.tokens_of_expert(e, hit, rows.size()[0] as usize);
            if token.is_empty() {
                continue;
            }
            let token = Tensor::from_slice(&token);
            let weight = weights.select(1, e as i64).index_select(0, &token).unsqueeze(-1);
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

/// Calibration text of `n` segments.
fn segments(n: usize) -> Vec<Vec<u32>> {
    let ids: Vec<u32> = (0..32 * n as u32).map(|i| (i.wrapping_mul(i) * 31 + i / 7) % VOCAB as u32).collect();
    ids.chunks(32).map(<[u32]>::to_vec).collect()
}

/// Learns the model at 2 bits, with experts that fewer than `expert_tokens` tokens reach treated as starved.
fn learned(dir: &Path, out: &Path, expert_tokens: usize) -> (Model, Vec<Vec<StarvedExpert>>) {
    let overrides = Overrides::default().samples(8).seqlen(32).epochs(2).expert_tokens(expert_tokens);
    let recipe = Recipe::resolve("w2a16g32".parse().unwrap(), None, None, &overrides).unwrap();
    let model = Model::with_decoder(dir, |_| Ok(Box::new(Experts))).unwrap();
    let options = Options::new(out);
    let outcome =
        quantize(&model, &recipe, &segments(recipe.segments()), &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let starved = outcome.blocks.into_iter().map(|block| block.starved).collect();
    (Model::with_decoder(out, |_| Ok(Box::new(Experts))).unwrap(), starved)
}

/// Inputs of the experts of the last layer, on text that is not calibrated on: `[tokens, hidden]`.
fn inputs_of_experts(model: &Model) -> Tensor {
    let ids: Vec<i64> = (0..320).map(|i: i64| (i * i * 17 + i / 3) % VOCAB as i64).collect();
    let (decoder, ids) = (model.decoder(), Tensor::from_slice(&ids).view([10, 32]));
    let ctx = decoder.context(32, Device::Cpu);
    let mut x = decoder.embed(&model.outer(Device::Cpu), &ids).unwrap();
    let inputs = RefCell::new(Vec::new());
    for layer in 0..4 {
        let block = model.load_block(layer, Device::Cpu).unwrap();
        let ops = Inputs { ops: DenseOps::new(&block), inputs: &inputs };
        inputs.borrow_mut().clear();
        x = decoder.block(layer, &ops, &ctx, &x);
    }
    Tensor::cat(&inputs.into_inner(), 0)
}

/// Keeps what the experts' first linears read.
struct Inputs<'a> {
    ops: DenseOps<'a>,
    inputs: &'a RefCell<Vec<Tensor>>,
}

impl BlockOps for Inputs<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        if name.0.ends_with(".up") {
            self.inputs.borrow_mut().push(x.flatten(0, -2));
        }
        self.ops.linear(name, x)
    }
    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.ops.act(point, x)
    }
    fn param(&self, name: &str) -> Tensor {
        self.ops.param(name)
    }
}

#[test]
fn a_starved_expert_is_told_and_no_worse_than_rounded_to_nearest() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_random(dir.path(), &Experts, "experts");
    let (packed, starved) = learned(dir.path(), &out.path().join("told"), 4);
    // The router of every second layer chooses from the others only.
    let never = StarvedExpert { expert: 4, tokens: 0 };
    assert!(starved[1].contains(&never) && starved[3].contains(&never), "{starved:?}");
    assert!(starved[0].is_empty() && starved[2].is_empty(), "{starved:?}");
    let rounded = Model::with_decoder(dir.path(), |_| Ok(Box::new(Experts))).unwrap();
    let rounded = rounded.with_round_to_nearest("w2a16g32".parse::<QuantSpec>().unwrap()).unwrap();
    let full = Model::with_decoder(dir.path(), |_| Ok(Box::new(Experts))).unwrap();
    assert!(starved[1].len() < 3 && starved[3].len() < 3, "most experts saw enough: {starved:?}");
    let x = inputs_of_experts(&full);
    let output = |model: &Model| {
        let block = model.load_block(3, Device::Cpu).unwrap();
        x.linear(block.weight(up(4)), None::<Tensor>).relu().linear(block.weight(down(4)), None::<Tensor>)
    };
    let exact = output(&full);
    let error = |model: &Model| (output(model) - &exact).square().mean(Kind::Double).double_value(&[]);
    let (learned_error, rounded_error) = (error(&packed), error(&rounded));
    assert!(learned_error < rounded_error, "{learned_error} and {rounded_error}");

    // Without a limit, an expert without tokens is rounded on the whole range of its groups.
    let (_, starved) = learned(dir.path(), &out.path().join("untold"), 0);
    assert!(starved.iter().all(Vec::is_empty));
}

/// Sums up the bytes of the packed matrices that a block multiplies with.
struct Read<'a> {
    ops: &'a PackedOps,
    bytes: RefCell<usize>,
}

impl BlockOps for Read<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        *self.bytes.borrow_mut() += self.ops.bytes_with(name);
        self.ops.linear(name, x)
    }
    fn linears(&self, names: &[LinearName], x: &Tensor) -> Vec<Tensor> {
        // One matrix.
        *self.bytes.borrow_mut() += self.ops.bytes_with(names[0]);
        self.ops.linears(names, x)
    }
    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.ops.act(point, x)
    }
    fn param(&self, name: &str) -> Tensor {
        self.ops.param(name)
    }
}

#[test]
fn a_token_reads_the_experts_chosen_for_it_alone() {
    const LAYER: usize = 1;
    let (dir, form) = (fixture("tiny-mixtral"), Form::new(Kernels::Packed, Compute::F32, HeadKind::Wide));
    let model = Model::open(&dir).unwrap().with_round_to_nearest("w4a16g64".parse::<QuantSpec>().unwrap()).unwrap();
    let model = model.with_form(form).unwrap();
    let Block::Packed(ops) = model.block(LAYER, Device::Cpu).unwrap() else { panic!("it is packed") };
    let decoder = model.decoder();
    let layout = decoder.layer(LAYER);
    let of_expert = |expert: &[LinearName]| -> usize {
        // Gate and up are one matrix.
        ops.bytes_with(expert[0]) + ops.bytes_with(expert[2])
    };
    let experts: Vec<usize> = layout.experts.iter().map(|expert| of_expert(expert)).collect();
    assert!(experts.len() == 8 && experts.iter().all(|bytes| *bytes == experts[0]));
    let in_experts = |name: &LinearName| layout.experts.iter().flatten().any(|linear| linear == name);
    let groups = layout.groups();
    let others = groups.iter().map(|group| group[0].name).filter(|name| !in_experts(name));
    let others: usize = others.map(|name| ops.bytes_with(name)).sum();
    let read = Read { ops: &ops, bytes: RefCell::new(0) };
    let x = Tensor::randn([1, 1, decoder.dims().hidden as i64], (Kind::Float, Device::Cpu));
    let _ = decoder.block(LAYER, &read, &decoder.context(1, Device::Cpu), &x);
    assert_eq!(read.bytes.into_inner(), others + layout.chosen * experts[0]);
}

#[test]
fn experts_have_widths_of_their_own() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_random(dir.path(), &Experts, "experts");
    let model = Model::with_decoder(dir.path(), |_| Ok(Box::new(Experts))).unwrap();
    let overrides = Overrides::default().method(Method::Rtn).samples(4).seqlen(32).bits(3.0).bit_choices(widths());
    let recipe = Recipe::resolve("w3a16g32".parse().unwrap(), None, None, &overrides).unwrap();
    let options = Options::new(out.path().join("packed"));
    quantize(&model, &recipe, &segments(4), &options, &mut |_| ControlFlow::Continue(())).unwrap();
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
