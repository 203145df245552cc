//! From a tensor to the slice of its elements: the only place that follows a tensor's pointer.

#![allow(unsafe_code, reason = "libtorch hands out the address of a tensor's elements, and copying them costs a pass")]

use tch::kind::Element;
use tch::{Device, Tensor};

/// The elements of a contiguous tensor on the CPU.
///
/// # Panics
/// When the tensor is elsewhere, not contiguous or of another kind.
pub fn of<T: Element>(tensor: &Tensor) -> &[T] {
    let len = checked_len::<T>(tensor);
    if len == 0 {
        return &[];
    }
    // SAFETY: checked_len made sure that `len` elements of kind T lie in a row at this address on the CPU. The borrow keeps the
    // tensor alive, and this crate calls no operation that writes to it while the slice is held.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), len) }
}

/// The elements of a tensor that was just made, to be filled in; it must be contiguous and on the CPU.
///
/// # Panics
/// When the tensor is elsewhere, not contiguous or of another kind.
pub fn of_mut<T: Element>(tensor: &mut Tensor) -> &mut [T] {
    let len = checked_len::<T>(tensor);
    if len == 0 {
        return &mut [];
    }
    // SAFETY: checked_len made sure that `len` elements of kind T lie in a row at this address on the CPU; any bits make a
    // number. The tensor is borrowed mutably, and this crate passes only tensors that share their memory with no other.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), len) }
}

fn checked_len<T: Element>(tensor: &Tensor) -> usize {
    assert_eq!(tensor.device(), Device::Cpu, "a slice of a tensor: device");
    assert_eq!(tensor.kind(), T::KIND, "a slice of a tensor: kind");
    assert!(tensor.is_contiguous(), "a slice of a tensor: not contiguous");
    tensor.numel()
}
