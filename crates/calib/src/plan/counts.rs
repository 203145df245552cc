//! Counts from which a run's memory and time are computed.

use std::cell::RefCell;
use std::collections::BTreeSet;

use oq_let::{Action, Site};
use oq_models::{
    ActPoint, Attention, BlockOps, Compute, Decoder, Dims, Layer, Linear, LinearName, LinearSpec, Param, specs_of_layer,
};
use oq_quant_core::{ActSpec, Bits, RotateKind, WeightSpec, packed_words};
use oq_recipe::{Recipe, Rounding, Text};
use oq_rotation::SLAB;
use tch::{Device, Kind, Tensor};

use crate::block::compensate::WEIGHTS;
use crate::block::inputs::parts;
use crate::block::sites::{SiteError, sites_of};
use crate::model::sensitivity::n_segments;
use crate::widths::{Open, outer_specs};

/// Bytes of f32, in which blocks are held and learn.
pub(super) const F32: u64 = 4;
/// Bytes of f64, in which matrices are rotated.
const F64: u64 = 8;
/// Bytes of f16, in which scales and unquantized tensors are stored.
pub(super) const F16: u64 = 2;

/// Sizes of a run: numbers of weights, tokens or channels unless stated otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    /// The layer counted, the first of its kind.
    pub(super) layer: usize,
    pub(super) dims: Dims,
    /// Processes that share the run.
    pub(super) ranks: u64,
    /// Tokens per optimizer step, of one rank.
    pub(super) batch_tokens: u64,
    /// Tokens per segment.
    pub(super) seqlen: u64,
    /// Tokens of all segments of one rank; 0 if the method reads no text.
    pub(super) tokens: u64,
    /// Optimizer steps per block.
    pub(super) steps: u64,
    /// Optimizer steps of tuning all blocks together; 0 if there is none.
    pub(super) tuning_steps: u64,
    /// Tokens on which the first rank measures the costs of widths; 0 if no widths are chosen.
    pub(super) probed_tokens: u64,
    /// Number of widths to choose from.
    pub(super) choices: u64,
    /// Elements per token of the linears' distinct inputs and of their outputs.
    pub(super) tapped: u64,
    /// Targets per step; 0 if nothing is learned.
    pub(super) targets: u64,
    /// Weights of a block's linears.
    pub(super) weights: u64,
    /// Weights that a token is multiplied with: of experts, those chosen for it.
    pub(super) active: u64,
    /// Weights of the largest linear.
    pub(super) largest: u64,
    /// Weights of the linears that the transformation changes.
    pub(super) moved: u64,
    /// Weights of the linears that it scales along both rows and columns.
    pub(super) moved_twice: u64,
    /// Weights of the linears whose input depends on nothing learned, so that the input needs no gradient.
    pub(super) first: u64,
    /// Groups of a block, each with two clipping strengths.
    pub(super) grids: u64,
    /// Codes of a block that tuning may move, each with a place of a byte.
    pub(super) places: u64,
    /// Elements of a block's norms and biases.
    pub(super) params: u64,
    /// Weights with an offset: all, or none.
    pub(super) offsets: u64,
    /// Whether offsets are learned.
    pub(super) rounds: bool,
    /// Products of input channels with each other, summed for compensation over the distinct inputs of linears; 0 without compensation.
    pub(super) products: u64,
    /// The largest matrix of such products.
    pub(super) largest_products: u64,
    /// Bytes of the slabs in which matrices are rotated, in f64 and in their own type; 0 without rotation.
    pub(super) rotated_bytes: u64,
    /// Multiply-adds of compensation, and columns that it processes one by one.
    pub(super) compensation: u64,
    pub(super) columns: u64,
    /// Rows of the MLP's linears before the last one: `intermediate`, or twice that if the MLP is gated.
    pub(super) mlp_rows: u64,
    /// Heads of a mask that is added to attention's scores; 0 if the mask is plainly causal.
    pub(super) mask_heads: u64,
    /// Linears of a block.
    pub(super) linears: u64,
    /// Sites of a block.
    pub(super) sites: u64,
    /// Bytes per element in products.
    pub(super) product_bytes: u64,
    /// Whether activations are quantized.
    pub(super) quantizes_act: bool,
    /// Bytes of a packed block.
    pub(super) block_bytes: u64,
    /// Bytes of the tensors outside the blocks.
    pub(super) outer_bytes: u64,
}

impl Counts {
    /// For each kind of layer in the model, the counts as if all layers were of that kind, and the number of such layers; the largest
    /// kind first, and of these one that is quantized.
    pub(super) fn of_kinds(
        decoder: &dyn Decoder,
        recipe: &Recipe,
        compute: Compute,
        ranks: usize,
    ) -> Result<Vec<(Self, u64)>, SiteError> {
        let mut kinds: Vec<((Layer, Specs), usize, u64)> = Vec::new();
        for idx in 0..decoder.dims().n_layers {
            let specs = specs_of_layer(decoder, recipe.quantization(), idx).expect(CHECKED);
            let kind = (decoder.layer(idx), specs);
            match kinds.iter_mut().find(|(known, ..)| *known == kind) {
                Some((_, _, n)) => *n += 1,
                None => kinds.push((kind, idx, 1)),
            }
        }
        let counts = kinds.iter().map(|&((ref layer, ref specs), idx, n)| {
            let sites = sites_of(decoder, recipe, idx)?;
            Ok((Self::new(decoder, (idx, layer, specs), (recipe, ranks.max(1)), &sites, compute), n))
        });
        let mut counts = counts.collect::<Result<Vec<_>, SiteError>>()?;
        counts.sort_by_key(|(counts, _)| (std::cmp::Reverse(counts.weights), counts.grids == 0));
        Ok(counts)
    }

    /// `sites`: those that the recipe transforms.
    fn new(
        decoder: &dyn Decoder,
        (layer, layout, specs): (usize, &Layer, &Specs),
        (recipe, ranks): (&Recipe, usize),
        sites: &[Site],
        compute: Compute,
    ) -> Self {
        let Attention { n_heads, n_kv_heads, head_dim, .. } = layout.attention;
        let dims = Dims { n_heads, n_kv_heads, head_dim, intermediate: layout.intermediate, ..decoder.dims() };
        let (Text { segments: samples, tokens: seqlen }, batch) = (recipe.text(), recipe.calibration.batch);
        let (learns, reads_text) = (recipe.method.learns(), recipe.method.reads_text());
        let moved = |name: LinearName| ports(sites, name).next().is_some();
        let moved_twice = |name: LinearName| {
            let along_columns = |action: &Action| *action == Action::MultiplyInput;
            ports(sites, name).any(|action| along_columns(&action))
                && ports(sites, name).any(|action| !along_columns(&action))
        };
        let Probed { differentiated, widths } = probed(decoder, (layer, layout), sites);
        let compensates = recipe.compensates();
        let compensation = if compensates { Compensation::of(layout, sites, &widths) } else { Compensation::default() };
        let sum = |of: &dyn Fn(LinearName) -> bool| {
            let chosen = layout.linears.iter().filter(|linear| of(linear.name));
            chosen.map(|linear| (linear.out_features * linear.in_features) as u64).sum()
        };
        let is_expert = |name: LinearName| layout.experts.iter().any(|expert| expert.contains(&name));
        let norms = layout.params.iter().map(|param| numbers(&param.shape)).sum::<u64>();
        let biases = layout.linears.iter().filter(|linear| linear.bias).map(|linear| linear.out_features as u64);
        let largest = layout.linears.iter().map(|l| (l.out_features * l.in_features) as u64).max().unwrap_or(0);
        // Of the first rank, whose parts of batches are the largest.
        let own_samples = (samples / batch).saturating_mul(batch.div_ceil(ranks)) + (samples % batch).div_ceil(ranks);
        let probed_segments = n_segments(samples, seqlen).div_ceil(ranks);
        let batches = if learns { samples.div_ceil(batch) as u64 } else { 0 };
        // Of experts, those that a token has.
        let (chosen, experts) = (layout.chosen as u64, layout.experts.len().max(1) as u64);
        let active = |all: u64, of_experts: u64| all - of_experts + of_experts * chosen / experts;
        let rows_of = |of: &dyn Fn(LinearName) -> bool| {
            let rows = layout.linears.iter().filter(|linear| of(linear.name)).map(|linear| linear.out_features as u64);
            rows.sum::<u64>()
        };
        let rows = active(rows_of(&|_| true), rows_of(&is_expert));
        let width_of = |of_experts: bool| {
            widths.iter().filter(|input| !of_experts || input.of_expert).map(|input| input.channels as u64).sum::<u64>()
        };
        let other_rows = (dims.n_heads + 2 * dims.n_kv_heads) * dims.head_dim + 2 * dims.hidden;
        Self {
            layer,
            dims,
            ranks: ranks as u64,
            batch_tokens: batch.div_ceil(ranks).saturating_mul(seqlen) as u64,
            seqlen: seqlen as u64,
            tokens: if reads_text { own_samples.saturating_mul(seqlen) as u64 } else { 0 },
            steps: (recipe.learn.epochs as u64).saturating_mul(batches),
            tuning_steps: (recipe.tune_epochs() as u64).saturating_mul(batches),
            places: if recipe.tune_epochs() > 0 && recipe.tune.codes > 0.0 { sum(&|_| true) } else { 0 },
            params: norms + biases.sum::<u64>(),
            probed_tokens: recipe.bits.as_ref().map_or(0, |_| probed_segments.saturating_mul(seqlen) as u64),
            choices: recipe.bits.as_ref().map_or(0, |budget| budget.choices.len() as u64),
            tapped: active(width_of(false), width_of(true)) + rows,
            targets: recipe.targets() as u64,
            weights: sum(&|_| true),
            active: active(sum(&|_| true), sum(&is_expert)),
            largest,
            moved: sum(&moved),
            moved_twice: sum(&moved_twice),
            first: sum(&|name| !differentiated.contains(&name)),
            grids: layout
                .linears
                .iter()
                .zip(specs)
                .filter_map(|(l, spec)| Some((l.out_features * spec.weight?.group.count(l.in_features)) as u64))
                .sum(),
            offsets: if compensates || (learns && recipe.learn.rounding == Rounding::Learned) {
                sum(&|name| specs.iter().any(|spec| spec.name == name && spec.weight.is_some()))
            } else {
                0
            },
            rounds: learns && recipe.learn.rounding == Rounding::Learned,
            products: compensation.products,
            rotated_bytes: match recipe.rotate.kind {
                RotateKind::None => 0,
                _ => (4 * F64 + 3 * F32) * largest.max((dims.vocab * dims.hidden) as u64).min(SLAB as u64),
            },
            largest_products: compensation.largest_products,
            compensation: compensation.operations,
            columns: compensation.columns,
            mlp_rows: rows.saturating_sub(other_rows as u64),
            mask_heads: decoder.mask_heads(layer, seqlen) as u64,
            linears: layout.linears.len() as u64,
            sites: sites.len() as u64,
            product_bytes: match compute {
                Compute::F32 => F32,
                Compute::Bf16 => 2,
            },
            quantizes_act: recipe.scheme.act != ActSpec::Float,
            block_bytes: packed_bytes(layout, specs, bits_of_open(decoder, recipe)) + norms * F16,
            outer_bytes: outer_bytes(decoder, recipe),
        }
    }

    /// Channels of all query heads.
    pub(super) fn heads(&self) -> u64 {
        (self.dims.n_heads * self.dims.head_dim) as u64
    }

    /// Channels of all key heads.
    pub(super) fn kv_heads(&self) -> u64 {
        (self.dims.n_kv_heads * self.dims.head_dim) as u64
    }

    /// Channels per token of all inputs of products, in linears and attention.
    pub(super) fn product_inputs(&self) -> u64 {
        let (hidden, intermediate) = (self.dims.hidden as u64, self.dims.intermediate as u64);
        2 * hidden + intermediate + 2 * self.heads() + 2 * self.kv_heads()
    }

    /// Bytes on disk per layer of the state of tuning: what is learned with two moments, and places of codes.
    pub(super) fn tuning_bytes(&self) -> u64 {
        if self.tuning_steps > 0 { 3 * F32 * (self.grids + self.params) + self.places } else { 0 }
    }
}

/// The cost of compensation in a layer.
#[derive(Default)]
struct Compensation {
    /// Products of input channels with each other, over the distinct inputs of linears.
    products: u64,
    /// The largest matrix of such products.
    largest_products: u64,
    /// Multiplications and additions.
    operations: u64,
    /// Columns that are rounded one by one.
    columns: u64,
}

impl Compensation {
    /// `widths`: the distinct inputs of linears.
    fn of(layout: &Layer, sites: &[Site], widths: &[Input]) -> Self {
        let parts = |n: usize| parts(n).map(|part| part as u64);
        let watched = widths.iter().filter(|input| !input.is_rescaled);
        let squares: Vec<u64> = watched.flat_map(|input| parts(input.channels)).map(|part| part * part).collect();
        // Two Cholesky factors and one inverse, each a third of a matrix product, times two.
        let (mut operations, mut columns) = (squares.iter().map(|square| square * square.isqrt()).sum::<u64>(), 0);
        let is_rescaled = |linear: &&Linear| sites.iter().any(|site| site.rescales_input_of(linear.name.0));
        for linear in layout.linears.iter().filter(|linear| !is_rescaled(linear)) {
            for part in parts(linear.in_features) {
                // On average, an error is applied to half of the columns.
                operations += linear.out_features as u64 * part * part;
                columns += part * (linear.out_features as u64 * part).div_ceil(WEIGHTS as u64);
            }
        }
        let largest_products = squares.iter().copied().max().unwrap_or(0);
        Self { products: squares.iter().sum(), largest_products, operations, columns }
    }
}

fn numbers(shape: &[usize]) -> u64 {
    shape.iter().product::<usize>() as u64
}

/// How the linears of a layer are quantized, in the layer's order.
type Specs = Vec<LinearSpec>;

/// What a plan relies on.
const CHECKED: &str = "the recipe was checked against the model";

/// Average bits of the linears whose widths are chosen, if any are.
fn bits_of_open(decoder: &dyn Decoder, recipe: &Recipe) -> Option<f64> {
    let budget = recipe.bits.as_ref()?;
    let most = budget.choices.last().map_or(0.0, |bits| f64::from(bits.get()));
    Some(Open::of(decoder, recipe).expect(CHECKED).share(budget.average).min(most))
}

/// Bytes of a layer's linears, packed or not. `average`: bits of those whose widths are chosen.
fn packed_bytes(layout: &Layer, specs: &Specs, average: Option<f64>) -> u64 {
    let at_width = |width: Option<Bits>| {
        let of_linear = |(linear, spec): (&Linear, &LinearSpec)| {
            let width = width.filter(|_| !spec.is_pinned);
            let weight = spec.weight.map(|weight| WeightSpec { bits: width.unwrap_or(weight.bits), ..weight });
            let bias = if linear.bias { linear.out_features as u64 * F16 } else { 0 };
            matrix_bytes([linear.out_features, linear.in_features], weight) + bias
        };
        layout.linears.iter().zip(specs).map(of_linear).sum::<u64>()
    };
    match average {
        None => at_width(None),
        // Interpolated between the sizes at the widths around the average.
        Some(average) => {
            let [below, above] = [average.floor(), average.ceil()]
                .map(|bits| Bits::new(bits as u32).map_or(0, |bits| at_width(Some(bits))) as f64);
            (below + (above - below) * average.fract()).ceil() as u64
        }
    }
}

/// Bytes of a matrix `[rows, cols]`, packed or in f16.
fn matrix_bytes([rows, cols]: [usize; 2], spec: Option<WeightSpec>) -> u64 {
    let Some(WeightSpec { bits, group, .. }) = spec else { return (rows * cols) as u64 * F16 };
    let groups = group.count(cols);
    let words = rows * packed_words(cols, bits) + packed_words(rows, bits) * groups;
    words as u64 * 4 + (rows * groups) as u64 * F16
}

/// Bytes of the tensors outside the blocks.
fn outer_bytes(decoder: &dyn Decoder, recipe: &Recipe) -> u64 {
    let params = decoder.outer_params();
    let is_rotated = recipe.rotate.kind != RotateKind::None;
    // A head tied to the embedding becomes a matrix of its own.
    let parted = params.first().filter(|embedding| is_rotated && embedding.name == decoder.head());
    let specs = outer_specs(decoder, recipe).expect(CHECKED);
    let bytes = |param: &Param, spec: Option<WeightSpec>| match param.shape[..] {
        [rows, cols] => matrix_bytes([rows, cols], spec),
        _ => numbers(&param.shape) * F16,
    };
    let own = params.iter().map(|param| bytes(param, specs.of(decoder, param.name)));
    own.sum::<u64>() + parted.map_or(0, |param| bytes(param, specs.head))
}

/// Actions of sites on a linear.
fn ports(sites: &[Site], name: LinearName) -> impl Iterator<Item = Action> + '_ {
    let ports = sites.iter().flat_map(|site| &site.ports);
    ports.filter(move |port| port.module == name.0).map(|port| port.action)
}

/// The result of running a block on one token.
#[derive(Default)]
struct Probed {
    /// Linears whose inputs need gradients, according to autograd.
    differentiated: BTreeSet<LinearName>,
    /// The distinct inputs of linears.
    widths: Vec<Input>,
}

/// An input that one or several linears read.
struct Input {
    channels: usize,
    /// Whether a site rescales it.
    is_rescaled: bool,
    /// Whether its linears are an expert's.
    of_expert: bool,
}

fn probed(decoder: &dyn Decoder, (layer, layout): (usize, &Layer), sites: &[Site]) -> Probed {
    let probe = Probe { layout, sites, seen: RefCell::default(), last: RefCell::default() };
    let x = Tensor::zeros([1, 1, decoder.dims().hidden as i64], (Kind::Float, Device::Cpu));
    let _ = tch::with_grad(|| decoder.block(layer, &probe, &decoder.context(1, Device::Cpu), &x));
    probe.seen.into_inner()
}

/// Computes no products, and records the inputs of linears and whether autograd tracks them.
struct Probe<'a> {
    layout: &'a Layer,
    sites: &'a [Site],
    seen: RefCell<Probed>,
    /// The input of the previous linear, kept alive so that no other tensor can get its address.
    last: RefCell<Option<Tensor>>,
}

impl BlockOps for Probe<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        let mut seen = self.seen.borrow_mut();
        if x.requires_grad() {
            seen.differentiated.insert(name);
        }
        let last = self.last.replace(Some(x.shallow_clone()));
        if last.is_none_or(|last| last.data_ptr() != x.data_ptr()) {
            seen.widths.push(Input {
                channels: *x.size().last().expect("inputs have channels") as usize,
                is_rescaled: self.sites.iter().any(|site| site.rescales_input_of(name.0)),
                of_expert: self.layout.experts.iter().any(|expert| expert.contains(&name)),
            });
        }
        let linear = self.layout.linears.iter().find(|linear| linear.name == name);
        let width = linear.expect("the forward runs the linears of its layout").out_features as i64;
        Tensor::zeros([1, 1, width], (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    fn tokens_of_expert(&self, _expert: usize, _tokens: Vec<i64>, all: usize) -> Vec<i64> {
        (0..all as i64).collect()
    }

    fn act(&self, _point: ActPoint, x: Tensor) -> Tensor {
        x
    }

    fn param(&self, name: &str) -> Tensor {
        let param = self.layout.params.iter().find(|param| param.name == name);
        let shape: Vec<i64> =
            param.expect("the forward reads the layout's params").shape.iter().map(|&n| n as i64).collect();
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        let learned = self.sites.iter().flat_map(|site| &site.ports).any(|port| port.module == module);
        Tensor::ones(&shape[..], (Kind::Float, Device::Cpu)).set_requires_grad(learned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oq_models::family::decoder_of;
    use oq_quant_core::SiteKind;
    use serde_json::{Value, json};

    /// Checks which linears need no gradient of their input.
    #[track_caller]
    fn check(config: &Value, kinds: &[SiteKind], expected: &[&str]) {
        let sizes = json!({"hidden_size": 64, "intermediate_size": 96, "ffn_dim": 96, "ffn_hidden_size": 96, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "vocab_size": 10});
        let mut all = sizes.as_object().unwrap().clone();
        all.extend(config.as_object().unwrap().clone());
        let decoder = decoder_of(&all.into()).unwrap();
        let layout = decoder.layer(0);
        let sites: Vec<Site> = kinds.iter().flat_map(|&kind| decoder.sites(0, kind).unwrap()).collect();
        let differentiated = probed(&*decoder, (0, &layout), &sites).differentiated;
        let names = layout.linears.iter().map(|linear| linear.name);
        let first: Vec<&str> = names.filter(|name| !differentiated.contains(name)).map(|name| name.0).collect();
        assert_eq!(first, expected);
    }

    #[test]
    fn inputs_that_nothing_learned_affects_need_no_gradient() {
        let qkv = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        let fused = "self_attention.query_key_value";
        for config in [json!({"model_type": "llama"}), json!({"model_type": "qwen3"}), json!({"model_type": "opt"})] {
            check(&config, &[], &qkv);
            check(&config, &[SiteKind::Vo], &qkv);
            check(&config, &[SiteKind::Norm], &[]);
        }
        check(&json!({"model_type": "opt", "do_layer_norm_before": false}), &[SiteKind::Vo], &qkv);
        check(&json!({"model_type": "falcon"}), &[], &[fused, "mlp.dense_h_to_4h"]);
        check(&json!({"model_type": "falcon", "new_decoder_architecture": true}), &[], &[fused, "mlp.dense_h_to_4h"]);
        check(&json!({"model_type": "falcon", "parallel_attn": false}), &[], &[fused]);
    }
}
