//! Text files as editors save them.

/// A file's content without the byte-order mark that some editors put at its beginning.
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}
