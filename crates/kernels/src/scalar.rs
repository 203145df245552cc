//! The definition, in plain loops: what every other kernel is held to, and what runs where there is no other.

use crate::layout::{Layout, STRIP, Tile};

/// `tiles[row][col] = sum over groups of scale * sum over channels of (code - zero point) * x`.
pub(crate) fn strip(layout: &Layout, strip: usize, x: &[f32], tiles: &mut [Tile]) {
    let (block, words) = (layout.width.block(), layout.width.words());
    let rows = x.chunks_exact(layout.padded());
    tiles.fill(Tile::ZERO);
    for segment in &layout.segments {
        let zero_points = layout.zero_points(strip, segment.group);
        let scales = &layout.scales(strip)[segment.group];
        for (tile, x) in tiles.iter_mut().zip(rows.clone()) {
            let mut sums = [0.0f32; STRIP];
            let codes = layout.words(strip)[segment.start..segment.end].chunks_exact(words);
            for (codes, x) in codes.zip(x[layout.channels(segment.start)..].chunks_exact(block)) {
                for (i, x) in x.iter().enumerate() {
                    for (col, sum) in sums.iter_mut().enumerate() {
                        let code = layout.width.code(codes, i, col);
                        *sum += (f32::from(code) - f32::from(zero_points[col])) * x;
                    }
                }
            }
            for ((total, sum), scale) in tile.0.iter_mut().zip(sums).zip(scales) {
                *total += scale.to_f32() * sum;
            }
        }
    }
}
