//! A block whose linears are observed while it runs.

use oq_models::{ActPoint, BlockOps, LinearName, Scores};
use tch::Tensor;

/// Runs a block as `ops` does, and passes the input and output of each linear to a callback.
pub(crate) struct Watched<'a, F> {
    pub(crate) ops: &'a dyn BlockOps,
    /// Called with the linear, its input and its output.
    pub(crate) see: F,
}

impl<F: Fn(LinearName, &Tensor, &Tensor)> BlockOps for Watched<'_, F> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        let y = self.ops.linear(name, x);
        (self.see)(name, x, &y);
        y
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.ops.act(point, x)
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Tensor {
        self.ops.attention(q, k, v, scores)
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
