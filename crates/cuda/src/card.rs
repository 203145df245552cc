//! A card: kernels compiled for it, and run on it.

use std::collections::BTreeMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};

use crate::error::CudaError;
use crate::kernels::{Launch, THREADS};
use crate::nvrtc::compile;

/// A card with the kernels loaded.
pub struct Card {
    name: String,
    context: sys::CUcontext,
    module: sys::CUmodule,
    functions: Mutex<BTreeMap<String, Function>>,
}

/// A kernel of the card's module.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: handles of the driver may be used by all threads.
unsafe impl Send for Card {}
// SAFETY: as above; what changes lies behind a mutex.
unsafe impl Sync for Card {}
// SAFETY: as above.
unsafe impl Send for Function {}

impl Card {
    /// Compiles the kernels for a card, which is counted as CUDA counts, and loads them.
    ///
    /// # Errors
    /// When the driver or NVRTC is missing or refuses.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        // SAFETY: the driver's initialization has no requirements.
        if !unsafe { sys::is_culib_present() } {
            let mend = "it comes with NVIDIA's driver";
            return Err(CudaError::Library { what: "libcuda", because: String::new(), mend });
        }
        let refused = |what: &str| {
            let what = what.to_owned();
            move |error: DriverError| CudaError::Driver { what, error: error.to_string() }
        };
        result::init().map_err(refused("to start"))?;
        let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let device = result::device::get(number).map_err(refused(&format!("card {ordinal}")))?;
        let name = result::device::get_name(device).unwrap_or_else(|_| format!("card {ordinal}"));
        let of = |attribute| {
            // SAFETY: the device is one that the driver named.
            unsafe { result::device::get_attribute(device, attribute) }.map_err(refused("to say what the card is"))
        };
        let major = of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let code = compile(&format!("sm_{major}{minor}"))?;
        // SAFETY: the device is one that the driver named. Its first context is the one that libtorch uses.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(refused("a context"))?;
        // SAFETY: the context is alive; it is never released.
        unsafe { result::ctx::set_current(context) }.map_err(refused("to use the context"))?;
        // SAFETY: the code is what NVRTC made for this architecture.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(refused("the kernels"))?;
        Ok(Self { name, context, module, functions: Mutex::default() })
    }

    /// The card's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn function(&self, kernel: &str) -> Result<Function, CudaError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&function) = functions.get(kernel) {
            return Ok(function);
        }
        let refused = |error: String| CudaError::Driver { what: format!("the kernel {kernel}"), error };
        let name = CString::new(kernel).map_err(|error| refused(error.to_string()))?;
        // SAFETY: the module is alive; it is never unloaded.
        let function = unsafe { result::module::get_function(self.module, name) };
        let function = Function(function.map_err(|error| refused(error.to_string()))?);
        functions.insert(kernel.to_owned(), function);
        Ok(function)
    }
}

impl Launch for Card {
    unsafe fn launch(&self, kernel: &str, blocks: u32, args: &mut [*mut c_void]) -> Result<(), CudaError> {
        let refused =
            |error: DriverError| CudaError::Driver { what: format!("to run {kernel}"), error: error.to_string() };
        // SAFETY: the context is alive.
        unsafe { result::ctx::set_current(self.context) }.map_err(refused)?;
        let Function(function) = self.function(kernel)?;
        // SAFETY: arguments are promised by the caller. The stream without a name is the one that libtorch starts with.
        unsafe { result::launch_kernel(function, (blocks, 1, 1), (THREADS, 1, 1), 0, std::ptr::null_mut(), args) }
            .map_err(refused)
    }
}
