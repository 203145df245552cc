//! Keys and values of the positions so far, and attention of later positions over them.

use half::bf16;
use rayon::prelude::*;

use crate::choice::chosen;
use crate::loops::{Left, Loops, Out, Product, Right};
use crate::pack::{COLUMNS, Padded, ROWS, pair, rows};

/// Keys and values of one sequence, in the layouts that products read.
#[derive(Clone, Debug)]
pub struct Cache {
    kv_heads: usize,
    head_dim: usize,
    /// Positions there are.
    len: usize,
    /// Positions there is room for, a multiple of [`ROWS`]; those beyond `len` are zero.
    room: usize,
    /// Pairs of channels `[kv_heads, columns / 2, room]`.
    keys: Vec<u32>,
    /// Pairs of positions `[kv_heads, room / 2, columns]`.
    values: Vec<u32>,
}

/// Which rows of a product see what: row `r` of a key/value head belongs to query head `r / queries` of those that read it, and to the
/// query `r % queries`.
#[derive(Clone, Copy)]
struct Queries {
    /// Position of the first.
    first: usize,
    /// How many.
    n: usize,
}

impl Cache {
    /// Of no positions.
    pub fn new(kv_heads: usize, head_dim: usize) -> Self {
        Self { kv_heads, head_dim, len: 0, room: 0, keys: Vec::new(), values: Vec::new() }
    }

    /// Positions there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.keys[..]) + size_of_val(&self.values[..])
    }

    /// Adds the next positions, rounded to bf16: `k`, `v` `[kv_heads, n, head_dim]`.
    ///
    /// # Panics
    /// When a slice has another length than the other, or than whole positions have.
    pub fn push<T: Copy + Into<f32>>(&mut self, k: &[T], v: &[T]) {
        let n = k.len() / (self.kv_heads * self.head_dim);
        assert_eq!(k.len(), n * self.kv_heads * self.head_dim, "{n} positions: elements of k");
        assert_eq!(v.len(), k.len(), "{n} positions: elements of v");
        if n == 0 {
            return;
        }
        self.make_room(self.len + n);
        let Self { head_dim: d, len, room, .. } = *self;
        let columns = d.next_multiple_of(COLUMNS);
        let narrow = |x: T| bf16::from_f32(x.into());
        for (keys, k) in self.keys.chunks_exact_mut(columns / 2 * room).zip(k.chunks_exact(n * d)) {
            for (i, k) in k.chunks_exact(d).enumerate() {
                for (p, k) in k.chunks(2).enumerate() {
                    keys[p * room + len + i] = pair(narrow(k[0]), k.get(1).map_or(bf16::ZERO, |&k| narrow(k)));
                }
            }
        }
        for (values, v) in self.values.chunks_exact_mut(room / 2 * columns).zip(v.chunks_exact(n * d)) {
            for (i, v) in v.chunks_exact(d).enumerate() {
                let at = len + i;
                for (pair, &v) in values[at / 2 * columns..].iter_mut().zip(v) {
                    *pair |= u32::from(narrow(v).to_bits()) << (at % 2 * 16);
                }
            }
        }
        self.len += n;
    }

    /// Attention of the last positions over all up to their own: `q`, `out` `[heads, n, head_dim]`. Query head `i` reads key/value
    /// head `i / (heads / kv_heads)`; scores are multiplied by `head_dim^-0.5`.
    ///
    /// # Panics
    /// When a slice has another length, there are fewer positions than queries, the key/value heads do not divide the query heads, or
    /// `OMNIQUANT_KERNEL` names an instruction set that cannot be used.
    pub fn attend<T: Copy + Into<f32> + Sync>(&self, heads: usize, q: &[T], out: &mut [f32]) {
        self.attend_with(chosen(), heads, q, out);
    }

    pub(crate) fn attend_with<T: Copy + Into<f32> + Sync>(
        &self,
        loops: &dyn Loops,
        heads: usize,
        q: &[T],
        out: &mut [f32],
    ) {
        let d = self.head_dim;
        let n = q.len() / (heads * d);
        assert!(
            heads.is_multiple_of(self.kv_heads),
            "{heads} heads: {} key/value heads must divide them",
            self.kv_heads
        );
        assert_eq!(q.len(), heads * n * d, "{n} queries: elements of q");
        assert_eq!(out.len(), q.len(), "{n} queries: elements of the output");
        assert!(n <= self.len, "{n} queries at the end of {} positions", self.len);
        if n == 0 {
            return;
        }
        let queries = Queries { first: self.len - n, n };
        // All rows that read one key/value head: the query heads that share it.
        let group = heads / self.kv_heads * n * d;
        let groups = out.par_chunks_mut(group).zip(q.par_chunks(group)).enumerate();
        groups.for_each(|(kv_head, (out, q))| {
            let parts = out.par_chunks_mut(ROWS * d).zip(q.par_chunks(ROWS * d)).enumerate();
            parts.for_each(|(part, (out, q))| self.part(loops, queries, (kv_head, part * ROWS), q, out));
        });
    }

    /// Some rows of one key/value head, from `first` on: `q`, `out` `[rows, head_dim]`.
    fn part<T: Copy + Into<f32>>(
        &self,
        loops: &dyn Loops,
        queries: Queries,
        (kv_head, first): (usize, usize),
        q: &[T],
        out: &mut [f32],
    ) {
        let d = self.head_dim;
        let n_rows = q.len() / d;
        let size = Padded { rows: n_rows.next_multiple_of(4), columns: d.next_multiple_of(COLUMNS) };
        let channel_pairs = size.columns / 2;
        let visible = |row: usize| queries.first + (first + row) % queries.n + 1;
        let keys = (0..n_rows).map(visible).max().expect("a part has rows").next_multiple_of(COLUMNS);
        let q: Vec<bf16> = q.iter().map(|&x| bf16::from_f32(x.into())).collect();
        let q = rows(&q, d, size);
        let mut scores = vec![0.0; size.rows * keys];
        loops.product(
            Product { m: size.rows, n: keys, pairs: channel_pairs, add: false },
            Left { data: &q, row: channel_pairs, step: 1 },
            Right { data: &self.keys[kv_head * channel_pairs * self.room..], step: self.room },
            Out { data: &mut scores, row: keys },
        );
        let scale = (d as f32).powf(-0.5);
        let mut probs = vec![0; size.rows * keys / 2];
        let rows = scores.chunks_exact(keys).zip(probs.chunks_exact_mut(keys / 2)).take(n_rows).enumerate();
        let sums: Vec<f32> =
            rows.map(|(row, (scores, probs))| loops.softmax(scale, scores, visible(row), probs).0).collect();
        let mut mixed = vec![0.0; size.rows * size.columns];
        loops.product(
            Product { m: size.rows, n: size.columns, pairs: keys / 2, add: false },
            Left { data: &probs, row: keys / 2, step: 1 },
            Right { data: &self.values[kv_head * self.room / 2 * size.columns..], step: size.columns },
            Out { data: &mut mixed, row: size.columns },
        );
        for ((out, mixed), sum) in out.chunks_exact_mut(d).zip(mixed.chunks_exact(size.columns)).zip(sums) {
            out.iter_mut().zip(mixed).for_each(|(out, mixed)| *out = mixed / sum);
        }
    }

    /// Makes room for `len` positions, and for as many again as there are.
    fn make_room(&mut self, len: usize) {
        if len <= self.room {
            return;
        }
        let room = len.max(2 * self.room).next_multiple_of(ROWS);
        let columns = self.head_dim.next_multiple_of(COLUMNS);
        let mut keys = vec![0; self.kv_heads * columns / 2 * room];
        let mut values = vec![0; self.kv_heads * room / 2 * columns];
        if self.room > 0 {
            for (new, old) in keys.chunks_exact_mut(room).zip(self.keys.chunks_exact(self.room)) {
                new[..self.room].copy_from_slice(old);
            }
            let old = self.room / 2 * columns;
            for (new, old) in values.chunks_exact_mut(room / 2 * columns).zip(self.values.chunks_exact(old)) {
                new[..old.len()].copy_from_slice(old);
            }
        }
        (self.room, self.keys, self.values) = (room, keys, values);
    }
}
