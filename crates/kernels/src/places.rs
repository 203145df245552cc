//! Where in a word codes are multiplied, and in how many sums.

/// Where the codes of pair `j` are multiplied: the sum they go to, and how many bits a word is shifted to the right before.
pub(crate) const fn sum_and_shift(bits: u32, j: usize, in_place: bool) -> (usize, usize) {
    // Places 0, 3 and 6 at 3 bits, below 8 at others, before and after one shift. The last pair is put together at place 4.
    let (sum, shift) = match bits {
        2 => (j % 4, j / 4 * 8),
        3 if j == 15 => (3, 0),
        3 => (j % 5 % 3, j % 5 / 3 * 9),
        4 => (j % 2, j / 2 * 8),
        _ => (j % 2, j * 8),
    };
    if in_place { (sum, shift) } else { (0, shift + place(bits, sum)) }
}

/// Lowest bit of the codes that go to a sum.
pub(crate) const fn place(bits: u32, sum: usize) -> usize {
    match bits {
        2 => 2 * sum,
        3 => [0, 3, 6, 4][sum],
        4 => 4 * sum,
        _ => 0,
    }
}

/// Sums of a column. Each takes `vectors`, and half of the `registers` hold words, codes, masks and activations.
pub(crate) const fn sums_of(bits: u32, rows: usize, vectors: usize, registers: usize) -> usize {
    let sums = match bits {
        2 | 3 => 4,
        _ => 2,
    };
    if vectors * sums * rows <= registers / 2 { sums } else { 1 }
}
