//! How the next token is chosen from logits.

use oq_random::SplitMix64;

use crate::error::GenerateError;

/// How a token is picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The most likely token; on a tie, the one with the smallest id.
    Greedy,
    /// A random token.
    Draw {
        /// Logits are divided by it. Below 1, likely tokens become more likely.
        temperature: f64,
        /// Among those that `top_k` leaves, only the most likely tokens whose probabilities add up to this are candidates (Holtzman et al.
        /// 2020, arXiv 1904.09751).
        top_p: f64,
        /// Only this many of the most likely tokens are candidates.
        top_k: Option<usize>,
    },
}

/// Settings of a [`Sampler`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// How a token is picked.
    pub choice: Choice,
    /// Logits of tokens that are already in the text are divided by it, or multiplied if they are negative (Keskar et al. 2019, arXiv
    /// 1909.05858).
    pub repetition_penalty: f64,
    /// The same seed gives the same draws.
    pub seed: u64,
}

impl Sampling {
    /// Without a penalty, and of seed 0.
    pub const fn new(choice: Choice) -> Self {
        Self { choice, repetition_penalty: 1.0, seed: 0 }
    }

    /// The same with a penalty of tokens that are in the text already; 1 is none.
    pub const fn with_repetition_penalty(self, repetition_penalty: f64) -> Self {
        Self { repetition_penalty, ..self }
    }

    /// The same with other draws.
    pub const fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
}

/// Chooses one token after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: SplitMix64,
}

impl Sampler {
    /// Checks the settings.
    ///
    /// # Errors
    /// When the temperature, `top_p` or the penalty is not positive, `top_p` is above 1, or no candidate is left.
    pub fn new(sampling: Sampling) -> Result<Self, GenerateError> {
        let check = |name, value: f64, good, expected| match good {
            true => Ok(()),
            false => Err(GenerateError::Setting { name, value, expected }),
        };
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        if let Choice::Draw { temperature, top_p, top_k } = sampling.choice {
            check("temperature", temperature, is_positive(temperature), "a positive number is needed")?;
            check("top-p", top_p, is_positive(top_p) && top_p <= 1.0, "a number above 0 and at most 1 is needed")?;
            check("top-k", 0.0, top_k != Some(0), "at least one token must be left")?;
        }
        let penalty = sampling.repetition_penalty;
        check("repetition penalty", penalty, is_positive(penalty), "a positive number is needed; 1 changes nothing")?;
        Ok(Self { sampling, random: SplitMix64::new(sampling.seed) })
    }

    /// The next token after a text with the ids `seen`: `logits [vocab]`, finite.
    pub fn choose(&mut self, logits: &[f32], seen: &[u32]) -> u32 {
        let logits = penalized(logits, seen, self.sampling.repetition_penalty);
        match self.sampling.choice {
            Choice::Greedy => {
                let likelier = |best: usize, id: usize| if logits[id] > logits[best] { id } else { best };
                (1..logits.len()).fold(0, likelier) as u32
            }
            Choice::Draw { temperature, top_p, top_k } => {
                let left = distribution(&logits, temperature, top_p, top_k);
                let mut point = self.random.unit();
                let found = left.iter().find(|(_, probability)| {
                    point -= probability;
                    point < 0.0
                });
                // Probabilities may add up to slightly less than 1.
                found.unwrap_or(&left[left.len() - 1]).0
            }
        }
    }
}

/// Logits after the repetition penalty, applied once to each token that was seen.
fn penalized(logits: &[f32], seen: &[u32], penalty: f64) -> Vec<f32> {
    let mut penalized = logits.to_vec();
    if penalty != 1.0 {
        for &id in seen {
            if let Some(&logit) = logits.get(id as usize) {
                let factor = if logit > 0.0 { 1.0 / penalty } else { penalty };
                penalized[id as usize] = (f64::from(logit) * factor) as f32;
            }
        }
    }
    penalized
}

/// The candidates with their probabilities, which add up to 1, the most likely first.
fn distribution(logits: &[f32], temperature: f64, top_p: f64, top_k: Option<usize>) -> Vec<(u32, f64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |&logit: &f32| ((f64::from(logit) - f64::from(max)) / temperature).exp();
    let mut left: Vec<(u32, f64)> = logits.iter().map(weight).enumerate().map(|(id, w)| (id as u32, w)).collect();
    left.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
    left.truncate(top_k.unwrap_or(usize::MAX));
    // `top_p` refers to the candidates that are left.
    let total: f64 = left.iter().map(|(_, weight)| weight).sum();
    let mut sum = 0.0;
    let enough = left.iter().position(|(_, weight)| {
        sum += weight;
        sum >= top_p * total
    });
    left.truncate(enough.map_or(usize::MAX, |last| last + 1));
    let kept: f64 = left.iter().map(|(_, weight)| weight).sum();
    left.iter_mut().for_each(|(_, weight)| *weight /= kept);
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of a few f64.
    const EXACT: f64 = 1e-12;

    fn sampling(choice: Choice) -> Sampling {
        Sampling { choice, repetition_penalty: 1.0, seed: 7 }
    }

    /// Logarithms of probabilities.
    fn logs<const N: usize>(probabilities: [f32; N]) -> [f32; N] {
        probabilities.map(f32::ln)
    }

    #[track_caller]
    fn check(logits: &[f32], (temperature, top_p, top_k): (f64, f64, Option<usize>), expected: &[(u32, f64)]) {
        /// Logarithms of f32.
        const CLOSE: f64 = 1e-6;
        let got = distribution(logits, temperature, top_p, top_k);
        assert_eq!(got.len(), expected.len(), "{got:?}");
        for ((id, probability), (expected_id, expected)) in got.iter().zip(expected) {
            assert!(id == expected_id && (probability - expected).abs() < CLOSE, "{got:?}");
        }
        assert!((got.iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < EXACT);
    }

    #[test]
    fn distributions_are_those_of_the_definitions() {
        let logits = logs([0.1, 0.4, 0.2, 0.3]);
        check(&logits, (1.0, 1.0, None), &[(1, 0.4), (3, 0.3), (2, 0.2), (0, 0.1)]);
        // Probabilities to the power of 1/temperature: squares over 0.3, and square roots.
        check(&logits, (0.5, 1.0, None), &[(1, 0.16 / 0.3), (3, 0.09 / 0.3), (2, 0.04 / 0.3), (0, 0.01 / 0.3)]);
        let roots = [0.4f64, 0.3, 0.2, 0.1].map(f64::sqrt);
        let sum: f64 = roots.iter().sum();
        let [a, b, c, d] = roots.map(|root| root / sum);
        check(&logits, (2.0, 1.0, None), &[(1, a), (3, b), (2, c), (0, d)]);
        // The smallest set of at least 0.65: 0.4 and 0.3.
        check(&logits, (1.0, 0.65, None), &[(1, 0.4 / 0.7), (3, 0.3 / 0.7)]);
        check(&logits, (1.0, 0.75, None), &[(1, 0.4 / 0.9), (3, 0.3 / 0.9), (2, 0.2 / 0.9)]);
        check(&logits, (1.0, 1e-9, None), &[(1, 1.0)]);
        check(&logits, (1.0, 1.0, Some(2)), &[(1, 0.4 / 0.7), (3, 0.3 / 0.7)]);
        // Of 0.7, half are in the first.
        check(&logits, (1.0, 0.5, Some(2)), &[(1, 1.0)]);
        check(&logits, (1.0, 0.6, Some(2)), &[(1, 0.4 / 0.7), (3, 0.3 / 0.7)]);
        // Equal ones by their ids; far ones are 0 and not a fault.
        check(&[0.0, 0.0, -1e30], (1.0, 0.9, None), &[(0, 0.5), (1, 0.5)]);
    }

    #[test]
    fn draws_are_as_frequent_as_they_are_probable() {
        const DRAWS: usize = 40_000;
        let logits = logs([0.1, 0.4, 0.2, 0.3]);
        let mut sampler = Sampler::new(sampling(Choice::Draw { temperature: 1.0, top_p: 0.85, top_k: None })).unwrap();
        let mut counts = [0usize; 4];
        for _ in 0..DRAWS {
            counts[sampler.choose(&logits, &[]) as usize] += 1;
        }
        assert_eq!(counts[0], 0, "beyond 0.85");
        for (count, probability) in counts.into_iter().zip([0.0, 0.4 / 0.9, 0.2 / 0.9, 0.3 / 0.9]) {
            // Five standard deviations.
            let allowed = 5.0 * (probability * (1.0 - probability) / DRAWS as f64).sqrt();
            let share = count as f64 / DRAWS as f64;
            assert!((share - probability).abs() <= allowed, "{share}, expected {probability}");
        }
    }

    #[test]
    fn same_seed_same_draws() {
        let draw = |seed| {
            let choice = Choice::Draw { temperature: 1.0, top_p: 1.0, top_k: None };
            let mut sampler = Sampler::new(Sampling { seed, ..sampling(choice) }).unwrap();
            (0..20).map(|_| sampler.choose(&[0.0; 50], &[])).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn the_likeliest_and_what_repetition_costs_it() {
        let mut sampler = Sampler::new(sampling(Choice::Greedy)).unwrap();
        assert_eq!(sampler.choose(&[1.0, 3.0, 3.0, -1.0], &[1]), 1);
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..sampling(Choice::Greedy) }).unwrap();
        // 3 becomes 1.5 and 2.9 stays; seen twice is seen once.
        assert_eq!(sampler.choose(&[1.0, 3.0, 2.9], &[1, 1]), 2);
        assert_eq!(penalized(&[4.0, -4.0, 1.0], &[0, 1, 0, 9], 2.0), [2.0, -8.0, 1.0]);
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        let draw = |temperature, top_p, top_k| Sampler::new(sampling(Choice::Draw { temperature, top_p, top_k }));
        for refused in [
            draw(0.0, 1.0, None),
            draw(f64::NAN, 1.0, None),
            draw(1.0, 0.0, None),
            draw(1.0, 1.1, None),
            draw(1.0, 1.0, Some(0)),
            Sampler::new(Sampling { repetition_penalty: 0.0, ..sampling(Choice::Greedy) }),
        ] {
            assert!(matches!(refused, Err(GenerateError::Setting { .. })));
        }
    }
}
