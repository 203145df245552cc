//! How much the quantization of single linears costs the predictions: the expected Kullback-Leibler divergence, to second order.
//!
//! If the outputs of linears at token `t` change by `dW x_t`, the divergence is `1/2 E (s_t . dW x_t)^2` nats, summed over tokens.
//! `s_t` is the gradient of the log-likelihood with respect to those outputs, for tokens drawn from the predictions themselves. The
//! mean of its outer product with itself is the Fisher information, which is the second derivative of the divergence. Errors of
//! different tokens are assumed to be independent.
//!
//! One block is in memory at a time. The first pass goes forward through the model and keeps the inputs of all blocks; the second goes
//! backward.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use oq_let::Site;
use oq_lwc::{Lwc, LwcError};
use oq_models::{BlockWeights, Context, Linear, LinearName, Model};
use oq_quant_core::{ActSpec, Bits, WeightSpec};
use oq_random::SplitMix64;
use oq_ranks::Ranks;
use tch::{Kind, Tensor};

use crate::block::compensate::error_left;
use crate::block::inputs::Moments;
use crate::compute::{Place, ids_of, is_finite, load_block};
use crate::disk::states::Store;
use crate::model::allocate::Demand;
use crate::model::chain::{Link, Predictions, Tap};
use crate::model::error::PassError;
use crate::nth::Nth;

/// Enough tokens: eight times as many give the same order of units.
const TOKENS: usize = 4096;

/// How many of `segments` segments of `seqlen` tokens are measured: the first few.
pub(crate) fn n_segments(segments: usize, seqlen: usize) -> usize {
    TOKENS.div_ceil(seqlen.max(1)).min(segments)
}

/// What is measured.
pub(crate) struct Probe<'a> {
    pub(crate) model: &'a Model,
    pub(crate) place: Place,
    /// Groups and symmetry of the grids of a block's linears; none if no width is chosen for a linear.
    pub(crate) specs: &'a dyn Fn(usize, LinearName) -> Option<WeightSpec>,
    /// Whether groups are clipped.
    pub(crate) clips: bool,
    /// Whether rounding errors are compensated by the columns after them, except in linears whose inputs are rescaled.
    pub(crate) compensates: bool,
    /// The sites of each layer.
    pub(crate) sites: &'a dyn Fn(usize) -> Vec<Site>,
    /// Widths, the fewest bits first.
    pub(crate) choices: &'a [Bits],
    /// Of all ranks.
    pub(crate) segments: &'a [Vec<u32>],
    /// Those that share the segments. With more ranks than segments, some have none.
    pub(crate) ranks: Ranks,
    /// Seed for drawing tokens.
    pub(crate) seed: u64,
}

/// Linears of a block that read the same input, or are one expert, and get one width, with the cost of each width in nats per token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    pub(crate) block: usize,
    pub(crate) linears: Vec<LinearName>,
    pub(crate) demand: Demand,
}

impl Probe<'_> {
    /// Measures all blocks. `inputs` stores the inputs of all blocks, `states` one hidden state per segment. `on` is called with the
    /// number of passes through a block done so far, of two per block.
    pub(crate) fn units(
        &self,
        mut inputs: Store<'_>,
        mut states: Store<'_>,
        on: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Vec<Unit>>, PassError> {
        let Self { model, place, .. } = *self;
        let part = self.ranks.range(self.segments.len());
        let (before, segments) = (&self.segments[..part.start], &self.segments[part]);
        let (decoder, n) = (model.decoder(), segments.len());
        let ctx = decoder.context(self.segments.first().map_or(0, Vec::len), place.device);
        let outer = model.outer(place.device);
        for segment in segments {
            states.push(&decoder.embed(&outer, &ids_of(std::slice::from_ref(segment)))?)?;
        }
        let n_blocks = decoder.dims().n_layers;
        for block in 0..n_blocks {
            let tensors = self.tensors(block, &load_block(model, block, Some(block + 1), place.device)?);
            self.link(block, &ctx, &tensors, |link| {
                (0..n).try_for_each(|at| {
                    let x = states.get(at);
                    inputs.push(&x)?;
                    let x = link.forward(&x);
                    if !is_finite(&x) {
                        let batch = Nth::new(before.len() + at, self.segments.len());
                        return Err(PassError::Overflow { block: Nth::new(block, n_blocks), batch });
                    }
                    Ok(states.set(at, &x)?)
                })
            })?;
            if on(block + 1).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let predictions = Predictions::new(model, place.compute, place.device)?;
        let mut random = SplitMix64::new(self.seed);
        // A token is drawn for each position; those of the ranks before this one are theirs.
        for _ in before.iter().flatten() {
            let _ = random.unit();
        }
        for at in 0..n {
            states.set(at, &predictions.of_drawn(&states.get(at), || random.unit())?)?;
        }
        drop(predictions);
        let mut units = Vec::new();
        for block in (0..n_blocks).rev() {
            let weights = load_block(model, block, block.checked_sub(1), place.device)?;
            let tensors = self.tensors(block, &weights);
            let mut taps = Vec::with_capacity(n);
            self.link(block, &ctx, &tensors, |link| {
                (0..n).try_for_each(|at| {
                    let (of_x, of_linears) = link.backward_to_linears(&inputs.get(block * n + at), &states.get(at));
                    taps.push(of_linears);
                    states.set(at, &of_x)
                })
            })?;
            drop(tensors);
            units.extend(self.units_of(block, &weights, &taps)?.into_iter().rev());
            if on(2 * n_blocks - block).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        units.reverse();
        Ok(ControlFlow::Continue(units))
    }

    /// `taps`: for each segment, the linears' inputs with the gradients of their outputs.
    fn units_of(
        &self,
        block: usize,
        weights: &BlockWeights,
        taps: &[BTreeMap<LinearName, Tap>],
    ) -> Result<Vec<Unit>, PassError> {
        let mut units = Vec::new();
        let sites = (self.sites)(block);
        let layout = self.model.decoder().layer(block);
        for group in layout.groups() {
            let with_spec = |linear: &Linear| Some((*linear, (self.specs)(block, linear.name)?));
            let group: Vec<(Linear, WeightSpec)> = group.iter().filter_map(with_spec).collect();
            let Some((first, _)) = group.first() else { continue };
            let costs = self.costs_of(block, &group, weights, taps, &sites)?;
            let n_weights: u64 =
                group.iter().map(|(linear, _)| (linear.out_features * linear.in_features) as u64).sum();
            let expert = layout.experts.iter().find(|expert| expert.contains(&first.name));
            let found = units.iter_mut().find(|unit: &&mut Unit| expert.is_some_and(|e| e.contains(&unit.linears[0])));
            let linears = group.iter().map(|(linear, _)| linear.name);
            match found {
                // An expert is a unit.
                Some(unit) => {
                    unit.linears.extend(linears);
                    unit.demand.weights += n_weights;
                    unit.demand.costs.iter_mut().zip(costs).for_each(|(sum, cost)| *sum += cost);
                }
                None => {
                    units.push(Unit { block, linears: linears.collect(), demand: Demand { weights: n_weights, costs } })
                }
            }
        }
        Ok(units)
    }

    /// What each width of linears that read the same input costs, in nats per token.
    fn costs_of(
        &self,
        block: usize,
        group: &[(Linear, WeightSpec)],
        weights: &BlockWeights,
        taps: &[BTreeMap<LinearName, Tap>],
        sites: &[Site],
    ) -> Result<Vec<f64>, PassError> {
        let tokens: usize = self.segments.iter().map(Vec::len).sum();
        let mut own = Vec::with_capacity(self.choices.len());
        let compensates = self.compensates
            && !group.iter().any(|(linear, _)| sites.iter().any(|site| site.rescales_input_of(linear.name.0)));
        let first = group[0].0.name;
        let left = if compensates { self.moments(taps, first, weights)?.as_ref().map_or(1.0, error_left) } else { 1.0 };
        for &bits in self.choices {
            let errors = group.iter().map(|(linear, spec)| {
                let weight = weights.weight(linear.name);
                let found = rounded(weight, WeightSpec { bits, ..*spec }, self.clips)
                    .map_err(|error| PassError::of_linear(self.model, block, linear.name, error))?;
                Ok((linear.name, self.place.compute.cast(found - weight)))
            });
            let errors = errors.collect::<Result<Vec<_>, PassError>>()?;
            let of_segment = |taps: &BTreeMap<LinearName, Tap>| {
                let moved = errors.iter().filter_map(|(name, error)| {
                    let Tap { x, grad } = taps.get(name)?;
                    let moved = x.linear(error, None::<&Tensor>) * grad;
                    Some(moved.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float))
                });
                let moved = moved.reduce(|sum, moved| sum + moved);
                moved.map_or(0.0, |moved| moved.square().sum(Kind::Double).double_value(&[]))
            };
            own.push(taps.iter().map(of_segment).sum::<f64>());
        }
        let all = self.ranks.sum(vec![Tensor::from_slice(&own)])?;
        let all = Vec::<f64>::try_from(&all[0]).expect("a vector of f64");
        let costs: Vec<f64> = all.into_iter().map(|sum| left * sum / (2 * tokens) as f64).collect();
        if let Some(at) = costs.iter().position(|cost| !cost.is_finite()) {
            let bits = self.choices[at];
            let reason = format!("the cost of {bits} bits is not finite: use --compute f32, or leave out --bits");
            return Err(PassError::of_linear(self.model, block, first, reason));
        }
        Ok(costs)
    }

    /// Moments of a linear's input over all ranks; none if no token reaches it.
    fn moments(
        &self,
        taps: &[BTreeMap<LinearName, Tap>],
        linear: LinearName,
        weights: &BlockWeights,
    ) -> Result<Option<Moments>, PassError> {
        let mut moments = Moments::new(weights.weight(linear), true);
        taps.iter().filter_map(|taps| taps.get(&linear)).for_each(|tap| moments.add(&tap.x));
        let tokens = self.ranks.total(moments.tokens as f64)? as i64;
        let mut all = moments.over(&self.ranks, tokens)?;
        all.finish();
        Ok((tokens > 0).then_some(all))
    }

    /// All of a block's tensors, with linears' weights in the type of the products.
    fn tensors(&self, block: usize, weights: &BlockWeights) -> BTreeMap<String, Tensor> {
        let cast = weights.cast(&self.model.decoder().layer(block).linears, self.place.compute);
        cast.tensors().iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    fn link<T>(
        &self,
        layer: usize,
        ctx: &Context,
        tensors: &BTreeMap<String, Tensor>,
        run: impl FnOnce(&Link<'_>) -> T,
    ) -> T {
        let none = BlockWeights::new(BTreeMap::new()).with_online(self.model.online(self.place.device));
        let (decoder, compute) = (self.model.decoder(), self.place.compute);
        run(&Link { decoder, layer, ctx, tensors, act: ActSpec::Float, compute, none })
    }
}

/// A weight `[out, in]` rounded to nearest. The grids cover the whole range of each group or, if `clips`, the range found by a search
/// where that has less error. With many bits, clipping costs more than rounding, and what is learned later can do without it.
fn rounded(weight: &Tensor, spec: WeightSpec, clips: bool) -> Result<Tensor, LwcError> {
    let (rows, cols) = weight.size2().expect("a weight is [out, in]");
    let whole = Lwc::whole_range(rows as usize, cols as usize, spec, weight.device())?.fake_quantize(weight);
    if !clips {
        return Ok(whole);
    }
    let mut clip = Lwc::new(rows as usize, cols as usize, spec, weight.device())?;
    clip.start_from_search(weight, &Tensor::ones([cols], (Kind::Float, weight.device())));
    let searched = clip.fake_quantize(weight);
    let error = |quantized: &Tensor| (quantized - weight).square().sum(Kind::Double).double_value(&[]);
    Ok(if error(&whole) < error(&searched) { whole } else { searched })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::PathBuf;

    use oq_models::Compute;
    use oq_quant_core::{QuantSpec, SiteKind};
    use tch::Device;

    use super::*;
    use crate::disk::states::Cache;

    fn model(name: &str) -> Model {
        Model::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)).unwrap()
    }

    fn segments(model: &Model) -> Vec<Vec<u32>> {
        let mut random = SplitMix64::new(7);
        let vocab = model.decoder().dims().vocab as f64;
        (0..8).map(|_| (0..64).map(|_| (random.unit() * vocab) as u32).collect()).collect()
    }

    /// At 3 bits, without compensation or sites.
    fn probe<'a>(model: &'a Model, segments: &'a [Vec<u32>]) -> Probe<'a> {
        Probe {
            model,
            place: Place { device: Device::Cpu, compute: Compute::F32 },
            specs: &|_, _| Some("w3a16g64".parse::<QuantSpec>().unwrap().weight),
            clips: true,
            compensates: false,
            sites: &|_| Vec::new(),
            choices: &Bits::ALL[1..2],
            segments,
            ranks: Ranks::alone(),
            seed: 1,
        }
    }

    fn units(probe: &Probe<'_>) -> Vec<Unit> {
        let _no_grad = tch::no_grad_guard();
        let cache =
            Cache { device: Device::Cpu, budget: None, batch: 0, len: 1 << 20, total: 2 << 20, dir: PathBuf::new() };
        let units = probe.units(Store::new(&cache), Store::new(&cache), &mut |_| ControlFlow::Continue(()));
        let ControlFlow::Continue(units) = units.unwrap() else { panic!("nobody stopped it") };
        units
    }

    /// Estimates and the actual divergences, with the linears of one unit rounded to 3 bits and all others unchanged.
    fn pairs(name: &str) -> Vec<(String, f64, f64)> {
        let _no_grad = tch::no_grad_guard();
        let model = model(name);
        let (decoder, segments) = (model.decoder(), segments(&model));
        let probe = probe(&model, &segments);
        let (place, units) = (probe.place, units(&probe));
        let (ctx, outer) = (decoder.context(64, place.device), model.outer(place.device));
        let blocks: Vec<BlockWeights> =
            (0..decoder.dims().n_layers).map(|block| model.load_block(block, place.device).unwrap()).collect();
        // Before each block, and after the last.
        let mut states = vec![decoder.embed(&outer, &ids_of(&segments)).unwrap()];
        for (block, weights) in blocks.iter().enumerate() {
            states.push(decoder.block(block, &model.ops(weights), &ctx, states.last().unwrap()));
        }
        let predictions = Predictions::new(&model, place.compute, place.device).unwrap();
        let pair = |unit: &Unit| {
            let mut weights = blocks[unit.block].cast(&[], place.compute);
            for &linear in &unit.linears {
                let weight = rounded(weights.weight(linear), (probe.specs)(0, linear).unwrap(), probe.clips).unwrap();
                weights.set(linear.weight(), weight);
            }
            let mut x = decoder.block(unit.block, &model.ops(&weights), &ctx, &states[unit.block]);
            for (block, weights) in blocks.iter().enumerate().skip(unit.block + 1) {
                x = decoder.block(block, &model.ops(weights), &ctx, &x);
            }
            let (divergence, _) = predictions.divergence(&x, states.last().unwrap()).unwrap();
            (format!("{name} {} {}", unit.block, unit.linears[0].0), unit.demand.costs[0], divergence)
        };
        units.iter().map(pair).collect()
    }

    #[test]
    fn estimates_match_the_divergences_of_single_units() {
        for name in ["tiny-llama", "tiny-opt", "tiny-falcon"] {
            let pairs = pairs(name);
            for (unit, estimate, divergence) in &pairs {
                let ratio = estimate / divergence;
                // One draw for each of 512 tokens; second order; errors of the tokens that attention adds up are taken as independent.
                // Ratios are 0.4 to 2.2 if queries, keys and values are rounded, and 0.6 to 1.5 elsewhere.
                assert!((0.3..3.0).contains(&ratio), "{unit}: {estimate:e} for {divergence:e}");
            }
            let orders = pairs.iter().enumerate().flat_map(|(at, a)| pairs[..at].iter().map(move |b| (a, b)));
            let alike: Vec<bool> = orders.map(|(a, b)| (a.1 < b.1) == (a.2 < b.2)).collect();
            let agreement = alike.iter().filter(|alike| **alike).count() as f64 / alike.len() as f64;
            assert!(agreement > 0.8, "{name}: {agreement} of the pairs of units are in the right order");
        }
    }

    #[test]
    fn errors_are_compensated_unless_inputs_are_rescaled() {
        let model = model("tiny-llama");
        let segments = segments(&model);
        let plain = probe(&model, &segments);
        // The site rescales the inputs of queries, keys, values, gate and up.
        let sites = |layer| model.decoder().sites(layer, SiteKind::Norm).unwrap();
        let compensated = Probe { compensates: true, sites: &sites, ..probe(&model, &segments) };
        for (with, without) in units(&compensated).iter().zip(units(&plain)) {
            let (name, cost, whole) = (with.linears[0].0, with.demand.costs[0], without.demand.costs[0]);
            match name {
                "self_attn.q_proj" | "mlp.gate_proj" => assert_eq!(cost, whole, "{name}"),
                _ => assert!(cost < 0.99 * whole, "{name}: {cost} of {whole}"),
            }
        }
    }

    #[test]
    fn ranks_share_segments_and_some_may_have_none() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let on = |ranks: Ranks| {
            let model = model("tiny-llama");
            let two = &segments(&model)[..2];
            units(&Probe { compensates: true, ranks, ..probe(&model, two) })
        };
        let join = |rank| {
            let host = "127.0.0.1".to_owned();
            Ranks::join(&oq_ranks::Place { rank, size: 3, local: rank, here: 3, host, port, interface: None }).unwrap()
        };
        let shared: Vec<Vec<Unit>> = std::thread::scope(|threads| {
            let running: Vec<_> = (0..3).map(|rank| threads.spawn(move || on(join(rank)))).collect();
            running.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert!(shared.iter().all(|units| *units == shared[0]), "all ranks have the same bits");
        for (shared, alone) in shared[0].iter().zip(&on(Ranks::alone())) {
            let (cost, expected) = (shared.demand.costs[0], alone.demand.costs[0]);
            // Sums of the same numbers in another order.
            assert!((cost / expected - 1.0).abs() < 1e-4, "{}: {cost} for {expected}", alone.linears[0].0);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_estimate() {
        assert_eq!(pairs("tiny-llama"), pairs("tiny-llama"));
    }
}
