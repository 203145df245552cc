//! Paths as they are shown to others.

use std::path::Path;

/// The last part of a path, so that a card does not tell where somebody keeps things.
pub fn last_part(path: &str) -> String {
    Path::new(path).file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}
