//! Log-probabilities of tokens, and tokens as text.

use oq_data::{DataError, DecodeStream, Tokenizer};

use crate::job::{Score, Spelled};

/// Scores the tokens of a text, one after the other.
pub(crate) struct Scorer<'a> {
    tokenizer: &'a Tokenizer,
    /// The text so far, on which depends how a token is spelled.
    stream: DecodeStream<'a>,
}

impl<'a> Scorer<'a> {
    /// Of tokens that follow `prompt`.
    pub(crate) fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self, DataError> {
        Ok(Self { tokenizer, stream: tokenizer.stream(prompt)? })
    }

    /// The first token of a text, which nothing predicts.
    pub(crate) fn first(&mut self, id: u32) -> Result<Score, DataError> {
        Ok(Score { token: self.push(id)?, logprob: None, top: Vec::new() })
    }

    /// The next token, and the `n` most likely ones in its place, by `logits [vocab]`.
    pub(crate) fn next(&mut self, logits: &[f32], id: u32, n: usize) -> Result<Score, DataError> {
        let total = log_sum(logits);
        let logprob = |id: u32| f64::from(logits[id as usize]) - total;
        let top = likeliest(logits, n).into_iter().map(|other| {
            let text = self.stream.clone().push(other)?;
            Ok((self.spelled(text, other), logprob(other)))
        });
        let top = top.collect::<Result<_, DataError>>()?;
        Ok(Score { token: self.push(id)?, logprob: Some(logprob(id)), top })
    }

    fn push(&mut self, id: u32) -> Result<Spelled, DataError> {
        let text = self.stream.push(id)?;
        Ok(self.spelled(text, id))
    }

    fn spelled(&self, text: String, id: u32) -> Spelled {
        match text.is_empty() {
            true => Spelled { text: self.tokenizer.token(id).unwrap_or_default(), is_text: false },
            false => Spelled { text, is_text: true },
        }
    }
}

/// The logarithm of the sum of exponentials.
fn log_sum(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

/// The ids of the `n` largest logits, the largest first; equal ones by their ids.
fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if n < ids.len() {
        ids.select_nth_unstable_by(n, order);
        ids.truncate(n);
    }
    ids.sort_by(order);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first() {
        let logits = [0.5, -1.0, 3.0, 3.0, 2.0];
        assert!(likeliest(&logits, 0).is_empty());
        assert_eq!(likeliest(&logits, 3), [2, 3, 4]);
        assert_eq!(likeliest(&logits, 9), [2, 3, 4, 0, 1]);
    }

    #[test]
    fn probabilities_add_up_to_one() {
        // Sums of a few f64.
        const EXACT: f64 = 1e-12;
        for shift in [0.0, 1e4, -1e4] {
            let logits = [1.0, 2.0, 3.0].map(|logit| logit + shift);
            let total = log_sum(&logits);
            let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - total).exp()).sum();
            assert!((sum - 1.0).abs() < EXACT, "{sum}");
        }
    }
}
