//! The table of implementations, and which of them is used.

use oq_isa::Isa;

#[cfg(target_arch = "aarch64")]
use crate::aarch64::Neon;
use crate::dot::Dots;
use crate::error::KernelError;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::kernel::Vector;
use crate::kernel::{Code, Kernel, Operands};
use crate::scalar;
#[cfg(target_arch = "x86_64")]
use crate::x86_64::{Avx2, Avx512, Avx512Bf16};

/// All implementations built for this architecture, the fastest first; the last runs everywhere.
pub static KERNELS: &[&Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    &Kernel {
        name: Isa::Avx512Bf16.name(),
        few_rows: 16,
        few: Operands::Int16,
        many: Operands::Bf16,
        isa: Isa::Avx512Bf16,
        code: Code::Vector(Vector::with_int8::<Avx512Bf16>(256)),
        // Reading them is what dot products cost: wider vectors would wait.
        dots: Dots::of::<Avx2>(),
    },
    #[cfg(target_arch = "x86_64")]
    &Kernel {
        name: Isa::Avx512.name(),
        few_rows: 32,
        few: Operands::Int16,
        many: Operands::F32,
        isa: Isa::Avx512,
        code: Code::Vector(Vector::of::<Avx512>(128)),
        dots: Dots::of::<Avx2>(),
    },
    #[cfg(target_arch = "x86_64")]
    &Kernel {
        name: Isa::Avx2.name(),
        few_rows: 12,
        few: Operands::Int16,
        many: Operands::F32,
        isa: Isa::Avx2,
        code: Code::Vector(Vector::of::<Avx2>(128)),
        dots: Dots::of::<Avx2>(),
    },
    #[cfg(target_arch = "aarch64")]
    &Kernel {
        name: Isa::Neon.name(),
        few_rows: 12,
        few: Operands::Int16,
        many: Operands::F32,
        isa: Isa::Neon,
        code: Code::Vector(Vector::of::<Neon>(128)),
        dots: Dots::PLAIN,
    },
    &Kernel {
        name: Isa::Scalar.name(),
        few_rows: usize::MAX,
        few: Operands::F32,
        many: Operands::F32,
        isa: Isa::Scalar,
        code: Code::Plain(scalar::strip),
        dots: Dots::PLAIN,
    },
];

impl Kernel {
    /// The kernel of that name.
    ///
    /// # Errors
    /// When there is none in [`KERNELS`], or this processor cannot run it.
    pub fn named(name: &str) -> Result<&'static Self, KernelError> {
        Ok(Self::of(Isa::named(name)?))
    }

    /// The kernel that `OMNIQUANT_KERNEL` names, else the fastest that this processor can run. The variable is read once.
    ///
    /// # Errors
    /// When the variable names a kernel that is unknown or not available.
    pub fn chosen() -> Result<&'static Self, KernelError> {
        Ok(Self::of(Isa::chosen()?))
    }

    fn of(isa: Isa) -> &'static Self {
        KERNELS.iter().find(|kernel| kernel.isa == isa).expect("each instruction set has a row")
    }
}

#[cfg(test)]
mod tests {
    use oq_quant_core::{QuantSpec, QuantizedTensor};

    use super::*;
    use crate::layout::Layout;

    #[test]
    fn activations_become_the_nearest_integers() {
        let spec: QuantSpec = "w4a16".parse().unwrap();
        let layout = Layout::new(&QuantizedTensor::quantize(&[0.5; 16], 1, 16, spec.weight).unwrap()).unwrap();
        // Of steps of 1, as the largest is 32767.
        let x = [0.0, 0.49, 0.5, 1.5, -0.5, -1.5, 32767.0, -32767.0, -32766.6, 7.0, -8.4, 2.5, 3.5, 0.0, 0.0, 100.5];
        let expected = [0, 0, 0, 2, 0, -2, 32767, -32767, -32767, 7, -8, 2, 4, 0, 0, 100];
        for kernel in KERNELS.iter().filter(|kernel| kernel.is_available()) {
            let Code::Vector(vector) = &kernel.code else { continue };
            let (mut words, mut sums) = ([0; 8], [[0.0; 2]]);
            (vector.arrange)(&layout, &x, &mut words, &mut sums);
            let found = words.map(|word| [word as i16, (word >> 16) as i16]).concat();
            assert_eq!(found, expected, "{}", kernel.name);
            assert_eq!(sums, [[expected.iter().map(|&x| f32::from(x)).sum(), 1.0]], "{}", kernel.name);
        }
    }

    #[test]
    fn each_instruction_set_has_a_row_in_their_order() {
        let rows: Vec<Isa> = KERNELS.iter().map(|kernel| kernel.isa).collect();
        assert_eq!(rows, Isa::ALL);
        for kernel in KERNELS.iter().filter(|kernel| kernel.is_available()) {
            assert_eq!(Kernel::named(kernel.name).unwrap().name, kernel.name);
        }
    }
}
