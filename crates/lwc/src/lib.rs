//! Learnable weight clipping (OmniQuant, eq. 2) and its closed-form gradient.
//!
//! A group of weights is clipped to a learned fraction of its range: `sigmoid(gamma)` of its maximum and `sigmoid(beta)` of its minimum.
//! [`Lwc`] holds the strengths `gamma` and `beta` of one linear. Learning does not use libtorch's autograd for them: [`Lwc::fake_quantize`]
//! computes the weight that the block runs with, the block's backward gives the gradient with respect to that weight, and
//! [`Lwc::gradients`] turns it into the gradient of the strengths.
//!
//! With `Q = 2^bits - 1`, `a = sigmoid(gamma)`, `b = sigmoid(beta)`, `M = max(w, 0)` and `m = min(w, 0)` of a group:
//!
//! ```text
//! hi = a M     lo = b m     s = clamp((hi - lo) / Q, SCALE_MIN, SCALE_MAX)     z = round(-lo / s), a code
//! q  = clamp(round(w / s) + z, 0, Q)                                          w' = (q - z) s
//! ```
//!
//! and with the straight-through estimator for rounding (`z` and active clamps have no gradient), `G = dL/dw'`, `k = 1` where a code was
//! not clamped and `live = 1` where the scale was not:
//!
//! ```text
//! dL/ds     =  live sum G ((q - z) - k w / s)
//! dL/dgamma =  dL/ds M a (1 - a) / Q        dL/dbeta = -dL/ds m b (1 - b) / Q
//! dL/dw     =  G k + dL/ds a / Q [w = M] / #max - dL/ds b / Q [w = m] / #min
//! ```
//!
//! Symmetric quantization has `s = clamp(max(hi, -lo) / (2^(bits-1) - 1), ..)` and `z = 2^(bits-1)`. Only the larger end has a gradient,
//! and two equal ends get half of it each.
//!
//! Rounding can be learned too: `q = clamp(round(w / s + v) + z, 0, Q)` with an offset `v` per weight, which [`Lwc::move_offsets`] moves.
//! The gradients are those above, computed with these codes.
//!
//! During learning the scale is not rounded to f16, and ties are rounded to even. [`Lwc::quantize`] computes the final codes, on the grids
//! of [`oq_quant_core`].

mod composed;
mod fused;
mod tensors;

use half::bf16;
use oq_quant_core::{QuantizedTensor, Symmetry, TensorError, WeightSpec};
use oq_slices as slices;
use tch::{Device, Kind, Tensor, no_grad};

/// Initial clipping strength: sigmoid(4) = 0.982, so that hardly anything is clipped (OmniQuant, section 3.2).
pub const START: f64 = 4.0;

/// The clipping strengths of one linear, for weights `[out, in]`.
///
/// Strengths are plain tensors on the device of the weights; they need no `requires_grad`. Weights of another kind are converted to the
/// kind of the strengths, which is f32 at first.
#[derive(Debug)]
pub struct Lwc {
    /// Strength of the maximum, `[out, groups]`.
    pub gamma: Tensor,
    /// Strength of the minimum, `[out, groups]`.
    pub beta: Tensor,
    /// Offsets added to scaled weights before they are rounded, in units of the scale, `[out, in]`; none if weights are rounded to nearest.
    pub offsets: Option<Tensor>,
    spec: WeightSpec,
    in_features: usize,
}

/// Gradients with respect to the strengths.
#[derive(Debug)]
pub struct LwcGrads {
    /// `[out, groups]`.
    pub gamma: Tensor,
    /// `[out, groups]`.
    pub beta: Tensor,
}

/// Why weights were not clipped or not quantized.
#[derive(Debug, thiserror::Error)]
pub enum LwcError {
    /// The weight has a different shape than the one that the strengths were made for.
    #[error("the clipping is for a weight {expected:?}, got {got:?}")]
    Shape {
        /// `[out, in]`.
        expected: [i64; 2],
        /// What was given.
        got: Vec<i64>,
    },
    /// Groups do not divide the row, or the weight, its clipping or its offsets are not valid numbers.
    #[error(transparent)]
    Quantize(#[from] TensorError),
}

/// The constants of a grid.
#[derive(Clone, Copy, Debug)]
struct Levels {
    /// Largest code, `Q`.
    max_code: f64,
    /// Number of steps that a range is divided into.
    steps: f64,
    /// Code of zero, if it is the same for all ranges.
    centre: Option<f64>,
}

impl Levels {
    fn new(spec: WeightSpec) -> Self {
        let (max_code, centre) = (f64::from(spec.bits.max_code()), f64::from(spec.bits.centre()));
        match spec.symmetry {
            Symmetry::Asymmetric => Self { max_code, steps: max_code, centre: None },
            Symmetry::Symmetric => Self { max_code, steps: centre - 1.0, centre: Some(centre) },
        }
    }
}

impl Lwc {
    /// Strengths of [`START`] for a weight `[out_features, in_features]`. Fails if the group size does not divide `in_features`.
    pub fn new(out_features: usize, in_features: usize, spec: WeightSpec, device: Device) -> Result<Self, LwcError> {
        if !spec.group.divides(in_features) {
            return Err(TensorError::GroupDoesNotDivide { group: spec.group.len(in_features), in_features }.into());
        }
        let strength =
            || Tensor::full([out_features as i64, spec.group.count(in_features) as i64], START, (Kind::Float, device));
        Ok(Self { gamma: strength(), beta: strength(), offsets: None, spec, in_features })
    }

    /// Infinite strengths, whose sigmoid is 1, so that nothing is clipped. They are for rounding to nearest; nothing can be learned from
    /// this start. Fails if the group size does not divide `in_features`.
    pub fn whole_range(
        out_features: usize,
        in_features: usize,
        spec: WeightSpec,
        device: Device,
    ) -> Result<Self, LwcError> {
        let mut clip = Self::new(out_features, in_features, spec, device)?;
        for strength in [&mut clip.gamma, &mut clip.beta] {
            *strength = strength.full_like(f64::INFINITY);
        }
        Ok(clip)
    }

    /// Starts from a search. For each group it tries fractions of the range between sigmoid([`START`]) and a quarter, and takes those with
    /// the least squared error of the weights, each weighted by the mean square of the input that it is multiplied by, `importance [in]`.
    /// It first finds the best fraction for both ends together, then refines each end. Offsets are ignored.
    ///
    /// # Panics
    /// When `weight` is not `[out, in]` or `importance` not `[in]`.
    pub fn start_from_search(&mut self, weight: &Tensor, importance: &Tensor) {
        let (weight, levels) = (self.prepared(weight), Levels::new(self.spec));
        assert_eq!(importance.size(), [self.in_features as i64], "mean squares of the inputs");
        let importance = importance.detach().to_kind(weight.kind()).contiguous();
        let clip = no_grad(|| match fused_kinds(&weight, weight.kind()) {
            Some((Kind::Double, _)) => self.search_fused::<f64>(&weight, &importance),
            Some((Kind::Float, _)) => self.search_fused::<f32>(&weight, &importance),
            _ => composed::search(levels, &weight, &importance, &choices(), &self.clip()),
        });
        (self.gamma, self.beta) = (clip.hi.logit(None), clip.lo.logit(None));
    }

    /// How the weight is quantized.
    pub fn spec(&self) -> WeightSpec {
        self.spec
    }

    /// The dequantized weight: `[out, in]` -> `[out, in]`, detached from autograd, in the kind of the strengths.
    ///
    /// # Panics
    /// When `weight` is not `[out, in]`.
    pub fn fake_quantize(&self, weight: &Tensor) -> Tensor {
        self.fake_quantize_as(self.gamma.kind(), weight)
    }

    /// [`Self::fake_quantize`], rounded to a kind that multiplies faster.
    ///
    /// # Panics
    /// When `weight` is not `[out, in]`.
    pub fn fake_quantize_as(&self, kind: Kind, weight: &Tensor) -> Tensor {
        let weight = self.prepared(weight);
        let clip = self.clip();
        no_grad(|| match fused_kinds(&weight, kind) {
            Some((Kind::Double, Kind::Double)) => self.fake_quantize_fused::<f64, f64>(&weight, &clip),
            Some((Kind::Float, Kind::BFloat16)) => self.fake_quantize_fused::<f32, bf16>(&weight, &clip),
            Some((Kind::Float, Kind::Float)) => self.fake_quantize_fused::<f32, f32>(&weight, &clip),
            _ => composed::fake_quantize(Levels::new(self.spec), &weight, self.offsets.as_ref(), &clip).to_kind(kind),
        })
    }

    /// Gradients of the strengths, given `grad = dL/dw'` `[out, in]`, where `w' = fake_quantize(weight)`.
    ///
    /// # Panics
    /// When `weight` or `grad` is not `[out, in]`.
    pub fn gradients(&self, weight: &Tensor, grad: &Tensor) -> LwcGrads {
        let (weight, grad, clip) = (self.prepared(weight), self.checked(grad), self.clip());
        no_grad(|| match fused_kinds(&weight, grad.kind()) {
            Some((Kind::Double, Kind::Double)) => self.gradients_fused::<f64, f64>(&weight, &grad, &clip),
            Some((Kind::Float, Kind::BFloat16)) => self.gradients_fused::<f32, bf16>(&weight, &grad, &clip),
            Some((Kind::Float, Kind::Float)) => self.gradients_fused::<f32, f32>(&weight, &grad, &clip),
            _ => {
                let grad = grad.to_kind(weight.kind());
                composed::gradients(Levels::new(self.spec), &weight, self.offsets.as_ref(), &grad, &clip)
            }
        })
    }

    /// [`Self::gradients`] and `dL/dw` `[out, in]`, for weights that are learned or transformed as well.
    ///
    /// # Panics
    /// When `weight` or `grad` is not `[out, in]`.
    pub fn gradients_with_weight(&self, weight: &Tensor, grad: &Tensor) -> (LwcGrads, Tensor) {
        let (weight, grad, clip) = (self.prepared(weight), self.checked(grad), self.clip());
        no_grad(|| match fused_kinds(&weight, grad.kind()) {
            Some((Kind::Double, Kind::Double)) => self.gradients_with_weight_fused::<f64, f64>(&weight, &grad, &clip),
            Some((Kind::Float, Kind::BFloat16)) => self.gradients_with_weight_fused::<f32, bf16>(&weight, &grad, &clip),
            Some((Kind::Float, Kind::Float)) => self.gradients_with_weight_fused::<f32, f32>(&weight, &grad, &clip),
            _ => {
                let grad = grad.to_kind(weight.kind());
                composed::gradients_with_weight(Levels::new(self.spec), &weight, self.offsets.as_ref(), &grad, &clip)
            }
        })
    }

    /// The definition of [`Self::fake_quantize`], differentiable by autograd: `[out, in]` -> `[out, in]`.
    ///
    /// For strengths with `requires_grad`. Slower than [`Self::gradients`], which must give the same result.
    ///
    /// # Panics
    /// When `weight` is not `[out, in]`.
    pub fn fake_quantize_autograd(&self, weight: &Tensor) -> Tensor {
        self.check_shape(weight).unwrap_or_else(|error| panic!("{error}"));
        let clip = Shares { hi: self.gamma.sigmoid(), lo: self.beta.sigmoid() };
        let weight = weight.to_kind(self.gamma.kind());
        composed::fake_quantize_autograd(Levels::new(self.spec), &weight, self.offsets.as_ref(), &clip)
    }

    /// Final codes of a weight `[out, in]`, with scales that are f16 numbers. Computed on the CPU.
    ///
    /// Fails if the weight has a different shape, if a strength is NaN, or if the weight or the offsets are not finite.
    pub fn quantize(&self, weight: &Tensor) -> Result<QuantizedTensor, LwcError> {
        self.check_shape(weight)?;
        let [rows, cols] = self.shape().map(|n| n as usize);
        let to_cpu = |tensor: &Tensor| tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let (weight, Shares { hi, lo }) = (to_cpu(weight), self.clip());
        let clip = Shares { hi: to_cpu(&hi), lo: to_cpu(&lo) };
        let offsets = self.offsets.as_ref().map(to_cpu);
        Ok(tensors::quantize(&weight, [rows, cols], self.spec, &clip, offsets.as_ref())?)
    }

    /// For each group of a weight `[out, in]`: the scale, and the codes of both ends minus the zero point, `[out, groups]` each.
    ///
    /// # Panics
    /// When `weight` is not `[out, in]`.
    pub fn grids(&self, weight: &Tensor) -> [Tensor; 3] {
        let weight = self.prepared(weight);
        no_grad(|| composed::grids_of(Levels::new(self.spec), &weight, &self.clip()))
    }

    /// Learns how weights are rounded: moves the offsets against the sign of `grad = dL/dw'` `[out, in]` by `rate` units of the scale
    /// (SignRound, Cheng et al. 2023, arXiv 2309.05516, eq. 4), in place if possible. Offsets start at 0; those of clamped codes do not
    /// move.
    ///
    /// # Panics
    /// When `weight` or `grad` is not `[out, in]`.
    pub fn move_offsets(&mut self, weight: &Tensor, grad: &Tensor, rate: f64) {
        let (weight, grad, clip) = (self.prepared(weight), self.checked(grad), self.clip());
        let mut offsets = self.offsets.take().unwrap_or_else(|| weight.zeros_like());
        // Loops that write in place must not read the same memory.
        let apart = [&weight, &grad].into_iter().all(|read| !slices::overlap(read, &offsets));
        no_grad(|| match fused_kinds(&weight, grad.kind()).filter(|_| apart) {
            Some((Kind::Double, Kind::Double)) => {
                self.move_offsets_fused::<f64, f64>(&weight, &grad, &clip, rate, &mut offsets);
            }
            Some((Kind::Float, Kind::BFloat16)) => {
                self.move_offsets_fused::<f32, bf16>(&weight, &grad, &clip, rate, &mut offsets);
            }
            Some((Kind::Float, Kind::Float)) => {
                self.move_offsets_fused::<f32, f32>(&weight, &grad, &clip, rate, &mut offsets);
            }
            _ => {
                let grad = grad.to_kind(weight.kind());
                offsets = composed::moved_offsets(Levels::new(self.spec), &weight, &offsets, &grad, &clip, rate);
            }
        });
        self.offsets = Some(offsets);
    }

    /// Sigmoids of the strengths, contiguous.
    fn clip(&self) -> Shares {
        let share = |strength: &Tensor| strength.detach().sigmoid().contiguous();
        Shares { hi: share(&self.gamma), lo: share(&self.beta) }
    }

    /// A weight, checked, contiguous and in the kind of the strengths.
    fn prepared(&self, weight: &Tensor) -> Tensor {
        self.checked(weight).to_kind(self.gamma.kind())
    }

    /// A weight or its gradient, checked and contiguous.
    fn checked(&self, weight: &Tensor) -> Tensor {
        self.check_shape(weight).unwrap_or_else(|error| panic!("{error}"));
        weight.detach().contiguous()
    }

    /// `[out, in]`.
    fn shape(&self) -> [i64; 2] {
        [self.gamma.size()[0], self.in_features as i64]
    }

    fn check_shape(&self, weight: &Tensor) -> Result<(), LwcError> {
        let (expected, got) = (self.shape(), weight.size());
        if got == expected { Ok(()) } else { Err(LwcError::Shape { expected, got }) }
    }
}

/// The kinds of a weight and of its quantized counterpart or gradient, if the fused loops support them.
fn fused_kinds(weight: &Tensor, other: Kind) -> Option<(Kind, Kind)> {
    (weight.device() == Device::Cpu).then(|| (weight.kind(), other))
}

/// Fractions that the search tries, largest first.
fn choices() -> [f64; 16] {
    let largest = 1.0 / (1.0 + (-START).exp());
    std::array::from_fn(|idx| largest - idx as f64 * (largest - 0.25) / 15.0)
}

/// Fractions of a group's maximum and minimum at which it is clipped, each `[out, groups]`.
struct Shares {
    hi: Tensor,
    lo: Tensor,
}

#[cfg(test)]
mod tests;
