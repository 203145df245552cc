//! The two inner loops, in plain Rust and in the instructions of the processor.

#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod portable;

/// The left factor of a product: `u32` pairs along the summed dimension, element `(m, pair)` at `m * row + pair * step`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub data: &'a [u32],
    pub row: usize,
    pub step: usize,
}

/// The right factor: element `(pair, n)` at `pair * step + n`.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    pub data: &'a [u32],
    pub step: usize,
}

/// The result: element `(m, n)` at `m * row + n`.
pub struct Out<'a> {
    pub data: &'a mut [f32],
    pub row: usize,
}

/// Rows and columns of a product, pairs that each element sums, and whether to what was there before.
#[derive(Clone, Copy)]
pub struct Product {
    /// A multiple of 4.
    pub m: usize,
    /// A multiple of 16.
    pub n: usize,
    pub pairs: usize,
    pub add: bool,
}

impl Product {
    fn check(self, left: Left<'_>, right: Right<'_>, out: &Out<'_>) {
        let Self { m, n, pairs, .. } = self;
        assert!(m > 0 && m.is_multiple_of(4) && n > 0 && n.is_multiple_of(16) && pairs > 0, "{m} x {n} x {pairs}");
        assert!((m - 1) * left.row + (pairs - 1) * left.step < left.data.len(), "the left factor ends before");
        assert!((pairs - 1) * right.step + n <= right.data.len(), "the right factor ends before");
        assert!((m - 1) * out.row + n <= out.data.len(), "the result ends before");
    }
}

/// Two rows of scores and of `dO Vᵀ`, and what belongs to each row.
pub struct Rows<'a> {
    /// `Q Kᵀ`.
    pub scores: [&'a [f32]; 2],
    /// `dO Vᵀ`.
    pub d_probs: [&'a [f32]; 2],
    /// Logarithms of the rows' sums.
    pub lse: [f32; 2],
    /// Dot products of the rows of `O` and `dO`.
    pub dots: [f32; 2],
    /// Positions that each row sees.
    pub visible: [usize; 2],
}

/// What the products for `dQ`, `dK` and `dV` read, for two rows.
pub struct RowGrads<'a> {
    /// `P`: pairs of the two rows.
    pub probs: &'a mut [u32],
    /// `dS`: pairs of the two rows.
    pub scores: &'a mut [u32],
    /// `dS` row by row: pairs along each row.
    pub score_rows: [&'a mut [u32]; 2],
}

/// An instruction set. Lengths of rows are multiples of 16.
pub trait Isa: Sync {
    /// `out = left right`, or `out += left right`.
    fn product(&self, product: Product, left: Left<'_>, right: Right<'_>, out: Out<'_>);
    /// Softmax of the first `visible` scores, not yet divided by its sum, as pairs along the row, zeros after them. Returns the sum
    /// and the logarithm of the sum of `exp(scale s)`.
    fn softmax(&self, scale: f32, scores: &[f32], visible: usize, probs: &mut [u32]) -> (f32, f32);
    /// `P = exp(scale s - lse)` and `dS = scale P (dP - dot)` of two rows, zeros where nothing is seen.
    fn score_grads(&self, scale: f32, rows: Rows<'_>, grads: RowGrads<'_>);
}

/// The fastest that this processor has.
pub fn best() -> &'static dyn Isa {
    #[cfg(target_arch = "x86_64")]
    if avx512_bf16::is_available() {
        return &avx512_bf16::Avx512Bf16;
    }
    &portable::Portable
}

pub fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512_bf16::is_available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// All that this processor has, for the tests.
#[cfg(test)]
pub fn all() -> Vec<(&'static str, &'static dyn Isa)> {
    let mut all: Vec<(&str, &dyn Isa)> = vec![("portable", &portable::Portable)];
    if is_fast() {
        all.push(("fast", best()));
    }
    all
}
