//! Files as memory: the only unsafe code of this crate.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// A whole file, mapped for reading.
#[derive(Debug)]
pub(crate) struct MappedFile(Mmap);

impl MappedFile {
    /// Maps the file at `path`.
    #[allow(unsafe_code, reason = "mapping a file is unsafe because another process may change it")]
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private to this type and only read. Model files are replaced by rename, never rewritten in
        // place, by everything in this workspace, so the bytes behind the mapping stay what they were when it was made.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self(map))
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Tells the operating system that the pages read so far are no longer needed in this process.
    #[allow(unsafe_code, reason = "dropping pages is unsafe for memory that is not backed by a file")]
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        // SAFETY: the mapping is read-only and backed by a file (see `open`), so a dropped page comes back with the same bytes.
        let outcome = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        #[cfg(unix)]
        if let Err(error) = outcome {
            tracing::debug!(%error, "pages of a mapped file were not released");
        }
    }
}
