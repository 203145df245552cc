//! Converts between a [`QuantizedTensor`] and the tensors of a packed linear.

use oq_quant_core::{Bits, QuantizedTensor, Storage, Stored, Symmetry, WeightSpec, pack_row, packed_words, unpack_row};
use safetensors::Dtype;

use super::blocks;
use super::parts::{PACKED, SCALE, SHAPE, ZERO_POINT, check_shape, part, scales, words};
use crate::{Checkpoint, FormatError, OutTensor, PackedFault, TensorView};

/// The tensors of the linear `name` (as in the checkpoint, without `.weight`): codes, scales, shape and, unless quantization is symmetric,
/// zero points.
pub fn packed_tensors(name: &str, tensor: &QuantizedTensor) -> Vec<OutTensor<'static>> {
    let [rows, cols] = tensor.shape();
    let (groups, bits) = (tensor.groups(), tensor.spec().bits);
    let Stored::Half { scales, zero_points } = tensor.stored() else { return blocks::tensors(name, tensor) };
    let part = |part| format!("{name}.{part}");
    let mut parts = vec![
        OutTensor::from_i32(part(PACKED), &[rows, packed_words(cols, bits)], tensor.words()),
        OutTensor::from_f16(part(SCALE), &[rows, groups], scales),
        OutTensor::from_i64(part(SHAPE), &[2], &[rows as i64, cols as i64]),
    ];
    if !tensor.is_symmetric() {
        let words = pack_columns(zero_points, groups, bits);
        parts.push(OutTensor::from_i32(part(ZERO_POINT), &[packed_words(rows, bits), groups], &words));
    }
    parts
}

/// Reads the linear `name` (as in the checkpoint, without `.weight`) back.
///
/// # Errors
/// [`FormatError::Packed`] when a part is missing or the parts do not match.
pub fn packed_linear(checkpoint: &Checkpoint, name: &str, spec: WeightSpec) -> Result<QuantizedTensor, FormatError> {
    try_read(checkpoint, name, spec).map_err(|fault| FormatError::packed(name, fault))
}

/// Values of some rows of the linear `name`, `[rows.len(), in]`.
///
/// # Panics
/// When there is no such row.
pub(crate) fn packed_rows(
    checkpoint: &Checkpoint,
    name: &str,
    spec: WeightSpec,
    rows: &[usize],
) -> Result<Vec<f32>, FormatError> {
    let read = || -> Result<Vec<f32>, PackedFault> {
        let ([n_rows, cols], packed) = checked_shape(checkpoint, name, spec)?;
        let (groups, row_words) = (spec.group.count(cols), packed_words(cols, spec.bits));
        let scale = part(checkpoint, name, SCALE)?;
        check_shape(SCALE, scale.shape, &[n_rows, groups])?;
        let codes = of_rows(packed, rows, row_words, &[rows.len(), row_words], |view| words(PACKED, view))?;
        let halves = of_rows(scale, rows, groups, &[rows.len(), groups], scales)?;
        let zeros = match spec.symmetry {
            Symmetry::Symmetric | Symmetry::FullRange => vec![spec.bits.centre(); rows.len() * groups],
            Symmetry::Asymmetric => {
                let zeros = part(checkpoint, name, ZERO_POINT)?;
                check_shape(ZERO_POINT, zeros.shape, &[packed_words(n_rows, spec.bits), groups])?;
                let stream = words(ZERO_POINT, zeros)?;
                let at = |row: usize, group: usize| code_of(&stream, groups, (row, group), spec.bits);
                rows.iter().flat_map(|&row| (0..groups).map(move |group| at(row, group))).collect()
            }
        };
        let shape = [rows.len(), cols];
        Ok(QuantizedTensor::from_parts(spec, shape, codes, halves, zeros)?.dequantize())
    };
    read().map_err(|fault| FormatError::packed(name, fault))
}

/// The numbers of some rows of a part with `width` numbers in a row.
fn of_rows<T>(
    view: TensorView<'_>,
    rows: &[usize],
    width: usize,
    shape: &[usize],
    read: impl Fn(TensorView<'_>) -> Result<T, PackedFault>,
) -> Result<T, PackedFault> {
    let row_bytes = width * view.dtype.bitsize() / 8;
    let bytes: Vec<u8> = rows.iter().flat_map(|row| &view.bytes[row * row_bytes..][..row_bytes]).copied().collect();
    read(TensorView { shape, bytes: &bytes, ..view })
}

/// The code of a row in the bit stream of a column, of `cols` streams `[words, cols]`.
fn code_of(words: &[u32], cols: usize, (row, col): (usize, usize), bits: Bits) -> u8 {
    let first = row * bits.get() as usize;
    let word = |at: usize| u64::from(words.get(at * cols + col).copied().unwrap_or(0));
    let pair = word(first / 32) | word(first / 32 + 1) << 32;
    (pair >> (first % 32)) as u8 & bits.max_code()
}

/// `[out, in]` of the linear `name`, checked against the size of its codes.
pub(crate) fn read_shape(checkpoint: &Checkpoint, name: &str, spec: WeightSpec) -> Result<[usize; 2], FormatError> {
    checked_shape(checkpoint, name, spec).map(|(shape, _)| shape).map_err(|fault| FormatError::packed(name, fault))
}

fn try_read(checkpoint: &Checkpoint, name: &str, spec: WeightSpec) -> Result<QuantizedTensor, PackedFault> {
    let part = |which| part(checkpoint, name, which);
    let ([rows, cols], packed) = checked_shape(checkpoint, name, spec)?;
    let groups = spec.group.count(cols);
    if spec.storage != Storage::Half {
        let stored = blocks::stored(checkpoint, name, spec, [rows, cols])?;
        return Ok(QuantizedTensor::from_stored(spec, [rows, cols], words(PACKED, packed)?, stored)?);
    }
    let scale = part(SCALE)?;
    check_shape(SCALE, scale.shape, &[rows, groups])?;

    let zero_points = match spec.symmetry {
        Symmetry::Symmetric | Symmetry::FullRange => vec![spec.bits.centre(); rows * groups],
        Symmetry::Asymmetric => {
            let zeros = part(ZERO_POINT)?;
            check_shape(ZERO_POINT, zeros.shape, &[packed_words(rows, spec.bits), groups])?;
            unpack_columns(&words(ZERO_POINT, zeros)?, rows, groups, spec.bits)
        }
    };
    let (words, scales) = (words(PACKED, packed)?, scales(scale)?);
    Ok(QuantizedTensor::from_parts(spec, [rows, cols], words, scales, zero_points)?)
}

/// `[out, in]` from `weight_shape`, and the codes of that shape. Nothing is allocated from numbers that were not compared with the file.
fn checked_shape<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    spec: WeightSpec,
) -> Result<([usize; 2], TensorView<'a>), PackedFault> {
    if spec.storage.has_float_codes() {
        return blocks::shape_of_float_codes(checkpoint, name);
    }
    let [rows, cols] = shape(part(checkpoint, name, SHAPE)?)?;
    let packed = part(checkpoint, name, PACKED)?;
    check_shape(PACKED, packed.shape, &[rows, packed_words(cols, spec.bits)])?;
    Ok(([rows, cols], packed))
}

/// `[out, in]` from `weight_shape`.
fn shape(view: TensorView<'_>) -> Result<[usize; 2], PackedFault> {
    check_shape(SHAPE, view.shape, &[2])?;
    let numbers: Vec<i64> = match view.dtype {
        Dtype::I64 => view.bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        Dtype::I32 => view.bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes).into()).collect(),
        got => return Err(PackedFault::PartType { part: SHAPE, got, expected: "I64 or I32" }),
    };
    // Far beyond any layer, and far from overflow when multiplied by the bits of a code.
    let plausible = 1..=i64::from(i32::MAX);
    match numbers[..] {
        [rows, cols] if plausible.contains(&rows) && plausible.contains(&cols) => Ok([rows as usize, cols as usize]),
        _ => Err(PackedFault::BadShape { rows: numbers[0], cols: numbers[1] }),
    }
}

/// Packs each column of `codes` `[rows, cols]` as a bit stream: `[packed_words(rows), cols]`.
fn pack_columns(codes: &[u8], cols: usize, bits: Bits) -> Vec<u32> {
    let rows = codes.len() / cols;
    let stream_len = packed_words(rows, bits);
    let mut words = vec![0; stream_len * cols];
    let (mut column, mut stream) = (vec![0; rows], vec![0; stream_len]);
    for col in 0..cols {
        for (code, row) in column.iter_mut().zip(codes.chunks(cols)) {
            *code = row[col];
        }
        pack_row(&column, bits, &mut stream).expect("zero points of a quantized tensor are codes");
        for (row, word) in words.chunks_mut(cols).zip(&stream) {
            row[col] = *word;
        }
    }
    words
}

/// The inverse of [`pack_columns`].
fn unpack_columns(words: &[u32], rows: usize, cols: usize, bits: Bits) -> Vec<u8> {
    let mut codes = vec![0; rows * cols];
    let (mut column, mut stream) = (vec![0; rows], vec![0; packed_words(rows, bits)]);
    for col in 0..cols {
        for (word, row) in stream.iter_mut().zip(words.chunks(cols)) {
            *word = row[col];
        }
        unpack_row(&stream, bits, &mut column).expect("the stream was made as long as the column needs");
        for (row, code) in codes.chunks_mut(cols).zip(&column) {
            row[col] = *code;
        }
    }
    codes
}
