//! Finite fields of odd order. Paley's construction of Hadamard matrices needs to know which elements are squares.

/// The most digits an element can have.
const DIGITS: usize = Field::LARGEST_DEGREE as usize;

/// The field of `p^k` elements: polynomials over the integers modulo `p`, reduced modulo an irreducible polynomial of degree `k`.
///
/// An element is represented as a number below `p^k`. Its digits in base `p` are the coefficients, the constant term first.
pub(crate) struct Field {
    p: usize,
    degree: usize,
    /// Coefficients of the irreducible polynomial, without its leading `x^k`.
    modulus: [usize; DIGITS],
    /// For each element, whether it is a nonzero square.
    square: Vec<bool>,
}

impl Field {
    /// The largest supported `k`. Up to degree 3, a polynomial without roots is irreducible.
    pub(crate) const LARGEST_DEGREE: u32 = 3;

    /// The field of `q` elements; `None` unless `q` is the `degree`-th power of an odd prime.
    pub(crate) fn new(q: usize, degree: u32) -> Option<Self> {
        let p = (3..).step_by(2).take_while(|p: &usize| p.pow(degree) <= q).find(|p| p.pow(degree) == q)?;
        if !is_prime(p) {
            return None;
        }
        let mut field = Self { p, degree: degree as usize, modulus: [0; DIGITS], square: vec![false; q] };
        // For degree 1, any polynomial is irreducible.
        if degree > 1 {
            field.modulus = (0..q)
                .map(|low| field.digits(low))
                .find(|low| !field.has_root(low))
                .expect("every degree has an irreducible polynomial");
        }
        (1..q).for_each(|a| {
            let square = field.times(a, a);
            field.square[square] = true;
        });
        Some(field)
    }

    /// The number of elements.
    pub(crate) fn order(&self) -> usize {
        self.square.len()
    }

    /// Whether `a` is a nonzero square.
    pub(crate) fn is_square(&self, a: usize) -> bool {
        self.square[a]
    }

    pub(crate) fn minus(&self, a: usize, b: usize) -> usize {
        let (a, b) = (self.digits(a), self.digits(b));
        self.number(std::array::from_fn(|i| (a[i] + self.p - b[i]) % self.p))
    }

    fn times(&self, a: usize, b: usize) -> usize {
        let (a, b) = (self.digits(a), self.digits(b));
        let mut product = [0; DIGITS];
        for &digit in a[..self.degree].iter().rev() {
            let top = product[self.degree - 1];
            product.copy_within(..DIGITS - 1, 1);
            product[0] = 0;
            for i in 0..self.degree {
                product[i] = (product[i] + digit * b[i] + (self.p - self.modulus[i]) * top) % self.p;
            }
        }
        product[self.degree..].fill(0);
        self.number(product)
    }

    /// Whether the polynomial `x^k` plus these lower terms has a root.
    fn has_root(&self, low: &[usize; DIGITS]) -> bool {
        let value = |x: usize| low[..self.degree].iter().rev().fold(1, |sum, digit| (sum * x + digit) % self.p);
        (0..self.p).any(|x| value(x) == 0)
    }

    fn digits(&self, mut a: usize) -> [usize; DIGITS] {
        std::array::from_fn(|_| {
            let digit = a % self.p;
            a /= self.p;
            digit
        })
    }

    fn number(&self, digits: [usize; DIGITS]) -> usize {
        digits.iter().rev().fold(0, |number, digit| number * self.p + digit)
    }
}

fn is_prime(n: usize) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_nonzero_elements_are_squares_and_all_have_inverses() {
        for (q, degree) in [(3, 1), (13, 1), (9, 2), (25, 2), (49, 2), (27, 3), (125, 3), (343, 3)] {
            let field = Field::new(q, degree).unwrap();
            assert_eq!((1..q).filter(|&a| field.is_square(a)).count(), (q - 1) / 2, "{q}");
            assert!(!field.is_square(0));
            let has_inverse = |a| (1..q).any(|b| field.times(a, b) == 1);
            assert!((1..q).all(has_inverse), "{q}");
            assert!((0..q).all(|a| field.minus(a, a) == 0 && field.minus(a, 0) == a), "{q}");
        }
    }

    #[test]
    fn other_orders_have_no_field() {
        for (q, degree) in [(1, 1), (2, 1), (9, 1), (15, 1), (225, 2), (8, 3), (26, 3), (27, 2), (81, 2)] {
            assert!(Field::new(q, degree).is_none(), "{q}");
        }
    }
}
