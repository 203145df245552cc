//! Compensated rounding, from which learning may start (GPTQ, Frantar et al. 2023, arXiv 2210.17323). The rounding error of each column
//! of a weight is compensated by the columns that are rounded after it, as far as their inputs are correlated. The grids do not change.
//! The result is an offset for each code.

use oq_lwc::Lwc;
use tch::{Device, Kind, Tensor};

use crate::block::inputs::Moments;

/// Fraction of the mean diagonal that is added to the diagonal, so that the matrix has an inverse (GPTQ, section 3.3).
const DAMPING: f64 = 0.01;
/// The same fraction, times channels per token: correlations measured on few tokens are mostly noise.
const SHRINKING: f64 = 2.5;
/// Columns whose errors are applied to the rest of the matrix in one product.
const BATCH: i64 = 128;
/// Weights processed at once, in whole rows: 64 MiB in f32, a few times.
pub(crate) const WEIGHTS: i64 = 1 << 24;

/// A linear whose rounding is to be compensated.
pub(crate) struct Rounded<'a> {
    pub(crate) weight: &'a Tensor,
    /// Its quantization grids.
    pub(crate) clip: &'a Lwc,
    /// The result, `[out, in]`: zeros before.
    pub(crate) offsets: &'a Tensor,
}

/// Fills in the offsets of linears that read the same input. They stay zero if the moments of that input have no inverse even when
/// damped.
pub(crate) fn fill(linears: &[Rounded<'_>], moments: &Moments) {
    // On a device, columns of all rows at once: launching an operation for each part costs more than the memory saves.
    let on_cpu = moments.squares.device() == Device::Cpu;
    fill_by(if on_cpu { WEIGHTS } else { i64::MAX }, linears, moments);
}

/// [`fill`], with `at_once` weights at a time.
fn fill_by(at_once: i64, linears: &[Rounded<'_>], moments: &Moments) {
    let all_grids: Vec<[Tensor; 4]> = linears.iter().map(|linear| linear.clip.grids(linear.weight)).collect();
    let mut next = 0;
    for products in &moments.products {
        let (first, n) = (next, products.size()[0]);
        next += n;
        // Channels with the largest inputs come first, so that most columns are left to compensate their errors.
        let order = products.diagonal(0, 0, 1).argsort(0, true); // [n]
        let Some((factor, _)) = factor(products, &order, damping(n, moments.tokens)) else {
            tracing::warn!(
                "the moments of some inputs have no inverse: learning starts from rounding to nearest for their linears"
            );
            continue;
        };
        for (Rounded { weight, clip, offsets }, grids) in linears.iter().zip(&all_grids) {
            let group = weight.size()[1] / grids[0].size()[1];
            let groups = ((&order + first).divide_scalar_mode(group, "floor")).to_kind(Kind::Int64);
            let groups = Vec::<i64>::try_from(groups).expect("a vector of i64");
            let rows = weight.size()[0];
            let step = (at_once / n).max(1);
            for row in (0..rows).step_by(step as usize) {
                let len = step.min(rows - row);
                let columns = weight.narrow(0, row, len).narrow(1, first, n).index_select(1, &order);
                let grids = grids.each_ref().map(|part| part.narrow(0, row, len).transpose(0, 1).contiguous()); // [groups, len]
                let columns = columns.transpose(0, 1).contiguous();
                let found = part_offsets(&columns, &factor, &grids, &groups, &|places| clip.nearest(places));
                let back = found.transpose(0, 1).index_select(1, &order.argsort(0, false));
                offsets.narrow(0, row, len).narrow(1, first, n).copy_(&back);
            }
        }
    }
}

/// Fraction of the rounding error at a linear's outputs that compensation leaves on these tokens, from 0 to 1, if the errors of weights are
/// independent and equally large. An error of a channel is spread over the channels after it by that row of the factor `U`, so its energy
/// is that of the row in the inputs, `(U H Uᵀ)ᵢᵢ / Uᵢᵢ²` in place of `Hᵢᵢ`.
pub(crate) fn error_left(moments: &Moments) -> f64 {
    let of_part = |products: &Tensor| {
        let (diagonal, n) = (products.diagonal(0, 0, 1), products.size()[0]);
        let held = diagonal.sum(Kind::Double).double_value(&[]);
        let order = diagonal.argsort(0, true);
        let factor = factor(products, &order, damping(n, moments.tokens));
        factor.map_or((held, held), |(upper, _)| {
            let ordered = products.index_select(0, &order).index_select(1, &order);
            let energy = (upper.matmul(&ordered) * &upper).sum_dim_intlist(1i64, false, Kind::Double);
            let told = upper.diagonal(0, 0, 1).to_kind(Kind::Double).square();
            ((energy / told).sum(Kind::Double).double_value(&[]), held)
        })
    };
    let (left, held) =
        moments.products.iter().map(of_part).fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    if held > 0.0 { (left / held).min(1.0) } else { 1.0 }
}

/// Fraction of the mean diagonal to add to the diagonal, for `channels` measured on `tokens`.
fn damping(channels: i64, tokens: i64) -> f64 {
    DAMPING.max(SHRINKING * channels as f64 / tokens.max(1) as f64)
}

/// The upper triangular `U` with `Uᵀ U = (H + damping)⁻¹`, for `H [n, n]` with its channels reordered, and the damping used. If there
/// is no such factor in f32, more damping is tried.
fn factor(products: &Tensor, order: &Tensor, damping: f64) -> Option<(Tensor, f64)> {
    let mut tried = [1.0, 10.0, 100.0].into_iter().map(|times| times * damping);
    tried.find_map(|damping| Some((factor_of(products, order, damping)?, damping)))
}

fn factor_of(products: &Tensor, order: &Tensor, damping: f64) -> Option<Tensor> {
    let damped = products.index_select(0, order).index_select(1, order);
    let mean = damped.diagonal(0, 0, 1).mean(Kind::Float).double_value(&[]);
    // If all inputs were zero, any positive diagonal will do.
    let _ = damped.diagonal(0, 0, 1).g_add_scalar_(if mean > 0.0 { mean * damping } else { 1.0 });
    let (lower, failed) = damped.linalg_cholesky_ex(false, false);
    drop(damped);
    // Without this factor there is no inverse, and asking for one would raise an error.
    if failed.int64_value(&[]) != 0 {
        return None;
    }
    let inverse = lower.cholesky_inverse(false);
    drop(lower);
    let (upper, failed) = inverse.linalg_cholesky_ex(true, false);
    (failed.int64_value(&[]) == 0 && upper.isfinite().all().int64_value(&[]) == 1).then_some(upper)
}

/// Offsets `[n, len]` of columns `[n, len]`, rounded in this order on grids `[groups, len]` (scale, value of code 0, lowest and highest
/// code); `nearest` rounds places.
fn part_offsets(
    columns: &Tensor,
    factor: &Tensor,
    [scale, base, lowest, highest]: &[Tensor; 4],
    groups: &[i64],
    nearest: &dyn Fn(&Tensor) -> Tensor,
) -> Tensor {
    let n = columns.size()[0];
    let work = columns.copy();
    let offsets = columns.empty_like();
    for first in (0..n).step_by(BATCH as usize) {
        let len = BATCH.min(n - first);
        let (batch, factors) = (work.narrow(0, first, len), factor.narrow(0, first, len));
        let errors = batch.empty_like();
        for (i, &group) in (0..len).zip(&groups[first as usize..]) {
            let (column, scale, base) = (batch.get(i), scale.get(group), base.get(group));
            let place = (&column - &base) / &scale;
            let code = nearest(&place).maximum(&lowest.get(group)).minimum(&highest.get(group));
            offsets.get(first + i).copy_(&(&place - (columns.get(first + i) - &base) / &scale));
            let error = (column - (code * scale + base)) / factors.get(i).get(first + i); // [len]
            let after = len - i - 1;
            if after > 0 {
                let row = factors.get(i).narrow(0, first + i + 1, after);
                let _ = batch.narrow(0, i + 1, after).addr_(&row, &error.neg());
            }
            errors.get(i).copy_(&error);
        }
        let (next, rest) = (first + len, n - first - len);
        if rest > 0 {
            let reach = factors.narrow(1, next, rest).transpose(0, 1); // [rest, len]
            let _ = work.narrow(0, next, rest).addmm_(&reach, &-errors);
        }
    }
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;
    use oq_quant_core::QuantSpec;

    const TOKENS: i64 = 4000;

    /// Correlated inputs, `[tokens, n]`, and their moments.
    fn inputs(seed: u64, n: i64) -> (Tensor, Moments) {
        let x = noise(seed, &[TOKENS, 12]).matmul(&noise(seed + 1, &[12, n])) + noise(seed + 2, &[TOKENS, n]) * 0.3;
        let moments = moments(&x);
        (x, moments)
    }

    fn moments(x: &Tensor) -> Moments {
        let products = x.transpose(0, 1).matmul(x);
        Moments { squares: products.diagonal(0, 0, 1).copy(), products: vec![products], tokens: TOKENS }
    }

    fn offsets(clip: &Lwc, weight: &Tensor, moments: &Moments) -> Tensor {
        let offsets = weight.zeros_like();
        fill(&[Rounded { weight, clip, offsets: &offsets }], moments);
        offsets
    }

    fn start(weight: &Tensor, moments: &Moments, scheme: &str) -> Lwc {
        let spec: QuantSpec = scheme.parse().expect("a scheme");
        let (rows, columns) = weight.size2().expect("[out, in]");
        let mut clip = Lwc::new(rows as usize, columns as usize, spec.weight, Device::Cpu).expect("groups divide");
        clip.start_from_search(weight, &moments.squares);
        clip
    }

    fn error(clip: &Lwc, weight: &Tensor, x: &Tensor) -> f64 {
        x.matmul(&(clip.fake_quantize(weight) - weight).transpose(0, 1)).square().sum(Kind::Double).double_value(&[])
    }

    /// The same column by column in f64, with the explicit inverse: the update of all remaining columns by Hassibi and Stork.
    fn by_definition(clip: &Lwc, weight: &Tensor, moments: &Moments) -> Vec<f64> {
        let n = weight.size()[1] as usize;
        let products = moments.products[0].to_kind(Kind::Double);
        let mean = products.diagonal(0, 0, 1).mean(Kind::Double).double_value(&[]);
        let damping = DAMPING.max(SHRINKING * n as f64 / TOKENS as f64);
        let damped = products + Tensor::eye(n as i64, (Kind::Double, Device::Cpu)) * (mean * damping);
        let order: Vec<i64> = Vec::try_from(damped.diagonal(0, 0, 1).argsort(0, true)).expect("i64");
        let grids = clip.grids(weight).map(|part| part.to_kind(Kind::Double));
        let group = n as i64 / grids[0].size()[1];
        let (mut left, mut offsets) = (order.clone(), vec![0.0; n * weight.size()[0] as usize]);
        let mut work: Vec<Vec<f64>> = Vec::try_from(weight.to_kind(Kind::Double)).expect("f64");
        let original = work.clone();
        while let Some(&column) = left.first() {
            let among = Tensor::from_slice(&left);
            let inverse = damped.index_select(0, &among).index_select(1, &among).inverse();
            let row: Vec<f64> = Vec::try_from(inverse.get(0)).expect("f64");
            for (r, work) in work.iter_mut().enumerate() {
                let [s, _, lo, hi] = grids.each_ref().map(|part| part.double_value(&[r as i64, column / group]));
                let c = column as usize;
                offsets[r * n + c] = (work[c] - original[r][c]) / s;
                let error = (work[c] - (work[c] / s).round_ties_even().clamp(lo, hi) * s) / row[0];
                for (&other, by) in left.iter().zip(&row) {
                    work[other as usize] -= error * by;
                }
            }
            left.remove(0);
        }
        offsets
    }

    #[test]
    fn matches_the_update_with_the_explicit_inverse() {
        // f32 against f64: a value within 1e-4 of the midpoint between two codes may be rounded either way, and the rest of its row
        // then differs validly. So rows are compared, and one of them may differ.
        const CLOSE: f64 = 2e-3;
        let (_, moments) = inputs(3, 160); // more than a batch
        let weight = noise(13, &[6, 160]);
        let clip = start(&weight, &moments, "w3a16g32");
        let ours: Vec<f64> =
            Vec::try_from(offsets(&clip, &weight, &moments).to_kind(Kind::Double).view(-1)).expect("f64");
        let exact = by_definition(&clip, &weight, &moments);
        let same = |(a, b): (&[f64], &[f64])| a.iter().zip(b).all(|(a, b)| (a - b).abs() < CLOSE);
        let equal = ours.chunks(160).zip(exact.chunks(160)).filter(|&rows| same(rows)).count();
        assert!(equal >= 5, "{equal} of 6 rows");
    }

    #[test]
    fn compensation_beats_rounding_to_nearest() {
        let (x, moments) = inputs(4, 96);
        let weight = noise(14, &[20, 96]);
        for scheme in ["w4a16g32", "w3a16g48", "w2a16", "w3a16g32sym", "w3a16g32full", "q4_1_pure", "mxfp4", "nvfp4"] {
            let mut clip = start(&weight, &moments, scheme);
            let nearest = error(&clip, &weight, &x);
            clip.offsets = Some(offsets(&clip, &weight, &moments));
            let compensated = error(&clip, &weight, &x);
            assert!(compensated < 0.6 * nearest, "{scheme}: {compensated} of {nearest}");
        }
    }

    #[test]
    fn share_left_predicts_the_error_after_compensation() {
        let (x, moments) = inputs(5, 96);
        let weight = noise(15, &[200, 96]);
        let mut clip = start(&weight, &moments, "w4a16g32");
        let nearest = error(&clip, &weight, &x);
        clip.offsets = Some(offsets(&clip, &weight, &moments));
        let (estimate, compensated) = (error_left(&moments), error(&clip, &weight, &x) / nearest);
        // 4 bits, so that few weights are clipped: clipping errors are distributed differently.
        assert!((0.75..1.33).contains(&(estimate / compensated)), "{estimate} for {compensated}");
        // Uncorrelated channels: nothing can be compensated.
        let alone = Tensor::eye(96, (Kind::Float, Device::Cpu));
        let alone = Moments { squares: alone.diagonal(0, 0, 1).copy(), products: vec![alone], tokens: TOKENS };
        assert!((error_left(&alone) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn parts_and_rows_are_independent() {
        let (x, _) = inputs(6, 96);
        let weight = noise(17, &[20, 96]);
        let halves = [0, 48].map(|first| (x.narrow(1, first, 48), weight.narrow(1, first, 48).contiguous()));
        // Groups of 16, so that the second half does not start with the first group.
        let [left, right] = halves.map(|(x, weight)| {
            let moments = moments(&x);
            let clip = Lwc::new(20, 48, "w3a16g16".parse::<QuantSpec>().expect("a scheme").weight, Device::Cpu);
            (offsets(&clip.expect("groups divide"), &weight, &moments), moments.products)
        });
        let expected = Tensor::cat(&[left.0, right.0], 1);
        let whole =
            Moments { squares: x.square(), products: left.1.into_iter().chain(right.1).collect(), tokens: TOKENS };
        let clip = Lwc::new(20, 96, "w3a16g16".parse::<QuantSpec>().expect("a scheme").weight, Device::Cpu);
        let clip = clip.expect("groups divide");
        // All rows at once, and three rows at a time.
        for at_once in [WEIGHTS, 3 * 48] {
            let found = weight.zeros_like();
            fill_by(at_once, &[Rounded { weight: &weight, clip: &clip, offsets: &found }], &whole);
            let off = (found - &expected).abs().amax([1i64].as_slice(), false); // [20]
            // Sums in another order: a value at the midpoint between two codes may be rounded the other way, which changes the rest of
            // its row.
            let equal = off.lt(1e-3).sum(Kind::Int64).int64_value(&[]);
            assert!(equal >= 19, "{equal} of 20 rows");
        }
    }

    #[test]
    fn a_singular_matrix_is_damped_more() {
        // Two channels are identical, and the first damping is below f32's precision.
        let products = Tensor::from_slice(&[1e8f32, 1e8, 1e8, 1e8]).view([2, 2]);
        let order = Tensor::from_slice(&[0i64, 1]);
        assert!(factor_of(&products, &order, 1e-8).is_none());
        let (_, damping) = factor(&products, &order, 1e-8).expect("there is one");
        assert!(damping > 5e-8, "{damping}");
    }

    #[test]
    fn zero_and_broken_inputs_leave_zero_offsets() {
        let weight = noise(16, &[4, 64]);
        let zeros = Tensor::zeros([64, 64], (Kind::Float, Device::Cpu));
        let silent =
            Moments { squares: Tensor::zeros([64], (Kind::Float, Device::Cpu)), products: vec![zeros], tokens: 1 };
        let clip = start(&weight, &silent, "w4a16g32");
        assert_eq!(offsets(&clip, &weight, &silent).abs().max().double_value(&[]), 0.0);
        let broken = Moments { products: vec![silent.products[0].full_like(f64::NAN)], ..silent };
        assert_eq!(offsets(&clip, &weight, &broken).abs().max().double_value(&[]), 0.0);
    }
}
