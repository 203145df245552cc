//! Zero-shot tasks: how likely a model finds each choice of an item.
//!
//! Scores follow the `lm-evaluation-harness`: a choice scores the sum of its tokens' log-likelihoods given the context. Context and choice
//! are tokenized together, with the special tokens that the tokenizer adds, and split after the number of tokens that the context alone has;
//! spaces at the end of the context count as the choice's.
//!
//! What an item's choices share, usually their context, is computed once, and many items are computed as one sequence without padding. Items
//! are divided into chunks, whose answers do not depend on other chunks.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use oq_data::{AddSpecial, Choice, Item, Tokenizer};
use oq_models::{Head, Model, ModelError};
use oq_runtime::trim_memory;
use tch::{Device, Kind, Tensor};

use crate::accuracy::Answer;
use crate::error::EvalError;
use crate::forward::{Progress, STATES_BYTES, logit_rows};
use crate::tree::{Forest, Tree};

/// Number of tokens that are computed as one sequence.
const BATCH_TOKENS: usize = 2048;
/// Number of tokens of a chunk: many enough that reading the weights for them takes little of the time.
const CHUNK_TOKENS: usize = 1 << 15;

/// What happens while items are answered.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Asked<'a> {
    /// Blocks were computed.
    Progress(Progress),
    /// A chunk of items is answered, from index `first` on.
    Answered {
        /// Index of the first.
        first: usize,
        /// One answer for each.
        answers: &'a [Answer],
    },
}

/// One continuation of one sequence.
struct Request {
    /// For each token of the continuation, the one of the item's tree that predicts it.
    predicting: Vec<usize>,
    /// Tokens of the continuation.
    targets: Vec<u32>,
}

/// An item as tokens.
struct Question {
    tree: Tree,
    /// One for each choice.
    requests: Vec<Request>,
}

/// Asks `model` all items. Those with a `known` answer, one entry for each item, are not asked again if all of their chunk are known.
///
/// # Errors
/// When an item cannot be tokenized or has a token that the model lacks, a likelihood is not finite, or `on` breaks.
pub fn zero_shot(
    model: &Model,
    tokenizer: &Tokenizer,
    items: &[Item],
    known: &[Option<Answer>],
    device: Device,
    on: &mut dyn FnMut(Asked<'_>) -> ControlFlow<()>,
) -> Result<Vec<Answer>, EvalError> {
    let _no_grad = tch::no_grad_guard();
    assert_eq!(items.len(), known.len(), "an entry for each item");
    let dims = model.decoder().dims();
    let question = |item: &Item| -> Result<Question, EvalError> {
        let choices = item.choices.iter().map(|choice| tokens(tokenizer, choice, dims.max_positions));
        Ok(Question::new(choices.collect::<Result<Vec<_>, EvalError>>()?, dims.vocab)?)
    };
    let questions = items.iter().map(question).collect::<Result<Vec<_>, EvalError>>()?;
    let chunk_tokens = CHUNK_TOKENS.min(STATES_BYTES / (dims.hidden * 4));
    let chunks = runs(&questions, chunk_tokens);
    let is_known = |chunk: &Range<usize>| known[chunk.clone()].iter().all(Option::is_some);
    let total = dims.n_layers * chunks.iter().filter(|chunk| !is_known(chunk)).count();
    let (mut done, mut answers) = (0, Vec::with_capacity(items.len()));
    for chunk in chunks {
        if is_known(&chunk) {
            answers.extend(known[chunk].iter().flatten().cloned());
            continue;
        }
        let first = chunk.start;
        let mut step = || {
            done += 1;
            on(Asked::Progress(Progress { done, total }))
        };
        let new = answer(model, &questions[chunk], first, device, &mut step)?;
        if on(Asked::Answered { first, answers: &new }).is_break() {
            return Err(EvalError::Stopped);
        }
        answers.extend(new);
    }
    Ok(answers)
}

/// Answers questions, of which the first has the index `first`, with each block loaded once.
fn answer(
    model: &Model,
    questions: &[Question],
    first: usize,
    device: Device,
    after_block: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<Answer>, EvalError> {
    let decoder = model.decoder();
    let batches: Vec<&[Question]> = runs(questions, BATCH_TOKENS).into_iter().map(|run| &questions[run]).collect();
    let outer = model.outer(device);
    let mut states = Vec::with_capacity(batches.len());
    for batch in &batches {
        let embed = |question: &Question| question.tree.embed(|ids| decoder.embed(&outer, ids));
        let embedded = batch.iter().map(embed).collect::<Result<Vec<_>, ModelError>>()?;
        let trees: Vec<&Tree> = batch.iter().map(|question| &question.tree).collect();
        states.push((Forest::new(decoder, &trees, device), Tensor::cat(&embedded, 1)));
    }
    for block_idx in 0..decoder.dims().n_layers {
        trim_memory();
        let block = model.block(block_idx, device)?;
        model.read_ahead(block_idx + 1);
        block.with_ops(|ops| {
            for (forest, x) in &mut states {
                *x = forest.block(decoder, block_idx, ops, x);
            }
        });
        if after_block().is_break() {
            return Err(EvalError::Stopped);
        }
    }
    let head = model.head(device)?;
    let mut answers = Vec::with_capacity(questions.len());
    for (batch, (_, x)) in batches.into_iter().zip(states) {
        let found = likelihoods(model, &head, batch, &x.squeeze_dim(0), device)?;
        let mut found = found.into_iter();
        for question in batch {
            let of_item: Vec<(f64, bool)> = found.by_ref().take(question.requests.len()).collect();
            if let Some((value, _)) = of_item.iter().find(|(value, _)| !value.is_finite()) {
                return Err(EvalError::NotFinite { window: first + answers.len(), value: *value });
            }
            let (log_likelihoods, is_greedy) = of_item.into_iter().unzip();
            answers.push(Answer { log_likelihoods, is_greedy });
        }
    }
    Ok(answers)
}

/// For each request of a batch, the sum of its tokens' log-likelihoods, and whether each is the likeliest, from the last block's output
/// `x [tokens of the batch, hidden]`.
fn likelihoods(
    model: &Model,
    head: &Head,
    batch: &[Question],
    x: &Tensor,
    device: Device,
) -> Result<Vec<(f64, bool)>, ModelError> {
    // What is predicted by each token that predicts any: requests and tokens.
    let mut wanted: BTreeMap<i64, Vec<(usize, i64)>> = BTreeMap::new();
    let (mut start, mut n_requests) = (0, 0);
    for question in batch {
        for request in &question.requests {
            for (&idx, &target) in request.predicting.iter().zip(&request.targets) {
                wanted.entry((start + idx) as i64).or_default().push((n_requests, i64::from(target)));
            }
            n_requests += 1;
        }
        start += question.tree.len();
    }
    let mut found = vec![(0.0, true); n_requests];
    let wanted: Vec<(i64, Vec<(usize, i64)>)> = wanted.into_iter().collect();
    let vocab = model.decoder().dims().vocab;
    for rows in wanted.chunks(logit_rows(vocab) as usize) {
        let index: Vec<i64> = rows.iter().map(|(row, _)| *row).collect();
        let x = x.index_select(0, &Tensor::from_slice(&index).to_device(device));
        let x = model.decoder().finish(&model.outer(device), &x.unsqueeze(0))?.squeeze_dim(0);
        let log_p = head.logits(&x).log_softmax(-1, Kind::Float); // [rows, vocab]
        let likeliest = Vec::<i64>::try_from(log_p.argmax(1, false)).expect("a vector of indices");
        let pairs = rows.iter().enumerate().flat_map(|(i, (_, pairs))| pairs.iter().map(move |pair| (i, pair)));
        let places: Vec<i64> = pairs.clone().map(|(i, (_, target))| i as i64 * log_p.size()[1] + target).collect();
        let values = log_p.view(-1).index_select(0, &Tensor::from_slice(&places).to_device(device));
        let values = Vec::<f32>::try_from(values.to_device(Device::Cpu)).expect("a vector of f32");
        for ((i, (request, target)), value) in pairs.zip(values) {
            let (sum, is_greedy) = &mut found[*request];
            *sum += f64::from(value);
            *is_greedy &= likeliest[i] == *target;
        }
    }
    Ok(found)
}

/// Questions in a row that have at most `tokens` together, or are one.
fn runs(questions: &[Question], tokens: usize) -> Vec<Range<usize>> {
    let (mut runs, mut start, mut sum) = (Vec::new(), 0, 0);
    for (idx, question) in questions.iter().enumerate() {
        let own = question.tree.len();
        if idx > start && sum + own > tokens {
            runs.push(start..idx);
            (start, sum) = (idx, 0);
        }
        sum += own;
    }
    if start < questions.len() {
        runs.push(start..questions.len());
    }
    runs
}

impl Question {
    /// From what the model reads for each choice, and the tokens of the continuation, whose first ones are the last that it reads.
    fn new(choices: impl IntoIterator<Item = (Vec<u32>, Vec<u32>)>, vocab: usize) -> Result<Self, ModelError> {
        let mut tree = Tree::default();
        let request = |(read, targets): (Vec<u32>, Vec<u32>)| {
            // The last token of a sequence is only predicted, never read.
            if let Some(i) = targets.iter().position(|&id| id as usize >= vocab) {
                let index = read.len() - targets.len() + 1 + i;
                return Err(ModelError::TokenId { id: i64::from(targets[i]), index, vocab });
            }
            let path = tree.add(&read);
            Ok(Request { predicting: path[path.len() - targets.len()..].to_vec(), targets })
        };
        let requests = choices.into_iter().map(request).collect::<Result<Vec<_>, ModelError>>()?;
        Ok(Self { tree, requests })
    }
}

/// The input of the model for a choice (all tokens but the last), and the tokens of the continuation. Inputs longer than `longest` lose
/// their beginning.
fn tokens(tokenizer: &Tokenizer, choice: &Choice, longest: usize) -> Result<(Vec<u32>, Vec<u32>), EvalError> {
    let text = format!("{}{}", choice.context, choice.continuation);
    let context = tokenizer.encode(choice.context.trim_end(), AddSpecial::Yes)?.len();
    let whole = tokenizer.encode(&text, AddSpecial::Yes)?;
    if whole.len() < 2 {
        return Err(EvalError::OneToken { text });
    }
    // Some tokenizers may join the end of the context and the beginning of the choice.
    let context = context.clamp(1, whole.len() - 1);
    let targets = whole[context..].to_vec();
    let read = &whole[..whole.len() - 1];
    let read = &read[read.len().saturating_sub(longest.max(targets.len()))..];
    Ok((read.to_vec(), targets))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::accuracy::Accuracy;
    use crate::logits;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
    }

    fn ask(model: &Model, tokenizer: &Tokenizer, items: &[Item]) -> Vec<Answer> {
        zero_shot(model, tokenizer, items, &vec![None; items.len()], Device::Cpu, &mut |_| ControlFlow::Continue(()))
            .unwrap()
    }

    fn item(context: &str, continuations: &[&str]) -> Item {
        let choice =
            |continuation: &&str| Choice { context: context.to_owned(), continuation: (*continuation).to_owned() };
        Item { choices: continuations.iter().map(choice).collect(), gold: 0 }
    }

    /// The sum of the targets' log-likelihoods, and whether each is the likeliest, from the logits of a whole sequence.
    fn of_sequence(model: &Model, read: &[u32], targets: &[u32]) -> (f64, bool) {
        let ids: Vec<i64> = read.iter().map(|&id| i64::from(id)).collect();
        let logits = logits(model, &Tensor::from_slice(&ids).unsqueeze(0), Device::Cpu).unwrap();
        let log_p = logits.squeeze_dim(0).log_softmax(-1, Kind::Double);
        let first = read.len() - targets.len();
        let of_token = |(i, &id): (usize, &u32)| {
            let row = log_p.get((first + i) as i64);
            (row.double_value(&[i64::from(id)]), row.argmax(0, false).int64_value(&[]) == i64::from(id))
        };
        let values: Vec<(f64, bool)> = targets.iter().enumerate().map(of_token).collect();
        (values.iter().map(|(value, _)| value).sum(), values.iter().all(|(_, is_greedy)| *is_greedy))
    }

    #[test]
    fn likelihoods_are_those_of_whole_sequences() {
        // Both sides in f32; products of other shapes sum in other orders.
        const TOLERANCE: f64 = 1e-3;
        let tiny = ["tiny-llama", "tiny-opt", "tiny-falcon", "tiny-mixtral", "tiny-qwen3-moe", "falcon-7b-like"]
            .map(str::to_owned);
        // With sliding windows, softcaps, sinks, ALiBi or tables of positions.
        let variants = ["mixtral-window", "gemma2", "gemma3", "olmo3", "gpt-oss", "phi3-long", "smollm3"];
        let variants = variants.map(|name| format!("family-variants/{name}"));
        let sequence =
            |n: usize, seed: usize| (0..n).map(|i| (5 + (i * i + 3 * seed) % 50) as u32).collect::<Vec<u32>>();
        let after = |first: &[u32], n, seed| [first, &sequence(n, seed)].concat();
        let question = |shared: usize, seed, ends: &[(usize, usize)]| {
            let shared = sequence(shared, seed);
            // Of the end, the last token is not read, and all are predicted.
            let choice = |(i, &(n, known)): (usize, &(usize, usize))| {
                let whole = after(&shared, n, seed + 7 * i + 1);
                let first = whole.len() - n.min(known);
                (whole[..whole.len() - 1].to_vec(), whole[first..].to_vec())
            };
            ends.iter().enumerate().map(choice).collect::<Vec<_>>()
        };
        let mut questions = vec![
            question(12, 1, &[(4, 4), (1, 1), (9, 9)]),
            question(40, 2, &[(1, 1), (1, 1)]),
            question(7, 3, &[(5, 2)]),
            question(1, 4, &[(3, 3), (6, 6), (2, 2), (2, 2)]),
            question(60, 5, &[(20, 20), (3, 3)]),
        ];
        // A choice that another goes on from.
        let long = sequence(9, 6);
        questions.push(vec![(long[..8].to_vec(), long[5..].to_vec()), (long[..5].to_vec(), long[4..6].to_vec())]);
        for name in tiny.iter().chain(&variants) {
            let model = Model::open(&fixture(name)).unwrap();
            let vocab = model.decoder().dims().vocab;
            let asked: Vec<Question> =
                questions.iter().map(|choices| Question::new(choices.clone(), vocab).unwrap()).collect();
            let answers =
                tch::no_grad(|| answer(&model, &asked, 0, Device::Cpu, &mut || ControlFlow::Continue(())).unwrap());
            for (choices, answer) in questions.iter().zip(&answers) {
                for (i, (read, targets)) in choices.iter().enumerate() {
                    let (expected, is_greedy) = of_sequence(&model, read, targets);
                    let value = answer.log_likelihoods[i];
                    assert!((value - expected).abs() < TOLERANCE, "{name}: {value} for {expected}");
                    assert_eq!(answer.is_greedy[i], is_greedy, "{name}");
                }
            }
        }
    }

    #[test]
    fn known_answers_are_kept_and_the_others_are_the_same_again() {
        let dir = fixture("tiny-llama");
        let (model, tokenizer) = (Model::open(&dir).unwrap(), Tokenizer::open(&dir).unwrap());
        let long = "The old man went down to the river and looked at the boat. ".repeat(20);
        let items: Vec<Item> = (0..300).map(|i| item(&format!("{i} {long}"), &[" yes", " no way"])).collect();
        let mut chunks = Vec::new();
        let whole = zero_shot(&model, &tokenizer, &items, &vec![None; items.len()], Device::Cpu, &mut |asked| {
            if let Asked::Answered { first, answers } = asked {
                chunks.push((first, answers.to_vec()));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(chunks.len() > 1 && chunks[0].1.len() + chunks[1].1.len() <= items.len());
        assert_eq!(chunks.iter().flat_map(|(_, answers)| answers.clone()).collect::<Vec<_>>(), whole);
        // Without the last one of the last chunk, only that chunk is asked again.
        let mut known: Vec<Option<Answer>> = whole.iter().cloned().map(Some).collect();
        *known.last_mut().unwrap() = None;
        let mut again = Vec::new();
        let resumed = zero_shot(&model, &tokenizer, &items, &known, Device::Cpu, &mut |asked| {
            if let Asked::Answered { first, .. } = asked {
                again.push(first);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((again, resumed), (vec![chunks.last().unwrap().0], whole));
        let none = vec![None; items.len()];
        let stopped = zero_shot(&model, &tokenizer, &items, &none, Device::Cpu, &mut |_| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(EvalError::Stopped)));
    }

    #[test]
    fn the_likeliest_choice_is_the_answer() {
        let dir = fixture("tiny-llama");
        let (model, tokenizer) = (Model::open(&dir).unwrap(), Tokenizer::open(&dir).unwrap());
        // One is short; one is likely for its length.
        let question = item("The man", &[" q", " and the old man went down to the river", " zq xj"]);
        let best = |worths: Vec<f64>| (0..3).max_by(|&a, &b| worths[a].total_cmp(&worths[b])).unwrap();
        let worth = |choice: &Choice| {
            let (read, targets) = tokens(&tokenizer, choice, 512).unwrap();
            of_sequence(&model, &read, &targets).0
        };
        let plain = best(question.choices.iter().map(worth).collect());
        let characters = |choice: &Choice| (choice.continuation.len() - 1) as f64;
        let normalized = best(question.choices.iter().map(|choice| worth(choice) / characters(choice)).collect());
        assert_ne!(plain, normalized, "else the two cannot be told apart");
        let ask = |golds: &[usize]| {
            let items: Vec<Item> = golds.iter().map(|&gold| Item { gold, ..question.clone() }).collect();
            let result = Accuracy::new(&items, &ask(&model, &tokenizer, &items));
            (result.items, result.plain, result.normalized)
        };
        for gold in 0..3 {
            let is = |best: usize| f64::from(u8::from(best == gold));
            assert_eq!(ask(&[gold]), (1, is(plain), is(normalized)));
        }
        assert_eq!(ask(&[plain, plain, normalized, plain]), (4, 0.75, 0.25));
    }

    #[test]
    fn choices_are_cut_where_the_context_ends() {
        let tokenizer = Tokenizer::open(&fixture("tiny-llama")).unwrap();
        let choice = Choice { context: "Question: why\nAnswer:".to_owned(), continuation: " because it is".to_owned() };
        let (read, targets) = tokens(&tokenizer, &choice, 1000).unwrap();
        let whole = tokenizer.encode("Question: why\nAnswer: because it is", AddSpecial::Yes).unwrap();
        let context = tokenizer.encode("Question: why\nAnswer:", AddSpecial::Yes).unwrap();
        assert_eq!(read, whole[..whole.len() - 1]);
        assert_eq!(targets, whole[context.len()..]);
        let (short, same) = tokens(&tokenizer, &choice, targets.len() + 1).unwrap();
        assert_eq!((&short[..], same), (&read[read.len() - targets.len() - 1..], targets));
    }

    #[test]
    fn tokens_beyond_the_vocabulary_are_refused_where_nothing_reads_them() {
        let Err(refused) = Question::new([(vec![1, 2, 3], vec![3, 1024])], 1024) else { panic!("must be refused") };
        assert_eq!(refused.to_string(), ModelError::TokenId { id: 1024, index: 3, vocab: 1024 }.to_string());
    }

    #[test]
    fn runs_hold_every_question_once() {
        let question = |n: usize| {
            let mut tree = Tree::default();
            tree.add(&vec![0; n]);
            Question { tree, requests: Vec::new() }
        };
        let questions: Vec<Question> = (1..200).map(|n| question(1 + n * 37 % 300)).collect();
        let runs = runs(&questions, 250);
        assert!(runs.iter().cloned().flatten().eq(0..questions.len()));
        let sum = |run: &Range<usize>| questions[run.clone()].iter().map(|question| question.tree.len()).sum::<usize>();
        assert!(runs.iter().all(|run| run.len() == 1 || sum(run) <= 250));
    }
}
