//! The choice of widths: the least total cost within an average number of bits.
//!
//! This is a knapsack problem in which each unit takes one of several widths. It is solved by dynamic programming over the bits spent
//! beyond the smallest width. The solution is exact if there are few distinct sums of bits, which holds because models' weight counts
//! are multiples of large numbers. Otherwise sums are rounded up.

/// Linears that share one width.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Demand {
    /// Weights of all of them.
    pub(crate) weights: u64,
    /// The cost of each width, the fewest bits first.
    pub(crate) costs: Vec<f64>,
}

/// Maximum number of distinct sums of bits: for 320 units, a table of one byte per sum takes 80 MiB.
const CELLS: u64 = 1 << 18;

/// The index of each unit's width in `widths`, which are bits in ascending order. Of all choices with at most `average` bits per
/// weight, this is one of least cost. If the weights have no large common divisor, bits are counted in coarser units and rounded up,
/// and the choice may be slightly worse.
///
/// # Panics
///
/// If a unit does not have one cost for each width, if a cost is not finite, or if `average` is below the first width.
pub(crate) fn allocate(units: &[Demand], widths: &[u32], average: f64) -> Vec<usize> {
    let least = *widths.first().expect("there are widths to choose among");
    assert!(units.iter().all(|unit| unit.costs.len() == widths.len()), "a cost for each width");
    assert!(units.iter().flat_map(|unit| &unit.costs).all(|cost| cost.is_finite()), "costs can be compared");
    let weights: u64 = units.iter().map(|unit| unit.weights).sum();
    let allowed = (average * weights as f64).floor() as u64;
    let spare = allowed.checked_sub(u64::from(least) * weights).expect("the average is not below the first width");
    let most = u64::from(widths[widths.len() - 1] - least) * weights;
    let spare = spare.min(most);
    let divisor = units.iter().fold(0, |divisor, unit| greatest_common_divisor(divisor, unit.weights)).max(1);
    // The same for every average, so that more bits never cost more.
    let cell = divisor * (most / divisor).div_ceil(CELLS).max(1);
    let cells = (spare / cell) as usize;

    // The least cost of the units so far, by the number of cells that they may use.
    let mut costs = vec![0.0; cells + 1];
    let mut chosen: Vec<Vec<u8>> = Vec::with_capacity(units.len());
    for unit in units {
        let takes = widths.iter().map(|width| (u64::from(width - least) * unit.weights).div_ceil(cell) as usize);
        let options: Vec<(usize, f64)> = takes.zip(unit.costs.iter().copied()).collect();
        let best = |room: usize| {
            let fits = options.iter().enumerate().filter(|(_, (takes, _))| *takes <= room);
            let costs = fits.map(|(place, (takes, cost))| (place, cost + costs[room - takes]));
            // Of equal costs, the one with fewer bits.
            costs.reduce(|best, next| if next.1 < best.1 { next } else { best }).expect("the first width takes nothing")
        };
        let (places, sums): (Vec<u8>, Vec<f64>) = (0..=cells).map(best).map(|(place, sum)| (place as u8, sum)).unzip();
        chosen.push(places);
        costs = sums;
    }
    let mut room = cells;
    let mut places: Vec<usize> = chosen
        .iter()
        .zip(units)
        .rev()
        .map(|(places, unit)| {
            let place = usize::from(places[room]);
            room -= (u64::from(widths[place] - least) * unit.weights).div_ceil(cell) as usize;
            place
        })
        .collect();
    places.reverse();
    places
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const WIDTHS: [u32; 6] = [2, 3, 4, 5, 6, 8];

    fn bits(units: &[Demand], places: &[usize]) -> u64 {
        units.iter().zip(places).map(|(unit, &place)| unit.weights * u64::from(WIDTHS[place])).sum()
    }

    fn cost(units: &[Demand], places: &[usize]) -> f64 {
        units.iter().zip(places).map(|(unit, &place)| unit.costs[place]).sum()
    }

    fn is_within(units: &[Demand], places: &[usize], average: f64) -> bool {
        bits(units, places) as f64 <= average * units.iter().map(|unit| unit.weights).sum::<u64>() as f64
    }

    /// Units whose weights have the common divisor `step`, with arbitrary costs.
    fn units(step: u64, n: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Demand>> {
        let unit = (1u64..9, vec(0.0f64..9.0, WIDTHS.len()));
        vec(unit.prop_map(move |(n, costs)| Demand { weights: n * step, costs }), n)
    }

    /// The least cost over all choices, by brute force.
    fn by_brute_force(units: &[Demand], average: f64) -> f64 {
        let n = WIDTHS.len();
        let all =
            (0..n.pow(units.len() as u32)).map(|code| (0..units.len()).map(|at| code / n.pow(at as u32) % n).collect());
        let within = all.filter(|places: &Vec<usize>| is_within(units, places, average));
        within.map(|places| cost(units, &places)).fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn finds_the_least_cost_within_the_average(units in units(576, 1..5), average in 2.0f64..8.0) {
            let places = allocate(&units, &WIDTHS, average);
            prop_assert!(is_within(&units, &places, average));
            let (got, least) = (cost(&units, &places), by_brute_force(&units, average));
            prop_assert!((got - least).abs() < 1e-9, "{got}, least {least}");
        }

        #[test]
        fn stays_within_the_average_and_more_bits_never_cost_more(
            units in units(1, 1..40),
            odd in vec(1u64..1 << 40, 40),
            averages in [2.0f64..8.0, 2.0f64..8.0],
        ) {
            // Weights without a common divisor, so that bits are counted in coarser units.
            let units: Vec<Demand> =
                units.into_iter().zip(odd).map(|(unit, weights)| Demand { weights, ..unit }).collect();
            let (low, high) = (averages[0].min(averages[1]), averages[0].max(averages[1]));
            for average in [low, high] {
                prop_assert!(is_within(&units, &allocate(&units, &WIDTHS, average), average));
            }
            let [few, many] = [low, high].map(|average| cost(&units, &allocate(&units, &WIDTHS, average)));
            prop_assert!(many <= few + 1e-9, "{many} with more bits, {few} with fewer");
        }

        #[test]
        fn equal_units_get_nearly_equal_widths(n in 1usize..60, average in 2.0f64..6.0) {
            // An error proportional to 4^-bits, like that of a grid.
            let costs: Vec<f64> = WIDTHS.iter().map(|&width| 0.25f64.powi(width as i32)).collect();
            let units = vec![Demand { weights: 4096, costs }; n];
            let places = allocate(&units, &WIDTHS, average);
            let (least, most) = (places.iter().min().unwrap(), places.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{places:?}");
        }
    }

    #[test]
    #[should_panic(expected = "costs can be compared")]
    fn costs_that_are_not_finite_are_refused() {
        allocate(&[Demand { weights: 64, costs: vec![f64::NAN; WIDTHS.len()] }], &WIDTHS, 4.0);
    }

    #[test]
    fn a_whole_average_is_used_up() {
        let unit = |weights, sensitivity: f64| Demand {
            weights,
            costs: WIDTHS.iter().map(|&width| sensitivity * 0.25f64.powi(width as i32)).collect(),
        };
        // Sizes of LLaMA-2-70B's units.
        let sizes = [8192 * 10240, 8192 * 8192, 2 * 8192 * 28672, 8192 * 28672];
        let units: Vec<Demand> = (0..320).map(|at| unit(sizes[at % 4], 1.0 + (at % 7) as f64)).collect();
        for (place, &width) in WIDTHS.iter().enumerate() {
            let average = f64::from(width);
            let places = allocate(&units, &WIDTHS, average);
            let uniform = vec![place; units.len()];
            assert!(is_within(&units, &places, average) && cost(&units, &places) <= cost(&units, &uniform));
            assert!(bits(&units, &places) as f64 > 0.999 * bits(&units, &uniform) as f64);
        }
    }
}
