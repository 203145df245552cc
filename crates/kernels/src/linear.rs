//! A linear layer of packed weights.

use oq_quant_core::QuantizedTensor;
use rayon::prelude::*;

use crate::element::Element;
use crate::error::{KernelError, check_len};
use crate::fused::{Fused, place_row};
use crate::kernel::{Code, Kernel, Panels, Vector};
use crate::layout::{Layout, STRIP, Segment, Tile, WordRow};
use crate::panel::{Piece, Product};
use crate::prepare::{self, pad};
use crate::scratch::{self, Scratch, sized};

/// Most rows whose operands and results are held at a time.
const ROWS_AT_ONCE: usize = 512;

/// Tasks per thread of the two paths: enough that a thread which was held up does not hold up the rest. A pass over a layer for a few
/// rows is short, and takes more of them, so that threads end together; many rows like tasks that use their operands often.
const FUSED_TASKS: usize = 16;
const PANEL_TASKS: usize = 4;

/// Most strips of one task of the panel path: their results stay in the second-level cache.
const PANEL_STRIPS: usize = 8;

/// Results that are worth a second thread to copy.
const PARALLEL_COPY: usize = 1 << 16;

/// Weights `[out_features, in_features]` in the layout that kernels compute on, with a bias or none.
#[derive(Clone, Debug)]
pub struct PackedLinear {
    layout: Layout,
    bias: Option<Vec<f32>>,
    kernel: &'static Kernel,
    /// Whether many rows are multiplied in 8 bits.
    int8: bool,
}

impl PackedLinear {
    /// Rearranges a packed matrix for the kernel that [`Kernel::chosen`] returns; `bias` is `[out_features]`.
    ///
    /// # Errors
    /// When `bias` has another length, the weights' scales are not f16 numbers with integer zero points, or `OMNIQUANT_KERNEL` names a
    /// kernel that cannot be used.
    pub fn new(weight: &QuantizedTensor, bias: Option<&[f32]>) -> Result<Self, KernelError> {
        let kernel = Kernel::chosen()?;
        let [out_features, _] = weight.shape();
        if let Some(bias) = bias {
            check_len("bias", &[out_features], bias.len())?;
        }
        Ok(Self { layout: Layout::new(weight)?, bias: bias.map(<[f32]>::to_vec), kernel, int8: false })
    }

    /// Moves the codes of several layers into one piece of memory, such as those of a block: many small layers take no more large pages
    /// than one large layer then. For a moment, the codes are in memory twice.
    pub fn gather<'a>(linears: impl IntoIterator<Item = &'a mut Self>) {
        Layout::gather(linears.into_iter().map(|linear| &mut linear.layout));
    }

    /// The same layer with the activations of more than [`Kernel::few_rows`] rows rounded to 8 bits ([`Operands::Int8`]).
    ///
    /// # Errors
    /// When its kernel does not multiply them ([`Kernel::has_int8`]).
    ///
    /// [`Operands::Int8`]: crate::Operands::Int8
    pub fn with_int8(self) -> Result<Self, KernelError> {
        match self.kernel.has_int8() {
            true => Ok(Self { int8: true, ..self }),
            false => Err(KernelError::Int8 { kernel: self.kernel.name }),
        }
    }

    /// The same layer on another kernel, without [`Self::with_int8`].
    ///
    /// # Errors
    /// When this processor cannot run it.
    pub fn with_kernel(self, kernel: &'static Kernel) -> Result<Self, KernelError> {
        kernel.isa.checked()?;
        Ok(Self { kernel, int8: false, ..self })
    }

    /// `x [rows, in_features]` times the transposed weights, plus the bias, into `out [rows, out_features]`.
    ///
    /// Columns are split over the threads of the current rayon pool. A result that an infinity or NaN takes part in is not a number or
    /// infinite; other rows are not touched by it.
    ///
    /// # Errors
    /// When a slice has another length.
    pub fn forward<A: Element, O: Element>(&self, x: &[A], rows: usize, out: &mut [O]) -> Result<(), KernelError> {
        let Layout { in_features, out_features, .. } = self.layout;
        check_len("x", &[rows, in_features], x.len())?;
        check_len("out", &[rows, out_features], out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let few = rows <= self.kernel.few_rows;
        let most = match &self.kernel.code {
            Code::Vector(vector) if few => vector.fused_rows,
            Code::Vector(_) | Code::Plain(_) => ROWS_AT_ONCE,
        };
        // Parts as alike in size as can be.
        let part = rows.div_ceil(rows.div_ceil(most));
        scratch::with(|scratch| {
            for (out, x) in out.chunks_mut(part * out_features).zip(x.chunks(part * in_features)) {
                let rows = x.len() / in_features;
                match &self.kernel.code {
                    Code::Plain(strip) => self.plain(*strip, x, rows, scratch),
                    Code::Vector(vector) if few => self.fused(vector, x, rows, scratch),
                    Code::Vector(Vector { int8: Some(panels), .. }) if self.int8 => {
                        self.panels(panels, x, rows, scratch)
                    }
                    Code::Vector(vector) => self.panels(&vector.panel, x, rows, scratch),
                }
                self.finish(rows, &scratch.tiles, out);
            }
        });
        Ok(())
    }

    fn plain<A: Element>(
        &self,
        strip: fn(&Layout, usize, &[f32], &mut [Tile]),
        x: &[A],
        rows: usize,
        scratch: &mut Scratch,
    ) {
        let layout = &self.layout;
        let padded = sized(&mut scratch.rows, rows * layout.padded(), 0.0);
        for (padded, x) in padded.chunks_exact_mut(layout.padded()).zip(x.chunks_exact(layout.in_features)) {
            pad(layout, x, padded);
        }
        let padded = &*padded;
        let tiles = sized(&mut scratch.tiles, layout.strips() * rows, Tile::ZERO);
        tiles.par_chunks_mut(rows).enumerate().for_each(|(i, tiles)| strip(layout, i, padded, tiles));
    }

    /// A few rows, straight from codes.
    fn fused<A: Element>(&self, vector: &Vector, x: &[A], rows: usize, scratch: &mut Scratch) {
        let layout = &self.layout;
        let (padded, segments) = (layout.padded(), layout.segments.len());
        let row = sized(&mut scratch.rows, padded, 0.0);
        let words = sized(&mut scratch.words, padded / 2, 0);
        let operands = sized(&mut scratch.x, rows * padded / 2, 0);
        let [row_sums, sums] = &mut scratch.sums;
        let (row_sums, sums) = (sized(row_sums, segments, [0.0; 2]), sized(sums, rows * segments, [0.0; 2]));
        for (i, x) in x.chunks_exact(layout.in_features).enumerate() {
            let row = prepare::padded(layout, x, row);
            if rows == 1 {
                (vector.arrange)(layout, row, operands, sums);
            } else {
                (vector.arrange)(layout, row, words, row_sums);
                place_row(layout, words, i, rows, operands);
                sums[i..].iter_mut().step_by(rows).zip(&*row_sums).for_each(|(to, from)| *to = *from);
            }
        }
        let input = Fused { layout, rows, x: operands, sums };
        let tiles = sized(&mut scratch.tiles, layout.strips() * rows, Tile::ZERO);
        let strips = strips_of_task(layout.strips(), FUSED_TASKS);
        tiles.par_chunks_mut(strips * rows).enumerate().with_max_len(1).for_each(|(task, tiles)| {
            let first = task * strips;
            (vector.fused)(&input, first..first + tiles.len() / rows, tiles);
        });
    }

    /// Many rows: codes are unpacked once for all of them.
    fn panels<A: Element>(&self, panels: &Panels, x: &[A], rows: usize, scratch: &mut Scratch) {
        let layout = &self.layout;
        let depth = words_of_row(layout, panels);
        // Blocks of rows as alike in size as can be.
        let block = rows.div_ceil(rows.div_ceil(panels.rows));
        let operands = sized(&mut scratch.x, rows * depth, 0);
        let blocks = operands.par_chunks_mut(block * depth).zip(x.par_chunks(block * layout.in_features));
        blocks.for_each(|(operands, x)| scratch::with(|scratch| place_panel(layout, panels, x, operands, scratch)));
        let operands = &*operands;

        let tiles = sized(&mut scratch.tiles, layout.strips() * rows, Tile::ZERO);
        let strips = strips_of_task(layout.strips(), PANEL_TASKS).min(PANEL_STRIPS);
        tiles.par_chunks_mut(strips * rows).enumerate().with_max_len(1).for_each(|(task, tiles)| {
            tiles.fill(Tile::ZERO);
            scratch::with(|scratch| {
                let task = PanelTask { layout, panels, first: task * strips, rows, block, operands };
                task.run(tiles, &mut scratch.panel);
            });
        });
    }

    /// Adds the bias to `tiles [strips, rows]`, into `out`.
    fn finish<O: Element>(&self, rows: usize, tiles: &[Tile], out: &mut [O]) {
        let finish_row = |(row, out): (usize, &mut [O])| {
            for (strip, out) in out.chunks_mut(STRIP).enumerate() {
                let mut values = tiles[strip * rows + row];
                if let Some(bias) = &self.bias {
                    values.0.iter_mut().zip(&bias[strip * STRIP..]).for_each(|(value, bias)| *value += bias);
                }
                out.iter_mut().zip(&values.0).for_each(|(out, value)| *out = O::narrow(*value));
            }
        };
        let parallel = out.len() >= PARALLEL_COPY;
        let n = self.layout.out_features;
        if parallel {
            out.par_chunks_mut(n).enumerate().for_each(finish_row);
        } else {
            out.chunks_mut(n).enumerate().for_each(finish_row);
        }
    }

    /// `[out_features, in_features]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.layout.out_features, self.layout.in_features]
    }

    /// Bytes of weights, scales and zero points: what a pass over the layer reads.
    pub fn bytes(&self) -> usize {
        self.layout.bytes()
    }
}

/// Operand words of a row.
fn words_of_row(layout: &Layout, panels: &Panels) -> usize {
    layout.pieces_before(layout.padded(), panels.piece.channels) * panels.piece.words
}

/// The operands of one block of rows: `x [rows, in_features]` to words `[words of a row, rows]`.
fn place_panel<A: Element>(layout: &Layout, panels: &Panels, x: &[A], operands: &mut [u32], scratch: &mut Scratch) {
    let rows = x.len() / layout.in_features;
    let depth = words_of_row(layout, panels);
    let row = sized(&mut scratch.rows, layout.padded(), 0.0);
    let words = sized(&mut scratch.words, rows * depth, 0);
    for (x, words) in x.chunks_exact(layout.in_features).zip(words.chunks_exact_mut(depth)) {
        (panels.narrow)(layout, prepare::padded(layout, x, row), words);
    }
    for (i, operands) in operands.chunks_exact_mut(rows).enumerate() {
        for (operand, words) in operands.iter_mut().zip(words.chunks_exact(depth)) {
            *operand = words[i];
        }
    }
}

/// Some strips times all rows.
struct PanelTask<'a> {
    layout: &'a Layout,
    panels: &'a Panels,
    /// First strip.
    first: usize,
    rows: usize,
    /// Rows of a block, but for the last.
    block: usize,
    /// `[blocks of rows, words of a row, rows of the block]`.
    operands: &'a [u32],
}

impl PanelTask<'_> {
    /// `tiles` is `[strips, rows]`. Unpacked operands of a strip stay in the first-level cache while all rows meet them, those of
    /// the rows in the second while all strips meet them.
    fn run(&self, tiles: &mut [Tile], panel: &mut Vec<WordRow>) {
        let Self { layout, panels, rows, .. } = *self;
        let Piece { words, rows: rows_of_piece, .. } = panels.piece;
        let segment = layout.channels(layout.segments[0].end);
        for segments in layout.segments.chunks((panels.depth / segment).max(1)) {
            let pieces = self.pieces_of(segments);
            let panel = sized(panel, pieces.len() * rows_of_piece, WordRow::ZERO);
            for (i, tiles) in tiles.chunks_exact_mut(rows).enumerate() {
                let strip = self.first + i;
                (panels.unpack)(layout, strip, segments, panel);
                for (block, tiles) in tiles.chunks_mut(self.block).enumerate() {
                    let x = &self.operands[block * self.block * words_of_row(layout, panels)..];
                    let x = &x[pieces.start * words * tiles.len()..pieces.end * words * tiles.len()];
                    (panels.multiply)(Product { layout, strip, segments, x, panel, tiles });
                }
            }
        }
    }

    /// Pieces of some segments.
    fn pieces_of(&self, segments: &[Segment]) -> std::ops::Range<usize> {
        let before = |row| self.layout.pieces_before(self.layout.channels(row), self.panels.piece.channels);
        before(segments[0].start)..before(segments[segments.len() - 1].end)
    }
}

fn strips_of_task(strips: usize, tasks_per_thread: usize) -> usize {
    strips.div_ceil(rayon::current_num_threads() * tasks_per_thread).max(1)
}
