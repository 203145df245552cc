//! The CUDA kernels on the host, for tests: their own sources, compiled for the host, with the threads of a block, its barriers and the
//! shuffles of its warps emulated one after the other. Threads that wait at different barriers, and shuffles with lanes that take no part,
//! end the process with an error.

#![allow(unsafe_code, reason = "the emulation is C++")]

use std::ffi::{CString, c_char, c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use oq_cuda::{CudaError, Launch};

unsafe extern "C" {
    fn oq_emulated_launch(name: *const c_char, blocks: c_uint, args: *mut *mut c_void) -> bool;
}

/// What runs kernels on the host.
#[derive(Debug)]
pub struct Emulated;

impl Launch for Emulated {
    unsafe fn launch(&self, kernel: &str, blocks: u32, args: &mut [*mut c_void]) -> Result<(), CudaError> {
        static ONE: Mutex<()> = Mutex::new(());
        let missing = || CudaError::Driver { what: format!("the kernel {kernel}"), error: "there is none".to_owned() };
        let name = CString::new(kernel).map_err(|_| missing())?;
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller promises the arguments; the lock keeps others out.
        match unsafe { oq_emulated_launch(name.as_ptr(), blocks, args.as_mut_ptr()) } {
            true => Ok(()),
            false => Err(missing()),
        }
    }
}

/// Uses the emulation for numbers on the host, in the whole process.
pub fn use_emulation() {
    oq_cuda::use_host(Emulated);
}
