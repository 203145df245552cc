//! A model's `config.json`.

use std::path::Path;

use crate::error::FormatError;
use crate::text::without_mark;
use crate::{lfs, mistaken};

/// The file that describes a model.
pub(crate) const CONFIG: &str = "config.json";

/// A model directory's `config.json`.
///
/// # Errors
/// [`FormatError::NoConfig`] when there is none, [`FormatError::Json`] when it is not a JSON object.
pub fn read_config(dir: &Path) -> Result<serde_json::Value, FormatError> {
    let path = dir.join(CONFIG);
    let bytes = std::fs::read(&path).map_err(|source| match FormatError::reading(&path, source) {
        FormatError::MissingFile { .. } if dir.is_dir() => {
            FormatError::NoConfig { dir: dir.to_owned(), what: mistaken::what_lies_in(dir) }
        }
        other => other,
    })?;
    lfs::refuse_pointer(&path, &bytes)?;
    let not_json = |why| FormatError::Json { path: path.clone(), why };
    let config: serde_json::Value =
        serde_json::from_slice(without_mark(&bytes)).map_err(|error| not_json(error.to_string()))?;
    if config.is_object() { Ok(config) } else { Err(not_json("an object was expected".to_owned())) }
}
