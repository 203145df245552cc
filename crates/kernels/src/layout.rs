//! The layout that kernels compute on: columns side by side, so that one vector holds one code position of many columns.
//!
//! A column is an output channel, and 32 columns make a strip. A strip is a matrix of 32-bit words `[word rows, 32]`, in memory
//! row by row: word `r` of column `c` holds codes of that column, input channels going down the rows. A block of channels
//! (16, 32, 8 or 4 at 2, 3, 4 or 8 bits) takes one word, at 3 bits three. Even channels of a block lie in the low halves of its
//! words, odd ones in the high halves, so that shifting a word by a code's place leaves a pair of neighbouring channels in the two
//! halves: what a product of bf16 pairs takes.
//!
//! | bits | place of pair `j` in a half |
//! |---|---|
//! | 2, 4, 8 | bits `bits * j..` |
//! | 3, `j < 15` | bits `3 * (j % 5)..` of word `j / 5` |
//! | 3, `j = 15` | bit 15 of word 0, 1 and 2, lowest first |
//!
//! Groups are padded to 16 channels (at 3 bits to 32) with codes that meet zeros, columns to a strip with scales of zero.
//! Beside the words stand the scales and, unless they are all alike, the zero points: `[strips, groups, 32]`.

use half::f16;
use oq_quant_core::QuantizedTensor;
use rayon::prelude::*;

use crate::error::KernelError;
use crate::memory::Rows;

/// Columns of a strip.
pub(crate) const STRIP: usize = 32;

/// Most channels that are summed before their sum is scaled and joins a total: as many products of a code of 8 bits and an
/// integer of 16 add up to one of 32.
pub(crate) const SEGMENT: usize = 256;

/// One word of each column of a strip.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct WordRow(pub(crate) [u32; STRIP]);

impl WordRow {
    pub(crate) const ZERO: Self = Self([0; STRIP]);
}

/// One row of results of a strip.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Tile(pub(crate) [f32; STRIP]);

impl Tile {
    pub(crate) const ZERO: Self = Self([0.0; STRIP]);
}

/// Widths that codes are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    W2,
    W3,
    W4,
    W8,
}

impl Width {
    /// The least width that holds codes of `bits`.
    pub(crate) const fn holding(bits: u32) -> Self {
        match bits {
            2 => Self::W2,
            3 => Self::W3,
            4 => Self::W4,
            _ => Self::W8,
        }
    }

    pub(crate) const fn bits(self) -> usize {
        match self {
            Self::W2 => 2,
            Self::W3 => 3,
            Self::W4 => 4,
            Self::W8 => 8,
        }
    }

    /// Words of a block.
    pub(crate) const fn words(self) -> usize {
        match self {
            Self::W3 => 3,
            Self::W2 | Self::W4 | Self::W8 => 1,
        }
    }

    /// Codes of a block.
    pub(crate) const fn block(self) -> usize {
        32 * self.words() / self.bits()
    }

    /// Channels that groups are padded to.
    const fn padding(self) -> usize {
        match self {
            Self::W3 => 32,
            Self::W2 | Self::W4 | Self::W8 => 16,
        }
    }

    /// Writes a block's `codes` into column `col` of its `words`.
    fn pack(self, codes: &[u8], words: &mut [WordRow], col: usize) {
        for (i, &code) in codes.iter().enumerate() {
            let (pair, half, code) = (i / 2, i % 2 * 16, u32::from(code));
            match self {
                Self::W3 if pair == 15 => {
                    for (bit, word) in words.iter_mut().enumerate() {
                        word.0[col] |= (code >> bit & 1) << (15 + half);
                    }
                }
                Self::W3 => words[pair / 5].0[col] |= code << (3 * (pair % 5) + half),
                Self::W2 | Self::W4 | Self::W8 => words[0].0[col] |= code << (self.bits() * pair + half),
            }
        }
    }

    /// Code `i` of column `col` of a block.
    #[inline(always)]
    pub(crate) fn code(self, words: &[WordRow], i: usize, col: usize) -> u8 {
        let (pair, half) = (i / 2, i % 2 * 16);
        match self {
            Self::W3 if pair == 15 => {
                (0..3).map(|bit| (words[bit].0[col] >> (15 + half) & 1) << bit).sum::<u32>() as u8
            }
            Self::W3 => (words[pair / 5].0[col] >> (3 * (pair % 5) + half) & 7) as u8,
            Self::W2 | Self::W4 | Self::W8 => {
                (words[0].0[col] >> (self.bits() * pair + half)) as u8 & (0xff >> (8 - self.bits()))
            }
        }
    }
}

/// Rows of words that are summed before scaling: a group, or a part of a long one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Segment {
    /// Group of the row.
    pub(crate) group: usize,
    /// First word row.
    pub(crate) start: usize,
    /// One past the last word row.
    pub(crate) end: usize,
}

/// A matrix `[out_features, in_features]` in the layout of this module.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) width: Width,
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
    /// Channels of a group.
    pub(crate) group: usize,
    /// Channels of a padded group.
    pub(crate) padded_group: usize,
    /// Groups of a row.
    pub(crate) groups: usize,
    /// Groups, or parts of long ones, from the first channel to the last.
    pub(crate) segments: Vec<Segment>,
    /// `[strips, word rows]`.
    words: Rows<WordRow>,
    /// `[strips, groups]`.
    scales: Vec<[f16; STRIP]>,
    /// `[strips, groups]`, or one for all.
    zero_points: ZeroPoints,
}

#[derive(Clone, Debug)]
enum ZeroPoints {
    Centre([u8; STRIP]),
    Each(Vec<[u8; STRIP]>),
}

impl Layout {
    /// Rearranges a packed matrix; strips are done in parallel.
    ///
    /// # Errors
    /// When its scales are not f16 numbers with integer zero points.
    pub(crate) fn new(tensor: &QuantizedTensor) -> Result<Self, KernelError> {
        let (scales, zero_points) = tensor.half().ok_or(KernelError::Storage { spec: tensor.spec() })?;
        let [out_features, in_features] = tensor.shape();
        let bits = tensor.spec().bits;
        let width = Width::holding(bits.get());
        let groups = tensor.groups();
        let group = in_features / groups;
        let padded_group = group.next_multiple_of(width.padding());
        let group_rows = padded_group / width.block() * width.words();
        let strips = out_features.div_ceil(STRIP);

        let mut words: Rows<WordRow> = Rows::zeroed(strips * groups * group_rows);
        words.par_chunks_mut(groups * group_rows).enumerate().for_each_init(
            || vec![0; in_features],
            |codes, (strip, words)| {
                for (col, row) in columns(strip, out_features).enumerate() {
                    tensor.row_codes(row, codes);
                    for (codes, words) in codes.chunks(group).zip(words.chunks_mut(group_rows)) {
                        for (codes, words) in codes.chunks(width.block()).zip(words.chunks_mut(width.words())) {
                            width.pack(codes, words, col);
                        }
                    }
                }
            },
        );

        let zero_points = if tensor.is_symmetric() {
            ZeroPoints::Centre([bits.centre(); STRIP])
        } else {
            ZeroPoints::Each(by_strip(zero_points, out_features, groups))
        };
        Ok(Self {
            width,
            out_features,
            in_features,
            group,
            padded_group,
            groups,
            segments: segments(groups, group_rows, SEGMENT / width.block() * width.words()),
            words,
            scales: by_strip(scales, out_features, groups),
            zero_points,
        })
    }

    /// Moves the words of several matrices into one piece of memory.
    pub(crate) fn gather<'a>(layouts: impl IntoIterator<Item = &'a mut Self>) {
        Rows::gather(layouts.into_iter().map(|layout| &mut layout.words));
    }

    pub(crate) fn strips(&self) -> usize {
        self.out_features.div_ceil(STRIP)
    }

    /// Channels with the padding of groups.
    pub(crate) fn padded(&self) -> usize {
        self.groups * self.padded_group
    }

    /// Channels of `rows` word rows.
    pub(crate) fn channels(&self, rows: usize) -> usize {
        rows / self.width.words() * self.width.block()
    }

    /// Pieces of `channels` channels that precede a channel, where each group begins with a new one.
    pub(crate) fn pieces_before(&self, channel: usize, channels: usize) -> usize {
        let [groups, rest] = [channel / self.padded_group, channel % self.padded_group];
        groups * self.padded_group.div_ceil(channels) + rest.div_ceil(channels)
    }

    /// All words of a strip.
    pub(crate) fn words(&self, strip: usize) -> &[WordRow] {
        let rows = self.padded() / self.width.block() * self.width.words();
        &self.words[strip * rows..][..rows]
    }

    /// The scales of a strip, by group.
    pub(crate) fn scales(&self, strip: usize) -> &[[f16; STRIP]] {
        &self.scales[strip * self.groups..][..self.groups]
    }

    /// The zero points of one group of a strip.
    #[inline]
    pub(crate) fn zero_points(&self, strip: usize, group: usize) -> &[u8; STRIP] {
        match &self.zero_points {
            ZeroPoints::Centre(centre) => centre,
            ZeroPoints::Each(each) => &each[strip * self.groups + group],
        }
    }

    /// Bytes of words, scales and zero points.
    pub(crate) fn bytes(&self) -> usize {
        let zero_points = match &self.zero_points {
            ZeroPoints::Centre(_) => 0,
            ZeroPoints::Each(each) => size_of_val(&each[..]),
        };
        size_of_val(&self.words[..]) + size_of_val(&self.scales[..]) + zero_points
    }
}

/// Rows of the matrix that are the columns of a strip.
fn columns(strip: usize, out_features: usize) -> std::ops::Range<usize> {
    strip * STRIP..out_features.min((strip + 1) * STRIP)
}

/// `[out_features, groups]` to `[strips, groups, 32]`.
fn by_strip<T: Copy + Default>(values: &[T], out_features: usize, groups: usize) -> Vec<[T; STRIP]> {
    let mut strips = vec![[T::default(); STRIP]; out_features.div_ceil(STRIP) * groups];
    for (strip, rows) in strips.chunks_mut(groups).enumerate() {
        for (col, row) in columns(strip, out_features).enumerate() {
            for (to, from) in rows.iter_mut().zip(&values[row * groups..]) {
                to[col] = *from;
            }
        }
    }
    strips
}

fn segments(groups: usize, group_rows: usize, most: usize) -> Vec<Segment> {
    let of_group = |group| {
        (0..group_rows).step_by(most).map(move |start| Segment {
            group,
            start: group * group_rows + start,
            end: group * group_rows + group_rows.min(start + most),
        })
    };
    (0..groups).flat_map(of_group).collect()
}

#[cfg(test)]
mod tests {
    use oq_quant_core::{Bits, GroupSize, Symmetry, WeightSpec};

    use super::*;

    fn tensor(bits: u32, group: Option<usize>, rows: usize, cols: usize) -> QuantizedTensor {
        let group = group.map_or(GroupSize::PerChannel, |n| GroupSize::channels(n).unwrap());
        let spec = WeightSpec::integer(Bits::new(bits).unwrap(), group, Symmetry::Asymmetric);
        let weight: Vec<f32> = (0..rows * cols).map(|i| ((i * i) as f32 * 0.7).sin() * (i % 7) as f32).collect();
        QuantizedTensor::quantize(&weight, rows, cols, spec).unwrap()
    }

    /// Every code, scale and zero point is found again where the layout says.
    #[track_caller]
    fn check_round_trip(bits: u32, group: Option<usize>, rows: usize, cols: usize) {
        let tensor = tensor(bits, group, rows, cols);
        let layout = Layout::new(&tensor).unwrap();
        let (block, words) = (layout.width.block(), layout.width.words());
        let mut codes = vec![0; cols];
        for row in 0..rows {
            tensor.row_codes(row, &mut codes);
            let (strip, col) = (row / STRIP, row % STRIP);
            for (channel, &code) in codes.iter().enumerate() {
                let at = channel / layout.group * layout.padded_group + channel % layout.group;
                let found = layout.width.code(&layout.words(strip)[at / block * words..], at % block, col);
                assert_eq!(found, code, "row {row} channel {channel}");
            }
            for group in 0..layout.groups {
                let grid = tensor.grid(row, group);
                assert_eq!(layout.scales(strip)[group][col].to_f32(), grid.scale);
                assert_eq!(layout.zero_points(strip, group)[col], grid.zero_point);
            }
        }
        let last = layout.segments.last().unwrap();
        assert_eq!((last.group + 1, last.end), (layout.groups, layout.words(0).len()));
    }

    #[test]
    fn round_trips() {
        for bits in 2..=8 {
            check_round_trip(bits, None, 1, 1);
            check_round_trip(bits, None, 33, 31);
            check_round_trip(bits, Some(32), 31, 96);
            check_round_trip(bits, Some(7), 65, 49);
            check_round_trip(bits, Some(1), 2, 3);
            check_round_trip(bits, None, 3, 1300);
        }
    }

    #[test]
    fn bytes_are_those_of_the_codes_and_grids() {
        // 64 x 256 in groups of 128: codes, a scale of 2 bytes and a zero point of 1 per group.
        for bits in [2, 3, 4, 8] {
            let layout = Layout::new(&tensor(bits, Some(128), 64, 256)).unwrap();
            assert_eq!(layout.bytes(), 64 * 256 * bits as usize / 8 + 64 * 2 * 3);
        }
    }

    #[test]
    fn segments_cut_long_groups() {
        let layout = Layout::new(&tensor(3, None, 1, 1300)).unwrap();
        // 1300 channels padded to 1312: 41 blocks of 3 words; 256 channels are 8 blocks.
        let expected = [(0, 24), (24, 48), (48, 72), (72, 96), (96, 120), (120, 123)];
        let found: Vec<_> = layout.segments.iter().map(|s| (s.start, s.end)).collect();
        assert_eq!(found, expected);
    }
}
