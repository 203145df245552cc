//! Mixtures of experts: a router chooses a few MLPs for each token.

use tch::{Kind, Tensor};

use super::mlp::GatedMlp;
use crate::act::ActPoint;
use crate::block::BlockOps;
use crate::config::Config;
use crate::error::ModelError;
use crate::structure::{Fused, LinearName, Param, intern};

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
    /// Numbers of experts and of those that each token has, from the config or else as given.
    pub(crate) fn counts(config: &Config<'_>, defaults: (usize, usize)) -> Result<(usize, usize), ModelError> {
        // Which of the two keys a model has depends on the version of transformers that wrote it.
        let key = if config.get("num_local_experts").is_some() { "num_local_experts" } else { "num_experts" };
        let (n, chosen) = (config.size_or(key, defaults.0)?, config.size_or("num_experts_per_tok", defaults.1)?);
        if n > MAX_EXPERTS {
            return Err(config.wrong(key, format!("no model has more than {MAX_EXPERTS} experts")));
        }
        if chosen > n {
            return Err(config.wrong("num_experts_per_tok", format!("must be at most {n}, the number of experts")));
        }
        Ok((n, chosen))
    }

    /// `n` experts, of which each token has `chosen`.
    pub(crate) fn new(
        router: &'static str,
        (n, chosen): (usize, usize),
        routing: Routing,
        of_expert: impl Fn(usize) -> GatedMlp,
    ) -> Self {
        let mlps = (0..n).map(of_expert).collect();
        Self { router: LinearName(router), router_bias: false, routing, chosen, mlps, shared: None }
    }

    /// The tensors of all experts, as transformers 5 holds them in memory: gates and ups in turns, and downs.
    pub(crate) fn in_two_tensors(&self, prefix: &str, hidden: usize) -> Vec<Fused> {
        let width = self.mlps.first().map_or(0, |mlp| mlp.width);
        let of = |which: &str, linears: &dyn Fn(&GatedMlp) -> Vec<LinearName>, shape: [usize; 2]| Fused {
            name: intern(&format!("{prefix}{which}")),
            parts: self.mlps.iter().flat_map(linears).map(|linear| intern(&linear.weight())).collect(),
            shape: shape.to_vec(),
            transposed: false,
        };
        vec![
            of("gate_up_proj", &GatedMlp::readers, [width, hidden]),
            of("down_proj", &|mlp| vec![mlp.down], [hidden, width]),
        ]
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
        let weights = self.weights(ops, h).flatten(0, -2); // [tokens, experts]
        let ready = ops.act(ActPoint::LinearInput, h.shallow_clone());
        let out = match &self.shared {
            None => h.zeros_like(),
            Some(Shared { mlp, gate }) => {
                let y = mlp.forward(ops, &ready).to_kind(h.kind());
                match gate {
                    Some(gate) => y * ops.route(*gate, false, h).sigmoid(),
                    None => y,
                }
            }
        };
        let mut out = out.flatten(0, -2); // [tokens, hidden]
        let rows = ready.flatten(0, -2);
        let n_tokens = rows.size()[0] as usize;
        let by_expert = tokens_by_expert(&weights).into_iter().enumerate();
        let by_expert: Vec<Vec<i64>> =
            by_expert.map(|(idx, tokens)| ops.tokens_of_expert(idx, tokens, n_tokens)).collect();
        // All in one copy to the device.
        let all = Tensor::from_slice(&by_expert.concat()).to_device(h.device());
        let mut first = 0;
        for (idx, (mlp, tokens)) in self.mlps.iter().zip(by_expert).enumerate() {
            if tokens.is_empty() {
                continue;
            }
            let tokens = all.narrow(0, first, tokens.len() as i64);
            first += tokens.size()[0];
            let y = mlp.forward(ops, &rows.index_select(0, &tokens).unsqueeze(0)).squeeze_dim(0).to_kind(out.kind());
            let share = weights.select(1, idx as i64).index_select(0, &tokens).unsqueeze(-1);
            out = out.index_add(0, &tokens, &(y * share));
        }
        out.view_as(h)
    }

    /// The weight of each expert for each token, 0 for those that were not chosen: `h [b, t, hidden]` -> `[b, t, experts]`.
    fn weights(&self, ops: &dyn BlockOps, h: &Tensor) -> Tensor {
        let scores = ops.route(self.router, self.router_bias, h);
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

/// The tokens that each expert has a weight for, from `weights [tokens, experts]`.
fn tokens_by_expert(weights: &Tensor) -> Vec<Vec<i64>> {
    let mut tokens = vec![Vec::new(); weights.size()[1] as usize];
    let places = weights.detach().nonzero().contiguous(); // [n, 2]: token, expert
    let places = Vec::<i64>::try_from(places.view(-1)).expect("places are a vector of i64");
    for place in places.as_chunks::<2>().0 {
        tokens[place[1] as usize].push(place[0]);
    }
    tokens
}
