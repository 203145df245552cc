//! The order of a matrix's rows in GGUF and in Hugging Face checkpoints.

/// The order of rows in a GGUF tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// Same as in Hugging Face.
    Plain,
    /// Within each head, rows i and i + head_dim / 2 are adjacent. llama.cpp rotates neighbouring values of LLaMA's heads (RoPE on pairs
    /// 2i, 2i + 1), Hugging Face the two halves. For other architectures both rotate the halves.
    Interleaved {
        /// Rows per head.
        head_dim: usize,
    },
    /// Falcon's fused linear: all queries, then all keys, then all values. In Hugging Face each key/value head follows its query heads.
    Grouped {
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// Rows per head.
        head_dim: usize,
    },
    /// Some of the rows of a larger tensor in Hugging Face: gates and ups of an expert are one tensor there, and two in GGUF.
    Among {
        /// The first of them.
        first: usize,
        /// From one to the next.
        step: usize,
        /// Rows of the larger tensor.
        all: usize,
    },
}

impl RowOrder {
    /// Rows of the Hugging Face tensor if that of GGUF has `rows`.
    pub(super) fn rows_in_hf(self, rows: usize) -> usize {
        match self {
            Self::Among { all, .. } => all,
            _ => rows,
        }
    }

    /// The row of the Hugging Face tensor that row `row` of the GGUF tensor holds.
    pub(super) fn in_hf(self, row: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + within % 2 * (head_dim / 2) + within / 2
            }
            Self::Grouped { heads, kv_heads, head_dim } => {
                let queries = heads / kv_heads;
                let (head, channel) = (row / head_dim, row % head_dim);
                let (group, slot) = match head.checked_sub(heads) {
                    None => (head / queries, head % queries),
                    Some(rest) => (rest % kv_heads, queries + rest / kv_heads),
                };
                (group * (queries + 2) + slot) * head_dim + channel
            }
            Self::Among { first, step, .. } => first + step * row,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_come_back_as_halves() {
        let order = RowOrder::Interleaved { head_dim: 6 };
        let sources: Vec<_> = (0..12).map(|row| order.in_hf(row)).collect();
        assert_eq!(sources, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }

    #[test]
    fn queries_keys_and_values_are_gathered() {
        // Two groups of two queries, a key and a value; one row per head.
        let order = RowOrder::Grouped { heads: 4, kv_heads: 2, head_dim: 1 };
        let sources: Vec<_> = (0..8).map(|row| order.in_hf(row)).collect();
        assert_eq!(sources, [0, 1, 4, 5, 2, 6, 3, 7]);
        let order = RowOrder::Grouped { heads: 6, kv_heads: 3, head_dim: 4 };
        let mut sources: Vec<_> = (0..48).map(|row| order.in_hf(row)).collect();
        sources.sort_unstable();
        assert!(sources.into_iter().eq(0..48));
    }

    #[test]
    fn gates_and_ups_are_taken_apart() {
        let rows = |first, step| {
            let order = RowOrder::Among { first, step, all: 6 };
            assert_eq!(order.rows_in_hf(3), 6);
            [0, 1, 2].map(|row| order.in_hf(row))
        };
        assert_eq!([rows(0, 1), rows(3, 1)], [[0, 1, 2], [3, 4, 5]]);
        assert_eq!([rows(0, 2), rows(1, 2)], [[0, 2, 4], [1, 3, 5]]);
    }
}
