//! Loops for decoding, where inputs have one or a few positions. A call of a libtorch operation has an overhead of one or two microseconds,
//! and a block makes dozens of calls. For a small model that decodes one token at a time, this takes as long as the products.

use tch::{Device, Kind, Tensor};

/// Largest number of positions for these loops.
const POSITIONS: usize = 4;

/// Whether a tensor can be read as a slice of f32 and needs no gradient.
fn is_plain(x: &Tensor) -> bool {
    x.device() == Device::Cpu && x.kind() == Kind::Float && x.is_contiguous() && !x.requires_grad()
}

/// [`crate::layers::rms_norm`] for a few rows. `None` where libtorch has to be used.
#[allow(unsafe_code, reason = "the loop reads the tensors' memory")]
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Option<Tensor> {
    let width = weight.numel();
    if x.numel() > POSITIONS * width || !is_plain(x) || !is_plain(weight) {
        return None;
    }
    let size = x.size();
    // SAFETY: while the slices live, only a tensor allocated here is written to.
    let [x, weight] = [x, weight].map(|x| unsafe { oq_slices::of::<f32>(x) });
    let [y] = oq_slices::filled([&size], |[y]: [&mut [f32]; 1]| {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let inverse = (squares / width as f64 + eps).sqrt().recip() as f32;
            y.iter_mut().zip(x).zip(weight).for_each(|((y, x), weight)| *y = x * inverse * weight);
        }
    });
    Some(y)
}

/// [`crate::Rotary::rotate`] for one position, with `cos`, `sin` `[t, dim]`. `None` where libtorch has to be used.
#[allow(unsafe_code, reason = "the loop reads the tensors' memory")]
pub(crate) fn rotate(cos: &Tensor, sin: &Tensor, x: &Tensor) -> Option<Tensor> {
    let width = cos.numel();
    if cos.size()[0] != 1 || ![x, cos, sin].into_iter().all(is_plain) {
        return None;
    }
    let (size, half) = (x.size(), width / 2);
    // SAFETY: while the slices live, only a tensor allocated here is written to.
    let [x, cos, sin] = [x, cos, sin].map(|x| unsafe { oq_slices::of::<f32>(x) });
    let [y] = oq_slices::filled([&size], |[y]: [&mut [f32]; 1]| {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            for i in 0..half {
                y[i] = x[i] * cos[i] - x[i + half] * sin[i];
                y[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
            }
        }
    });
    Some(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_and_many_positions_use_libtorch() {
        let weight = Tensor::ones([8], (Kind::Float, Device::Cpu));
        assert!(rms_norm(&Tensor::ones([1, 5, 8], (Kind::Float, Device::Cpu)), &weight, 1e-5).is_none());
        let x = Tensor::ones([1, 1, 8], (Kind::Float, Device::Cpu));
        assert!(rms_norm(&x.set_requires_grad(true), &weight, 1e-5).is_none());
        assert!(rms_norm(&x, &weight.set_requires_grad(true), 1e-5).is_none());
        assert!(rms_norm(&x.to_kind(Kind::Double), &weight, 1e-5).is_none());
    }
}
