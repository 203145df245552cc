//! git-lfs pointers: the three-line text that a clone without git-lfs has instead of a large file.

use std::path::Path;

use crate::FormatError;

const BEGIN: &[u8] = b"version https://git-lfs.github.com/spec/";

/// What such a file is, and what to do.
pub const LFS_POINTER: &str =
    "a git-lfs pointer, not the file itself: run `git lfs pull` in the folder that was cloned, or download the file";

/// Whether a file's content is a git-lfs pointer.
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(BEGIN)
}

/// Refuses a pointer file.
pub(crate) fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    if is_lfs_pointer(bytes) { Err(FormatError::LfsPointer { path: path.to_owned() }) } else { Ok(()) }
}
