//! Linears of published models: packed by us, packed by libtorch, and dense.

use half::{bf16, f16};
use oq_kernels::PackedLinear;
use oq_quant_core::{Bits, GroupSize, QuantizedTensor, Symmetry, WeightSpec, packed_words};
use oq_random::SplitMix64;
use tch::{Device, Kind, Tensor};

/// A model's decoder layer, shapes `[out, in]`.
pub struct Model {
    pub name: &'static str,
    /// Group size: 128 where that divides.
    pub group: usize,
    /// All linears of a layer.
    pub linears: &'static [[usize; 2]],
    /// Linears that are measured with many rows.
    pub many: &'static [[usize; 2]],
}

pub const MODELS: [Model; 5] = [
    Model {
        name: "llama2-7b",
        group: 128,
        linears: &[[4096, 4096], [4096, 4096], [4096, 4096], [4096, 4096], [11008, 4096], [11008, 4096], [4096, 11008]],
        many: &[[4096, 4096], [11008, 4096], [4096, 11008]],
    },
    Model {
        name: "llama2-13b",
        group: 128,
        linears: &[[5120, 5120], [5120, 5120], [5120, 5120], [5120, 5120], [13824, 5120], [13824, 5120], [5120, 13824]],
        many: &[[13824, 5120]],
    },
    Model {
        name: "llama2-70b",
        group: 128,
        linears: &[[8192, 8192], [1024, 8192], [1024, 8192], [8192, 8192], [28672, 8192], [28672, 8192], [8192, 28672]],
        many: &[[28672, 8192]],
    },
    Model {
        name: "opt-6.7b",
        group: 128,
        linears: &[[4096, 4096], [4096, 4096], [4096, 4096], [4096, 4096], [16384, 4096], [4096, 16384]],
        many: &[[16384, 4096]],
    },
    Model {
        name: "falcon-7b",
        group: 64,
        linears: &[[4672, 4544], [4544, 4544], [18176, 4544], [4544, 18176]],
        many: &[[18176, 4544]],
    },
];

/// Our linears, with activations and results in bf16.
pub struct Ours {
    tensors: Vec<QuantizedTensor>,
    linears: Vec<PackedLinear>,
    rows: usize,
    x: Vec<bf16>,
    out: Vec<bf16>,
}

impl Ours {
    pub fn new(shapes: &[[usize; 2]], bits: u32, group: usize, rows: usize) -> Self {
        let group = GroupSize::channels(group).expect("a group");
        let spec = WeightSpec::integer(Bits::new(bits).expect("a width"), group, Symmetry::Asymmetric);
        let tensors: Vec<_> = shapes.iter().map(|shape| random_tensor(*shape, spec)).collect();
        let linears = tensors.iter().map(|tensor| PackedLinear::new(tensor, None).expect("no bias")).collect();
        let [most_out, most_in] = [0, 1].map(|i| shapes.iter().map(|shape| shape[i]).max().expect("a shape"));
        Self { tensors, linears, rows, x: numbers(rows * most_in), out: vec![bf16::ZERO; rows * most_out] }
    }

    /// The same with 8-bit activations for many rows.
    pub fn with_int8(self) -> Self {
        let linears = self.linears.into_iter().map(|linear| linear.with_int8().expect("the kernel has them"));
        Self { linears: linears.collect(), ..self }
    }

    pub fn run(&mut self) {
        for linear in &self.linears {
            let [outs, ins] = linear.shape();
            let (x, out) = (&self.x[..self.rows * ins], &mut self.out[..self.rows * outs]);
            linear.forward(x, self.rows, out).expect("lengths fit");
        }
    }

    pub fn bytes(&self) -> usize {
        self.linears.iter().map(PackedLinear::bytes).sum()
    }
}

/// The codes of all weights.
fn random_tensor([outs, ins]: [usize; 2], spec: WeightSpec) -> QuantizedTensor {
    let mut random = SplitMix64::new(0);
    let mut next = || random.bits() as u32;
    let groups = outs * spec.group.count(ins);
    let words = (0..outs * packed_words(ins, spec.bits)).map(|_| next()).collect();
    let scales = (0..groups).map(|_| f16::from_f32(1e-3 * (1.0 + next() as f32 / u32::MAX as f32))).collect();
    let zero_points = (0..groups).map(|_| next() as u8 & spec.bits.max_code()).collect();
    QuantizedTensor::from_parts(spec, [outs, ins], words, scales, zero_points).expect("the parts fit")
}

/// The same linears in the form of libtorch's int4 product.
pub struct Int4 {
    group: i64,
    /// Codes, then scales and offsets.
    linears: Vec<[Tensor; 2]>,
    inputs: Inputs,
}

impl Int4 {
    pub fn new(ours: &Ours, rows: usize) -> Self {
        let group = ours.tensors[0].shape()[1] / ours.tensors[0].groups();
        let linears = ours.tensors.iter().map(int4).collect();
        let shapes: Vec<_> = ours.tensors.iter().map(QuantizedTensor::shape).collect();
        Self { group: group as i64, linears, inputs: Inputs::new(&shapes, rows, Kind::BFloat16) }
    }

    pub fn run(&self) -> Option<Tensor> {
        let mut last = None;
        for ([codes, grids], x) in self.linears.iter().zip(&self.inputs.0) {
            last = Some(x.internal_weight_int4pack_mm_for_cpu(codes, self.group, grids));
        }
        last
    }

    /// Both give the same numbers, up to rounding to bf16.
    pub fn check(&self, ours: &mut Ours) {
        let theirs = self.run().expect("a linear").to_kind(Kind::Float);
        ours.run();
        let len = theirs.numel();
        let out: Vec<f32> = ours.out[..len].iter().map(|value| value.to_f32()).collect();
        let ours = Tensor::from_slice(&out).view_as(&theirs);
        let error = f64::try_from((&ours - &theirs).square().mean(Kind::Float).sqrt()).expect("a number");
        let size = f64::try_from(theirs.square().mean(Kind::Float).sqrt()).expect("a number");
        // bf16 scales, offsets and results have a relative error of 2^-9 each, and an offset can be as large as a few weights.
        assert!(error < 0.02 * size, "ours and libtorch's int4 differ by {error} of {size}");
    }

    pub fn bytes(&self) -> usize {
        let of = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        self.linears.iter().flatten().map(of).sum()
    }
}

/// libtorch's codes are relative to 8, with an offset: `(code - 8) * scale + (8 - zero point) * scale`.
fn int4(tensor: &QuantizedTensor) -> [Tensor; 2] {
    let [outs, ins] = tensor.shape();
    let mut codes = vec![0u8; outs * ins];
    codes.chunks_mut(ins).enumerate().for_each(|(row, codes)| tensor.row_codes(row, codes));
    let codes = Tensor::from_slice(&codes).view([outs as i64, ins as i64]).to_kind(Kind::Int);
    let grids =
        (0..tensor.groups()).flat_map(|group| (0..outs).map(move |row| (row, group))).flat_map(|(row, group)| {
            let grid = tensor.grid(row, group);
            [grid.scale, (8.0 - f32::from(grid.zero_point)) * grid.scale]
        });
    let grids = Tensor::from_slice(&grids.collect::<Vec<_>>()).to_kind(Kind::BFloat16);
    let grids = grids.view([tensor.groups() as i64, outs as i64, 2]);
    [codes.internal_convert_weight_to_int4pack_for_cpu(1), grids]
}

/// Dense linears of the same shapes. Linears of large layers share their weights, which far exceed caches.
pub struct Torch {
    weights: Vec<Tensor>,
    inputs: Inputs,
}

impl Torch {
    pub fn new(shapes: &[[usize; 2]], kind: Kind, rows: usize) -> Self {
        const MOST: usize = 256 << 20;
        let total: usize = shapes.iter().map(|[outs, ins]| outs * ins).sum();
        let len = total.min(MOST);
        let some = Tensor::randn([1 << 20], (Kind::Float, Device::Cpu)).to_kind(kind);
        let memory = some.repeat([len.div_ceil(1 << 20) as i64]);
        let mut at = 0;
        let weights = shapes.iter().map(|&[outs, ins]| {
            if at + outs * ins > len {
                at = 0;
            }
            at += outs * ins;
            memory.narrow(0, (at - outs * ins) as i64, (outs * ins) as i64).view([outs as i64, ins as i64])
        });
        Self { weights: weights.collect(), inputs: Inputs::new(shapes, rows, kind) }
    }

    pub fn run(&self) {
        for (weight, x) in self.weights.iter().zip(&self.inputs.0) {
            drop(std::hint::black_box(x.linear(weight, None::<&Tensor>)));
        }
    }
}

/// `[rows, in]` for each linear.
struct Inputs(Vec<Tensor>);

impl Inputs {
    fn new(shapes: &[[usize; 2]], rows: usize, kind: Kind) -> Self {
        let of = |ins: usize| {
            let x: Vec<f32> = numbers(rows * ins).iter().map(|x| x.to_f32()).collect();
            Tensor::from_slice(&x).view([rows as i64, ins as i64]).to_kind(kind)
        };
        Self(shapes.iter().map(|[_, ins]| of(*ins)).collect())
    }
}

/// Numbers between -1 and 1, the same every time.
fn numbers(len: usize) -> Vec<bf16> {
    (0..len).map(|i| bf16::from_f32((i as f32 * 0.618).sin())).collect()
}
