//! A device for tests, which any machine has: main memory that the host cannot reach by a tensor's pointer, as if it belonged to an
//! accelerator. What works on it takes no pointer to a tensor of the device and mixes no tensors of host and device. It counts copies between
//! host and device, and how often the host waits for a result, because that is what costs time on a real one.
//!
//! Operations are libtorch's own for the CPU, so that numbers are those of the CPU. See `device.cpp`.

#![allow(unsafe_code, reason = "the device is C++")]

use std::ops::Sub;

use tch::Device;

mod sys {
    // torch-sys links libtorch, which the device needs.
    use torch_sys as _;

    unsafe extern "C" {
        pub safe fn oq_protected_install() -> i32;
        pub fn oq_protected_counts(out: *mut u64);
    }
}

/// The device. It is libtorch's MPS, which builds for CPUs have no kernels for.
///
/// # Panics
/// When there is no address space for its memory.
pub fn device() -> Device {
    assert_eq!(sys::oq_protected_install(), 0, "the protected device could not be installed");
    Device::Mps
}

/// What happened on the device since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Copies from host to device.
    pub to_device: u64,
    /// Their bytes.
    pub to_device_bytes: u64,
    /// Copies from device to host.
    pub to_host: u64,
    /// Their bytes.
    pub to_host_bytes: u64,
    /// Operations whose result the host waited for, beside copies to it.
    pub waits: u64,
    /// Operations.
    pub operations: u64,
}

impl Counts {
    /// Up to now.
    pub fn now() -> Self {
        let mut all = [0; 6];
        // SAFETY: the function writes six numbers.
        unsafe { sys::oq_protected_counts(all.as_mut_ptr()) };
        let [to_device, to_device_bytes, to_host, to_host_bytes, waits, operations] = all;
        Self { to_device, to_device_bytes, to_host, to_host_bytes, waits, operations }
    }

    /// Of a function's run.
    pub fn of<T>(f: impl FnOnce() -> T) -> (T, Self) {
        let before = Self::now();
        let result = f();
        (result, Self::now() - before)
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            to_device: self.to_device - before.to_device,
            to_device_bytes: self.to_device_bytes - before.to_device_bytes,
            to_host: self.to_host - before.to_host,
            to_host_bytes: self.to_host_bytes - before.to_host_bytes,
            waits: self.waits - before.waits,
            operations: self.operations - before.operations,
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn operations_are_those_of_the_cpu() {
        let device = device();
        let here = Tensor::randn([5, 7], (Kind::Float, Device::Cpu));
        let there = here.to_device(device);
        let back = |x: Tensor| x.to_device(Device::Cpu);
        let f = |x: &Tensor| x.transpose(0, 1).matmul(x).softmax(-1, Kind::Float).narrow(1, 2, 4) * 2.0 + 1.0;
        assert_eq!(back(f(&there)), f(&here));
        assert_eq!(there.sum(Kind::Double).double_value(&[]), here.sum(Kind::Double).double_value(&[]));
        let sorted = |x: &Tensor| x.sort(-1, true).1;
        assert_eq!(back(sorted(&there)), sorted(&here));
        let written = there.zeros_like();
        written.narrow(0, 1, 2).copy_(&there.narrow(0, 3, 2));
        assert_eq!(back(written.narrow(0, 1, 2)), here.narrow(0, 3, 2));
        let grad = |x: &Tensor| {
            let x = x.detach().set_requires_grad(true);
            let loss = f(&x).square().sum(Kind::Float);
            Tensor::run_backward(&[loss], &[&x], false, false).remove(0)
        };
        assert_eq!(back(grad(&there)), grad(&here));
    }

    #[test]
    #[cfg(unix)]
    fn a_pointer_taken_on_the_host_faults() {
        use std::os::unix::process::ExitStatusExt;
        use std::process::Command;

        const READS: &str = "OQ_PROTECTED_READS";
        let read = |tensor: &Tensor| {
            // SAFETY: a tensor of the host holds one number. That of the device is there to show that this faults.
            unsafe { std::ptr::read_volatile(tensor.data_ptr() as *const f32) }
        };
        match std::env::var(READS).as_deref() {
            Ok("there") => panic!("{} was read", read(&Tensor::ones([1], (Kind::Float, device())))),
            Ok(_) => assert_eq!(read(&Tensor::ones([1], (Kind::Float, Device::Cpu))), 1.0),
            Err(_) => {
                let child = |reads: &str| {
                    let mut child = Command::new(std::env::current_exe().expect("tests have a file"));
                    child.args(["--exact", "tests::a_pointer_taken_on_the_host_faults"]).env(READS, reads);
                    child.output().expect("tests start").status
                };
                assert!(child("here").success());
                assert_eq!(child("there").signal(), Some(11), "a segmentation fault");
            }
        }
    }

    #[test]
    fn tensors_of_host_and_device_do_not_mix() {
        let device = device();
        let there = Tensor::ones([3], (Kind::Float, device));
        let error = there.f_add(&Tensor::ones([3], (Kind::Float, Device::Cpu))).unwrap_err().to_string();
        assert!(error.contains("same device") && error.contains("mps:0 and cpu"), "{error}");
        // A single number is taken as on CUDA.
        assert_eq!(there.f_add(&Tensor::from(1.0f32)).unwrap().sum(Kind::Float).double_value(&[]), 6.0);
    }
}
