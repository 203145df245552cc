//! Process settings for libtorch: how its OpenMP threads wait, how the C library allocates its tensors, and in which order CUDA lists cards.
//! The libraries read their settings from the environment before `main`.

use std::io;

use oq_isa::Isa;

/// The libtorch release that the `tch` crate is written for. The build of `tch` refuses any other.
pub const LIBTORCH: &str = "2.13.0";

/// Restarts the program once, under the same process id, with the environment variables that make libtorch fast on a CPU. Variables that
/// are already set stay as they are. Call it first in `main`. It returns only if all variables are set.
///
/// # Errors
/// When the program cannot be restarted.
///
/// - `GOMP_SPINCOUNT`: by default, threads that wait for each other spin for about a millisecond. On a machine with other load, spinning
///   threads take the cores from the threads they wait for. Measured with two threads on two busy cores: a forward pass takes ten times
///   as long.
/// - `GLIBC_TUNABLES`: by default, large tensors are mapped anew for each operation, and the kernel zeroes their memory in pages of 4 KiB
///   on first write. With pages of 2 MiB, and with memory of tensors up to 64 MiB kept and reused, a learning step of LLaMA-2-7B's block
///   takes a third less time on 2 cores and a tenth more memory. With a larger limit, or with all memory kept, memory grows faster than
///   speed.
/// - `CUDA_DEVICE_ORDER`: by default, CUDA lists the fastest card first, and nvidia-smi, which tells how much memory is free, by bus.
pub fn settle() -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        const MALLOC: &str =
            "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=67108864:glibc.malloc.trim_threshold=68719476736";
        // Environment variables with the same effect, and the value for the first of them.
        const SETTINGS: [(&[&str], &str); 3] = [
            // The library's own default where there are more threads than cores.
            (&["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"], "1000"),
            (&["GLIBC_TUNABLES"], MALLOC),
            (&["CUDA_DEVICE_ORDER"], "PCI_BUS_ID"),
        ];
        let is_set = |names: &[&str]| names.iter().any(|name| std::env::var_os(name).is_some());
        let missing: Vec<_> = SETTINGS.iter().filter(|(names, _)| !is_set(names)).collect();
        if !missing.is_empty() {
            let mut restarted = std::process::Command::new(std::env::current_exe()?);
            restarted.args(std::env::args_os().skip(1)).envs(missing.iter().map(|(names, value)| (names[0], value)));
            return Err(restarted.exec());
        }
    }
    Ok(())
}

/// Whether this processor has instructions for bf16 products. With them, libtorch is two to three times as fast in bf16 as in f32.
pub fn multiplies_bf16() -> bool {
    Isa::Avx512Bf16.is_available()
}

/// Returns free memory that the allocator holds to the system. With the settings of [`settle`], the allocator holds all freed memory, in
/// gaps between live tensors that a larger tensor does not fit into. Call it between blocks, not between operations: the system has to
/// zero returned memory again before its next use.
#[allow(unsafe_code, reason = "a function of the C library")]
pub fn trim_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number and touches only free memory, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
