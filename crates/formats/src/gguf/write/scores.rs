//! Scores of SentencePiece BPE from the merges of a tokenizer.json.
//!
//! SentencePiece joins the two neighbours whose union has the best score, tokenizers the pair that is first in its list. These are the same
//! if the list has every way of making a token from two, and the ways of one token follow each other.

use std::collections::{HashMap, HashSet};

use crate::sentencepiece;

/// A score for each of `len` tokens, of which `normal` are those that text consists of, with their ids.
///
/// # Errors
/// When no scores can express the merges.
pub(super) fn scores(normal: &[(usize, &str)], len: usize, merges: &[(&str, &str)]) -> Result<Vec<f32>, String> {
    let ids: HashMap<&str, usize> = normal.iter().map(|&(id, text)| (text, id)).collect();
    // A special token is cut out of a text first, so nothing is merged to one.
    let made = |(left, right): (&str, &str)| {
        let id = *ids.get(format!("{left}{right}").as_str())?;
        (ids.contains_key(left) && ids.contains_key(right)).then_some(id)
    };
    // Tokens that are not merged come last; only single characters, which text begins with, are of use among them.
    let mut scores = vec![-(merges.len() as f32); len];
    let mut is_ranked = vec![false; len];
    let (mut last, mut listed) = (None, HashSet::new());
    for (rank, &(left, right)) in merges.iter().enumerate() {
        let Some(id) = made((left, right)) else { continue };
        listed.insert((left, right));
        if last == Some(id) {
            continue;
        }
        if is_ranked[id] {
            return Err(format!("merges {left:?} and {right:?} later than their other ways: scores cannot say that"));
        }
        (is_ranked[id], scores[id], last) = (true, -(rank as f32), Some(id));
    }
    let all =
        sentencepiece::merges(normal, &vec![0.0; len]).ok_or("tokens that are made of others in too many ways")?;
    match all.iter().filter_map(|merge| merge.split_once(' ')).find(|pair| !listed.contains(pair)) {
        Some((left, right)) => Err(format!("does not merge {left:?} and {right:?}, which scores cannot say")),
        None => Ok(scores),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_order_tokens_as_merges_do() {
        let normal = [(1, "a"), (2, "b"), (3, "c"), (4, "ab"), (5, "bc"), (6, "abc")];
        let merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")];
        assert_eq!(scores(&normal, 7, &merges).unwrap(), [-4.0, -4.0, -4.0, -4.0, -1.0, 0.0, -2.0]);
        let error = scores(&normal, 7, &merges[..3]).unwrap_err();
        assert!(error.contains("does not merge \"ab\" and \"c\""), "{error}");
        let apart = [("a", "bc"), ("b", "c"), ("a", "b"), ("ab", "c")];
        let error = scores(&normal, 7, &apart).unwrap_err();
        assert!(error.contains("merges \"ab\" and \"c\" later"), "{error}");
    }
}
