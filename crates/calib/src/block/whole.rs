//! Statistics of a block's inputs over the tokens of all ranks.

use std::collections::BTreeMap;

use oq_let::InputStats;
use oq_models::{BlockWeights, Layer};
use oq_ranks::{Ranks, RanksError};
use tch::Tensor;

use crate::block::inputs::{Inputs, Moments};

/// The statistics of all ranks, from this rank's.
pub(crate) fn over_ranks(
    ranks: &Ranks,
    own: Inputs,
    weights: &BlockWeights,
    layer: &Layer,
) -> Result<Inputs, RanksError> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    let width_of = |module: &str| weights.get(&format!("{module}.weight")).size()[1];
    let Inputs { of_sites, moments } = own;
    Ok(Inputs {
        of_sites: sites_over(ranks, of_sites, &width_of)?,
        moments: moments_over(ranks, moments, weights, layer)?,
    })
}

fn sites_over(
    ranks: &Ranks,
    own: BTreeMap<&'static str, InputStats>,
    width_of: &dyn Fn(&str) -> i64,
) -> Result<BTreeMap<&'static str, InputStats>, RanksError> {
    let (mut extremes, mut sums) = (Vec::new(), Vec::new());
    for (module, stats) in &own {
        let [min, max, middles, samples] = stats.parts(width_of(module));
        extremes.extend([-min, max]);
        sums.extend([middles, samples]);
    }
    let (extremes, sums) = (ranks.max(extremes)?, ranks.sum(sums)?);
    let of_site = |((module, extremes), sums): ((&'static str, &[Tensor]), &[Tensor])| {
        let [largest_below, max, middles, samples] = [&extremes[0], &extremes[1], &sums[0], &sums[1]];
        let copies = [-largest_below, max.shallow_clone(), middles.shallow_clone(), samples.shallow_clone()];
        (module, InputStats::of_parts(copies))
    };
    Ok(own.into_keys().zip(extremes.chunks(2)).zip(sums.chunks(2)).map(of_site).collect())
}

/// Which linears share an input is known where tokens reached them, and not every expert has tokens on each rank.
fn moments_over(
    ranks: &Ranks,
    own: Vec<(Vec<&'static str>, Moments)>,
    weights: &BlockWeights,
    layer: &Layer,
) -> Result<Vec<(Vec<&'static str>, Moments)>, RanksError> {
    let names: Vec<&'static str> = layer.linears.iter().map(|linear| linear.name.0).collect();
    // For each linear, one more than the place of the first one that shares its input, or 0; tokens; and whether products are summed.
    let (mut firsts, mut tokens) = (vec![0i64; names.len()], vec![0i64; names.len()]);
    let mut with_products = 0i64;
    let place_of = |name: &str| names.iter().position(|known| *known == name).expect("linears are of the layer");
    for (sharing, moments) in &own {
        let first = place_of(sharing[0]);
        tokens[first] = moments.tokens;
        with_products = with_products.max(i64::from(!moments.products.is_empty()));
        for name in sharing {
            firsts[place_of(name)] = first as i64 + 1;
        }
    }
    firsts.push(with_products);
    let mut firsts: Vec<i64> = numbers(ranks.max(vec![Tensor::from_slice(&firsts)])?);
    let tokens: Vec<i64> = numbers(ranks.sum(vec![Tensor::from_slice(&tokens)])?);
    let with_products = firsts.pop().is_some_and(|flag| flag > 0);

    let mut own: BTreeMap<&str, Moments> = own.into_iter().map(|(sharing, moments)| (sharing[0], moments)).collect();
    let mut all = Vec::new();
    for (place, &first) in names.iter().enumerate() {
        if firsts[place] != place as i64 + 1 {
            continue;
        }
        let sharing = names.iter().zip(&firsts).filter(|(_, of)| **of == place as i64 + 1).map(|(name, _)| *name);
        // Nothing was added to these.
        let none = || Moments::new(weights.get(&format!("{first}.weight")), with_products);
        let own = own.remove(first).unwrap_or_else(none);
        all.push((sharing.collect(), own.over(ranks, tokens[place])?));
    }
    Ok(all)
}

fn numbers(tensors: Vec<Tensor>) -> Vec<i64> {
    Vec::try_from(&tensors[0]).expect("a vector of i64")
}
