//! Weights from codes, computed where they are needed.

use oq_cuda::Packed;
use oq_formats::Matrix;
use oq_quant_core::QuantizedTensor;
use tch::{Device, Kind, Tensor};

/// Weights that are unpacked at once on a device, in whole rows: codes take 8 bytes there on the way.
const SLAB: usize = 1 << 24;

/// The values of codes, `[out, in]` f32. To a device other than the CPU the packed codes are sent, and the grid of each group, a fraction
/// of the values' bytes. The values are the same to the last bit.
pub fn dequantized(packed: &QuantizedTensor, device: Device) -> Tensor {
    let [rows, cols] = packed.shape().map(|n| n as i64);
    if let Some(kernels) = oq_cuda::of(device) {
        return kernels.decode(&sent(packed, device), Kind::Float);
    }
    if device == Device::Cpu {
        return Tensor::from_slice(&packed.dequantize()).view([rows, cols]);
    }
    let Packed { words, grids, table: float_codes, bits, .. } = sent(packed, device);
    let [scale, base, zero_point] = [0, 1, 2].map(|part| grids.select(-1, part));
    let bits = i64::from(bits);
    let last = words.size()[1] - 1;
    // Where in its row each code begins.
    let bit = Tensor::arange(cols, (Kind::Int64, device)) * bits;
    let word = bit.bitwise_right_shift_tensor_scalar(5);
    let shift = bit.bitwise_and(31);
    let values = Tensor::empty([rows, cols], (Kind::Float, device));
    let step = (SLAB / cols as usize).max(1) as i64;
    for first in (0..rows).step_by(step as usize) {
        let len = step.min(rows - first);
        let words = words.narrow(0, first, len).to_kind(Kind::Int64).bitwise_and(0xffff_ffff_i64);
        let mut codes = words.index_select(1, &word).bitwise_right_shift(&shift);
        if 32 % bits != 0 {
            // What continues in the next word. A code that ends in this one gets bits that are masked out.
            let next = words.index_select(1, &(&word + 1).clamp_max(last));
            codes = codes.bitwise_or_tensor(&next.bitwise_left_shift(&(32 - &shift)));
        }
        let codes = codes.bitwise_and((1 << bits) - 1);
        let of_groups = |part: &Tensor| part.narrow(0, first, len).unsqueeze(-1);
        let numbers = match &float_codes {
            Some(table) => table.index_select(0, &codes.view(-1)).view([len, scale.size()[1], -1]),
            None => codes.to_kind(Kind::Float).view([len, scale.size()[1], -1]) - of_groups(&zero_point),
        };
        let found = numbers * of_groups(&scale) + of_groups(&base);
        values.narrow(0, first, len).copy_(&found.view([len, cols]));
    }
    values
}

/// The values of a stored matrix, in this shape.
pub(crate) fn of_matrix(matrix: Matrix, shape: [i64; 2], device: Device) -> Tensor {
    match matrix {
        Matrix::Codes(codes) => dequantized(&codes, device).view(shape),
        other => Tensor::from_slice(&other.into_values()).view(shape).to_device(device),
    }
}

/// The codes on a device, packed as they are.
pub fn sent(packed: &QuantizedTensor, device: Device) -> Packed {
    let ([rows, cols], groups) = (packed.shape(), packed.groups());
    let words: Vec<i32> = packed.words().iter().map(|&word| word.cast_signed()).collect();
    let all = (0..rows * groups).map(|at| packed.grid(at / groups, at % groups));
    let parts: Vec<f32> = all.flat_map(|grid| [grid.scale, grid.base, f32::from(grid.zero_point)]).collect();
    let has_float_codes = rows > 0 && packed.grid(0, 0).has_float_codes;
    let table = has_float_codes.then(|| (0..16).map(oq_quant_core::from_e2m1).collect::<Vec<f32>>());
    Packed {
        words: Tensor::from_slice(&words).view([rows as i64, -1]).to_device(device),
        grids: Tensor::from_slice(&parts).view([rows as i64, groups as i64, 3]).to_device(device),
        table: table.map(|table| Tensor::from_slice(&table).to_device(device)),
        bits: packed.spec().bits.get(),
        cols,
    }
}
