//! Memory-mapped files: the only unsafe code of this crate.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

/// A file, mapped for reading.
#[derive(Debug)]
pub(crate) struct MappedFile {
    file: File,
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::open(path)?)
    }

    /// Creates an unnamed file in `dir` with `bytes` zeros, which disappears with its last handle. It takes no disk space until it is
    /// written.
    pub(crate) fn unnamed(dir: &Path, bytes: u64) -> io::Result<Self> {
        let file = tempfile::tempfile_in(dir)?;
        file.set_len(bytes)?;
        Self::of(file)
    }

    #[allow(unsafe_code, reason = "mapping a file is unsafe because another process may change it")]
    fn of(file: File) -> io::Result<Self> {
        // SAFETY: the mapping is private to this type and only read. Everything in this workspace replaces model files by rename and never
        // rewrites them in place. An unnamed file is written by `write` alone, which no borrow of the bytes outlives. So the bytes do not
        // change while somebody looks at them.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { file, map })
    }

    /// The file's content.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Current length of the file. Reading the mapping beyond it kills the process.
    pub(crate) fn len_now(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Writes to the file rather than through its mapping: there a full disk would be a signal, here it is an error.
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(at as u64))?;
        self.file.write_all(bytes)
    }

    /// Asks the operating system to read a part of the file ahead, without waiting.
    pub(crate) fn read_ahead(&self, part: Range<usize>) {
        #[cfg(unix)]
        if let Err(error) = self.map.advise_range(memmap2::Advice::WillNeed, part.start, part.len()) {
            tracing::debug!(%error, "a mapped file is not read ahead");
        }
        #[cfg(not(unix))]
        let _ = part;
    }

    /// Tells the operating system that this process no longer needs the pages read so far.
    pub(crate) fn release(&self) {
        self.release_part(0..self.map.len());
    }

    /// [`Self::release`] for a part of the file.
    #[allow(unsafe_code, reason = "dropping pages is unsafe for memory that is not backed by a file")]
    pub(crate) fn release_part(&self, part: Range<usize>) {
        #[cfg(unix)]
        // SAFETY: the mapping is read-only, shared and backed by a file (see `of`), so a dropped page is read again with the same bytes.
        let outcome =
            unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.start, part.len()) };
        #[cfg(unix)]
        if let Err(error) = outcome {
            tracing::debug!(%error, "pages of a mapped file were not released");
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}
