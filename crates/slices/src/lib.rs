//! From a tensor to the slice of its elements: the only place that follows a tensor's pointer.
//!
//! libtorch's tensors are handles that may share memory. While a slice is held, no operation may write to its tensor or to another
//! one that shares its memory; [`of_mut`] is for tensors that share theirs with none.

#![allow(unsafe_code, reason = "libtorch hands out the address of a tensor's elements, and copying them costs a pass")]

use half::{bf16, f16};
use tch::{Device, Kind, Tensor};

/// A number that tensors hold. (`tch` has such a trait, but takes bf16 for f16.)
pub trait Number: Copy {
    /// As libtorch names it.
    const KIND: Kind;
}

impl Number for f32 {
    const KIND: Kind = Kind::Float;
}

impl Number for f64 {
    const KIND: Kind = Kind::Double;
}

impl Number for f16 {
    const KIND: Kind = Kind::Half;
}

impl Number for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

/// A tensor of these elements, on the CPU.
///
/// # Panics
/// When there are more or fewer elements than `shape` has.
pub fn tensor<T: Number>(elements: &[T], shape: &[i64]) -> Tensor {
    let mut tensor = Tensor::empty(shape, (T::KIND, Device::Cpu));
    of_mut(&mut tensor).copy_from_slice(elements);
    tensor
}

/// The elements of a contiguous tensor on the CPU.
///
/// # Panics
/// When the tensor is elsewhere, not contiguous or of another kind.
pub fn of<T: Number>(tensor: &Tensor) -> &[T] {
    let len = checked_len::<T>(tensor);
    if len == 0 {
        return &[];
    }
    // SAFETY: checked_len made sure that `len` elements of kind T lie in a row at this address on the CPU. The borrow keeps the
    // tensor alive; that nothing writes to it meanwhile is asked of callers, as tensors that share memory are not known here.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), len) }
}

/// The elements of a tensor that shares its memory with no other, to be written; it must be contiguous and on the CPU.
///
/// # Panics
/// When the tensor is elsewhere, not contiguous or of another kind.
pub fn of_mut<T: Number>(tensor: &mut Tensor) -> &mut [T] {
    let len = checked_len::<T>(tensor);
    if len == 0 {
        return &mut [];
    }
    // SAFETY: checked_len made sure that `len` elements of kind T lie in a row at this address on the CPU; any bits make a
    // number. The tensor is borrowed mutably; that it shares its memory with no other is asked of callers.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), len) }
}

fn checked_len<T: Number>(tensor: &Tensor) -> usize {
    assert_eq!(tensor.device(), Device::Cpu, "a slice of a tensor: device");
    assert_eq!(tensor.kind(), T::KIND, "a slice of a tensor: kind");
    assert!(tensor.is_contiguous(), "a slice of a tensor: not contiguous");
    tensor.numel()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_back_in_their_kind() {
        let numbers = [1.0, -2.5, 1e30, 0.0].map(bf16::from_f32);
        let tensor = tensor(&numbers, &[2, 2]);
        assert_eq!((tensor.kind(), tensor.size()), (Kind::BFloat16, vec![2, 2]));
        assert_eq!(tensor.double_value(&[0, 1]), -2.5);
        assert_eq!(of::<bf16>(&tensor), numbers);
    }

    #[test]
    #[should_panic(expected = "kind")]
    fn another_kind_is_refused() {
        of::<f32>(&Tensor::zeros([2], (Kind::BFloat16, Device::Cpu)));
    }

    #[test]
    #[should_panic(expected = "not contiguous")]
    fn a_view_with_gaps_is_refused() {
        of::<f32>(&Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)).transpose(0, 1));
    }
}
