//! Slices of tensor elements: the only crate that follows a tensor's pointer.
//!
//! libtorch's tensors are handles that may share memory, and any handle may write to it, so borrowing one says nothing about the others.
//! Looking at a tensor's elements is therefore unsafe ([`of`], [`of_mut`]), and the caller is responsible. Making a tensor is safe
//! ([`tensor`], [`filled`]), because nobody else has a handle to it yet.

#![allow(unsafe_code, reason = "libtorch hands out the address of a tensor's elements, and copying them costs a pass")]

use half::{bf16, f16};
use tch::{Device, Kind, Tensor};

/// A number that tensors can hold. (`tch` has such a trait, but it mistakes bf16 for f16.)
pub trait Number: Copy {
    /// The kind's name in libtorch.
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
/// When `elements` and `shape` differ in length.
pub fn tensor<T: Number>(elements: &[T], shape: &[i64]) -> Tensor {
    let [tensor] = filled([shape], |[into]| into.copy_from_slice(elements));
    tensor
}

/// Tensors of these shapes on the CPU, with elements written by `fill`. Their previous content is arbitrary.
pub fn filled<T: Number, const N: usize>(shapes: [&[i64]; N], fill: impl FnOnce([&mut [T]; N])) -> [Tensor; N] {
    let mut tensors = shapes.map(|shape| Tensor::empty(shape, (T::KIND, Device::Cpu)));
    // SAFETY: each was just made, with its own memory that no other handle knows.
    fill(tensors.each_mut().map(|tensor| unsafe { of_mut(tensor) }));
    tensors
}

/// Whether two contiguous tensors on the CPU share memory.
pub fn overlap(a: &Tensor, b: &Tensor) -> bool {
    let place = |tensor: &Tensor| {
        let start = tensor.data_ptr() as usize;
        start..start + tensor.numel() * tensor.kind().elt_size_in_bytes()
    };
    let (a, b) = (place(a), place(b));
    a.start < b.end && b.start < a.end
}

/// The elements of a contiguous tensor on the CPU.
///
/// # Safety
/// While the slice exists, nothing may write to this tensor's memory, through this handle or any other: on this thread, no in-place
/// operation of libtorch and no slice of [`of_mut`]. Every libtorch operation already requires that other threads leave its operands alone.
///
/// # Panics
/// When the tensor is on another device, not contiguous, or of another kind.
pub unsafe fn of<T: Number>(tensor: &Tensor) -> &[T] {
    let len = checked_len::<T>(tensor);
    if len == 0 {
        return &[];
    }
    // SAFETY: checked_len made sure that `len` elements of kind T lie in a row at this address on the CPU, and any bits are a valid number.
    // The borrow keeps the tensor alive; the caller promises that nothing writes to it meanwhile.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), len) }
}

/// The elements of a contiguous tensor on the CPU, for writing.
///
/// # Safety
/// While the slice exists, nothing else may read or write this tensor's memory: see [`of`] and [`overlap`].
///
/// # Panics
/// When the tensor is on another device, not contiguous, or of another kind.
pub unsafe fn of_mut<T: Number>(tensor: &mut Tensor) -> &mut [T] {
    let len = checked_len::<T>(tensor);
    if len == 0 {
        return &mut [];
    }
    // SAFETY: checked_len made sure that `len` elements of kind T lie in a row at this address on the CPU, and any bits are a valid number.
    // The tensor is borrowed mutably; the caller promises that no other handle is used meanwhile.
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

    /// A copy of the elements.
    fn elements<T: Number>(tensor: &Tensor) -> Vec<T> {
        // SAFETY: nothing writes to the tensor while it is copied.
        unsafe { of::<T>(tensor) }.to_vec()
    }

    #[test]
    fn elements_come_back_in_their_kind() {
        let numbers = [1.0, -2.5, 1e30, 0.0].map(bf16::from_f32);
        let tensor = tensor(&numbers, &[2, 2]);
        assert_eq!((tensor.kind(), tensor.size()), (Kind::BFloat16, vec![2, 2]));
        assert_eq!(tensor.double_value(&[0, 1]), -2.5);
        assert_eq!(elements::<bf16>(&tensor), numbers);
    }

    #[test]
    fn tensors_are_filled_side_by_side() {
        let [a, b, none] = filled([&[2, 2], &[3], &[0, 5]], |[a, b, none]| {
            a.fill(1.5);
            b.copy_from_slice(&[1.0f64, 2.0, 3.0]);
            assert!(none.is_empty());
        });
        assert_eq!((elements::<f64>(&a), elements::<f64>(&b)), (vec![1.5; 4], vec![1.0, 2.0, 3.0]));
        assert_eq!(none.size(), [0, 5]);
        assert!(!overlap(&a, &b) && !overlap(&none, &none));
    }

    #[test]
    fn handles_of_the_same_memory_overlap() {
        let whole = Tensor::zeros([4, 2], (Kind::Float, Device::Cpu));
        let [first, last] = [whole.narrow(0, 0, 2), whole.narrow(0, 2, 2)];
        assert!(overlap(&whole, &whole.shallow_clone()) && overlap(&whole, &first) && overlap(&last, &whole));
        assert!(!overlap(&first, &last) && !overlap(&whole, &whole.copy()));
    }

    #[test]
    #[should_panic(expected = "kind")]
    fn another_kind_is_refused() {
        elements::<f32>(&Tensor::zeros([2], (Kind::BFloat16, Device::Cpu)));
    }

    #[test]
    #[should_panic(expected = "not contiguous")]
    fn a_view_with_gaps_is_refused() {
        elements::<f32>(&Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)).transpose(0, 1));
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
