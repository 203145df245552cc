//! A position in a file's bytes that moves forward and never past the end.

use super::GgufError;

/// Reads little-endian values one after the other.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(n).ok().and_then(|n| rest.get(..n)).ok_or(GgufError::Truncated {
            what,
            at: self.at,
            needed: n,
            left: rest.len(),
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        Ok(self.take(N as u64, what)?.try_into().expect("take gives as many bytes as it is asked for"))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length in bytes (u64), then that many bytes of UTF-8.
    pub(super) fn text(&mut self, what: &'static str) -> Result<&'a str, GgufError> {
        let len = self.u64(what)?;
        let at = self.at;
        std::str::from_utf8(self.take(len, what)?).map_err(|_| GgufError::Text { what, at })
    }

    /// A count of items that take at least `item_bytes` each. The result is safe to allocate for: the rest of the file could hold that many
    /// items.
    pub(super) fn count(&mut self, what: &'static str, item_bytes: usize) -> Result<usize, GgufError> {
        let count = self.u64(what)?;
        let (left, limit) = (self.left(), self.left() / item_bytes);
        usize::try_from(count).ok().filter(|&count| count <= limit).ok_or(GgufError::Count {
            what,
            at: self.at,
            count,
            left,
            limit,
        })
    }
}
