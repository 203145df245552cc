//! Loops for decoding, where there are only a few positions. An operation of libtorch takes a microsecond or two before it begins, and a block of a small model is
//! dozens of them: where a token is written at a time, that is as much as its products take.

use tch::{Device, Kind, Tensor};

/// Most positions that are taken.
const POSITIONS: usize = 4;

/// Whether a tensor may be read as a slice, and no gradient is asked of it.
fn is_plain(x: &Tensor) -> bool {
    x.device() == Device::Cpu && x.kind() == Kind::Float && x.is_contiguous() && !x.requires_grad()
}

/// [`crate::layers::rms_norm`] of a few rows; none where libtorch's is to be used.
#[allow(unsafe_code, reason = "the loop reads tensors where they lie")]
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Option<Tensor> {
    let width = weight.numel();
    if x.numel() > POSITIONS * width || !is_plain(x) || !is_plain(weight) {
        return None;
    }
    let size = x.size();
    // SAFETY: nothing is written meanwhile but a tensor that is made here.
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

/// [`crate::Rotary::turn`] of one position; none where libtorch's is to be used. `cos`, `sin` `[t, dim]`.
#[allow(unsafe_code, reason = "the loop reads tensors where they lie")]
pub(crate) fn turn(cos: &Tensor, sin: &Tensor, x: &Tensor) -> Option<Tensor> {
    let width = cos.numel();
    if cos.size()[0] != 1 || ![x, cos, sin].into_iter().all(is_plain) {
        return None;
    }
    let (size, half) = (x.size(), width / 2);
    // SAFETY: nothing is written meanwhile but a tensor that is made here.
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
    fn gradients_and_many_positions_are_left_to_libtorch() {
        let weight = Tensor::ones([8], (Kind::Float, Device::Cpu));
        assert!(rms_norm(&Tensor::ones([1, 5, 8], (Kind::Float, Device::Cpu)), &weight, 1e-5).is_none());
        let x = Tensor::ones([1, 1, 8], (Kind::Float, Device::Cpu));
        assert!(rms_norm(&x.set_requires_grad(true), &weight, 1e-5).is_none());
        assert!(rms_norm(&x, &weight.set_requires_grad(true), 1e-5).is_none());
        assert!(rms_norm(&x.to_kind(Kind::Double), &weight, 1e-5).is_none());
    }
}
