//! Means with their standard errors, and quantiles.

/// The mean of `values`.
///
/// # Panics
/// When there are none.
pub(crate) fn mean(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "a mean needs values");
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard error of the mean of independent `values`: their standard deviation (with one degree of freedom less) divided by the root of
/// their number. None for fewer than two, which do not show how much they vary.
pub(crate) fn standard_error(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let (mean, n) = (mean(values), values.len() as f64);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    Some((squares / (n - 1.0) / n).sqrt())
}

/// The value that a share `q` of the sorted values lie below, interpolated between the two nearest.
///
/// # Panics
/// When there are none, or `q` is not from 0 to 1.
pub(crate) fn quantile(sorted: &[f32], q: f64) -> f64 {
    assert!((0.0..=1.0).contains(&q), "a share is from 0 to 1");
    let place = q * (sorted.len() - 1) as f64;
    let [below, above] = [place.floor(), place.ceil()].map(|place| f64::from(sorted[place as usize]));
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_a_mean() {
        assert_eq!(standard_error(&[]), None);
        assert_eq!(standard_error(&[3.0]), None);
        assert_eq!(standard_error(&[1.0, 1.0, 1.0]), Some(0.0));
        // Deviations of -1, 0 and 1: a variance of 1, over three values.
        assert_eq!(standard_error(&[4.0, 5.0, 6.0]), Some((1.0_f64 / 3.0).sqrt()));
    }

    #[test]
    fn quantiles_lie_between_the_nearest_values() {
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        let quantiles = [0.0, 0.25, 0.5, 0.9, 1.0].map(|q| quantile(&values, q));
        assert_eq!(quantiles[..3], [1.0, 2.0, 4.0]);
        assert!((quantiles[3] - (8.0 + 0.6 * 8.0)).abs() < 1e-12 && quantiles[4] == 16.0, "{quantiles:?}");
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
    }
}
