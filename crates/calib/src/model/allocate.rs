//! Which width each unit gets: the least cost in all that an average allows.
//!
//! This is a knapsack in which each unit takes one of several widths, solved by dynamic programming over the bits that are spent beyond
//! the least: exactly as long as sums of bits are few, as weights of models come in multiples of large numbers; else with sums rounded up.

/// Linears that have one width together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Demand {
    /// Weights of them all.
    pub(crate) weights: u64,
    /// What each width costs, the fewest bits first.
    pub(crate) costs: Vec<f64>,
}

/// Different sums of bits that are told apart: a table of bytes for 320 units is 80 MiB.
const CELLS: u64 = 1 << 18;

/// For each unit the place of its width in `widths`, bits in ascending order: of all choices with at most `average` bits per weight one of
/// least cost. Where weights have no large common divisor, bits are counted in units that are rounded up, and the choice may be a little worse.
///
/// # Panics
/// When a unit has another number of costs than there are widths, a cost is not finite, or `average` is below the first width.
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

    // What the units so far cost at least, by the cells that they may take.
    let mut costs = vec![0.0; cells + 1];
    let mut chosen: Vec<Vec<u8>> = Vec::with_capacity(units.len());
    for unit in units {
        let takes = widths.iter().map(|width| (u64::from(width - least) * unit.weights).div_ceil(cell) as usize);
        let options: Vec<(usize, f64)> = takes.zip(unit.costs.iter().copied()).collect();
        let best = |room: usize| {
            let fits = options.iter().enumerate().filter(|(_, (takes, _))| *takes <= room);
            let costs = fits.map(|(place, (takes, cost))| (place, cost + costs[room - takes]));
            // Of equal ones the one with fewer bits.
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

    /// Units whose weights have the common divisor `step`, and any costs.
    fn units(step: u64, n: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Demand>> {
        let unit = (1u64..9, vec(0.0f64..9.0, WIDTHS.len()));
        vec(unit.prop_map(move |(n, costs)| Demand { weights: n * step, costs }), n)
    }

    /// The least cost of all choices.
    fn by_trying(units: &[Demand], average: f64) -> f64 {
        let n = WIDTHS.len();
        let all =
            (0..n.pow(units.len() as u32)).map(|code| (0..units.len()).map(|at| code / n.pow(at as u32) % n).collect());
        let within = all.filter(|places: &Vec<usize>| is_within(units, places, average));
        within.map(|places| cost(units, &places)).fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn costs_the_least_that_the_average_allows(units in units(576, 1..5), average in 2.0f64..8.0) {
            let places = allocate(&units, &WIDTHS, average);
            prop_assert!(is_within(&units, &places, average));
            let (got, least) = (cost(&units, &places), by_trying(&units, average));
            prop_assert!((got - least).abs() < 1e-9, "{got}, least {least}");
        }

        #[test]
        fn never_spends_more_and_never_gains_from_less(
            units in units(1, 1..40),
            odd in vec(1u64..1 << 40, 40),
            averages in [2.0f64..8.0, 2.0f64..8.0],
        ) {
            // Weights without a common divisor, which are counted roughly.
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
        fn units_that_are_alike_are_treated_alike(n in 1usize..60, average in 2.0f64..6.0) {
            // An error of 4^-bits, as that of a grid.
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
    fn whole_averages_can_be_had() {
        let unit = |weights, sensitivity: f64| Demand {
            weights,
            costs: WIDTHS.iter().map(|&width| sensitivity * 0.25f64.powi(width as i32)).collect(),
        };
        // LLaMA-2-70B's blocks.
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
