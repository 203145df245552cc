//! Statistics of the inputs of a block's linears in full precision, summed over the calibration tokens.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use oq_let::{InputStats, Site, Source};
use oq_models::{ActPoint, BlockOps, BlockWeights, DenseOps, LinearName};
use oq_ranks::{Ranks, RanksError};
use oq_recipe::Start;
use tch::{Kind, Tensor};

/// Channels whose products with each other are kept. Wider inputs are split into parts of this width, so that memory does not grow with
/// the square of the width. A part of 8192 channels takes 256 MiB.
const PART: i64 = 8192;
/// Rows of products that are computed as a matrix product of their own.
const STRIP: i64 = 256;

/// Widths of the parts of an input of `n` channels.
pub(crate) fn parts(n: usize) -> impl Iterator<Item = i64> {
    let n = n as i64;
    (0..n).step_by(PART as usize).map(move |first| PART.min(n - first))
}

/// Products that are kept of an input of `n` channels.
pub(crate) fn products_of(n: usize) -> u64 {
    parts(n).map(|part| (part * part) as u64).sum()
}

/// Moments of one linear's inputs `[.., n]`.
#[derive(Debug)]
pub(crate) struct Moments {
    /// Sum of squares of each channel, `[n]` f32.
    pub(crate) squares: Tensor,
    /// Sums of products of channels with each other, `[part, part]` f32 for each [`PART`] of them; none if they were not requested.
    pub(crate) products: Vec<Tensor>,
    /// Number of tokens summed over.
    pub(crate) tokens: i64,
}

impl Moments {
    /// No tokens yet, for inputs shaped like `x`.
    pub(crate) fn new(x: &Tensor, with_products: bool) -> Self {
        let n = *x.size().last().expect("inputs have channels");
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, x.device()));
        let square = |width: i64| zeros(&[width, width]);
        let products = if with_products { parts(n as usize).map(square).collect() } else { Vec::new() };
        Self { squares: zeros(&[n]), products, tokens: 0 }
    }

    /// Adds inputs `[.., n]`.
    // In place: allocating and freeing between long-lived tensors would fragment memory.
    pub(crate) fn add(&mut self, x: &Tensor) {
        let x = x.detach().to_kind(Kind::Float).flatten(0, -2); // [tokens, n]
        self.tokens += x.size()[0];
        let _ = self.squares.g_add_(&x.square().sum_dim_intlist([0].as_slice(), false, None::<Kind>));
        for (products, x) in self.products.iter().zip(x.split(PART, 1)) {
            for strip in strips(products) {
                let (first, rest) =
                    (x.narrow(1, strip.first, strip.len), x.narrow(1, strip.first, strip.len + strip.rest));
                let _ = strip.upper(products).addmm_(&first.transpose(0, 1), &rest);
            }
        }
    }

    /// Those of all ranks, whose inputs have `tokens` tokens.
    pub(crate) fn over(self, ranks: &Ranks, tokens: i64) -> Result<Self, RanksError> {
        let mut sums = ranks.sum(std::iter::once(self.squares).chain(self.products).collect())?.into_iter();
        let squares = sums.next().expect("squares come first");
        Ok(Self { squares, products: sums.collect(), tokens })
    }

    /// Fills in the lower triangles, which [`Self::add`] leaves out.
    pub(crate) fn finish(&mut self) {
        for products in &self.products {
            strips(products).for_each(|strip| strip.mirror(products));
        }
    }
}

/// Some rows of a symmetric matrix `[n, n]`. What is left of the diagonal block follows from the rows above by symmetry.
struct Strip {
    first: i64,
    len: i64,
    /// Columns to the right of the diagonal block.
    rest: i64,
}

/// Splits the rows so that the products are large enough to be fast.
fn strips(matrix: &Tensor) -> impl Iterator<Item = Strip> {
    let n = matrix.size()[0];
    let parts = (n / STRIP).clamp(1, 4);
    let step = (n + parts - 1) / parts;
    (0..n).step_by(step as usize).map(move |first| {
        let len = step.min(n - first);
        Strip { first, len, rest: n - first - len }
    })
}

impl Strip {
    /// The diagonal block and what is to the right of it.
    fn upper(&self, matrix: &Tensor) -> Tensor {
        matrix.narrow(0, self.first, self.len).narrow(1, self.first, self.len + self.rest)
    }

    /// Mirrors what is to the right of the diagonal block to below it.
    fn mirror(&self, matrix: &Tensor) {
        let (next, right) = (self.first + self.len, self.upper(matrix).narrow(1, self.len, self.rest));
        matrix.narrow(0, next, self.rest).narrow(1, self.first, self.len).copy_(&right.transpose(0, 1));
    }
}

/// Statistics of a block's inputs.
#[derive(Default)]
pub(crate) struct Inputs {
    /// By the first reader of each site, the statistics of its input.
    pub(crate) of_sites: BTreeMap<&'static str, InputStats>,
    /// By input, the linears that read it, and its moments.
    pub(crate) moments: Vec<(Vec<&'static str>, Moments)>,
}

impl Inputs {
    /// The names of the linears that share an input, with the moments of that input.
    pub(crate) fn of_linears(&self) -> impl Iterator<Item = (&[&'static str], &Moments)> {
        self.moments.iter().map(|(names, moments)| (names.as_slice(), moments))
    }

    /// Moments of a linear's input, if they were requested.
    pub(crate) fn moments(&self, linear: LinearName) -> Option<&Moments> {
        self.moments.iter().find(|(names, _)| names.contains(&linear.0)).map(|(_, moments)| moments)
    }
}

/// A block's weights with the statistics of its inputs.
pub(crate) struct Seen<'a> {
    pub(crate) weights: &'a BlockWeights,
    pub(crate) inputs: &'a Inputs,
}

impl Source for Seen<'_> {
    fn weight(&self, module: &str) -> &Tensor {
        self.weights.get(&format!("{module}.weight"))
    }

    fn inputs(&self, module: &str) -> Option<&InputStats> {
        self.inputs.of_sites.get(module)
    }
}

/// The tokens that experts are given.
pub(crate) enum Given {
    /// Those that the router chose; but all tokens for these experts.
    Routed(BTreeSet<usize>),
    /// All tokens for these experts, and none for others. The block's output is of no use then.
    Only(BTreeSet<usize>),
}

/// Runs a block in full precision and collects the statistics of its linears' inputs.
pub(crate) struct InputOps<'a> {
    ops: DenseOps<'a>,
    /// Whether products of channels with each other are summed too.
    with_products: bool,
    linears: BTreeSet<&'static str>,
    given: Given,
    seen: RefCell<Inputs>,
    /// The input of the previous linear, kept alive so that no other tensor can get its address.
    last: RefCell<Option<Tensor>>,
}

impl<'a> InputOps<'a> {
    /// Collects the input of each site's first reader, which the other readers share. For `start` it also collects the inputs of
    /// `linears`, except those that a site rescales, because their inputs will be different.
    pub(crate) fn new(
        ops: DenseOps<'a>,
        sites: &[Site],
        linears: &[LinearName],
        start: Option<Start>,
        given: Given,
    ) -> Self {
        let readers = sites.iter().filter_map(|site| site.readers().next()).map(|reader| reader.module);
        let of_sites = readers.map(|module| (module, InputStats::default())).collect();
        let looks = start.is_some_and(|start| start != Start::Whole);
        let watched = linears.iter().filter(|name| looks && !sites.iter().any(|site| site.rescales_input_of(name.0)));
        let linears = watched.map(|name| name.0).collect();
        let with_products = start == Some(Start::Compensate);
        let seen = RefCell::new(Inputs { of_sites, moments: Vec::new() });
        Self { ops, with_products, linears, given, seen, last: RefCell::new(None) }
    }

    /// The statistics collected.
    pub(crate) fn finish(self) -> Inputs {
        let mut seen = self.seen.into_inner();
        seen.moments.iter_mut().for_each(|(_, moments)| moments.finish());
        seen
    }

    fn take_moments(&self, name: &'static str, x: &Tensor) {
        let moments = &mut self.seen.borrow_mut().moments;
        let last = self.last.replace(Some(x.shallow_clone()));
        match moments.iter_mut().find(|(names, _)| names.contains(&name)) {
            // Linears that share the input of the first one do not add it again.
            Some((names, moments)) if names[0] == name => moments.add(x),
            Some(_) => {}
            None => match moments.last_mut() {
                Some((names, _)) if last.is_some_and(|last| last.data_ptr() == x.data_ptr()) => names.push(name),
                _ => {
                    let mut first = Moments::new(x, self.with_products);
                    first.add(x);
                    moments.push((vec![name], first));
                }
            },
        }
    }
}

impl BlockOps for InputOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        if let Some(stats) = self.seen.borrow_mut().of_sites.get_mut(name.0) {
            stats.add(x);
        }
        if self.linears.contains(&name.0) {
            self.take_moments(name.0, x);
        }
        self.ops.linear(name, x)
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.ops.act(point, x)
    }

    fn route(&self, router: LinearName, has_bias: bool, x: &Tensor) -> Tensor {
        if let Some(stats) = self.seen.borrow_mut().of_sites.get_mut(router.0) {
            stats.add(x);
        }
        self.ops.route(router, has_bias, x)
    }

    fn tokens_of_expert(&self, expert: usize, tokens: Vec<i64>, all: usize) -> Vec<i64> {
        match &self.given {
            Given::Routed(with_all) | Given::Only(with_all) if with_all.contains(&expert) => (0..all as i64).collect(),
            Given::Routed(_) => tokens,
            Given::Only(_) => Vec::new(),
        }
    }

    fn param(&self, name: &str) -> Tensor {
        self.ops.param(name)
    }
}

#[cfg(test)]
mod tests {
    use oq_quant_core::SiteKind;
    use tch::Device;

    use super::*;
    use crate::testing::{fixture, noise};

    #[test]
    fn products_match_the_full_matrix_product() {
        for n in [24, 512, 576, 1300] {
            let batches = [1, 2, 3].map(|seed| noise(seed, &[2, 40, n]));
            let mut moments = Moments::new(&batches[0], true);
            batches.iter().for_each(|x| moments.add(x));
            moments.finish();
            let all = Tensor::cat(&batches, 0).flatten(0, 1).to_kind(Kind::Double);
            let exact = all.transpose(0, 1).matmul(&all);
            // Sums of 240 numbers near 1, in f32.
            let off = (&moments.products[0] - &exact).abs().max().double_value(&[]);
            assert!(off < 1e-3, "{n}: {off}");
            let squares = (&moments.squares - exact.diagonal(0, 0, 1)).abs().max().double_value(&[]);
            assert!(squares < 1e-3 && moments.tokens == 240, "{n}: {squares}");
        }
    }

    #[test]
    fn rescaled_inputs_are_not_collected() {
        let model = fixture("tiny-llama");
        let (decoder, weights) = (model.decoder(), model.load_block(0, Device::Cpu).unwrap());
        let sites = decoder.sites(0, SiteKind::Norm).unwrap();
        let linears: Vec<LinearName> = decoder.layer(0).linears.iter().map(|linear| linear.name).collect();
        let ops = InputOps::new(
            DenseOps::new(&weights),
            &sites,
            &linears,
            Some(Start::Compensate),
            Given::Routed(BTreeSet::new()),
        );
        let x = Tensor::ones([1, 3, decoder.dims().hidden as i64], (Kind::Float, Device::Cpu));
        let _ = decoder.block(0, &ops, &decoder.context(3, Device::Cpu), &x);
        let seen = ops.finish();
        let watched: Vec<&str> =
            linears.iter().filter(|name| seen.moments(**name).is_some()).map(|name| name.0).collect();
        assert_eq!(watched, ["self_attn.o_proj", "mlp.down_proj"]);
        assert_eq!(seen.of_sites.len(), 2);
    }
}
