//! Clipping on a card by the kernels of `oq-cuda`, where the process asked for them: a pass over the weights, as by the loops on a CPU.

use oq_cuda::{Grid, Kernels, Moves, Weight, Zero as At};
use oq_quant_core::{SCALE_MAX, SCALE_MIN, WeightSpec};
use tch::{Kind, Tensor};

use crate::levels::{ClipTensors, Levels, Zero};
use crate::strengths::{Lwc, LwcGrads};
use crate::usual::{LARGEST, Usual};

/// A weight that kernels clip, on the device that they run on.
pub(crate) struct OnCard<'a> {
    kernels: &'static Kernels,
    weight: Weight<'a>,
}

impl Lwc {
    /// This clipping of a contiguous weight on a card; none where there are no kernels, or none for these numbers or grids. `other` is the
    /// kind of the quantized weight or its gradient.
    pub(crate) fn on_card<'a>(&'a self, weight: &'a Tensor, clip: &'a ClipTensors, other: Kind) -> Option<OnCard<'a>> {
        let kernels = oq_cuda::of(weight.device())?;
        let offsets = self.offsets.as_ref();
        let is_taken = |x: &Tensor| x.kind() == Kind::Float && x.is_contiguous();
        let are_taken = is_taken(weight) && offsets.is_none_or(is_taken) && weight.numel() > 0;
        let has_kernels = matches!(other, Kind::Float | Kind::BFloat16) && are_taken;
        let grid = if has_kernels { grid(self.spec, weight)? } else { return None };
        Some(OnCard { kernels, weight: Weight { weight, offsets, hi: &clip.hi, lo: &clip.lo, grid } })
    }
}

impl OnCard<'_> {
    pub(crate) fn fake_quantize(&self, kind: Kind) -> Tensor {
        self.kernels.clip(self.weight, kind)
    }

    pub(crate) fn gradients(&self, grad: &Tensor) -> LwcGrads {
        let ([gamma, beta], _) = self.kernels.gradients(self.weight, grad, false);
        LwcGrads { gamma, beta }
    }

    pub(crate) fn gradients_with_weight(&self, grad: &Tensor) -> (LwcGrads, Tensor) {
        let ([gamma, beta], d_weight) = self.kernels.gradients(self.weight, grad, true);
        (LwcGrads { gamma, beta }, d_weight.expect("it was asked for"))
    }

    /// Moves contiguous offsets, which are not this clipping's meanwhile.
    pub(crate) fn move_offsets(&self, grad: &Tensor, usual: &Usual, rate: f64, offsets: &mut Tensor) {
        let moves = Moves { rows: &usual.rows, columns: &usual.columns, rate: rate as f32, largest: LARGEST as f32 };
        self.kernels.move_offsets(self.weight, grad, moves, offsets);
    }
}

/// The grids of a weight, unless learning sees their scales rounded or codes are floats.
fn grid(spec: WeightSpec, weight: &Tensor) -> Option<Grid> {
    if spec.storage.has_coarse_scales() || spec.storage.has_float_codes() {
        return None;
    }
    let Levels { max_code, steps, zero, .. } = Levels::new(spec, weight);
    let (zero, centre) = match zero {
        Zero::Code => (At::Code, 0.0),
        Zero::Minimum => (At::Minimum, 0.0),
        Zero::Centre(centre) => (At::Centre, centre),
        Zero::FullRange(centre) => (At::FullRange, centre),
    };
    let [max_code, steps, centre] = [max_code, steps, centre].map(|number| number as f32);
    Some(Grid { zero, max_code, steps, centre, scales: [SCALE_MIN, SCALE_MAX] })
}
