//! The fused loops on tensors: the only place in this crate that looks at tensor elements.
//!
//! All tensors are on the CPU, contiguous, of the kinds that the type parameters name, and of the right shapes. Callers ensure this.

#![allow(unsafe_code, reason = "the loops are our own, which read and write tensors where they lie")]

use oq_quant_core::{Clip, Ideal, QuantizedTensor, TensorError, WeightSpec};
use oq_slices as slices;
use tch::Tensor;

use crate::fused;
use crate::levels::{ClipTensors, Levels};
use crate::strengths::{Lwc, LwcGrads, choices};
use crate::usual::Usual;

/// Codes of a weight `[rows, cols]` with its clipping; all in f32.
pub(crate) fn quantize(
    weight: &Tensor,
    [rows, cols]: [usize; 2],
    spec: WeightSpec,
    clip: &ClipTensors,
    offsets: Option<&Tensor>,
) -> Result<QuantizedTensor, TensorError> {
    // SAFETY: no libtorch operation runs before they are last used, in the next statement.
    let [weight, hi, lo] = [weight, &clip.hi, &clip.lo].map(|x| unsafe { slices::of(x) });
    // SAFETY: as above.
    let offsets = offsets.map(|x| unsafe { slices::of(x) });
    QuantizedTensor::quantize_clipped(weight, rows, cols, spec, Clip { hi, lo }, offsets)
}

/// What gradients `[out, in]` usually are.
pub(crate) fn usual<T: fused::Real, S: fused::Stored<T>>(grad: &Tensor) -> Usual {
    let [rows, cols] = [grad.size()[0], grad.size()[1]];
    // SAFETY: only tensors that are made here are written meanwhile.
    let values: &[S] = unsafe { slices::of(grad) };
    let [of_rows, of_cols] =
        slices::filled([&[rows], &[cols]], |[of_rows, of_cols]: [&mut [T]; 2]| fused::norms(values, of_rows, of_cols));
    Usual::of_norms(&of_rows, &of_cols)
}

impl Lwc {
    /// `importance [in]`.
    pub(crate) fn search_fused<T: fused::Real>(&self, weight: &Tensor, importance: &Tensor) -> ClipTensors {
        let (clip, zeros, choices) = (self.clip(), self.zeros(), choices().map(T::of));
        let shape = clip.hi.size();
        // SAFETY: only tensors that are made here are written meanwhile.
        let (groups, importance) = unsafe { (self.groups(weight, &zeros, &clip, &[]), slices::of(importance)) };
        // Each weight gets its nearest code, whatever was learned.
        let groups = fused::Groups { offsets: &zeros, ..groups };
        let [hi, lo] = slices::filled([&shape[..]; 2], |[hi, lo]| fused::search(&groups, importance, &choices, hi, lo));
        ClipTensors { hi, lo }
    }

    pub(crate) fn fake_quantize_fused<T: fused::Real, S: fused::Stored<T>>(
        &self,
        weight: &Tensor,
        clip: &ClipTensors,
    ) -> Tensor {
        let (zeros, stored, shape) = (self.zeros::<T>(), self.stored::<T>(weight, clip), weight.size());
        // SAFETY: only a tensor that is made here is written meanwhile.
        let groups = unsafe { self.groups(weight, &zeros, clip, &stored) };
        let [out] = slices::filled([&shape], |[out]: [&mut [S]; 1]| fused::fake_quantize(&groups, out));
        out
    }

    pub(crate) fn gradients_fused<T: fused::Real, S: fused::Stored<T>>(
        &self,
        weight: &Tensor,
        grad: &Tensor,
        clip: &ClipTensors,
    ) -> LwcGrads {
        let (zeros, stored, shape) = (self.zeros::<T>(), self.stored::<T>(weight, clip), clip.hi.size());
        // SAFETY: only tensors that are made here are written meanwhile.
        let (groups, grad) = unsafe { (self.groups(weight, &zeros, clip, &stored), slices::of::<S>(grad)) };
        let [gamma, beta] =
            slices::filled([&shape[..]; 2], |[gamma, beta]| fused::gradients(&groups, grad, gamma, beta));
        LwcGrads { gamma, beta }
    }

    pub(crate) fn gradients_with_weight_fused<T: fused::Real, S: fused::Stored<T>>(
        &self,
        weight: &Tensor,
        grad: &Tensor,
        clip: &ClipTensors,
    ) -> (LwcGrads, Tensor) {
        let (zeros, stored) = (self.zeros::<T>(), self.stored::<T>(weight, clip));
        let (of_clip, of_weight) = (clip.hi.size(), weight.size());
        // SAFETY: only tensors that are made here are written meanwhile.
        let (groups, grad) = unsafe { (self.groups(weight, &zeros, clip, &stored), slices::of::<S>(grad)) };
        let shapes = [&of_clip[..], &of_clip, &of_weight];
        let [gamma, beta, d_weight] = slices::filled(shapes, |[gamma, beta, d_weight]| {
            fused::gradients_with_weight(&groups, grad, gamma, beta, d_weight);
        });
        (LwcGrads { gamma, beta }, d_weight)
    }

    /// Moves `offsets`, which must not belong to this clipping while they are moved.
    ///
    /// # Panics
    /// When they share memory with the weight or its gradient.
    pub(crate) fn move_offsets_fused<T: fused::Real, S: fused::Stored<T>>(
        &self,
        weight: &Tensor,
        (grad, usual): (&Tensor, &Usual),
        clip: &ClipTensors,
        rate: f64,
        offsets: &mut Tensor,
    ) {
        assert!(self.offsets.is_none(), "offsets are moved while they are read");
        let read = [weight, grad, &clip.hi, &clip.lo, &usual.rows, &usual.columns];
        assert!(read.into_iter().all(|read| !slices::overlap(read, offsets)), "offsets share memory with what is read");
        let (zeros, stored) = (self.zeros::<T>(), self.stored::<T>(weight, clip));
        // SAFETY: only the offsets are written meanwhile, and they lie elsewhere.
        let (groups, grad) = unsafe { (self.groups(weight, &zeros, clip, &stored), slices::of::<S>(grad)) };
        // SAFETY: as above.
        let usual = unsafe { (slices::of(&usual.rows), slices::of(&usual.columns)) };
        // SAFETY: nothing that is read meanwhile lies there, and no libtorch operation runs.
        let offsets = unsafe { slices::of_mut(offsets) };
        fused::move_offsets(&groups, grad, usual, T::of(rate), offsets);
    }

    /// Offsets of a group that has none.
    fn zeros<T: fused::Real>(&self) -> Vec<T> {
        vec![T::ZERO; self.spec.group.len(self.in_features)]
    }

    /// Scales and minima of all groups as they are stored; none where learning does not see them rounded.
    fn stored<T: fused::Real>(&self, weight: &Tensor, clip: &ClipTensors) -> Vec<Ideal> {
        let zeros = self.zeros::<T>();
        // SAFETY: nothing is written meanwhile.
        unsafe { self.groups(weight, &zeros, clip, &[]) }.rounded()
    }

    /// # Safety
    /// Same as [`slices::of`], for the weight, the fractions and the offsets.
    unsafe fn groups<'a, T: fused::Real>(
        &'a self,
        weight: &'a Tensor,
        zeros: &'a [T],
        clip: &'a ClipTensors,
        stored: &'a [Ideal],
    ) -> fused::Groups<'a, T> {
        let (len, levels) = (self.spec.group.len(self.in_features), Levels::new(self.spec, weight));
        // SAFETY: promised by the caller.
        let [slice, clip_hi, clip_lo] = [weight, &clip.hi, &clip.lo].map(|x| unsafe { slices::of(x) });
        // SAFETY: promised by the caller.
        let offsets = self.offsets.as_ref().map_or(zeros, |x| unsafe { slices::of(x) });
        fused::Groups { weight: slice, offsets, len, levels, clip_hi, clip_lo, stored }
    }
}
