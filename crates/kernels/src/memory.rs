//! Memory for packed weights, in large pages where the system has them: reading through small ones costs a fifth of the speed.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::MmapMut;

/// Bytes of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// Rows `T`, zeros at first. Several may lie in one piece of memory, and are not written to then.
pub(crate) struct Rows<T> {
    memory: Arc<MmapMut>,
    /// Byte of the first row, where a large page may begin.
    start: usize,
    rows: usize,
    holds: PhantomData<T>,
}

impl<T: Pod> Rows<T> {
    pub(crate) fn zeroed(rows: usize) -> Self {
        let bytes = rows * size_of::<T>();
        let large = bytes / LARGE_PAGE * LARGE_PAGE;
        let room = if large == 0 { 0 } else { LARGE_PAGE };
        let memory = MmapMut::map_anon(bytes + room).expect("memory for weights, as any allocation expects it");
        let start = if large == 0 { 0 } else { memory.as_ptr().align_offset(LARGE_PAGE) };
        #[cfg(target_os = "linux")]
        if large != 0 {
            // What is no whole large page stays in small ones. A system without large pages refuses, and is slower.
            memory.advise_range(memmap2::Advice::HugePage, start, large).ok();
        }
        Self { memory: Arc::new(memory), start, rows, holds: PhantomData }
    }

    /// Moves all rows into one piece of memory.
    pub(crate) fn gather<'a>(all: impl IntoIterator<Item = &'a mut Self>)
    where
        T: 'a,
    {
        let all: Vec<&mut Self> = all.into_iter().collect();
        let mut together = Self::zeroed(all.iter().map(|rows| rows.len()).sum());
        let mut rest = &mut together[..];
        for rows in &all {
            let (part, after) = rest.split_at_mut(rows.len());
            part.copy_from_slice(rows);
            rest = after;
        }
        let mut start = together.start;
        for rows in all {
            let n = rows.rows;
            *rows = Self { memory: together.memory.clone(), start, rows: n, holds: PhantomData };
            start += n * size_of::<T>();
        }
    }

    fn bytes(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.rows * size_of::<T>()
    }
}

impl<T: Pod> Deref for Rows<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.memory[self.bytes()])
    }
}

impl<T: Pod> DerefMut for Rows<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes = self.bytes();
        let memory = Arc::get_mut(&mut self.memory).expect("rows are written before they share memory");
        bytemuck::cast_slice_mut(&mut memory[bytes])
    }
}

impl<T: Pod> Clone for Rows<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.rows);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T> fmt::Debug for Rows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rows({})", self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_zeros_and_copied() {
        type Row = [u32; 32];
        // None, one, a page but for one, and three large pages and one row.
        for rows in [0, 1, (2 << 20) / 128 - 1, 3 * (2 << 20) / 128 + 1] {
            let mut some: Rows<Row> = Rows::zeroed(rows);
            assert_eq!(some.len(), rows);
            assert!(some.iter().all(|row| *row == [0; 32]));
            if let Some(last) = some.last_mut() {
                last[31] = 7;
            }
            assert_eq!(some[..], some.clone()[..]);
        }
    }

    #[test]
    fn gathered_rows_are_the_same() {
        let rows = |n: usize| {
            let mut rows: Rows<[u32; 32]> = Rows::zeroed(n);
            (0..).zip(rows.iter_mut()).for_each(|(i, row)| *row = [n as u32 + i; 32]);
            rows
        };
        let mut all = [3, 0, 40_000, 1].map(rows);
        let before = all.clone();
        Rows::gather(&mut all);
        assert!(all.iter().zip(&before).all(|(a, b)| a[..] == b[..]));
        assert!(all.windows(2).all(|pair| Arc::ptr_eq(&pair[0].memory, &pair[1].memory)));
    }
}
