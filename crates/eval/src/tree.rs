//! Sequences that begin alike, as a tree of tokens: what they share is computed once.
//!
//! The tokens of one tree or several are computed as one sequence. Products and norms work on each token by itself; positions come from a
//! gathered [`Context`], and [`TreeOps`] lets each token attend to those on its way from the root.

use std::collections::{BTreeMap, BTreeSet};

use oq_models::{ActPoint, BlockOps, Context, Decoder, LinearName, Scores};
use tch::{Device, Tensor};

/// Tokens, each after those that it depends on.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    tokens: Vec<u32>,
    /// The token before, which has a lower index; none for the first of a sequence.
    parents: Vec<Option<usize>>,
    /// Number of tokens before, in the sequence.
    positions: Vec<i64>,
}

impl Tree {
    /// Adds a sequence and returns the indices of its tokens, of which the first may have been there before.
    pub(crate) fn add(&mut self, sequence: &[u32]) -> Vec<usize> {
        let mut path: Vec<usize> = Vec::with_capacity(sequence.len());
        for (position, &token) in sequence.iter().enumerate() {
            let parent = path.last().copied();
            let is_it = |&idx: &usize| self.tokens[idx] == token && self.parents[idx] == parent;
            let first = parent.map_or(0, |parent| parent + 1);
            let idx = (first..self.tokens.len()).find(is_it).unwrap_or_else(|| {
                self.tokens.push(token);
                self.parents.push(parent);
                self.positions.push(position as i64);
                self.tokens.len() - 1
            });
            path.push(idx);
        }
        path
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Length of the longest sequence.
    fn depth(&self) -> i64 {
        self.positions.iter().max().map_or(0, |last| last + 1)
    }

    /// The tokens on the way to `idx`, itself included, the last one first.
    fn way_to(&self, idx: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(idx), |&idx| self.parents[idx])
    }

    /// The sequences that no other goes on from, as the indices of their tokens.
    fn sequences(&self) -> Vec<Vec<usize>> {
        let mut is_parent = vec![false; self.len()];
        self.parents.iter().flatten().for_each(|&parent| is_parent[parent] = true);
        let leaves = (0..self.len()).filter(|&idx| !is_parent[idx]);
        let path = |leaf| {
            let mut path: Vec<usize> = self.way_to(leaf).collect();
            path.reverse();
            path
        };
        leaves.map(path).collect()
    }

    /// Embeds the tokens: `[1, len, hidden]`. Each sequence is embedded as a whole, since some models add a vector for the position.
    pub(crate) fn embed<E>(&self, embed: impl Fn(&Tensor) -> Result<Tensor, E>) -> Result<Tensor, E> {
        let mut rows: Vec<Option<Tensor>> = (0..self.len()).map(|_| None).collect();
        for path in self.sequences() {
            let ids: Vec<i64> = path.iter().map(|&idx| i64::from(self.tokens[idx])).collect();
            let embedded = embed(&Tensor::from_slice(&ids).unsqueeze(0))?;
            for (position, &idx) in path.iter().enumerate() {
                rows[idx].get_or_insert_with(|| embedded.narrow(1, position as i64, 1));
            }
        }
        let rows: Vec<Tensor> = rows.into_iter().map(|row| row.expect("every token lies on a way to a leaf")).collect();
        Ok(Tensor::cat(&rows, 1))
    }

    /// 0 where a token attends to another, else -inf: `[1, len, len]`. None for a single sequence, whose mask is the causal one.
    fn mask(&self, device: Device) -> Option<Tensor> {
        if self.depth() as usize == self.len() {
            return None;
        }
        let n = self.len();
        let mut mask = vec![f32::NEG_INFINITY; n * n];
        for idx in 0..n {
            self.way_to(idx).for_each(|before| mask[idx * n + before] = 0.0);
        }
        Some(Tensor::from_slice(&mask).view([1, n as i64, n as i64]).to_device(device))
    }
}

/// Trees that are computed together.
pub(crate) struct Forest {
    context: Context,
    trees: Vec<Place>,
}

/// Where a tree's tokens lie.
struct Place {
    first: i64,
    len: i64,
    positions: Tensor,
    mask: Option<Tensor>,
}

impl Forest {
    pub(crate) fn new(decoder: &dyn Decoder, trees: &[&Tree], device: Device) -> Self {
        let mut first = 0;
        let place = |tree: &&Tree| {
            let (len, positions) = (tree.len() as i64, Tensor::from_slice(&tree.positions).to_device(device));
            let place = Place { first, len, positions, mask: tree.mask(device) };
            first += len;
            place
        };
        let places: Vec<Place> = trees.iter().map(place).collect();
        // One for each length: some models scale their rotations by the length of a sequence.
        let context = |depth: i64| (depth, decoder.context(depth as usize, device));
        let contexts: BTreeMap<i64, Context> =
            trees.iter().map(|tree| tree.depth()).collect::<BTreeSet<_>>().into_iter().map(context).collect();
        let of_trees: Vec<Context> =
            trees.iter().zip(&places).map(|(tree, place)| contexts[&tree.depth()].at(&place.positions)).collect();
        let (_, longest) = contexts.last_key_value().expect("a batch has questions");
        Self { context: longest.joined(&of_trees), trees: places }
    }

    /// One block: `x [1, tokens of all trees, hidden]` in the same shape.
    pub(crate) fn block(&self, decoder: &dyn Decoder, block_idx: usize, ops: &dyn BlockOps, x: &Tensor) -> Tensor {
        decoder.block(block_idx, &TreeOps { ops, forest: self }, &self.context, x)
    }
}

/// Operations whose attention follows trees.
struct TreeOps<'a> {
    ops: &'a dyn BlockOps,
    forest: &'a Forest,
}

impl BlockOps for TreeOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        self.ops.linear(name, x)
    }

    fn linears(&self, names: &[LinearName], x: &Tensor) -> Vec<Tensor> {
        self.ops.linears(names, x)
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.ops.act(point, x)
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Tensor {
        let of_tree = |place: &Place| {
            let [q, k, v] = [q, k, v].map(|x| x.narrow(2, place.first, place.len));
            // The layer's own mask is that of one sequence, by position.
            let own = scores.mask.map(|mask| mask.index_select(1, &place.positions).index_select(2, &place.positions));
            let mask = match (own, &place.mask) {
                (Some(own), Some(tree)) => Some(own + tree),
                (Some(mask), None) => Some(mask),
                (None, tree) => tree.as_ref().map(Tensor::shallow_clone),
            };
            self.ops.attention(&q, &k, &v, &Scores { mask: mask.as_ref(), ..*scores })
        };
        Tensor::cat(&self.forest.trees.iter().map(of_tree).collect::<Vec<_>>(), 1)
    }

    fn route(&self, router: LinearName, has_bias: bool, x: &Tensor) -> Tensor {
        self.ops.route(router, has_bias, x)
    }

    fn tokens_of_expert(&self, expert: usize, tokens: Vec<i64>, all: usize) -> Vec<i64> {
        self.ops.tokens_of_expert(expert, tokens, all)
    }

    fn param(&self, name: &str) -> Tensor {
        self.ops.param(name)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn what_is_shared_is_there_once() {
        let mut tree = Tree::default();
        assert_eq!(tree.add(&[5, 6, 7, 8]), [0, 1, 2, 3]);
        assert_eq!(tree.add(&[5, 6, 9, 8, 8]), [0, 1, 4, 5, 6]);
        assert_eq!(tree.add(&[5, 6]), [0, 1]);
        assert_eq!(tree.add(&[5, 6, 9, 7]), [0, 1, 4, 7]);
        assert_eq!(tree.add(&[6]), [8]);
        assert_eq!((tree.len(), tree.depth()), (9, 5));
        assert_eq!(tree.positions, [0, 1, 2, 3, 2, 3, 4, 3, 0]);
        let mask = tree.mask(Device::Cpu).unwrap();
        let sees = |idx: i64| -> Vec<i64> {
            let row = Vec::<f32>::try_from(mask.get(0).get(idx)).unwrap();
            (0..9).filter(|&other| row[other as usize] == 0.0).collect()
        };
        assert_eq!([sees(3), sees(7), sees(8)], [vec![0, 1, 2, 3], vec![0, 1, 4, 7], vec![8]]);
        let embedded = tree
            .embed(|ids| {
                Ok::<_, ()>((ids * 10 + Tensor::arange(ids.size()[1], (Kind::Int64, Device::Cpu))).unsqueeze(2))
            })
            .unwrap();
        let expected: Vec<i64> =
            tree.tokens.iter().zip(&tree.positions).map(|(&id, p)| i64::from(id) * 10 + p).collect();
        assert_eq!(Vec::<i64>::try_from(embedded.view(-1)).unwrap(), expected);

        let mut line = Tree::default();
        line.add(&[1, 2, 3]);
        line.add(&[1, 2]);
        assert!(line.mask(Device::Cpu).is_none());
    }
}
