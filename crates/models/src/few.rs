//! Loops for a few positions. An operation of libtorch takes a microsecond or two before it begins, and a block of a small model is
//! dozens of them: where a token is written at a time, that is as much as its products take.

use tch::{Device, Kind, Tensor};

use crate::rope::Rotary;

/// Positions.
const FEW: usize = 4;

/// Whether a tensor may be read as a slice, and no gradient is asked of it.
fn is_plain(x: &Tensor) -> bool {
    x.device() == Device::Cpu && x.kind() == Kind::Float && x.is_contiguous() && !x.requires_grad()
}

/// [`crate::layers::rms_norm`] of a few rows.
#[allow(unsafe_code, reason = "the loop reads tensors where they lie")]
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Option<Tensor> {
    let width = weight.numel();
    if x.numel() > FEW * width || !is_plain(x) || !is_plain(weight) {
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

/// [`Rotary::turn`] of one position.
#[allow(unsafe_code, reason = "the loop reads tensors where they lie")]
pub(crate) fn turn(rotary: &Rotary, x: &Tensor) -> Option<Tensor> {
    let width = rotary.cos.numel();
    if rotary.cos.size()[0] != 1 || ![x, &rotary.cos, &rotary.sin].into_iter().all(is_plain) {
        return None;
    }
    let (size, half) = (x.size(), width / 2);
    // SAFETY: nothing is written meanwhile but a tensor that is made here.
    let [x, cos, sin] = [x, &rotary.cos, &rotary.sin].map(|x| unsafe { oq_slices::of::<f32>(x) });
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
    use crate::layers;

    /// Few operations on f32.
    const TOLERANCE: f64 = 1e-6;

    #[track_caller]
    fn check_close(few: &Tensor, many: &Tensor) {
        assert_eq!(few.size(), many.size());
        let error = (few - many).abs().max().double_value(&[]);
        assert!(error <= TOLERANCE * many.abs().max().double_value(&[]), "{error}");
    }

    #[test]
    fn a_position_alone_is_a_position_among_many() {
        tch::manual_seed(2);
        let (x, weight) =
            (Tensor::randn([1, 9, 80], (Kind::Float, Device::Cpu)), Tensor::rand([80], (Kind::Float, Device::Cpu)));
        let many = layers::rms_norm(&x, &weight, 1e-5);
        for i in 0..9 {
            check_close(&rms_norm(&x.narrow(1, i, 1), &weight, 1e-5).unwrap(), &many.narrow(1, i, 1));
        }
        let heads = Tensor::randn([1, 3, 9, 16], (Kind::Float, Device::Cpu));
        let angles = Tensor::rand([9, 16], (Kind::Float, Device::Cpu)) * 6.0;
        let rotary = Rotary { cos: angles.cos(), sin: angles.sin() };
        let many = rotary.turn(&heads);
        for i in 0..9 {
            let own = |x: &Tensor| x.narrow(0, i, 1);
            let rotary = Rotary { cos: own(&rotary.cos), sin: own(&rotary.sin) };
            check_close(&turn(&rotary, &heads.narrow(2, i, 1).contiguous()).unwrap(), &many.narrow(2, i, 1));
        }
    }

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
