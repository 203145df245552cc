//! Hadamard matrices: entries of 1 and -1, rows at right angles to each other.
//!
//! Sylvester's for powers of two, Paley's (1933) beside them: of order `q + 1` for a prime `q = 4 i + 3`, and of order `2 (q + 1)` for a
//! prime `q = 4 i + 1`. A Kronecker product of Hadamard matrices is one too, so most widths of models have one.

/// Channels that a power of two's factor has at most.
const LARGEST: u32 = 7; // 2^7: two of them make 16384.

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
    let twos = n.checked_ilog2()?.min(n.trailing_zeros());
    let odd = n >> twos;
    let (paley, rest) =
        if odd == 1 { (None, twos) } else { (2..=twos).find_map(|k| Some((Some(paley(odd << k)?), twos - k)))? };
    let parts = rest.div_ceil(LARGEST);
    let twos = (0..parts).map(|part| sylvester(rest * (part + 1) / parts - rest * part / parts));
    let factors: Vec<Signs> = paley.into_iter().chain(twos).collect();
    // Of order 1.
    Some(if factors.is_empty() { vec![sylvester(0)] } else { factors })
}

/// Of order `2^k`.
fn sylvester(k: u32) -> Signs {
    Signs::new(1 << k, |i, j| if (i & j).count_ones().is_multiple_of(2) { 1 } else { -1 })
}

fn paley(order: usize) -> Option<Signs> {
    let first = order - 1;
    if first % 4 == 3 && is_prime(first) {
        let square = squares(first);
        let matrix = Signs::new(order, |i, j| match (i, j) {
            _ if i == j => 1,
            (0, _) => 1,
            (_, 0) => -1,
            _ => character(&square, i, j),
        });
        return Some(matrix.normalized());
    }
    let second = (order / 2).checked_sub(1)?;
    if second % 4 == 1 && is_prime(second) {
        let square = squares(second);
        let matrix = Signs::new(order, |row, column| {
            let (i, j, a, b) = (row / 2, column / 2, row % 2, column % 2);
            let by = match (i, j) {
                // The blocks of the diagonal: [1, -1; -1, -1].
                _ if i == j => return if a + b == 0 { 1 } else { -1 },
                (0, _) | (_, 0) => 1,
                _ => character(&square, i, j),
            };
            if a * b == 1 { -by } else { by }
        });
        return Some(matrix.normalized());
    }
    None
}

/// 1 where `i - j` is a square, else -1; both from 1 on.
fn character(square: &[bool], i: usize, j: usize) -> i8 {
    if square[(i + square.len() - j) % square.len()] { 1 } else { -1 }
}

/// Which numbers are squares other than 0, modulo `q`.
fn squares(q: usize) -> Vec<bool> {
    let mut square = vec![false; q];
    (1..q).for_each(|i| square[i * i % q] = true);
    square
}

fn is_prime(n: usize) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
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
        for n in [8960, 12288, 13824, 14336, 17920, 18176, 18944, 28672, 32768] {
            let factors = factors(n).unwrap();
            assert_eq!(factors.iter().map(|factor| factor.order).product::<usize>(), n);
        }
        let orders = |n| factors(n).unwrap().iter().map(|factor| factor.order).collect::<Vec<_>>();
        assert_eq!(orders(576), [36, 16]);
        assert_eq!(orders(1536), [12, 128]);
        assert_eq!(orders(4096), [64, 64]);
        assert_eq!(orders(1), [1]);
    }

    #[test]
    fn small_orders() {
        for n in [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 60, 64, 68, 72, 76, 80, 84] {
            check(&factors(n).unwrap_or_else(|| panic!("order {n}")), n);
        }
        // No such matrix can be: three rows of it need a multiple of four.
        for n in [0, 3, 5, 6, 10, 18, 30, 54] {
            assert_eq!(factors(n), None, "order {n}");
        }
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
