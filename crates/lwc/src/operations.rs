//! What is done with the strengths: by kernels or fused loops where these can read the tensors, else by libtorch's operations.

use half::bf16;
use oq_quant_core::QuantizedTensor;
use oq_slices as slices;
use tch::{Device, Kind, Tensor, no_grad};

use crate::levels::{ClipTensors, Levels};
use crate::strengths::{Lwc, LwcError, LwcGrads, choices};
use crate::usual::Usual;
use crate::{composed, tensors};

impl Lwc {
    /// Starts from a search for the best clipping. For each group it tries fractions of the range between sigmoid([`START`](crate::START)) and
    /// a quarter, and takes those with the least squared error of the weights, weighted by `importance [in]`, the mean square of each input
    /// channel: first one fraction for both ends, then one for each end. Offsets are ignored.
    ///
    /// # Panics
    /// When `weight` is not `[out, in]` or `importance` not `[in]`.
    pub fn start_from_search(&mut self, weight: &Tensor, importance: &Tensor) {
        let weight = self.prepared(weight);
        let levels = Levels::new(self.spec, &weight);
        assert_eq!(importance.size(), [self.in_features as i64], "mean squares of the inputs");
        let importance = importance.detach().to_kind(weight.kind()).contiguous();
        let clip = no_grad(|| match fused_kinds(&weight, weight.kind()) {
            Some((Kind::Double, _)) => self.search_fused::<f64>(&weight, &importance),
            Some((Kind::Float, _)) => self.search_fused::<f32>(&weight, &importance),
            _ => composed::search(levels, &weight, &importance, &choices(), &self.clip()),
        });
        (self.gamma, self.beta) = (clip.hi.logit(None), clip.lo.logit(None));
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
        if let Some(there) = self.on_card(&weight, &clip, kind) {
            return there.fake_quantize(kind);
        }
        no_grad(|| match fused_kinds(&weight, kind) {
            Some((Kind::Double, Kind::Double)) => self.fake_quantize_fused::<f64, f64>(&weight, &clip),
            Some((Kind::Float, Kind::BFloat16)) => self.fake_quantize_fused::<f32, bf16>(&weight, &clip),
            Some((Kind::Float, Kind::Float)) => self.fake_quantize_fused::<f32, f32>(&weight, &clip),
            _ => composed::fake_quantize(Levels::new(self.spec, &weight), &weight, self.offsets.as_ref(), &clip)
                .to_kind(kind),
        })
    }

    /// Gradients of the strengths, given `grad = dL/dw'` `[out, in]`, where `w' = fake_quantize(weight)`.
    ///
    /// # Panics
    /// When `weight` or `grad` is not `[out, in]`.
    pub fn gradients(&self, weight: &Tensor, grad: &Tensor) -> LwcGrads {
        let (weight, grad, clip) = (self.prepared(weight), self.checked(grad), self.clip());
        if let Some(there) = self.on_card(&weight, &clip, grad.kind()) {
            return there.gradients(&grad);
        }
        no_grad(|| match fused_kinds(&weight, grad.kind()) {
            Some((Kind::Double, Kind::Double)) => self.gradients_fused::<f64, f64>(&weight, &grad, &clip),
            Some((Kind::Float, Kind::BFloat16)) => self.gradients_fused::<f32, bf16>(&weight, &grad, &clip),
            Some((Kind::Float, Kind::Float)) => self.gradients_fused::<f32, f32>(&weight, &grad, &clip),
            _ => {
                let grad = grad.to_kind(weight.kind());
                composed::gradients(Levels::new(self.spec, &weight), &weight, self.offsets.as_ref(), &grad, &clip)
            }
        })
    }

    /// [`Self::gradients`] and `dL/dw` `[out, in]`, for weights that are learned or transformed as well.
    ///
    /// # Panics
    /// When `weight` or `grad` is not `[out, in]`.
    pub fn gradients_with_weight(&self, weight: &Tensor, grad: &Tensor) -> (LwcGrads, Tensor) {
        let (weight, grad, clip) = (self.prepared(weight), self.checked(grad), self.clip());
        if let Some(there) = self.on_card(&weight, &clip, grad.kind()) {
            return there.gradients_with_weight(&grad);
        }
        no_grad(|| match fused_kinds(&weight, grad.kind()) {
            Some((Kind::Double, Kind::Double)) => self.gradients_with_weight_fused::<f64, f64>(&weight, &grad, &clip),
            Some((Kind::Float, Kind::BFloat16)) => self.gradients_with_weight_fused::<f32, bf16>(&weight, &grad, &clip),
            Some((Kind::Float, Kind::Float)) => self.gradients_with_weight_fused::<f32, f32>(&weight, &grad, &clip),
            _ => {
                let grad = grad.to_kind(weight.kind());
                composed::gradients_with_weight(
                    Levels::new(self.spec, &weight),
                    &weight,
                    self.offsets.as_ref(),
                    &grad,
                    &clip,
                )
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
        let clip = ClipTensors { hi: self.gamma.sigmoid(), lo: self.beta.sigmoid() };
        let weight = weight.to_kind(self.gamma.kind());
        composed::fake_quantize_autograd(Levels::new(self.spec, &weight), &weight, self.offsets.as_ref(), &clip)
    }

    /// Final codes of a weight `[out, in]`, with scales that are f16 numbers. Computed on the CPU.
    ///
    /// Fails if the weight has a different shape, if a strength is NaN, or if the weight or the offsets are not finite.
    pub fn quantize(&self, weight: &Tensor) -> Result<QuantizedTensor, LwcError> {
        self.check_shape(weight)?;
        let [rows, cols] = self.shape().map(|n| n as usize);
        let to_cpu = |tensor: &Tensor| tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let (weight, ClipTensors { hi, lo }) = (to_cpu(weight), self.clip());
        let clip = ClipTensors { hi: to_cpu(&hi), lo: to_cpu(&lo) };
        let offsets = self.offsets.as_ref().map(to_cpu);
        Ok(tensors::quantize(&weight, [rows, cols], self.spec, &clip, offsets.as_ref())?)
    }

    /// For each group of a weight `[out, in]`: the scale, the value of code 0 of grids with a minimum (else 0), and the codes of both ends
    /// minus the zero point, `[out, groups]` each.
    ///
    /// # Panics
    /// When `weight` is not `[out, in]`.
    pub fn grids(&self, weight: &Tensor) -> [Tensor; 4] {
        let weight = self.prepared(weight);
        no_grad(|| composed::grids_of(Levels::new(self.spec, &weight), &weight, &self.clip()))
    }

    /// The codes nearest to places on a grid: integers, or e2m1 numbers.
    pub fn nearest(&self, places: &Tensor) -> Tensor {
        composed::nearest(self.spec.storage.has_float_codes(), places)
    }

    /// Learns how weights are rounded: moves the offsets by some `rate` units of the scale, such that values move against
    /// `grad = dL/dw'` `[out, in]`, in place if possible. Offsets start at 0; those of clamped codes do not move.
    ///
    /// A step is the gradient divided by what is usual in its row `i` and its column `j`, `sqrt(r_i c_j / m)` with the mean squares `r` of
    /// rows, `c` of columns and `m` of all (Adafactor, Shazeer & Stern 2018, arXiv 1804.04235, without memory); at most twice
    /// the rate. So most offsets move by about the rate, as with the sign of the gradient (SignRound, arXiv 2309.05516), but those to
    /// which the loss is indifferent stay.
    ///
    /// # Panics
    /// When `weight` or `grad` is not `[out, in]`.
    pub fn move_offsets(&mut self, weight: &Tensor, grad: &Tensor, rate: f64) {
        let (weight, grad, clip) = (self.prepared(weight), self.checked(grad), self.clip());
        let mut offsets = self.offsets.take().unwrap_or_else(|| weight.zeros_like());
        let usual = no_grad(|| usual(&weight, &grad));
        // Loops that write in place must not read the same memory.
        let apart = [&weight, &grad].into_iter().all(|read| !slices::overlap(read, &offsets));
        let there = self.on_card(&weight, &clip, grad.kind());
        if let Some(there) = there.filter(|_| apart && offsets.kind() == Kind::Float && offsets.is_contiguous()) {
            there.move_offsets(&grad, &usual, rate, &mut offsets);
            self.offsets = Some(offsets);
            return;
        }
        no_grad(|| match fused_kinds(&weight, grad.kind()).filter(|_| apart) {
            Some((Kind::Double, Kind::Double)) => {
                self.move_offsets_fused::<f64, f64>(&weight, (&grad, &usual), &clip, rate, &mut offsets);
            }
            Some((Kind::Float, Kind::BFloat16)) => {
                self.move_offsets_fused::<f32, bf16>(&weight, (&grad, &usual), &clip, rate, &mut offsets);
            }
            Some((Kind::Float, Kind::Float)) => {
                self.move_offsets_fused::<f32, f32>(&weight, (&grad, &usual), &clip, rate, &mut offsets);
            }
            _ => {
                let grad = grad.to_kind(weight.kind());
                let levels = Levels::new(self.spec, &weight);
                offsets = composed::moved_offsets(levels, &weight, &offsets, (&grad, &usual), &clip, rate);
            }
        });
        self.offsets = Some(offsets);
    }
}

/// What gradients of a weight usually are.
pub(crate) fn usual(weight: &Tensor, grad: &Tensor) -> Usual {
    match fused_kinds(weight, grad.kind()) {
        Some((Kind::Double, Kind::Double)) => tensors::usual::<f64, f64>(grad),
        Some((Kind::Float, Kind::BFloat16)) => tensors::usual::<f32, bf16>(grad),
        Some((Kind::Float, Kind::Float)) => tensors::usual::<f32, f32>(grad),
        _ => Usual::of(grad, weight.kind()),
    }
}

/// The kinds of a weight and of its quantized counterpart or gradient, if the fused loops support them.
fn fused_kinds(weight: &Tensor, other: Kind) -> Option<(Kind, Kind)> {
    (weight.device() == Device::Cpu).then(|| (weight.kind(), other))
}
