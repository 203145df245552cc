//! Atomic file writes.
//!
//! Bytes go to a temporary file in the same directory, which is synced and then renamed. Readers see the old file or the new one, whatever
//! is killed when.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::FormatError;

/// Name of temporary files, by which [`remove_leftovers`] recognizes them.
const TEMP_PREFIX: &str = ".omniquant-partial-";
/// Large enough that the cost of the system call is negligible compared with the copy.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes `bytes` to `path` atomically.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    write_sized(path, Some(bytes.len() as u64), |out| out.write_all(bytes))
}

/// Writes what `fill` writes to `path`, atomically. If `fill` fails, nothing is left behind.
pub(crate) fn atomic_write_with(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FormatError> {
    write_sized(path, None, fill)
}

/// [`atomic_write_with`] for a file of known size, so that the error for a full disk can name it.
pub(crate) fn write_sized(
    path: &Path,
    size: Option<u64>,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FormatError> {
    try_write(path, fill).map_err(|source| FormatError::writing(path, size, source))
}

fn try_write(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let dir = parent(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMP_PREFIX);
    // Temporary files are private by default; the result must be an ordinary file under the user's umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // Dropped on every error path below, which removes the file.
    let (file, temp_path) = builder.tempfile_in(dir)?.into_parts();
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    fill(&mut out)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    temp_path.persist(path).map_err(|refused| refused.error)?;
    sync_dir(dir)
}

/// A file that is written and synced, under a name of its own. A process that ends before [`Self::place`] leaves a leftover.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    place: PathBuf,
}

impl Staged {
    /// A file that will be at `place`, and has to be written to [`Self::path`] first.
    pub(crate) fn new(place: &Path) -> Self {
        Self { path: parent(place).join(format!("{TEMP_PREFIX}staged")), place: place.to_owned() }
    }

    /// Where it is now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it will be.
    pub fn destination(&self) -> &Path {
        &self.place
    }

    /// Puts it in its place, where it replaces an earlier file in one step.
    ///
    /// # Errors
    /// When the file cannot be renamed.
    pub fn place(self) -> Result<(), FormatError> {
        let Self { path, place } = self;
        let placed = fs::rename(path, &place).and_then(|()| sync_dir(parent(&place)));
        placed.map_err(|source| FormatError::writing(&place, None, source))
    }
}

/// Removes a file and syncs its directory; a missing file is no error.
pub fn remove_file(path: &Path) -> Result<(), FormatError> {
    match fs::remove_file(path).and_then(|()| sync_dir(parent(path))) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FormatError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Syncs a directory.
#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Whether this is the name of an unfinished file that a killed run left.
pub fn is_leftover(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with(TEMP_PREFIX)
}

/// Removes the temporary files that a killed run left in `dir`.
///
/// # Errors
/// When the directory cannot be read, or a file in it not removed.
pub fn remove_leftovers(dir: &Path) -> Result<(), FormatError> {
    let failed = |source| FormatError::Io { path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if is_leftover(&entry.file_name()) {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_a_file_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        atomic_write(&path, b"old").unwrap();
        atomic_write(&path, b"new and longer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new and longer");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn a_writer_that_fails_midway_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        atomic_write(&path, b"old").unwrap();
        let error = atomic_write_with(&path, |out| {
            out.write_all(&vec![7; 3 * BUFFER_BYTES])?;
            Err(io::Error::other("the lamp went out"))
        });
        assert!(error.unwrap_err().to_string().contains("the lamp went out"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let error =
            write_sized(&path, Some(4096), |_| File::options().write(true).open("/dev/full")?.write_all(&[0; 4096]))
                .unwrap_err();
        assert!(matches!(error, FormatError::NoSpace { needed: Some(4096), .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("4096 bytes") && message.contains("run again"), "{message}");
        assert!(names(dir.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_as_readable_as_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
        atomic_write(&ours, b"").unwrap();
        fs::write(&plain, b"").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn a_staged_file_replaces_another_when_it_is_placed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        atomic_write(&path, b"old").unwrap();
        let staged = Staged::new(&path);
        atomic_write(staged.path(), b"new").unwrap();
        assert!(is_leftover(staged.path().file_name().unwrap()));
        assert_eq!(fs::read(staged.destination()).unwrap(), b"old");
        staged.place().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn leftovers_go_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(format!("{TEMP_PREFIX}x1")), b"half").unwrap();
        fs::write(dir.path().join("config.json"), b"{}").unwrap();
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["config.json"]);
    }
}
