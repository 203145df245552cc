//! What kernels run on, and how they are given tensors.

use std::ffi::c_void;

use tch::{Device, Kind, Tensor};

use crate::error::CudaError;

/// Threads of a block of every kernel.
pub const THREADS: u32 = 256;

/// Something that kernels run on.
pub trait Launch: Send + Sync {
    /// Runs `blocks` blocks of [`THREADS`] threads, now or in order with what was asked before.
    ///
    /// # Safety
    /// `args` point to the arguments of this kernel of [`SOURCE`](crate::SOURCE), of its types, and what these point to lies there.
    ///
    /// # Errors
    /// When there is no such kernel, or it cannot be run.
    unsafe fn launch(&self, kernel: &str, blocks: u32, args: &mut [*mut c_void]) -> Result<(), CudaError>;
}

/// The kernels, on what they run on.
pub struct Kernels {
    launch: Box<dyn Launch>,
    device: Device,
}

impl Kernels {
    /// Kernels for tensors on this device.
    pub(crate) fn new(launch: impl Launch + 'static, device: Device) -> Self {
        Self { launch: Box::new(launch), device }
    }

    /// Where their tensors lie.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Runs a kernel.
    ///
    /// # Safety
    /// As [`Launch::launch`].
    pub(crate) unsafe fn run(&self, kernel: &str, blocks: u64, args: &mut [*mut c_void]) {
        if blocks == 0 {
            return;
        }
        let blocks =
            i32::try_from(blocks).unwrap_or_else(|_| panic!("the matrix is too large for the kernel {kernel}"));
        // SAFETY: promised by the caller.
        unsafe { self.launch.launch(kernel, blocks.unsigned_abs(), args) }.unwrap_or_else(|error| panic!("{error}"));
    }

    /// The address of a tensor's elements, to be read.
    ///
    /// # Panics
    /// When the tensor lies elsewhere, or is of another kind or length, or not contiguous.
    pub(crate) fn address<T>(&self, tensor: &Tensor, kind: Kind, len: usize) -> *const T {
        assert_eq!(tensor.device(), self.device, "an operand of a CUDA kernel: device");
        assert_eq!(tensor.kind(), kind, "an operand of a CUDA kernel: kind");
        assert_eq!(tensor.numel(), len, "an operand of a CUDA kernel: elements");
        assert!(tensor.is_contiguous(), "an operand of a CUDA kernel: not contiguous");
        tensor.data_ptr().cast_const().cast()
    }

    /// A new tensor, and the address that a kernel writes to.
    pub(crate) fn empty<T>(&self, shape: &[i64], kind: Kind) -> (Tensor, *mut T) {
        let tensor = Tensor::empty(shape, (kind, self.device));
        let address = tensor.data_ptr().cast();
        (tensor, address)
    }
}

/// A kernel's name by the kind of its numbers.
pub(crate) fn by_kind(kernel: &str, kind: Kind) -> String {
    match kind {
        Kind::Float => format!("{kernel}_f32"),
        Kind::BFloat16 => format!("{kernel}_bf16"),
        other => panic!("there is no CUDA kernel {kernel} for {other:?}"),
    }
}

/// A pointer to an argument, as a launch takes it.
pub(crate) fn arg<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}
