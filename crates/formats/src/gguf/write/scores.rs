//! Scores of SentencePiece BPE from the merges of a tokenizer.json.
//!
//! SentencePiece joins the two neighbours whose union has the best score, tokenizers the pair that is first in its list. A list that was
//! made from scores has every way of making a token from two, and the ways of one token follow each other, unless scores are equal.

use std::collections::{BTreeMap, HashMap, HashSet};

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
    let mut listed = HashSet::new();
    // First and last place of each token's merges.
    let mut places: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (rank, &pair) in merges.iter().enumerate() {
        if let Some(id) = made(pair) {
            listed.insert(pair);
            places.entry(id).or_insert((rank, rank)).1 = rank;
        }
    }
    let all =
        sentencepiece::merges(normal, &vec![0.0; len]).ok_or("tokens that are made of others in too many ways")?;
    match all.iter().filter_map(|merge| merge.split_once(' ')).find(|pair| !listed.contains(pair)) {
        Some((left, right)) => Err(format!("does not merge {left:?} and {right:?}, which scores cannot say")),
        None => Ok(of_places(places, len, merges.len())),
    }
}

/// Minus the first place; one score for tokens whose merges alternate. Tokens that are not merged come last: of these only single
/// characters are of use, which a text begins with.
fn of_places(places: BTreeMap<usize, (usize, usize)>, len: usize, merges: usize) -> Vec<f32> {
    let mut scores = vec![-(merges as f32); len];
    let mut in_order: Vec<_> = places.into_iter().collect();
    in_order.sort_by_key(|&(_, (first, _))| first);
    let mut group = (0, 0);
    for (id, (first, last)) in in_order {
        group = if first < group.1 { (group.0, group.1.max(last)) } else { (first, last) };
        scores[id] = -(group.0 as f32);
    }
    scores
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
        // Made of equal scores.
        let alternating = [("a", "bc"), ("b", "c"), ("a", "b"), ("ab", "c")];
        assert_eq!(scores(&normal, 7, &alternating).unwrap(), [-4.0, -4.0, -4.0, -4.0, 0.0, 0.0, 0.0]);
    }
}
