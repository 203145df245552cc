//! Learned clipping, by the kernels of `clip.cu`.

use tch::{Kind, Tensor};

use crate::kernels::{Kernels, THREADS, arg, by_kind};

/// What lies at a grid's zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Zero {
    /// A code that depends on the range.
    Code = 0,
    /// Code 0 is the smallest value.
    Minimum = 1,
    /// The code [`Grid::centre`]; both sides are alike.
    Centre = 2,
    /// The code [`Grid::centre`]; the larger end is code 0.
    FullRange = 3,
}

/// What the grids of a matrix have in common.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Grid {
    /// What lies at zero.
    pub zero: Zero,
    /// The largest code.
    pub max_code: f32,
    /// Steps that a range is divided into.
    pub steps: f32,
    /// The code at zero, of grids that have a fixed one.
    pub centre: f32,
    /// The smallest and the largest scale.
    pub scales: [f32; 2],
}

/// A weight and how its groups are clipped. All tensors are f32 and contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// `[out, in]`.
    pub weight: &'a Tensor,
    /// Offsets in units of the scale, added before rounding, `[out, in]`.
    pub offsets: Option<&'a Tensor>,
    /// Fraction of the maximum, `[out, groups]`.
    pub hi: &'a Tensor,
    /// Fraction of the minimum, `[out, groups]`.
    pub lo: &'a Tensor,
    /// The grids.
    pub grid: Grid,
}

/// How offsets move.
#[derive(Clone, Copy, Debug)]
pub struct Moves<'a> {
    /// Factors of rows, `[out]`.
    pub rows: &'a Tensor,
    /// Factors of columns, `[in]`.
    pub columns: &'a Tensor,
    /// Step of a gradient that its factors scale to 1, in units of the scale.
    pub rate: f32,
    /// The longest step, in units of `rate`.
    pub largest: f32,
}

/// A weight as `clip.cu` takes it.
#[repr(C)]
struct Clip {
    weight: *const f32,
    offsets: *const f32,
    hi: *const f32,
    lo: *const f32,
    groups: u64,
    len: u32,
    grid: Grid,
}

impl Clip {
    /// A warp for each group.
    fn blocks(&self) -> u64 {
        self.groups.div_ceil(u64::from(THREADS / 32))
    }
}

impl Kernels {
    /// The quantized weight `[out, in]`, in f32 or bf16.
    ///
    /// # Panics
    /// When tensors lie elsewhere, or have another kind or length than stated.
    pub fn clip(&self, weight: Weight<'_>, kind: Kind) -> Tensor {
        let mut clip = self.taken(weight);
        let (out, mut to) = self.empty::<f32>(&weight.weight.size(), kind);
        // SAFETY: the arguments are those of the kernel, and `taken` checked where they point to.
        unsafe { self.run(&by_kind("clip", kind), clip.blocks(), &mut [arg(&mut clip), arg(&mut to)]) };
        out
    }

    /// The gradients of both strengths, `[out, groups]` each, given `grad` of the quantized weight, f32 or bf16; and that of the weight, if
    /// wanted.
    ///
    /// # Panics
    /// As [`Self::clip`].
    pub fn gradients(&self, weight: Weight<'_>, grad: &Tensor, with_weight: bool) -> ([Tensor; 2], Option<Tensor>) {
        let mut clip = self.taken(weight);
        let mut from = self.address::<f32>(grad, grad.kind(), weight.weight.numel());
        let [(gamma, mut to_gamma), (beta, mut to_beta)] =
            [0; 2].map(|_| self.empty::<f32>(&weight.hi.size(), Kind::Float));
        let of_weight = with_weight.then(|| self.empty::<f32>(&weight.weight.size(), Kind::Float));
        let mut to_weight = of_weight.as_ref().map_or(std::ptr::null_mut(), |&(_, to)| to);
        let args = &mut [arg(&mut clip), arg(&mut from), arg(&mut to_gamma), arg(&mut to_beta), arg(&mut to_weight)];
        // SAFETY: as in `clip`.
        unsafe { self.run(&by_kind("gradients", grad.kind()), clip.blocks(), args) };
        ([gamma, beta], of_weight.map(|(tensor, _)| tensor))
    }

    /// Moves `offsets [out, in]` in place against `grad` of the quantized weight, f32 or bf16; those of clamped codes stay. The offsets of
    /// `weight` are not read.
    ///
    /// # Panics
    /// As [`Self::clip`].
    pub fn move_offsets(&self, weight: Weight<'_>, grad: &Tensor, moves: Moves<'_>, offsets: &mut Tensor) {
        let (all, size) = (weight.weight.numel(), weight.weight.size());
        let mut clip = self.taken(weight);
        let mut from = self.address::<f32>(grad, grad.kind(), all);
        let mut rows = self.address::<f32>(moves.rows, Kind::Float, size[0] as usize);
        let mut columns = self.address::<f32>(moves.columns, Kind::Float, size[1] as usize);
        let mut to = self.address::<f32>(offsets, Kind::Float, all).cast_mut();
        let (mut groups_of_row, mut rate, mut largest) = (size[1] as u32 / clip.len, moves.rate, moves.largest);
        let args = &mut [
            arg(&mut clip),
            arg(&mut from),
            arg(&mut rows),
            arg(&mut columns),
            arg(&mut groups_of_row),
            arg(&mut rate),
            arg(&mut largest),
            arg(&mut to),
        ];
        // SAFETY: as in `clip`; the offsets are borrowed mutably, and each is read by the thread that writes it.
        unsafe { self.run(&by_kind("move_offsets", grad.kind()), clip.blocks(), args) };
    }

    fn taken(&self, weight: Weight<'_>) -> Clip {
        let (all, groups) = (weight.weight.numel(), weight.hi.numel());
        assert!(groups > 0 && all % groups == 0, "groups divide a weight");
        Clip {
            weight: self.address(weight.weight, Kind::Float, all),
            offsets: weight.offsets.map_or(std::ptr::null(), |x| self.address(x, Kind::Float, all)),
            hi: self.address(weight.hi, Kind::Float, groups),
            lo: self.address(weight.lo, Kind::Float, groups),
            groups: groups as u64,
            len: u32::try_from(all / groups).expect("a group is a part of a row"),
            grid: weight.grid,
        }
    }
}
