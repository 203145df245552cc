//! Figures of a task, from a model's answers.

use oq_data::Item;

use crate::statistics::{mean, standard_error};

/// What a model says to an item.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// For each choice, the sum of its tokens' log-likelihoods.
    pub log_likelihoods: Vec<f64>,
    /// For each choice, whether each of its tokens is the likeliest one there.
    pub is_greedy: Vec<bool>,
}

impl Answer {
    /// Its numbers, of which [`Self::of_numbers`] makes it again.
    pub fn numbers(&self) -> impl Iterator<Item = f64> + '_ {
        let of_choice = |(&sum, &is_greedy): (&f64, &bool)| [sum, f64::from(u8::from(is_greedy))];
        self.log_likelihoods.iter().zip(&self.is_greedy).flat_map(of_choice)
    }

    /// The answer to an item with half as many choices as there are numbers.
    pub fn of_numbers(numbers: &[f64]) -> Self {
        let (choices, _) = numbers.as_chunks::<2>();
        Self {
            log_likelihoods: choices.iter().map(|choice| choice[0]).collect(),
            is_greedy: choices.iter().map(|choice| choice[1] > 0.0).collect(),
        }
    }
}

/// A measured accuracy.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Accuracy {
    /// Number of items.
    pub items: usize,
    /// Fraction of them whose correct choice is the most likely.
    pub plain: f64,
    /// Fraction of them whose correct choice is the most likely per character.
    pub normalized: f64,
}

impl Accuracy {
    /// From one answer for each item.
    ///
    /// # Panics
    /// When their numbers differ.
    pub fn new(items: &[Item], answers: &[Answer]) -> Self {
        assert_eq!(items.len(), answers.len(), "an answer for each item");
        let share = |is_right: &dyn Fn(&Item, &Answer) -> bool| {
            let right = items.iter().zip(answers).filter(|(item, answer)| is_right(item, answer)).count();
            right as f64 / items.len().max(1) as f64
        };
        let plain = share(&|item, answer| best(&answer.log_likelihoods) == item.gold);
        let normalized = share(&|item, answer| {
            // Without the leading space.
            let lengths = item.choices.iter().map(|choice| (choice.continuation.chars().count() - 1).max(1) as f64);
            let values: Vec<f64> = answer.log_likelihoods.iter().zip(lengths).map(|(value, n)| value / n).collect();
            best(&values) == item.gold
        });
        Self { items: items.len(), plain, normalized }
    }

    /// Standard error of a fraction of the items.
    pub fn error_of(&self, accuracy: f64) -> f64 {
        fraction_error(accuracy, self.items)
    }
}

/// How well single continuations are predicted, such as LAMBADA's last words.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// Number of items.
    pub items: usize,
    /// Fraction of them whose continuation consists of the likeliest tokens.
    pub accuracy: f64,
    /// Standard error of the accuracy.
    pub accuracy_error: f64,
    /// `exp` of the mean over items of the continuation's negative log-likelihood.
    pub perplexity: f64,
    /// Standard error of the perplexity, to first order. None for a single item.
    pub perplexity_error: Option<f64>,
}

impl Prediction {
    /// From the answers to items with one choice.
    ///
    /// # Panics
    /// When there are none.
    pub fn new(answers: &[Answer]) -> Self {
        let items = answers.len();
        let losses: Vec<f64> = answers.iter().map(|answer| -answer.log_likelihoods[0]).collect();
        let accuracy = answers.iter().filter(|answer| answer.is_greedy[0]).count() as f64 / items as f64;
        let perplexity = mean(&losses).exp();
        let perplexity_error = standard_error(&losses).map(|error| perplexity * error);
        Self { items, accuracy, accuracy_error: fraction_error(accuracy, items), perplexity, perplexity_error }
    }
}

fn fraction_error(fraction: f64, items: usize) -> f64 {
    (fraction * (1.0 - fraction) / (items.max(2) - 1) as f64).sqrt()
}

/// Index of the largest value; on a tie, of the first.
fn best(values: &[f64]) -> usize {
    values.iter().enumerate().fold(0, |best, (idx, value)| if *value > values[best] { idx } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_a_fraction() {
        let accuracy = Accuracy { items: 101, plain: 0.5, normalized: 0.2 };
        assert_eq!((accuracy.error_of(0.5), accuracy.error_of(0.2)), (0.05, 0.04));
    }

    #[test]
    fn predictions_are_exact_or_wrong() {
        let answer = |value, is_greedy| Answer { log_likelihoods: vec![value], is_greedy: vec![is_greedy] };
        let found = Prediction::new(&[answer(-1.0, true), answer(-3.0, false)]);
        assert_eq!((found.items, found.accuracy, found.accuracy_error), (2, 0.5, 0.5));
        assert_eq!((found.perplexity, found.perplexity_error), (2f64.exp(), Some(2f64.exp())));
        assert_eq!(best(&[-2.0, -1.0, -1.0]), 1);
    }
}
