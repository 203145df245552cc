//! NVRTC: the compiler of CUDA C++ as a library, which is loaded when it is needed.

use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};
use libloading::Library;

use crate::error::CudaError;

/// All kernels, in CUDA C++.
pub const SOURCE: &str =
    concat!(include_str!("numbers.cu"), "\n", include_str!("clip.cu"), "\n", include_str!("packed.cu"));

/// Environment variable with the path of libnvrtc, for where the loader does not find it.
pub const NVRTC: &str = "OMNIQUANT_NVRTC";

const MEND: &str = "set OMNIQUANT_NVRTC to the path of libnvrtc.so.13 (a part of CUDA 13, and of torch for CUDA)";

/// All kernels as machine code for an architecture such as `sm_80`.
///
/// # Errors
/// When NVRTC is missing, or does not know the architecture.
pub fn compile(architecture: &str) -> Result<Vec<u8>, CudaError> {
    load()?;
    let refused = |log: String| CudaError::Compile { architecture: architecture.to_owned(), log };
    let source = CString::new(SOURCE).map_err(|error| refused(error.to_string()))?;
    let program = result::create_program(&source, Some(c"omniquant.cu")).map_err(|error| refused(error.to_string()))?;
    // Products and sums stay apart, as in the loops on the CPU: codes are the same.
    let options = [format!("--gpu-architecture={architecture}"), "--fmad=false".into(), "--std=c++17".into()];
    // SAFETY: the program was just created.
    let compiled = unsafe { result::compile_program(program, &options) };
    let code = match compiled {
        // SAFETY: as above.
        Ok(()) => unsafe { code_of(program) }.map_err(|error| refused(error.to_string())),
        Err(error) => {
            // SAFETY: as above.
            let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
            let text: Vec<u8> = log.into_iter().map(|byte| byte as u8).take_while(|&byte| byte != 0).collect();
            Err(refused(format!("{error}: {}", String::from_utf8_lossy(&text).trim())))
        }
    };
    // SAFETY: it is not used after this. What could be said about a failure helps nobody.
    let _ = unsafe { result::destroy_program(program) };
    code
}

/// # Safety
/// The program was compiled for an architecture of its own, not for a virtual one.
unsafe fn code_of(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut len = 0;
    // SAFETY: promised by the caller.
    unsafe { sys::nvrtcGetCUBINSize(program, &raw mut len) }.result()?;
    let mut code = vec![0u8; len];
    // SAFETY: the buffer has the length that NVRTC asked for.
    unsafe { sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast::<c_char>()) }.result()?;
    Ok(code)
}

/// Loads the library: the one that the environment names, or the one that the loader finds.
fn load() -> Result<(), CudaError> {
    static KEPT: OnceLock<Vec<Library>> = OnceLock::new();
    if KEPT.get().is_some() {
        return Ok(());
    }
    let missing = |because: String| CudaError::Library { what: "NVRTC", because, mend: MEND };
    let mut kept = Vec::new();
    if let Some(path) = std::env::var_os(NVRTC).filter(|path| !path.is_empty()) {
        // SAFETY: NVRTC's initialization has no requirements. Once loaded it is found by its name.
        kept.push(unsafe { Library::new(path) }.map_err(|error| missing(format!(": {error}")))?);
    }
    // SAFETY: as above.
    if !unsafe { sys::is_culib_present() } {
        return Err(missing(String::new()));
    }
    // NVRTC opens a second library by its name alone, and does not look where it lies itself.
    for path in builtins() {
        // SAFETY: as above.
        kept.extend(unsafe { Library::new(path) });
    }
    let _ = KEPT.set(kept);
    Ok(())
}

/// The libraries beside NVRTC that it opens; none where the system does not say where it lies.
fn builtins() -> Vec<PathBuf> {
    let mapped = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let nvrtc =
        mapped.lines().find(|line| line.contains("/libnvrtc.so")).and_then(|line| line.find('/').map(|at| &line[at..]));
    let Some(folder) = nvrtc.and_then(|path| Path::new(path).parent()) else { return Vec::new() };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so"));
    names.map(|entry| entry.path()).collect()
}
