//! Disk space for data that does not fit in memory.

use std::io;
use std::ops::Range;
use std::path::Path;

use crate::mmap::MappedFile;

/// Bytes in an unnamed file, which disappears with this value, however the process ends. They count as memory of the process only while
/// they are accessed.
#[derive(Debug)]
pub struct Scratch(MappedFile);

impl Scratch {
    /// Creates `bytes` zeros in a file on the disk of `dir`. The disk fills as they are written.
    pub fn create(dir: &Path, bytes: u64) -> io::Result<Self> {
        MappedFile::unnamed(dir, bytes).map(Self)
    }

    /// Writes `bytes` at offset `at`. A full disk is an error.
    ///
    /// # Panics
    /// When the range exceeds the size.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        assert!(at + bytes.len() <= self.0.bytes().len(), "{} bytes at {at} of {}", bytes.len(), self.0.bytes().len());
        self.0.write(at, bytes)
    }

    /// The result of `look` on a range of the bytes.
    ///
    /// # Panics
    /// When the range exceeds the size.
    pub fn read<R>(&self, part: Range<usize>, look: impl FnOnce(&[u8]) -> R) -> R {
        let result = look(&self.0.bytes()[part.clone()]);
        self.0.release_part(part);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const PAGE: usize = 4096;
    const BYTES: usize = 5 * PAGE + 123;

    proptest! {
        #[test]
        fn holds_what_was_written_last(writes in vec((0..BYTES, vec(any::<u8>(), 0..3 * PAGE)), 0..12)) {
            let dir = tempfile::tempdir().unwrap();
            let mut scratch = Scratch::create(dir.path(), BYTES as u64).unwrap();
            let mut expected = vec![0u8; BYTES];
            for (at, bytes) in writes {
                let bytes = &bytes[..bytes.len().min(BYTES - at)];
                scratch.write(at, bytes).unwrap();
                expected[at..at + bytes.len()].copy_from_slice(bytes);
                // Pages that were given back, and those around them, are what they were.
                let part = at / 2..at + bytes.len();
                prop_assert!(scratch.read(part.clone(), |read| read == &expected[part]));
                prop_assert!(scratch.read(0..BYTES, |read| read == expected));
            }
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    #[should_panic(expected = "2 bytes at 9 of 10")]
    fn does_not_grow() {
        let dir = tempfile::tempdir().unwrap();
        let _ = Scratch::create(dir.path(), 10).unwrap().write(9, &[1, 2]);
    }

    /// Bytes of mapped files that are resident in this process.
    #[cfg(target_os = "linux")]
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        // A file on tmpfs is shared memory to the system.
        let kinds = ["RssFile:", "RssShmem:"];
        let lines = status.lines().filter_map(|line| kinds.iter().find_map(|kind| line.strip_prefix(kind)));
        lines.map(|line| line.trim().strip_suffix("kB").unwrap().trim().parse::<usize>().unwrap() * 1024).sum()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn is_no_memory_of_the_process() {
        const BYTES: usize = 64 << 20;
        let dir = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::create(dir.path(), BYTES as u64).unwrap();
        let before = resident();
        scratch.write(0, &vec![7; BYTES]).unwrap();
        let (sum, during) =
            scratch.read(0..BYTES, |bytes| (bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>(), resident()));
        assert_eq!(sum, 7 * BYTES as u64);
        assert!(during >= before + BYTES / 2, "a read is not seen: {before} bytes before, {during} while it is made");
        assert!(resident() < before + BYTES / 2, "{before} bytes before, {} after", resident());
    }
}
