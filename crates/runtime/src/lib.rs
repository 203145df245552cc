//! How libtorch's threads wait and where its tensors lie: settings of libraries under it, which they read before `main`.

use std::io;

use oq_isa::Isa;

/// The release that the `tch` crate is made for; its build refuses others.
pub const LIBTORCH: &str = "2.13.0";

/// Starts the program itself again, once, under the same process id, with the settings that make libtorch fast on a CPU, but for
/// those that the environment has already. To be called first in `main`; returns only if all are set, or with the reason.
///
/// - `GOMP_SPINCOUNT`: its threads wait for each other in a loop of about a millisecond. On a machine that does anything else besides,
///   the loops take the cores from the threads that are waited for: measured with two threads on two busy cores, a forward pass takes
///   ten times as long.
/// - `GLIBC_TUNABLES`: large tensors are mapped anew for each operation, and the system clears their memory in pages of 4 KiB as they
///   are first written. With pages of 2 MiB, and tensors of up to 64 MiB in memory that is kept and used again, a learning step of
///   LLaMA-2-7B's block takes a third less on 2 cores, and a tenth more memory. Above that, or with all of it kept, memory grows
///   faster than speed.
pub fn settle() -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        const MALLOC: &str =
            "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=67108864:glibc.malloc.trim_threshold=68719476736";
        // Names that say the same thing, and what we say.
        const SETTINGS: [(&[&str], &str); 2] = [
            // The number that the library itself takes when it knows of more threads than cores.
            (&["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"], "1000"),
            (&["GLIBC_TUNABLES"], MALLOC),
        ];
        let is_set = |names: &[&str]| names.iter().any(|name| std::env::var_os(name).is_some());
        let missing: Vec<_> = SETTINGS.iter().filter(|(names, _)| !is_set(names)).collect();
        if !missing.is_empty() {
            let mut again = std::process::Command::new(std::env::current_exe()?);
            again.args(std::env::args_os().skip(1)).envs(missing.iter().map(|(names, value)| (names[0], value)));
            return Err(again.exec());
        }
    }
    Ok(())
}

/// Whether this processor has instructions for products in bf16, with which libtorch is two to three times as fast as in f32.
pub fn multiplies_bf16() -> bool {
    Isa::Avx512Bf16.is_available()
}

/// Hands pages that the allocator keeps for later back to the system. With the settings of [`settle`] it keeps all that was ever freed, in
/// pieces between those that live on, which a larger tensor does not fit into. To be called between blocks, not between operations: memory
/// that is used again is cleared anew.
#[allow(unsafe_code, reason = "a function of the C library")]
pub fn trim_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number, and touches nothing but free memory, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
