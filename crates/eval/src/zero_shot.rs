//! Zero-shot accuracy: how often a model finds the correct choice of an item the most likely.
//!
//! Scores follow the `lm-evaluation-harness`: a choice scores the sum of its tokens' log-likelihoods given the context, optionally per
//! character of its text. Context and choice are tokenized together, without special tokens, and split after the number of tokens that the
//! context alone has.

use std::collections::HashMap;

use oq_data::{AddSpecial, Choice, Item, Tokenizer};
use oq_models::{Head, Model, ModelError};
use tch::{Device, Tensor};

use crate::error::EvalError;
use crate::forward::{Progress, STATES_BYTES, embed, nll, run_blocks};

/// Number of tokens that are computed at once.
const BATCH_TOKENS: usize = 2048;
/// Lengths are rounded up to multiples of this.
const STEP: usize = 16;

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
    /// Standard error of a fraction of the items.
    pub fn error_of(&self, accuracy: f64) -> f64 {
        (accuracy * (1.0 - accuracy) / (self.items.max(2) - 1) as f64).sqrt()
    }
}

/// One continuation of one sequence.
struct Request {
    /// Index of the sequence.
    sequence: usize,
    /// The position that predicts the first token of the continuation.
    first: usize,
    /// Tokens of the continuation.
    targets: Vec<u32>,
}

/// Evaluates `model` on all items.
pub fn zero_shot(
    model: &Model,
    tokenizer: &Tokenizer,
    items: &[Item],
    device: Device,
    progress: &mut dyn FnMut(Progress),
) -> Result<Accuracy, EvalError> {
    let choices = || items.iter().flat_map(|item| &item.choices);
    let (mut sequences, mut seen, mut requests) = (Vec::new(), HashMap::new(), Vec::new());
    for choice in choices() {
        let (ids, targets) = tokens(tokenizer, choice, model.decoder().dims().max_positions)?;
        let first = ids.len() - targets.len();
        // Choices of one token share everything that the model reads.
        let sequence = *seen.entry(ids.clone()).or_insert_with(|| {
            sequences.push(ids);
            sequences.len() - 1
        });
        requests.push(Request { sequence, first, targets });
    }
    let values = log_likelihoods(model, &sequences, &requests, device, progress)?;
    let per_character = choices().zip(&values).map(|(choice, value)| {
        // Without the leading space.
        value / (choice.continuation.chars().count() - 1).max(1) as f64
    });
    let right = |values: Vec<f64>| {
        let mut values = values.into_iter();
        let is_right = |item: &&Item| {
            let of_item: Vec<f64> = values.by_ref().take(item.choices.len()).collect();
            // On a tie, the first.
            let best = of_item
                .iter()
                .enumerate()
                .fold(0, |best, (idx, value)| if *value > of_item[best] { idx } else { best });
            best == item.gold
        };
        items.iter().filter(is_right).count() as f64 / items.len().max(1) as f64
    };
    let normalized = right(per_character.collect());
    Ok(Accuracy { items: items.len(), plain: right(values), normalized })
}

/// The input of the model for a choice (all tokens but the last), and the tokens of the continuation. Inputs longer than `longest` lose
/// their beginning.
fn tokens(tokenizer: &Tokenizer, choice: &Choice, longest: usize) -> Result<(Vec<u32>, Vec<u32>), EvalError> {
    let context = tokenizer.encode(&choice.context, AddSpecial::No)?.len();
    let whole = tokenizer.encode(&format!("{}{}", choice.context, choice.continuation), AddSpecial::No)?;
    if whole.len() < 2 {
        return Err(EvalError::OneToken { text: format!("{}{}", choice.context, choice.continuation) });
    }
    // Some tokenizers may join the end of the context and the beginning of the choice.
    let context = context.clamp(1, whole.len() - 1);
    let targets = whole[context..].to_vec();
    let read = &whole[..whole.len() - 1];
    let read = &read[read.len().saturating_sub(longest.max(targets.len()))..];
    Ok((read.to_vec(), targets))
}

/// Sum of the log-likelihoods of each request's tokens.
fn log_likelihoods(
    model: &Model,
    sequences: &[Vec<u32>],
    requests: &[Request],
    device: Device,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<f64>, EvalError> {
    let _no_grad = tch::no_grad_guard();
    let mut of_sequence = vec![Vec::new(); sequences.len()];
    for (idx, request) in requests.iter().enumerate() {
        of_sequence[request.sequence].push(idx);
    }
    let dims = model.decoder().dims();
    // The last token of a sequence is only predicted, never read.
    for Request { first, targets, .. } in requests {
        if let Some(i) = targets.iter().position(|&id| id as usize >= dims.vocab) {
            let (id, index) = (i64::from(targets[i]), first + 1 + i);
            return Err(ModelError::TokenId { id, index, vocab: dims.vocab }.into());
        }
    }
    let padded = |length| padded(length, dims.max_positions);
    let batches = batches(sequences, padded);
    let bytes = |batch: &[usize]| batch.len() * padded(sequences[batch[0]].len()) * dims.hidden * 4;
    let chunks = chunks(&batches, |batch| bytes(batch));
    let (mut done, total) = (0, chunks.len() * dims.n_layers);
    let mut values = vec![0.0; requests.len()];
    for chunk in chunks {
        let ids: Vec<Tensor> = chunk.iter().map(|batch| ids_of(batch, sequences, padded)).collect();
        let mut states = embed(model, &ids, device)?;
        run_blocks(model, &mut states, device, &mut || {
            done += 1;
            progress(Progress { done, total });
        })?;
        let head = model.head(device)?;
        for (batch, x) in chunk.iter().zip(&states) {
            for (row, &sequence) in batch.iter().enumerate() {
                for &idx in &of_sequence[sequence] {
                    let value = log_likelihood(model, &x.get(row as i64), &head, &requests[idx], device)?;
                    if !value.is_finite() {
                        return Err(EvalError::NotFinite { window: idx, value });
                    }
                    values[idx] = value;
                }
            }
        }
    }
    Ok(values)
}

/// The scores of a request's tokens, given a sequence's last hidden states `x [t, hidden]`.
fn log_likelihood(
    model: &Model,
    x: &Tensor,
    head: &Head,
    request: &Request,
    device: Device,
) -> Result<f64, ModelError> {
    let n = request.targets.len() as i64;
    let x = x.narrow(0, request.first as i64, n);
    let x = model.decoder().finish(&model.outer(device), &x.unsqueeze(0))?.squeeze_dim(0);
    let targets: Vec<i64> = request.targets.iter().map(|&id| i64::from(id)).collect();
    let targets = Tensor::from_slice(&targets).to_device(device);
    Ok(-nll(head, &x, &targets))
}

/// Sequences that are computed together, by index: all of one padded length, the longest first.
fn batches(sequences: &[Vec<u32>], padded: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|&idx| std::cmp::Reverse(sequences[idx].len()));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for idx in order {
        let length = padded(sequences[idx].len());
        match batches.last_mut() {
            Some(batch)
                if padded(sequences[batch[0]].len()) == length && (batch.len() + 1) * length <= BATCH_TOKENS =>
            {
                batch.push(idx);
            }
            _ => batches.push(vec![idx]),
        }
    }
    batches
}

/// Batches in chunks of at most [`STATES_BYTES`], or of one batch.
fn chunks(batches: &[Vec<usize>], bytes: impl Fn(&[usize]) -> usize) -> Vec<&[Vec<usize>]> {
    let (mut chunks, mut start, mut sum) = (Vec::new(), 0, 0);
    for (idx, batch) in batches.iter().enumerate() {
        let own = bytes(batch);
        if idx > start && sum + own > STATES_BYTES {
            chunks.push(&batches[start..idx]);
            (start, sum) = (idx, 0);
        }
        sum += own;
    }
    if start < batches.len() {
        chunks.push(&batches[start..]);
    }
    chunks
}

/// At most the model's number of positions, which the sequence itself does not exceed.
fn padded(length: usize, max_positions: usize) -> usize {
    length.next_multiple_of(STEP).min(max_positions.max(length))
}

/// `[b, t]`, padded at the ends, which causal attention hides from all earlier positions.
fn ids_of(batch: &[usize], sequences: &[Vec<u32>], padded: impl Fn(usize) -> usize) -> Tensor {
    let length = padded(sequences[batch[0]].len());
    let row = |&idx: &usize| {
        let ids = sequences[idx].iter().map(|&id| i64::from(id));
        ids.chain(std::iter::repeat(0)).take(length)
    };
    let flat: Vec<i64> = batch.iter().flat_map(row).collect();
    Tensor::from_slice(&flat).view([batch.len() as i64, length as i64])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logits;
    use std::path::Path;
    use tch::Kind;

    #[test]
    fn likelihoods_are_those_of_whole_sequences() {
        // Both sides in f32; batches sum in other orders.
        const TOLERANCE: f64 = 1e-3;
        for name in ["tiny-llama", "tiny-opt", "tiny-falcon"] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
            let model = Model::open(&dir).unwrap();
            // Two share their sequence, lengths and batches differ.
            let sequence = |n: u32| (0..n).map(|i| 5 + (i * i + 3 * n) % 90).collect::<Vec<u32>>();
            let sequences: Vec<Vec<u32>> = [7, 40, 33, 16, 17, 100].map(sequence).to_vec();
            let targets = |sequence: usize, n: usize, last: u32| {
                let ids = &sequences[sequence];
                let first = ids.len() - n;
                let targets = ids[first + 1..].iter().copied().chain([last]).collect();
                Request { sequence, first, targets }
            };
            let requests = [(0, 3, 9), (1, 1, 8), (1, 1, 7), (2, 12, 6), (3, 16, 5), (4, 2, 9), (5, 60, 8)]
                .map(|(s, n, last)| targets(s, n, last));
            let values = log_likelihoods(&model, &sequences, &requests, Device::Cpu, &mut |_| ()).unwrap();
            for (request, value) in requests.iter().zip(values) {
                let ids: Vec<i64> = sequences[request.sequence].iter().map(|&id| i64::from(id)).collect();
                let logits = logits(&model, &Tensor::from_slice(&ids).unsqueeze(0), Device::Cpu).unwrap();
                let log_p = logits.squeeze_dim(0).log_softmax(-1, Kind::Double);
                let of_token =
                    |(i, &id): (usize, &u32)| log_p.double_value(&[(request.first + i) as i64, i64::from(id)]);
                let expected: f64 = request.targets.iter().enumerate().map(of_token).sum();
                assert!((value - expected).abs() < TOLERANCE, "{name}: {value} for {expected}");
            }
        }
    }

    #[test]
    fn the_likeliest_choice_is_the_answer() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-llama");
        let (model, tokenizer) = (Model::open(&dir).unwrap(), Tokenizer::open(&dir).unwrap());
        let choice =
            |continuation: &str| Choice { context: "The man".to_owned(), continuation: continuation.to_owned() };
        // One is short; one is likely for its length.
        let choices = [" q", " and the old man went down to the river", " zq xj"].map(choice);
        let worth = |choice: &Choice| {
            let (read, targets) = tokens(&tokenizer, choice, 512).unwrap();
            let ids: Vec<i64> = read.iter().map(|&id| i64::from(id)).collect();
            let logits = logits(&model, &Tensor::from_slice(&ids).unsqueeze(0), Device::Cpu).unwrap();
            let log_p = logits.squeeze_dim(0).log_softmax(-1, Kind::Double);
            let first = read.len() - targets.len();
            let of_token = |(i, &id): (usize, &u32)| log_p.double_value(&[(first + i) as i64, i64::from(id)]);
            targets.iter().enumerate().map(of_token).sum::<f64>()
        };
        let best = |worths: [f64; 3]| (0..3).max_by(|&a, &b| worths[a].total_cmp(&worths[b])).unwrap();
        let plain = best(choices.each_ref().map(worth));
        let characters = |choice: &Choice| (choice.continuation.len() - 1) as f64;
        let normalized = best(choices.each_ref().map(|choice| worth(choice) / characters(choice)));
        assert_ne!(plain, normalized, "else the two cannot be told apart");
        let ask = |golds: &[usize]| {
            let items: Vec<Item> = golds.iter().map(|&gold| Item { choices: choices.to_vec(), gold }).collect();
            let result = zero_shot(&model, &tokenizer, &items, Device::Cpu, &mut |_| ()).unwrap();
            (result.items, result.plain, result.normalized)
        };
        for gold in 0..3 {
            let is = |best: usize| f64::from(u8::from(best == gold));
            assert_eq!(ask(&[gold]), (1, is(plain), is(normalized)));
        }
        assert_eq!(ask(&[plain, plain, normalized, plain]), (4, 0.75, 0.25));
    }

    #[test]
    fn tokens_beyond_the_vocabulary_are_refused_where_nothing_reads_them() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-llama");
        let model = Model::open(&dir).unwrap();
        let request = Request { sequence: 0, first: 1, targets: vec![3, 1024] };
        let result = log_likelihoods(&model, &[vec![1, 2, 3]], &[request], Device::Cpu, &mut |_| ());
        let token = ModelError::TokenId { id: 1024, index: 3, vocab: 1024 };
        assert_eq!(result.unwrap_err().to_string(), token.to_string());
    }

    #[test]
    fn choices_are_cut_where_the_context_ends() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-llama");
        let tokenizer = Tokenizer::open(&dir).unwrap();
        let choice = Choice { context: "Question: why\nAnswer:".to_owned(), continuation: " because it is".to_owned() };
        let (read, targets) = tokens(&tokenizer, &choice, 1000).unwrap();
        let whole = tokenizer.encode("Question: why\nAnswer: because it is", AddSpecial::No).unwrap();
        let context = tokenizer.encode("Question: why\nAnswer:", AddSpecial::No).unwrap();
        assert_eq!(read, whole[..whole.len() - 1]);
        assert_eq!(targets, whole[context.len()..]);
        let (short, same) = tokens(&tokenizer, &choice, targets.len() + 1).unwrap();
        assert_eq!((&short[..], same), (&read[read.len() - targets.len() - 1..], targets));
    }

    #[test]
    fn batches_hold_every_sequence_once() {
        let sequences: Vec<Vec<u32>> = (1..400).map(|n| vec![0; 1 + n * 37 % 300]).collect();
        // No longer than the positions of a model, where a sequence is not.
        let padded = |length| padded(length, 299);
        assert_eq!([16, 17, 289, 299, 300].map(padded), [16, 32, 299, 299, 300]);
        let batches = batches(&sequences, padded);
        let mut all: Vec<usize> = batches.concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..sequences.len()));
        assert!(batches.iter().all(|batch| batch.len() * padded(sequences[batch[0]].len()) <= BATCH_TOKENS));
        let bytes = |batch: &[usize]| batch.len() * 40_000_000;
        let chunks = chunks(&batches, bytes);
        assert_eq!(chunks.concat(), batches);
        let sum = |chunk: &[Vec<usize>]| chunk.iter().map(|batch| bytes(batch)).sum::<usize>();
        assert!(chunks.iter().all(|chunk| chunk.len() == 1 || sum(chunk) <= STATES_BYTES));
    }

    #[test]
    fn errors_are_those_of_a_fraction() {
        let accuracy = Accuracy { items: 101, plain: 0.5, normalized: 0.2 };
        assert_eq!((accuracy.error_of(0.5), accuracy.error_of(0.2)), (0.05, 0.04));
    }
}
