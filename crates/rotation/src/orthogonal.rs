//! Orthogonal matrices and their products with tensors.

use oq_random::SplitMix64;
use tch::{Device, Kind, Tensor};

use crate::hadamard;

/// Number of elements rotated at a time. A slab takes 8 MiB in f64, and up to four slabs are in memory.
pub const SLAB: i64 = 1 << 20;

/// An orthogonal matrix `[n, n]`. Where the width has a Hadamard matrix, it is stored as a Kronecker product of small matrices.
#[derive(Debug)]
pub struct Orthogonal {
    /// Factors, each `[m, m]`. The matrix is `scale` times their Kronecker product.
    factors: Vec<Tensor>,
    scale: f64,
}

/// A handle of the same memory, which nothing writes to.
impl Clone for Orthogonal {
    fn clone(&self) -> Self {
        Self { factors: self.factors.iter().map(Tensor::shallow_clone).collect(), scale: self.scale }
    }
}

impl Orthogonal {
    /// A Hadamard matrix of order `n`, divided by `sqrt(n)`. `None` where no construction for `n` is implemented.
    pub fn hadamard(n: usize) -> Option<Self> {
        let factors = hadamard::factors(n)?.into_iter().map(|factor| {
            let signs: Vec<f32> = factor.signs.iter().map(|&sign| f32::from(sign)).collect();
            Tensor::from_slice(&signs).view([factor.order as i64; 2])
        });
        Some(Self { factors: factors.collect(), scale: (n as f64).sqrt().recip() })
    }

    /// The same matrix on a device: without it, each product with a tensor of the device sends the matrix there.
    pub fn to_device(&self, device: Device) -> Self {
        Self { factors: self.factors.iter().map(|factor| factor.to_device(device)).collect(), scale: self.scale }
    }

    /// Whether [`Self::hadamard`] returns a matrix for `n`; does not compute it.
    pub fn has_hadamard(n: usize) -> bool {
        hadamard::is_known(n)
    }

    /// A random matrix of any width. Its first column is the all-ones direction, as in a Hadamard matrix.
    fn random(n: usize, numbers: &mut SplitMix64) -> Self {
        let normal: Vec<f64> = (0..n * n).map(|_| numbers.normal()).collect();
        let columns = Tensor::from_slice(&normal).view([n as i64; 2]);
        let _ = columns.select(1, 0).fill_(1.0);
        Self { factors: vec![Tensor::linalg_qr(&columns, "reduced").0], scale: 1.0 }
    }

    /// `x [.., n]` times the matrix, in f64 if `x` is f64, else in f32.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        self.multiply(x, false)
    }

    /// [`Self::apply`], computed in f64 and returned in the kind of `x`.
    pub fn apply_in_f64(&self, x: &Tensor) -> Tensor {
        in_slabs(x, SLAB, |slab| self.apply(&slab))
    }

    /// `x [.., n]` times the matrix's transpose, which is its inverse.
    pub fn apply_inverse(&self, x: &Tensor) -> Tensor {
        self.multiply(x, true)
    }

    fn multiply(&self, x: &Tensor, transposed: bool) -> Tensor {
        let kind = if x.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let shape = x.size();
        let mut x = x.to_kind(kind) * self.scale;
        let mut after = *shape.last().expect("activations have channels");
        for factor in &self.factors {
            let factor = factor.to_kind(kind).to_device(x.device());
            let factor = if transposed { factor.transpose(0, 1) } else { factor };
            let m = factor.size()[0];
            after /= m;
            x = match after {
                1 => x.reshape([-1, m]).matmul(&factor),
                _ => factor.transpose(0, 1).matmul(&x.reshape([-1, m, after])), // [.., m, after]
            };
        }
        x.reshape(shape)
    }
}

/// Applies `f` in f64 to the rows of `x [.., n]`, about `slab` elements at a time, and returns the result in the kind of `x`. Beside input
/// and output, only one slab is in memory.
fn in_slabs(x: &Tensor, slab: i64, f: impl Fn(Tensor) -> Tensor) -> Tensor {
    let n = *x.size().last().expect("there are channels");
    let rows = x.reshape([-1, n]);
    let result = Tensor::empty(rows.size(), (x.kind(), x.device()));
    let slab_rows = (slab / n).max(1);
    for (slab, mut out) in rows.split(slab_rows, 0).into_iter().zip(result.split(slab_rows, 0)) {
        out.copy_(&f(slab.to_kind(Kind::Double)));
    }
    result.view_as(x)
}

/// A rotation of channels that is merged into weights.
#[derive(Debug)]
pub struct Rotation {
    basis: Orthogonal,
    /// `[n]` f64.
    signs: Tensor,
    fixes_ones: bool,
}

impl Rotation {
    /// `D H` for a diagonal matrix of random signs `D` and a Hadamard matrix `H`, or a random orthogonal `H` where the width has no
    /// Hadamard matrix. With `fixes_ones` it is `H D Hᵀ` with a first sign of 1. That preserves the all-ones direction, which is the
    /// first column of `H`, and so the mean over channels.
    pub fn new(n: usize, seed: u64, fixes_ones: bool) -> Self {
        let mut numbers = SplitMix64::new(seed);
        let mut signs: Vec<f64> = (0..n).map(|_| if numbers.bits() >> 63 == 0 { 1.0 } else { -1.0 }).collect();
        if fixes_ones {
            signs[0] = 1.0;
        }
        let basis = Orthogonal::hadamard(n).unwrap_or_else(|| Orthogonal::random(n, &mut numbers));
        Self { basis, signs: Tensor::from_slice(&signs), fixes_ones }
    }

    /// `x [.., n]` -> `x R`, computed in f64 and returned in the kind of `x`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        self.apply_in_slabs(x, SLAB)
    }

    fn apply_in_slabs(&self, x: &Tensor, slab: i64) -> Tensor {
        let signs = self.signs.to_device(x.device());
        in_slabs(x, slab, |slab| match self.fixes_ones {
            false => self.basis.apply(&(slab * &signs)),
            true => self.basis.apply_inverse(&(self.basis.apply(&slab) * &signs)),
        })
    }

    /// `w [n, ..]` -> `Rᵀ w`.
    pub fn apply_to_rows(&self, w: &Tensor) -> Tensor {
        self.apply(&w.transpose(0, 1).contiguous()).transpose(0, 1).contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// For sums of some hundred products in f64.
    const TOLERANCE: f64 = 1e-12;

    fn matrix(rotation: &Rotation) -> Tensor {
        rotation.apply(&Tensor::eye(rotation.signs.size()[0], (Kind::Double, Device::Cpu)))
    }

    fn largest(x: &Tensor) -> f64 {
        x.abs().max().double_value(&[])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// For widths with and without a Hadamard matrix.
        #[test]
        fn rotations_are_orthogonal(n in 1..200usize, seed in any::<u64>(), fixes_ones in any::<bool>()) {
            let rotation = Rotation::new(n, seed, fixes_ones);
            let r = matrix(&rotation);
            let eye = Tensor::eye(n as i64, (Kind::Double, Device::Cpu));
            prop_assert!(largest(&(r.matmul(&r.transpose(0, 1)) - &eye)) < TOLERANCE);
            if fixes_ones {
                let ones = Tensor::ones([1, n as i64], (Kind::Double, Device::Cpu));
                prop_assert!(largest(&(rotation.apply(&ones) - &ones)) < TOLERANCE);
                prop_assert!(largest(&(rotation.apply_to_rows(&ones.transpose(0, 1)) - ones.transpose(0, 1))) < TOLERANCE);
            }
            let w = Tensor::randn([n as i64, 3], (Kind::Double, Device::Cpu));
            prop_assert!(largest(&(rotation.apply_to_rows(&w) - r.transpose(0, 1).matmul(&w))) < TOLERANCE);
            // Without a fixed direction, all entries are +-1 / sqrt(n).
            if !fixes_ones && Orthogonal::hadamard(n).is_some() {
                prop_assert!(largest(&(r.abs() - (n as f64).sqrt().recip())) < TOLERANCE);
            }
        }

        #[test]
        fn the_inverse_undoes_the_product_in_f32(n in 1..160usize, seed in any::<i64>()) {
            if let Some(hadamard) = Orthogonal::hadamard(n) {
                tch::manual_seed(seed);
                let x = Tensor::randn([2, 3, n as i64], (Kind::Float, Device::Cpu));
                let rotated = hadamard.apply(&x);
                prop_assert!(largest(&(hadamard.apply_inverse(&rotated) - &x)) < 1e-5);
                let lengths = |x: &Tensor| x.square().sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
                prop_assert!(largest(&(lengths(&rotated) / lengths(&x) - 1.0)) < 1e-5);
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_the_slab_size() {
        for fixes_ones in [false, true] {
            let rotation = Rotation::new(12, 3, fixes_ones);
            // Fixed inputs: for some inputs the result lies halfway between two f32 numbers, and the order of the sums decides between
            // them.
            let mut numbers = SplitMix64::new(1);
            let values: Vec<f32> = (0..7 * 12).map(|_| numbers.unit() as f32 - 0.5).collect();
            let x = Tensor::from_slice(&values).view([7, 12]);
            let whole = rotation.apply(&x);
            assert_eq!((whole.kind(), whole.size()), (Kind::Float, vec![7, 12]));
            assert_eq!(largest(&(rotation.apply_in_slabs(&x, 3 * 12) - whole)), 0.0);
        }
    }

    #[test]
    fn the_seed_determines_the_matrix() {
        // 30 has no Hadamard matrix.
        for (n, fixes_ones) in [(36, false), (30, true)] {
            let [first, again, other] = [1, 1, 2].map(|seed| matrix(&Rotation::new(n, seed, fixes_ones)));
            assert_eq!(largest(&(&first - again)), 0.0);
            assert!(largest(&(first - other)) > 0.1);
        }
    }
}
