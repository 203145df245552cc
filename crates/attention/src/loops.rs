//! The inner loops that each instruction set has in a way of its own, and what they read and write.

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
    /// # Panics
    /// When the product reaches beyond the slices.
    pub fn check(self, left: Left<'_>, right: Right<'_>, out: &Out<'_>) {
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

/// The inner loops. Lengths of rows are multiples of 16.
pub trait Loops: Sync {
    /// `out = left right`, or `out += left right`.
    fn product(&self, product: Product, left: Left<'_>, right: Right<'_>, out: Out<'_>);
    /// Softmax of the first `visible` scores, not yet divided by its sum, as pairs along the row, zeros after them. Returns the sum
    /// and the logarithm of the sum of `exp(scale s)`.
    fn softmax(&self, scale: f32, scores: &[f32], visible: usize, probs: &mut [u32]) -> (f32, f32);
    /// `P = exp(scale s - lse)` and `dS = scale P (dP - dot)` of two rows, zeros where nothing is seen.
    fn score_grads(&self, scale: f32, rows: Rows<'_>, grads: RowGrads<'_>);
}
