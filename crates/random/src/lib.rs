//! SplitMix64: random numbers that are the same in every version and on every machine, so that a seed always identifies the same
//! calibration set or sampled text. (Only [`SplitMix64::normal`] takes a logarithm and a cosine, whose last digits depend on the machine.)

/// Increment of the state: the golden ratio of 2^64.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The generator of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014). Not for secrets.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The `i`-th number of a seed, from 0, without computing those before it, so that threads can share a sequence.
    pub fn at(seed: u64, i: u64) -> u64 {
        let z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(GAMMA));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A uniform 64-bit number.
    pub fn bits(&mut self) -> u64 {
        let bits = Self::at(self.0, 0);
        self.0 = self.0.wrapping_add(GAMMA);
        bits
    }

    /// A uniform number in `0..bound`. Draws from the incomplete last multiple are rejected.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The largest value that still belongs to a whole multiple of `bound`.
        let limit = u64::MAX - (u64::MAX % bound + 1) % bound;
        loop {
            let draw = self.bits();
            if draw <= limit {
                return draw % bound;
            }
        }
    }

    /// A uniform number in `0..1`, with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A normal number of mean 0 and standard deviation 1, by the Box-Muller transform of two uniform numbers.
    pub fn normal(&mut self) -> f64 {
        // 1 - unit() is positive, so it has a logarithm.
        let (radius, turn) = (1.0 - self.unit(), 1.0 - self.unit());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * turn).cos()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DRAWS: usize = 40_000;

    #[test]
    fn it_gives_the_published_sequence() {
        // The generator's reference output for seed 1234567.
        let mut random = SplitMix64::new(1_234_567);
        let drawn: Vec<u64> = (0..5).map(|_| random.bits()).collect();
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821
            ]
        );
    }

    #[test]
    fn units_fill_every_tenth_alike() {
        let mut random = SplitMix64::new(5);
        let mut counts = [0usize; 10];
        for _ in 0..DRAWS {
            counts[(random.unit() * 10.0) as usize] += 1;
        }
        // 4000 expected, standard deviation 60: 5 of them.
        assert!(counts.iter().all(|&n| n.abs_diff(DRAWS / 10) < 300), "{counts:?}");
    }

    #[test]
    fn normal_numbers_have_its_moments() {
        let mut random = SplitMix64::new(6);
        let drawn: Vec<f64> = (0..DRAWS).map(|_| random.normal()).collect();
        let moment = |power: i32| drawn.iter().map(|x| x.powi(power)).sum::<f64>() / DRAWS as f64;
        // Standard deviations of these means are the roots of 1, 2, 15 and 96 over the root of the draws: 5 of them.
        for (power, expected, variance) in [(1, 0.0, 1.0f64), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let off = (moment(power) - expected).abs();
            assert!(off < 5.0 * (variance / DRAWS as f64).sqrt(), "moment {power}: off by {off}");
        }
    }

    proptest! {
        #[test]
        fn numbers_below_a_bound_are_below_it(seed: u64, bound in 1u64..) {
            let mut random = SplitMix64::new(seed);
            prop_assert!((0..20).all(|_| random.below(bound) < bound));
        }

        #[test]
        fn any_number_can_be_had_alone(seed: u64, n in 1usize..50) {
            let mut random = SplitMix64::new(seed);
            let drawn: Vec<u64> = (0..n).map(|_| random.bits()).collect();
            prop_assert_eq!(SplitMix64::at(seed, n as u64 - 1), drawn[n - 1]);
        }
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
