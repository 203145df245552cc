//! Gradients of a step against a single graph, and the start of a block.

use oq_let::Site;
use oq_models::{Context, DenseOps};
use oq_quant_core::{QuantSpec, SiteKind};
use oq_recipe::{Overrides, Recipe, Rounding, Start};
use tch::Device;

use super::*;
use crate::block::compensate::{self, Rounded};
use crate::block::inputs::{Given, InputOps};
use crate::block::learn::Task;
use crate::disk::states::{Cache, Store};
use crate::testing::{fixture, noise};

const PLACE: Place = Place { device: Device::Cpu, compute: Compute::F32 };
const TOKENS: i64 = 24;

fn scheme(scheme: &str) -> QuantSpec {
    scheme.parse().unwrap()
}

/// Moves strengths and scales away from their start, so that all differ.
fn shake(student: &mut Student<'_>) {
    let strengths = student.clips.values_mut().flat_map(|clip| [&mut clip.gamma, &mut clip.beta]);
    for (seed, tensor) in strengths.chain(student.values.tensors_mut()).enumerate() {
        *tensor = &*tensor + noise(100 + seed as u64, &tensor.size()) * 0.1;
    }
}

#[test]
fn gradients_match_a_single_graph() {
    let alone = Ranks::alone();
    let _no_grad = tch::no_grad_guard();
    for (name, shift) in [("tiny-opt", true), ("tiny-llama", false)] {
        let model = fixture(name);
        let (decoder, weights) = (model.decoder(), model.load_block(1, Device::Cpu).unwrap());
        let sites: Vec<Site> =
            SiteKind::ALL.iter().flat_map(|&kind| decoder.sites(0, kind).unwrap_or_default()).collect();
        assert!(sites.len() >= 4, "{name}");
        let transform = Transform::new(sites, Device::Cpu);
        let linears: Vec<LinearName> = decoder.layer(0).linears.iter().map(|linear| linear.name).collect();
        // Activations are quantized: otherwise the loss does not depend on the scales of queries and keys, which are constant along a
        // row.
        let spec = scheme("w4a6g32");
        let start = || {
            let values = Values::identity(transform.sites(), shift, Kind::Float, Device::Cpu);
            let specs = |_: LinearName| spec.weight;
            let specs: (&dyn Fn(LinearName) -> WeightSpec, ActSpec) = (&specs, spec.act);
            let mut student =
                Student::new(&weights, &linears, specs, (&transform, values), &Inputs::default(), (PLACE, &alone))
                    .unwrap();
            shake(&mut student);
            student
        };
        let ctx: Context = decoder.context(TOKENS as usize, Device::Cpu);
        let hidden = decoder.dims().hidden as i64;
        let (x, d_out) = (noise(1, &[1, TOKENS, hidden]), noise(2, &[1, TOKENS, hidden]));
        let loss = |ops: &dyn BlockOps| (decoder.block(0, ops, &ctx, &x) * &d_out).sum(Kind::Float);
        let ours = start().gradients(loss).unwrap().expect("all is finite").of_params;

        // The same without a cut: autograd through the definition of clipping, from strengths and scales to the loss.
        let mut student = start();
        for clip in student.clips.values_mut() {
            [&mut clip.gamma, &mut clip.beta]
                .into_iter()
                .for_each(|strength| *strength = strength.set_requires_grad(true));
        }
        let values = student.values.leaves();
        let loss = tch::with_grad(|| {
            let mut tensors = transform.apply(&values, |name| weights.find(name));
            for (&name, clip) in &student.clips {
                let name = name.weight();
                let weight = clip.fake_quantize_autograd(tensors.get(&name).unwrap_or_else(|| weights.get(&name)));
                tensors.insert(name, weight);
            }
            let ops = StudentOps::new(&weights, &tensors, spec.act, Compute::F32);
            let loss = loss(&ops);
            assert!(ops.cut().is_none(), "attention in f32 is libtorch's");
            loss
        });
        let strengths = student.clips.values().flat_map(|clip| [&clip.gamma, &clip.beta]);
        let params: Vec<&Tensor> = strengths.chain(values.tensors()).collect();
        let whole = Tensor::run_backward(&[loss], &params, false, false);
        assert_eq!(ours.len(), whole.len());
        for (at, (ours, whole)) in ours.iter().zip(&whole).enumerate() {
            let largest = |x: &Tensor| x.abs().max().double_value(&[]);
            assert!(largest(whole) > 0.0, "{name}: gradient {at} is zero");
            // f32 sums in a different order.
            let off = largest(&(ours - whole)) / largest(whole);
            assert!(off < 1e-3, "{name}: {at} of {} is {off} off", params.len());
        }
    }
}

#[test]
fn a_linear_that_groups_do_not_divide_is_named() {
    let alone = Ranks::alone();
    let model = fixture("tiny-llama");
    let (decoder, weights) = (model.decoder(), model.load_block(0, Device::Cpu).unwrap());
    let linears: Vec<LinearName> = decoder.layer(0).linears.iter().map(|linear| linear.name).collect();
    let transform = Transform::new(Vec::new(), Device::Cpu);
    let (fits, does_not) = (scheme("w4a16g64"), scheme("w4a16g7"));
    for refused in linears.iter().copied() {
        let specs = |name: LinearName| if name == refused { does_not.weight } else { fits.weight };
        let specs: (&dyn Fn(LinearName) -> WeightSpec, ActSpec) = (&specs, fits.act);
        let values = Values::identity(&[], false, Kind::Float, Device::Cpu);
        let student =
            Student::new(&weights, &linears, specs, (&transform, values), &Inputs::default(), (PLACE, &alone));
        let Some(StartError::Linear { linear: named, source: error }) = student.err() else {
            panic!("7 divides no width of the model")
        };
        assert_eq!(named, refused);
        assert!(error.to_string().contains("group 7"), "{error}");
    }
}

#[test]
fn rounding_starts_from_compensation() {
    let alone = Ranks::alone();
    let _no_grad = tch::no_grad_guard();
    let model = fixture("tiny-llama");
    let (decoder, weights) = (model.decoder(), model.load_block(0, Device::Cpu).unwrap());
    let linears: Vec<LinearName> = decoder.layer(0).linears.iter().map(|linear| linear.name).collect();
    let transform = Transform::new(Vec::new(), Device::Cpu);
    let spec = scheme("w3a16g32");
    let seen = |start: Start| {
        let ops = InputOps::new(DenseOps::new(&weights), &[], &linears, Some(start), Given::Routed(BTreeSet::new()));
        // Correlated channels, which are all that compensation has, on enough tokens for it to trust them.
        let hidden = decoder.dims().hidden as i64;
        let x = noise(3, &[8, 250, 8]).matmul(&noise(4, &[8, hidden])) + noise(5, &[8, 250, hidden]) * 0.1;
        let _ = decoder.block(0, &ops, &decoder.context(250, Device::Cpu), &x);
        ops.finish()
    };
    let student = |seen: &Inputs| {
        let values = Values::identity(&[], false, Kind::Float, Device::Cpu);
        let specs = |_: LinearName| spec.weight;
        let specs: (&dyn Fn(LinearName) -> WeightSpec, ActSpec) = (&specs, spec.act);
        Student::new(&weights, &linears, specs, (&transform, values), seen, (PLACE, &alone)).unwrap()
    };
    let (searched, compensated) = (seen(Start::Search), seen(Start::Compensate));
    let (by_search, by_compensation, whole) = (student(&searched), student(&compensated), student(&Inputs::default()));
    for name in linears {
        let [search, compensation, whole] = [&by_search, &by_compensation, &whole].map(|student| &student.clips[&name]);
        assert!(search.offsets.is_none() && whole.offsets.is_none());
        assert_eq!((&search.gamma, &search.beta), (&compensation.gamma, &compensation.beta));
        assert_ne!(search.gamma, whole.gamma, "{name:?} was searched for");
        let expected = weights.weight(name).zeros_like();
        let rounded = Rounded { weight: weights.weight(name), clip: compensation, offsets: &expected };
        compensate::fill(&[rounded], compensated.moments(name).unwrap());
        assert!(expected.abs().max().double_value(&[]) > 0.5, "{name:?}: errors are compensated");
        assert_eq!(compensation.offsets.as_ref(), Some(&expected), "{name:?}");
    }
}

#[test]
fn half_of_the_rates_halves_every_step() {
    let alone = Ranks::alone();
    let _no_grad = tch::no_grad_guard();
    let model = fixture("tiny-llama");
    let (decoder, weights) = (model.decoder(), model.load_block(0, Device::Cpu).unwrap());
    let linears: Vec<LinearName> = decoder.layer(0).linears.iter().map(|linear| linear.name).collect();
    let transform = Transform::new(decoder.sites(0, SiteKind::Norm).unwrap(), Device::Cpu);
    let shape = [1, TOKENS, decoder.dims().hidden as i64];
    let overrides = Overrides::default().epochs(2).rounding(Rounding::Learned);
    let recipe = Recipe::resolve(scheme("w3a16g64"), None, None, &overrides).unwrap();
    let len = shape.iter().product::<i64>() as usize;
    let cache = Cache { device: Device::Cpu, budget: None, batch: len, len, total: len, dir: "none".into() };
    let mut inputs = Store::new(&cache);
    inputs.push(&noise(1, &shape)).unwrap();
    let task = Task {
        decoder,
        layer: 0,
        ctx: &decoder.context(TOKENS as usize, Device::Cpu),
        weights: &weights,
        linears: &linears,
        specs: &|_| recipe.scheme.weight,
        transform: &transform,
        fixed: &[],
        start: &Values::identity(transform.sites(), false, Kind::Float, Device::Cpu),
        seen: &Inputs::default(),
        recipe: &recipe,
        place: PLACE,
        inputs: &inputs,
        targets: vec![&inputs],
        ranks: &alone,
        shares: vec![1.0],
    };
    let learned = |student: &Student<'_>| -> BTreeMap<&str, Vec<Tensor>> {
        let of_clips = |of: &dyn Fn(&Lwc) -> Tensor| student.clips.values().map(|clip| of(clip).copy()).collect();
        BTreeMap::from([
            ("clipping", of_clips(&|clip| clip.gamma.shallow_clone())),
            ("rounding", of_clips(&|clip| clip.offsets.as_ref().unwrap_or(&clip.gamma.zeros_like()).abs().max())),
            ("transformation", student.values.tensors().map(Tensor::copy).collect()),
        ])
    };
    let moved = |fraction| {
        let (mut student, mut optimizer) = task.begin(fraction).unwrap();
        let before = learned(&student);
        let loss = student.step(&mut optimizer, |ops| task.loss(ops, 0)).unwrap();
        assert!(loss.is_finite());
        let after = learned(&student);
        let off = |(name, after): (&&'static str, &Vec<Tensor>)| {
            let pairs = after.iter().zip(&before[name]);
            (
                *name,
                pairs.map(|(after, before)| (after - before).abs().sum(Kind::Double).double_value(&[])).sum::<f64>(),
            )
        };
        after.iter().map(off).collect::<BTreeMap<_, _>>()
    };
    let (whole, half) = (moved(1.0), moved(0.5));
    assert_eq!(whole.len(), 3);
    for (name, whole) in whole {
        // From a strength of 4, a step of 1e-2 is some thousand units of f32's precision.
        let fraction = half[name] / whole;
        assert!(whole > 0.0 && (fraction - 0.5).abs() < 1e-3, "{name}: {fraction}");
    }
}

#[test]
fn offsets_move_by_a_quarter_of_a_code_at_most() {
    let rates = |steps: usize| {
        let mut student = Student {
            weights: &BlockWeights::new(BTreeMap::new()),
            transform: &Transform::new(Vec::new(), Device::Cpu),
            act: ActSpec::Float,
            compute: Compute::F32,
            clips: BTreeMap::new(),
            values: Values::identity(&[], false, Kind::Float, Device::Cpu),
            rounding: None,
            held: BTreeSet::new(),
            fixed: BTreeSet::new(),
            ranks: &Ranks::alone(),
        };
        student.round_within(steps, 1.0);
        let mut rounding = student.rounding.unwrap();
        let all: Vec<f64> = (0..steps).map(|_| rounding.next()).collect();
        assert_eq!(rounding.next(), 0.0, "nothing is left");
        let mut later = Descending::new(all[0], steps);
        later.skip(steps / 2);
        assert_eq!(later.next(), all[steps / 2]);
        all
    };
    for (steps, all) in [(49, true), (50, true), (1000, true), (48, false), (10, false)] {
        let rates = rates(steps);
        let sum: f64 = rates.iter().sum();
        assert!(if all { (sum - REACH).abs() < 1e-12 } else { sum < 0.999 * REACH }, "{steps} steps: {sum}");
        assert!(rates[0] <= LARGEST_RATE && rates.is_sorted_by(|a, b| a > b), "{steps} steps");
    }
}
