//! Hadamard matrices: square matrices with entries 1 and -1 and orthogonal rows.
//!
//! Powers of two have Sylvester's construction. Paley's constructions (1933) give order `q + 1` for a field of `q = 4 i + 3` elements and
//! order `2 (q + 1)` for a field of `q = 4 i + 1` elements. A Kronecker product of Hadamard matrices is a Hadamard matrix, so most model
//! widths have one.

use crate::field::Field;

/// Largest exponent of one Sylvester factor.
const LARGEST: u32 = 7; // Two factors of order 2^7 give order 16384.

/// Largest order of Paley's matrices here. At this order, one takes 64 MiB in f32, and a product with it costs as much as one with a
/// weight.
const LARGEST_PALEY: usize = 4096;

/// A square matrix of signs, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signs {
    pub(crate) order: usize,
    pub(crate) signs: Vec<i8>,
}

impl Signs {
    fn new(order: usize, sign: impl Fn(usize, usize) -> i8) -> Self {
        Self { order, signs: (0..order * order).map(|at| sign(at / order, at % order)).collect() }
    }

    /// Flips the signs of rows so that the first column is all ones.
    fn normalized(mut self) -> Self {
        for row in self.signs.chunks_mut(self.order).filter(|row| row[0] < 0) {
            row.iter_mut().for_each(|sign| *sign = -*sign);
        }
        self
    }
}

/// Matrices whose Kronecker product is a Hadamard matrix of order `n`, each with a first column of ones. `None` where these constructions
/// give no matrix of that order.
pub(crate) fn factors(n: usize) -> Option<Vec<Signs>> {
    let (paley, rest) = split(n)?;
    let parts = rest.div_ceil(LARGEST);
    let twos = (0..parts).map(|part| sylvester(rest * (part + 1) / parts - rest * part / parts));
    let factors: Vec<Signs> = paley.iter().map(Paley::signs).chain(twos).collect();
    // The matrix of order 1 has no factors.
    Some(if factors.is_empty() { vec![sylvester(0)] } else { factors })
}

/// Whether [`factors`] returns matrices for `n`; computes none of them.
pub(crate) fn is_known(n: usize) -> bool {
    split(n).is_some()
}

/// Splits `n` into the order of a Paley matrix, needed unless `n` is a power of two, and the exponent of the remaining power of two.
fn split(n: usize) -> Option<(Option<Paley>, u32)> {
    let twos = n.checked_ilog2()?.min(n.trailing_zeros());
    let odd = n >> twos;
    if odd == 1 {
        return Some((None, twos));
    }
    let mut exponents = (2..=twos).take_while(|k| odd <= LARGEST_PALEY >> k);
    exponents.find_map(|k| Some((Some(Paley::of_order(odd << k)?), twos - k)))
}

/// Sylvester's matrix of order `2^k`.
fn sylvester(k: u32) -> Signs {
    Signs::new(1 << k, |i, j| if (i & j).count_ones().is_multiple_of(2) { 1 } else { -1 })
}

/// One of Paley's matrices, given by the finite field it is constructed from.
enum Paley {
    /// Paley I, of order `q + 1`.
    First(Field),
    /// Paley II, of order `2 (q + 1)`.
    Second(Field),
}

impl Paley {
    /// Uses a prime field if possible, else a field of prime-power order.
    fn of_order(order: usize) -> Option<Self> {
        let (first, second) = (order.checked_sub(1)?, (order / 2).checked_sub(1)?);
        [1..=1, 2..=Field::LARGEST_DEGREE].into_iter().find_map(|degrees| {
            let field = |q: usize, remainder| {
                let degrees = degrees.clone();
                (q % 4 == remainder).then(|| degrees.into_iter().find_map(|degree| Field::new(q, degree))).flatten()
            };
            field(first, 3).map(Self::First).or_else(|| field(second, 1).map(Self::Second))
        })
    }

    fn signs(&self) -> Signs {
        match self {
            Self::First(field) => Signs::new(field.order() + 1, |i, j| match (i, j) {
                _ if i == j => 1,
                (0, _) => 1,
                (_, 0) => -1,
                _ => character(field, i, j),
            }),
            Self::Second(field) => Signs::new(2 * (field.order() + 1), |row, column| {
                let (i, j, a, b) = (row / 2, column / 2, row % 2, column % 2);
                let sign = match (i, j) {
                    // Blocks on the diagonal: [1, -1; -1, -1].
                    _ if i == j => return if a + b == 0 { 1 } else { -1 },
                    (0, _) | (_, 0) => 1,
                    _ => character(field, i, j),
                };
                if a * b == 1 { -sign } else { sign }
            }),
        }
        .normalized()
    }
}

/// The quadratic character of the difference of two distinct elements, numbered from 1: 1 if it is a square, else -1.
fn character(field: &Field, i: usize, j: usize) -> i8 {
    if field.is_square(field.minus(i - 1, j - 1)) { 1 } else { -1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(factors: &[Signs], n: usize) {
        assert_eq!(factors.iter().map(|factor| factor.order).product::<usize>(), n);
        for Signs { order, signs } in factors {
            let rows: Vec<&[i8]> = signs.chunks(*order).collect();
            for (i, a) in rows.iter().enumerate() {
                assert_eq!(a[0], 1, "first column of order {order}");
                for (j, b) in rows.iter().enumerate() {
                    let product: i64 = a.iter().zip(*b).map(|(a, b)| i64::from(a * b)).sum();
                    assert_eq!(product, if i == j { *order as i64 } else { 0 }, "order {order}, rows {i} and {j}");
                }
            }
        }
    }

    #[test]
    fn widths_of_known_models_have_a_matrix() {
        // Hidden, MLP and head widths of LLaMA, Mistral, Qwen, OPT, Falcon and SmolLM2.
        for n in [64, 80, 96, 128, 576, 768, 896, 1536, 2048, 2560, 3584, 4096, 4864, 5120, 5632, 6656, 7168, 8192] {
            check(&factors(n).unwrap(), n);
        }
        for n in [8960, 11008, 12288, 13824, 14336, 17920, 18176, 18944, 22016, 28672, 32768] {
            let factors = factors(n).unwrap();
            assert_eq!(factors.iter().map(|factor| factor.order).product::<usize>(), n);
        }
        let orders = |n| factors(n).unwrap().iter().map(|factor| factor.order).collect::<Vec<_>>();
        assert_eq!(orders(576), [36, 16]);
        assert_eq!(orders(1536), [12, 128]);
        assert_eq!(orders(4096), [64, 64]);
        assert_eq!(orders(6656), [52, 128]);
        assert_eq!(orders(11008), [344, 32]);
        assert_eq!(orders(22016), [344, 64]);
        assert_eq!(orders(1), [1]);
    }

    #[test]
    fn small_orders() {
        for n in [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80, 84, 344] {
            check(&factors(n).unwrap_or_else(|| panic!("order {n}")), n);
        }
        // No Hadamard matrix of these orders exists: three orthogonal rows need a multiple of four.
        for n in [0, 3, 5, 6, 10, 18, 30, 54] {
            assert_eq!(factors(n), None, "order {n}");
        }
    }

    #[test]
    fn prime_fields_are_preferred() {
        // The field of 27 = 3^3 elements gives a matrix of order 28 too.
        assert!(matches!(Paley::of_order(28), Some(Paley::Second(field)) if field.order() == 13));
        for (paley, order) in [
            (Paley::First(Field::new(27, 3).unwrap()), 28),
            (Paley::First(Field::new(11, 1).unwrap()), 12),
            (Paley::Second(Field::new(9, 2).unwrap()), 20),
            (Paley::Second(Field::new(125, 3).unwrap()), 252),
        ] {
            check(&[paley.signs()], order);
        }
    }

    #[test]
    fn matrices_over_prime_fields_never_change() {
        // Packed models with online rotations depend on these exact matrices.
        let row = |order, i: usize| {
            let Signs { signs, .. } = Paley::of_order(order).unwrap().signs();
            signs[i * order..][..order].iter().map(|&sign| if sign == 1 { '+' } else { '-' }).collect::<String>()
        };
        assert_eq!(row(12, 1), "+-+-+++---+-");
        assert_eq!(row(28, 3), "+---+--++-+--+-+-+-++-+--++-");
    }

    #[test]
    fn unsupported_widths_are_rejected_quickly() {
        for n in [1031 << 40, (1 << 24) - 4, usize::MAX, usize::MAX - 3, 4 * 1031] {
            assert!(!is_known(n) && factors(n).is_none(), "{n}");
        }
        assert!((1..400).all(|n| is_known(n) == factors(n).is_some()));
    }

    proptest! {
        #[test]
        fn every_matrix_is_a_hadamard_matrix(n in 1..400usize) {
            if let Some(found) = factors(n) {
                check(&found, n);
            }
        }
    }
}
