//! Mixtures of experts: a router chooses a few MLPs for each token.

use tch::{Kind, Tensor};

use super::mlp::GatedMlp;
use crate::act::ActPoint;
use crate::block::BlockOps;
use crate::config::Config;
use crate::error::ModelError;
use crate::structure::{LinearName, Param, intern};

/// Largest number of experts that is accepted.
const MAX_EXPERTS: usize = 1 << 14;

/// The experts of a layer. Routing is computed in f32, from inputs that are not quantized.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Experts {
    /// The router: `<router>.weight`, `[experts, hidden]`.
    pub(crate) router: LinearName,
    /// Whether the router has a bias.
    pub(crate) router_bias: bool,
    pub(crate) routing: Routing,
    /// Experts of each token.
    pub(crate) chosen: usize,
    pub(crate) mlps: Vec<GatedMlp>,
    pub(crate) shared: Option<Shared>,
}

/// How weights follow from the router's scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routing {
    /// A softmax over all experts, of which the largest are taken.
    SoftmaxOfAll {
        /// Whether the weights of the chosen are divided by their sum.
        normalized: bool,
    },
    /// A softmax over the largest.
    SoftmaxOfChosen,
}

/// An MLP that sees every token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shared {
    pub(crate) mlp: GatedMlp,
    /// Its output is multiplied by the sigmoid of this product, `<gate>.weight` `[1, hidden]`.
    pub(crate) gate: Option<LinearName>,
}

impl Experts {
    /// `n` experts, of which each token has `chosen`.
    pub(crate) fn separate(
        config: &Config<'_>,
        router: &'static str,
        (n, chosen): (usize, usize),
        routing: Routing,
        of_expert: impl Fn(usize) -> GatedMlp,
    ) -> Result<Self, ModelError> {
        if n > MAX_EXPERTS {
            let key = if config.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
            return Err(config.wrong(key, format!("no model has more than {MAX_EXPERTS} experts")));
        }
        if chosen > n {
            return Err(config.wrong("num_experts_per_tok", format!("must be at most {n}, the number of experts")));
        }
        let mlps = (0..n).map(of_expert).collect();
        Ok(Self { router: LinearName(router), router_bias: false, routing, chosen, mlps, shared: None })
    }

    pub(crate) fn params(&self, hidden: usize) -> Vec<Param> {
        let mut params = vec![Param::new(intern(&self.router.weight()), [self.mlps.len(), hidden])];
        if self.router_bias {
            params.push(Param::new(intern(&self.router.bias()), [self.mlps.len()]));
        }
        if let Some(gate) = self.shared_gate() {
            params.push(Param::new(intern(&gate.weight()), [1, hidden]));
        }
        params
    }

    fn shared_gate(&self) -> Option<LinearName> {
        self.shared.as_ref().and_then(|shared| shared.gate)
    }

    /// All MLPs.
    pub(crate) fn all(&self) -> impl Iterator<Item = &GatedMlp> {
        self.mlps.iter().chain(self.shared.as_ref().map(|shared| &shared.mlp))
    }

    /// What reads the input beside the MLPs.
    pub(crate) fn routers(&self) -> impl Iterator<Item = LinearName> {
        [self.router].into_iter().chain(self.shared_gate())
    }

    /// `h [b, t, hidden]` -> `[b, t, hidden]`.
    pub(crate) fn forward(&self, ops: &dyn BlockOps, h: &Tensor) -> Tensor {
        let exact = h.flatten(0, -2); // [tokens, hidden]
        let weights = self.weights(ops, &exact); // [tokens, experts]
        let ready = ops.act(ActPoint::LinearInput, exact.shallow_clone());
        let mut out = match &self.shared {
            None => exact.zeros_like(),
            Some(Shared { mlp, gate }) => {
                let y = mlp.forward(ops, &ready).to_kind(exact.kind());
                match gate {
                    Some(gate) => y * scores(ops, *gate, false, &exact).sigmoid(),
                    None => y,
                }
            }
        };
        let n_tokens = exact.size()[0] as usize;
        for (idx, (mlp, tokens)) in self.mlps.iter().zip(tokens_by_expert(&weights)).enumerate() {
            let tokens = ops.tokens_of_expert(idx, tokens, n_tokens);
            if tokens.is_empty() {
                continue;
            }
            let tokens = Tensor::from_slice(&tokens).to_device(h.device());
            let y = mlp.forward(ops, &ready.index_select(0, &tokens)).to_kind(exact.kind());
            let share = weights.select(1, idx as i64).index_select(0, &tokens).unsqueeze(-1);
            out = out.index_add(0, &tokens, &(y * share));
        }
        out.view_as(h)
    }

    /// The weight of each expert for each token, 0 for those that were not chosen: `[tokens, experts]`.
    fn weights(&self, ops: &dyn BlockOps, rows: &Tensor) -> Tensor {
        let scores = scores(ops, self.router, self.router_bias, rows);
        let largest = |x: &Tensor| x.topk(self.chosen as i64, -1, true, true);
        let (values, places) = match self.routing {
            Routing::SoftmaxOfAll { normalized } => {
                let (values, places) = largest(&scores.softmax(-1, scores.kind()));
                let sum = normalized.then(|| values.sum_dim_intlist([-1].as_slice(), true, None::<Kind>));
                (sum.map_or(values.shallow_clone(), |sum| values / sum), places)
            }
            Routing::SoftmaxOfChosen => {
                let (values, places) = largest(&scores);
                (values.softmax(-1, values.kind()), places)
            }
        };
        scores.zeros_like().scatter(-1, &places, &values)
    }
}

/// The product of `rows [tokens, hidden]` with a router, in their kind: `[tokens, n]`.
fn scores(ops: &dyn BlockOps, router: LinearName, has_bias: bool, rows: &Tensor) -> Tensor {
    let bias = has_bias.then(|| ops.param(&router.bias()));
    rows.linear(&ops.param(&router.weight()), bias)
}

/// The tokens that each expert has a weight for, from `weights [tokens, experts]`.
fn tokens_by_expert(weights: &Tensor) -> Vec<Vec<i64>> {
    let mut tokens = vec![Vec::new(); weights.size()[1] as usize];
    let places = weights.detach().nonzero(); // [n, 2]: token, expert
    let places = Vec::<i64>::try_from(places.view(-1)).expect("places are a vector of i64");
    for place in places.as_chunks::<2>().0 {
        tokens[place[1] as usize].push(place[0]);
    }
    tokens
}
