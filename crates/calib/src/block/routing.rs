//! How many calibration tokens reach each expert of a block.

use std::cell::RefCell;

use oq_models::{ActPoint, BlockOps, DenseOps, LinearName, Scores};
use oq_ranks::{Ranks, RanksError};
use oq_recipe::StarvedExpert;
use tch::Tensor;

/// Runs a block up to its experts, and counts the tokens of each. The block's output is of no use.
pub(crate) struct RoutingOps<'a> {
    ops: DenseOps<'a>,
    tokens: RefCell<Vec<u64>>,
}

impl<'a> RoutingOps<'a> {
    /// For a layer with this many experts.
    pub(crate) fn new(ops: DenseOps<'a>, experts: usize) -> Self {
        Self { ops, tokens: RefCell::new(vec![0; experts]) }
    }

    /// The experts that fewer than `enough` tokens of all ranks reached.
    pub(crate) fn starved(self, enough: usize, ranks: &Ranks) -> Result<Vec<StarvedExpert>, RanksError> {
        let tokens: Vec<i64> = self.tokens.into_inner().into_iter().map(|tokens| tokens as i64).collect();
        let tokens = ranks.sum(vec![Tensor::from_slice(&tokens)])?.remove(0);
        let experts = Vec::<i64>::try_from(tokens).expect("i64").into_iter().enumerate();
        let starved = experts.map(|(expert, tokens)| StarvedExpert { expert, tokens: tokens as u64 });
        Ok(starved.filter(|starved| starved.tokens < enough as u64).collect())
    }
}

impl BlockOps for RoutingOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        self.ops.linear(name, x)
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.ops.act(point, x)
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Tensor {
        self.ops.attention(q, k, v, scores)
    }

    fn tokens_of_expert(&self, expert: usize, tokens: Vec<i64>, _all: usize) -> Vec<i64> {
        self.tokens.borrow_mut()[expert] += tokens.len() as u64;
        Vec::new()
    }

    fn param(&self, name: &str) -> Tensor {
        self.ops.param(name)
    }
}
