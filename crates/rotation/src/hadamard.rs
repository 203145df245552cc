//! Hadamard matrices: entries of 1 and -1, rows at right angles to each other.
//!
//! Sylvester's for powers of two, Paley's (1933) beside them: of order `q + 1` for a field of `q = 4 i + 3` elements, and of order
//! `2 (q + 1)` for one of `q = 4 i + 1`. A Kronecker product of Hadamard matrices is one too, so most widths of models have one.

use crate::field::Field;

/// Channels that a power of two's factor has at most.
const LARGEST: u32 = 7; // 2^7: two of them make 16384.

/// Paley's matrices are not made beyond this order: 64 MiB in f32, and products with it cost what those with weights do.
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

    /// With a first column of ones.
    fn normalized(mut self) -> Self {
        for row in self.signs.chunks_mut(self.order).filter(|row| row[0] < 0) {
            row.iter_mut().for_each(|sign| *sign = -*sign);
        }
        self
    }
}

/// Matrices whose Kronecker product is a Hadamard matrix of order `n`, each with a first column of ones; none where none is known here.
pub(crate) fn factors(n: usize) -> Option<Vec<Signs>> {
    let (paley, rest) = split(n)?;
    let parts = rest.div_ceil(LARGEST);
    let twos = (0..parts).map(|part| sylvester(rest * (part + 1) / parts - rest * part / parts));
    let factors: Vec<Signs> = paley.iter().map(Paley::signs).chain(twos).collect();
    // Of order 1.
    Some(if factors.is_empty() { vec![sylvester(0)] } else { factors })
}

/// Whether [`factors`] has some for `n`, which it does not make.
pub(crate) fn is_known(n: usize) -> bool {
    split(n).is_some()
}

/// One of Paley's, where `n` is no power of two, and the exponent of the power of two that is left.
fn split(n: usize) -> Option<(Option<Paley>, u32)> {
    let twos = n.checked_ilog2()?.min(n.trailing_zeros());
    let odd = n >> twos;
    if odd == 1 {
        return Some((None, twos));
    }
    let mut exponents = (2..=twos).take_while(|k| odd <= LARGEST_PALEY >> k);
    exponents.find_map(|k| Some((Some(Paley::of_order(odd << k)?), twos - k)))
}

/// Of order `2^k`.
fn sylvester(k: u32) -> Signs {
    Signs::new(1 << k, |i, j| if (i & j).count_ones().is_multiple_of(2) { 1 } else { -1 })
}

/// One of Paley's matrices, by the field whose squares make it.
enum Paley {
    /// Of order `q + 1`.
    First(Field),
    /// Of order `2 (q + 1)`.
    Second(Field),
}

impl Paley {
    /// Over the numbers modulo a prime where that can be, else over another field.
    fn of_order(order: usize) -> Option<Self> {
        let (first, second) = (order.checked_sub(1)?, (order / 2).checked_sub(1)?);
        [1..=1, 2..=Field::LARGEST_DEGREE].into_iter().find_map(|degrees| {
            let field = |q: usize, rest| {
                let degrees = degrees.clone();
                (q % 4 == rest).then(|| degrees.into_iter().find_map(|degree| Field::new(q, degree))).flatten()
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
                let by = match (i, j) {
                    // The blocks of the diagonal: [1, -1; -1, -1].
                    _ if i == j => return if a + b == 0 { 1 } else { -1 },
                    (0, _) | (_, 0) => 1,
                    _ => character(field, i, j),
                };
                if a * b == 1 { -by } else { by }
            }),
        }
        .normalized()
    }
}

/// 1 where the difference of two elements, counted from 1, is a square, else -1.
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
    fn widths_of_known_models_have_one() {
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
        // No such matrix can be: three rows of it need a multiple of four.
        for n in [0, 3, 5, 6, 10, 18, 30, 54] {
            assert_eq!(factors(n), None, "order {n}");
        }
    }

    #[test]
    fn primes_go_before_their_powers() {
        // 27 = 3^3 would do for it as well.
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
    fn matrices_over_primes_stay_what_they_are() {
        // Models that were rotated while they run depend on them.
        let row = |order, i: usize| {
            let Signs { signs, .. } = Paley::of_order(order).unwrap().signs();
            signs[i * order..][..order].iter().map(|&sign| if sign == 1 { '+' } else { '-' }).collect::<String>()
        };
        assert_eq!(row(12, 1), "+-+-+++---+-");
        assert_eq!(row(28, 3), "+---+--++-+--+-+-+-++-+--++-");
    }

    #[test]
    fn widths_that_no_model_has_are_answered_at_once() {
        for n in [1031 << 40, (1 << 24) - 4, usize::MAX, usize::MAX - 3, 4 * 1031] {
            assert!(!is_known(n) && factors(n).is_none(), "{n}");
        }
        assert!((1..400).all(|n| is_known(n) == factors(n).is_some()));
    }

    proptest! {
        #[test]
        fn what_is_found_is_one(n in 1..400usize) {
            if let Some(found) = factors(n) {
                check(&found, n);
            }
        }
    }
}
