use oq_quant_core::SiteKind;
use oq_random::SplitMix64;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::{InputStats, Source};

/// Two ways to sum the same few dozen products in f64.
const TOLERANCE: f64 = 1e-12;

const HIDDEN: i64 = 6;

/// Not from libtorch's generator, which all threads of the tests share.
fn normal(seed: u64, shape: &[i64]) -> Tensor {
    let mut random = SplitMix64::new(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_: i64| random.normal()).collect();
    Tensor::from_slice(&values).view(shape)
}

/// A norm, two linears that read it, one that reads what the second wrote: each with a bias.
fn block() -> BTreeMap<String, Tensor> {
    let mut seed = 0;
    let mut random = |shape: &[i64]| {
        seed += 1;
        normal(seed, shape)
    };
    let mut block = BTreeMap::new();
    for (module, weight, out) in [
        ("norm", vec![HIDDEN], HIDDEN),
        ("a", vec![4, HIDDEN], 4),
        ("b", vec![8, HIDDEN], 8),
        ("c", vec![HIDDEN, 4], HIDDEN),
    ] {
        block.insert(format!("{module}.weight"), random(&weight));
        block.insert(format!("{module}.bias"), random(&[out]));
    }
    block
}

/// `c` reads the first half of what `b` writes, in reverse order, its channels tied in pairs.
fn sites() -> Vec<Site> {
    let norm = ["a", "b"].map(|module| Port::free(module, Action::MultiplyInput, HIDDEN as usize));
    let mut ports = vec![Port::free("norm", Action::DivideOutput, HIDDEN as usize)];
    ports.extend(norm);
    let writer = Port::some("b", Action::DivideOutput, (0..4).map(|channel| (channel, channel / 2)));
    let reader = Port::tied("c", Action::MultiplyInput, 4, |channel| (3 - channel) / 2);
    vec![
        Site { kind: SiteKind::Norm, n_scales: HIDDEN as usize, ports, can_shift: true },
        Site { kind: SiteKind::Vo, n_scales: 2, ports: vec![writer, reader], can_shift: true },
    ]
}

fn forward(block: &BTreeMap<String, Tensor>, x: &Tensor) -> [Tensor; 2] {
    let linear = |module: &str, x: &Tensor| {
        x.linear(&block[&format!("{module}.weight")], Some(&block[&format!("{module}.bias")]))
    };
    let h = x * &block["norm.weight"] + &block["norm.bias"];
    [linear("a", &h), linear("c", &linear("b", &h).narrow(-1, 0, 4).flip([-1]))]
}

fn with(block: &BTreeMap<String, Tensor>, changed: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let mut all: BTreeMap<String, Tensor> = block.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
    all.extend(changed);
    all
}

fn largest(x: &Tensor) -> f64 {
    x.abs().max().double_value(&[])
}

proptest! {
    #[test]
    fn what_a_block_computes_stays(
        logs in prop::collection::vec(-3.0f64..3.0, 8),
        shifts in prop::collection::vec(-5.0f64..5.0, 8),
    ) {
        let sites = sites();
        let mut values = Values::identity(&sites, true, Kind::Double, Device::Cpu);
        values.scales = vec![Tensor::from_slice(&logs[..6]).exp(), Tensor::from_slice(&logs[6..]).exp()];
        values.shifts = vec![Some(Tensor::from_slice(&shifts[..6])), Some(Tensor::from_slice(&shifts[6..]))];
        let block = block();
        let changed = Transform::new(sites, Device::Cpu).apply(&values, |name| block.get(name));
        prop_assert_eq!(changed.len(), 8, "every tensor of the block is at a site");
        let x = normal(100, &[5, HIDDEN]);
        for (before, after) in forward(&block, &x).iter().zip(forward(&with(&block, changed), &x)) {
            prop_assert!(largest(&(before - after)) <= TOLERANCE * 1e3, "intermediate values are up to 1e3 larger");
        }
    }
}

#[test]
fn identity_changes_nothing() {
    let (block, sites) = (block(), sites());
    let values = Values::identity(&sites, true, Kind::Double, Device::Cpu);
    for (name, changed) in Transform::new(sites, Device::Cpu).apply(&values, |name| block.get(name)) {
        assert_eq!(changed, block[&name], "{name}");
    }
}

#[test]
fn autograd_reaches_scales_and_shifts() {
    /// Central differences in f64: their error falls with the square of the step, down to rounding.
    const STEP: f64 = 1e-5;
    let (block, sites) = (block(), sites());
    let transform = Transform::new(sites, Device::Cpu);
    let mut values = Values::identity(transform.sites(), true, Kind::Double, Device::Cpu);
    let mut random = SplitMix64::new(200);
    values.tensors_mut().for_each(|tensor| {
        let values: Vec<f64> = (0..tensor.numel()).map(|_| 0.5 + random.unit()).collect();
        *tensor = Tensor::from_slice(&values);
    });
    // Something that a transformation does change.
    let loss = |values: &Values| -> Tensor {
        transform.apply(values, |name| block.get(name)).values().map(|tensor| tensor.sin().sum(Kind::Double)).sum()
    };
    let leaves = values.leaves();
    let grads = Tensor::run_backward(&[loss(&leaves)], &leaves.tensors().collect::<Vec<_>>(), false, false);
    for (at, grad) in grads.iter().enumerate() {
        for i in 0..grad.size()[0] {
            let moved = |step: f64| {
                let mut moved = values.leaves();
                let tensor = moved.tensors_mut().nth(at).expect("one tensor for each gradient");
                let delta = Tensor::zeros_like(&tensor.detach());
                let _ = delta.get(i).fill_(step);
                *tensor = tensor.detach() + delta;
                loss(&moved).double_value(&[])
            };
            let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let got = grad.double_value(&[i]);
            assert!((got - difference).abs() <= 1e-7 * (1.0 + difference.abs()), "{at} {i}: {got} {difference}");
        }
    }
}

struct Measured<'a> {
    block: &'a BTreeMap<String, Tensor>,
    stats: BTreeMap<&'static str, InputStats>,
}

impl Source for Measured<'_> {
    fn weight(&self, module: &str) -> &Tensor {
        &self.block[&format!("{module}.weight")]
    }

    fn inputs(&self, module: &str) -> Option<&InputStats> {
        self.stats.get(module)
    }
}

#[test]
fn the_start_balances_activations_and_weights() {
    let number = |values: &[f32], shape: [i64; 2]| Tensor::from_slice(values).view(shape);
    let block: BTreeMap<String, Tensor> = [("r.weight", number(&[1.0, -4.0, 0.25, 0.5, 2.0, -0.25, 0.5, 0.0], [2, 4]))]
        .map(|(n, t)| (n.to_owned(), t))
        .into();
    let mut stats = InputStats::default();
    // Two samples of two tokens: extremes -1..3, 0..16, 4..4, -1..0; middles 1.5, 8 | 0, 0 and so on.
    stats.add(&Tensor::from_slice(&[-1f32, 0.0, 4.0, 0.0, 3.0, 16.0, 4.0, 0.0]).view([1, 2, 4]));
    stats.add(&Tensor::from_slice(&[1f32, 0.0, 4.0, -1.0, 1.0, 0.0, 4.0, 0.0]).view([1, 2, 4]));
    let source = Measured { block: &block, stats: [("r", stats)].into() };
    // The first two channels are tied.
    let reader = Port::tied("r", Action::MultiplyInput, 4, |channel| [0, 0, 1, 2][channel]);
    let site = Site { kind: SiteKind::Norm, n_scales: 3, ports: vec![reader], can_shift: true };
    let numbers = |tensor: &Tensor| Vec::<f32>::try_from(tensor).expect("a vector");

    let plain = Values::smooth(std::slice::from_ref(&site), false, 0.5, &source, Device::Cpu);
    // max|X| 16, 4, 1; max|W| 4, 0.5, 0.5.
    let expected = [(16f32 / 4.0).sqrt(), (4f32 / 0.5).sqrt(), (1f32 / 0.5).sqrt()];
    assert_eq!(numbers(&plain.scales[0]), expected);
    assert!(plain.shifts[0].is_none());

    let shifted = Values::smooth(&[site], true, 1.0, &source, Device::Cpu);
    // Mean middles of channels: 1, 4, 4, -0.25; of the tied ones 2.5.
    assert_eq!(numbers(shifted.shifts[0].as_ref().expect("it was asked for")), [2.5, 4.0, -0.25]);
    // With alpha 1 the largest distance from the shift, and not less than the smallest scale.
    assert_eq!(numbers(&shifted.scales[0]), [13.5, MIN_SCALE as f32, 0.75]);
}

#[test]
fn scales_stay_away_from_zero() {
    let mut values = Values::identity(&sites(), false, Kind::Float, Device::Cpu);
    assert!(values.shifts.iter().all(Option::is_none));
    values.scales[1] = Tensor::from_slice(&[-3.0f32, 0.5]);
    values.keep_off_zero();
    assert_eq!(Vec::<f32>::try_from(&values.scales[1]).expect("a vector"), [MIN_SCALE as f32, 0.5]);
}
