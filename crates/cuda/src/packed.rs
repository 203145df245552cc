//! Packed weights, by the kernels of `packed.cu`.

use tch::{Kind, Tensor};

use crate::kernels::{Kernels, THREADS, arg, by_kind};

/// Rows of activations that are multiplied with the codes themselves; for more it pays to decode the weights first.
pub const FEW: usize = 8;

/// A matrix of codes.
#[derive(Debug)]
pub struct Packed {
    /// Codes as a stream of bits in each row, least significant first, `[out, words]` i32.
    pub words: Tensor,
    /// Scale, value of the zero point, and zero point of each group, `[out, groups, 3]` f32.
    pub grids: Tensor,
    /// The numbers that the codes stand for, if these are no integers, `[16]` f32.
    pub table: Option<Tensor>,
    /// Bits of a code.
    pub bits: u32,
    /// Input channels.
    pub cols: usize,
}

/// The same as `packed.cu` takes it.
#[repr(C)]
struct Matrix {
    words: *const u32,
    grids: *const f32,
    table: *const f32,
    rows: u32,
    cols: u32,
    words_of_row: u32,
    groups: u32,
    len: u32,
    bits: u32,
}

impl Packed {
    /// Whether there are products with these codes.
    pub fn multiplies(&self) -> bool {
        matches!(self.bits, 2..=4) && self.table.is_none()
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.words.size()[0] as usize
    }
}

impl Kernels {
    /// The values `[out, in]`, in f32 or bf16.
    ///
    /// # Panics
    /// When tensors lie elsewhere, or have another kind or length than stated.
    pub fn decode(&self, packed: &Packed, kind: Kind) -> Tensor {
        let mut matrix = self.matrix(packed);
        let (out, mut to) = self.empty::<f32>(&[packed.rows() as i64, packed.cols as i64], kind);
        let blocks = (packed.rows() as u64 * packed.cols as u64).div_ceil(u64::from(THREADS));
        // SAFETY: the arguments are those of the kernel, and `matrix` checked where they point to.
        unsafe { self.run(&by_kind("decode", kind), blocks, &mut [arg(&mut matrix), arg(&mut to)]) };
        out
    }

    /// `x [n, in]` times the values, plus `bias [out]` -> `[n, out]`; all f32. Weights are exact.
    ///
    /// # Panics
    /// As [`Self::decode`], or when `n` is more than [`FEW`], or when there is no product with these codes: see [`Packed::multiplies`].
    pub fn multiply(&self, packed: &Packed, x: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let n = x.numel() / packed.cols.max(1);
        assert!(n <= FEW && packed.multiplies(), "no CUDA kernel multiplies {n} rows with these codes");
        let mut matrix = self.matrix(packed);
        let mut from = self.address::<f32>(x, Kind::Float, n * packed.cols);
        let mut bias = bias.map_or(std::ptr::null(), |bias| self.address::<f32>(bias, Kind::Float, packed.rows()));
        let (y, mut to) = self.empty::<f32>(&[n as i64, packed.rows() as i64], Kind::Float);
        let blocks = if n == 0 { 0 } else { (packed.rows() as u64).div_ceil(u64::from(THREADS / 32)) };
        let kernel = format!("multiply_w{}_{}", packed.bits, n.next_power_of_two());
        let mut n = n as u32;
        let args = &mut [arg(&mut matrix), arg(&mut from), arg(&mut n), arg(&mut bias), arg(&mut to)];
        // SAFETY: as in `decode`.
        unsafe { self.run(&kernel, blocks, args) };
        y
    }

    fn matrix(&self, packed: &Packed) -> Matrix {
        let number = |n: usize| u32::try_from(n).expect("matrices have fewer than 2^32 rows and columns");
        let (rows, cols, groups) = (packed.rows(), packed.cols, packed.grids.size()[1] as usize);
        assert!(groups > 0 && cols % groups == 0, "groups divide a row");
        let words_of_row = (cols * packed.bits as usize).div_ceil(32);
        Matrix {
            words: self.address(&packed.words, Kind::Int, rows * words_of_row),
            grids: self.address(&packed.grids, Kind::Float, rows * groups * 3),
            table: packed.table.as_ref().map_or(std::ptr::null(), |table| self.address(table, Kind::Float, 16)),
            rows: number(rows),
            cols: number(cols),
            words_of_row: number(words_of_row),
            groups: number(groups),
            len: number(cols / groups),
            bits: packed.bits,
        }
    }
}
