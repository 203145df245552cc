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
}

impl RowOrder {
    /// The row of the GGUF tensor that holds row `row` of the Hugging Face tensor.
    pub(super) fn in_gguf(self, row: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, i) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * i + half
            }
            Self::Grouped { heads, kv_heads, head_dim } => {
                let queries = heads / kv_heads;
                let (head, channel) = (row / head_dim, row % head_dim);
                let (group, slot) = (head / (queries + 2), head % (queries + 2));
                let head = match slot.checked_sub(queries) {
                    None => group * queries + slot,
                    Some(key_or_value) => heads + key_or_value * kv_heads + group,
                };
                head * head_dim + channel
            }
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_come_back_as_halves() {
        let order = RowOrder::Interleaved { head_dim: 6 };
        let sources: Vec<_> = (0..12).map(|row| order.in_gguf(row)).collect();
        assert_eq!(sources, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert!((0..12).all(|row| order.in_hf(order.in_gguf(row)) == row));
    }

    #[test]
    fn queries_keys_and_values_are_gathered() {
        // Two groups of two queries, a key and a value; one row per head.
        let order = RowOrder::Grouped { heads: 4, kv_heads: 2, head_dim: 1 };
        let sources: Vec<_> = (0..8).map(|row| order.in_gguf(row)).collect();
        assert_eq!(sources, [0, 1, 4, 6, 2, 3, 5, 7]);
        let order = RowOrder::Grouped { heads: 6, kv_heads: 3, head_dim: 4 };
        assert!((0..48).all(|row| order.in_hf(order.in_gguf(row)) == row));
    }
}
