//! Which loops run: those of the instruction set that this process uses.

use oq_isa::Isa;

#[cfg(target_arch = "x86_64")]
use crate::avx512_bf16::Avx512Bf16;
use crate::loops::Loops;
use crate::plain::Plain;

/// # Panics
/// When `OMNIQUANT_KERNEL` names an instruction set that cannot be used.
pub fn chosen() -> &'static dyn Loops {
    of(Isa::chosen().unwrap_or_else(|error| panic!("{error}")))
}

/// Whether this process multiplies bf16 by instructions for it (AVX-512 BF16). Where it does not, results are as good, but slow.
pub fn is_fast() -> bool {
    Isa::chosen() == Ok(Isa::Avx512Bf16)
}

/// The loops of an instruction set, plain ones where it has none of its own.
pub fn of(isa: Isa) -> &'static dyn Loops {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => Avx512Bf16::get(),
        _ => &Plain,
    }
}
