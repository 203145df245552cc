//! Gated MLPs, which are also the experts of a layer.

use oq_let::{Action, Port, Site};
use oq_quant_core::SiteKind;
use tch::{Kind, Tensor};

use crate::act::ActPoint;
use crate::block::{BlockOps, linears};
use crate::layers::Activation;
use crate::structure::{Linear, LinearName};

/// `down(gating(gate(h), up(h)))`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatedMlp {
    pub(crate) gate_up: GateUp,
    pub(crate) down: LinearName,
    /// Channels inside.
    pub(crate) width: usize,
    /// Whether the linears have biases.
    pub(crate) bias: bool,
    pub(crate) gating: Gating,
}

/// The linears of gate and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateUp {
    /// One each.
    Two([LinearName; 2]),
    /// One for both: first the gate, then up.
    Halves(LinearName),
    /// One for both, in turns.
    Interleaved(LinearName),
}

/// How gate and up are combined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Gating {
    /// `activation(gate) * up`.
    Plain(Activation),
    /// `gate * sigmoid(alpha * gate) * (up + 1)`, with gates up to `limit` and ups from `-limit` to `limit`.
    Clamped { alpha: f64, limit: f64 },
}

impl Gating {
    fn apply(self, gate: &Tensor, up: &Tensor) -> Tensor {
        match self {
            Self::Plain(activation) => activation.apply(gate) * up,
            Self::Clamped { alpha, limit } => {
                let gate = gate.clamp_max(limit).to_kind(Kind::Float);
                let up = up.clamp(-limit, limit).to_kind(Kind::Float);
                &gate * (&gate * alpha).sigmoid() * (up + 1.0)
            }
        }
    }
}

impl GatedMlp {
    pub(crate) fn linears(&self, hidden: usize) -> Vec<Linear> {
        let Self { width, bias, .. } = *self;
        let linear = |name, out_features, in_features| Linear { name, out_features, in_features, bias };
        let mut linears: Vec<Linear> = match self.gate_up {
            GateUp::Two(names) => names.iter().map(|&name| linear(name, width, hidden)).collect(),
            GateUp::Halves(name) | GateUp::Interleaved(name) => vec![linear(name, 2 * width, hidden)],
        };
        linears.push(linear(self.down, hidden, width));
        linears
    }

    /// The linears that read its input.
    pub(crate) fn readers(&self) -> Vec<LinearName> {
        match self.gate_up {
            GateUp::Two(names) => names.to_vec(),
            GateUp::Halves(name) | GateUp::Interleaved(name) => vec![name],
        }
    }

    /// `h [.., hidden]`, ready for a product -> `[.., hidden]`.
    pub(crate) fn forward(&self, ops: &dyn BlockOps, h: &Tensor) -> Tensor {
        let [gate, up] = match &self.gate_up {
            GateUp::Two(names) => linears(ops, names, h),
            GateUp::Halves(name) => {
                let (both, width) = (ops.linear(*name, h), self.width as i64);
                [0, width].map(|first| both.narrow(-1, first, width))
            }
            GateUp::Interleaved(name) => {
                let both = ops.linear(*name, h);
                [0, 1].map(|first| both.slice(-1, first, None, 2))
            }
        };
        ops.linear(self.down, &ops.act(ActPoint::Inner, self.gating.apply(&gate, &up)))
    }

    /// The site between up and down, or the reason why there is none. The gate is multiplied elementwise, so scales of `up` pass through.
    pub(crate) fn up_down(&self) -> Result<Site, &'static str> {
        let Self { width, down, gating, .. } = *self;
        if let Gating::Clamped { .. } = gating {
            return Err("its MLPs clamp what a scale would have to pass through");
        }
        let rows = |(name, rows): (LinearName, &dyn Fn(usize) -> usize)| {
            Port::some(name.0, Action::DivideOutput, (0..width).map(|channel| (rows(channel), channel)))
        };
        let up = match self.gate_up {
            GateUp::Two([_, up]) => rows((up, &|channel| channel)),
            GateUp::Halves(name) => rows((name, &|channel| width + channel)),
            GateUp::Interleaved(name) => rows((name, &|channel| 2 * channel + 1)),
        };
        let ports = vec![up, Port::free(down.0, Action::MultiplyInput, width)];
        Ok(Site { kind: SiteKind::Updown, n_scales: width, ports, can_shift: false })
    }
}
