//! Memory for packed weights, in large pages where the system has them: reading through small ones costs a fifth of the speed.

use std::fmt;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::layout::WordRow;

/// Bytes of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// Rows of words, zeros at first.
pub(crate) struct Rows {
    memory: MmapMut,
    /// Byte of the first row, where a large page may begin.
    start: usize,
    rows: usize,
}

impl Rows {
    pub(crate) fn zeroed(rows: usize) -> Self {
        let bytes = rows * size_of::<WordRow>();
        let large = bytes / LARGE_PAGE * LARGE_PAGE;
        let room = if large == 0 { 0 } else { LARGE_PAGE };
        let memory = MmapMut::map_anon(bytes + room).expect("memory for weights, as any allocation expects it");
        let start = if large == 0 { 0 } else { memory.as_ptr().align_offset(LARGE_PAGE) };
        #[cfg(target_os = "linux")]
        if large != 0 {
            // What is no whole large page stays in small ones. A system without large pages refuses, and is slower.
            memory.advise_range(memmap2::Advice::HugePage, start, large).ok();
        }
        Self { memory, start, rows }
    }

    fn bytes(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.rows * size_of::<WordRow>()
    }
}

impl Deref for Rows {
    type Target = [WordRow];

    fn deref(&self) -> &[WordRow] {
        bytemuck::cast_slice(&self.memory[self.bytes()])
    }
}

impl DerefMut for Rows {
    fn deref_mut(&mut self) -> &mut [WordRow] {
        let bytes = self.bytes();
        bytemuck::cast_slice_mut(&mut self.memory[bytes])
    }
}

impl Clone for Rows {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.rows);
        copy.copy_from_slice(self);
        copy
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rows({})", self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_zeros_and_copied() {
        // None, one, a page but for one, and three large pages and one row.
        for rows in [0, 1, (2 << 20) / 128 - 1, 3 * (2 << 20) / 128 + 1] {
            let mut some = Rows::zeroed(rows);
            assert_eq!(some.len(), rows);
            assert!(some.iter().all(|row| *row == WordRow::ZERO));
            if let Some(last) = some.last_mut() {
                last.0[31] = 7;
            }
            assert_eq!(some[..], some.clone()[..]);
        }
    }
}
