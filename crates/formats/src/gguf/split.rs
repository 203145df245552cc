//! Models in several files, `NAME-00001-of-00003.gguf` and so on.

use std::path::{Path, PathBuf};

use super::{GgufError, Metadata};

/// The place of a file among those of its model, by its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// From 0.
    no: u64,
    /// Number of files.
    count: u64,
}

impl Place {
    /// None for a model in one file.
    pub(super) fn read(metadata: &Metadata) -> Result<Option<Self>, GgufError> {
        let count = metadata.unsigned("split.count")?.unwrap_or(1);
        let no = metadata.unsigned("split.no")?.unwrap_or(0);
        Ok((count > 1).then_some(Self { no, count }))
    }

    /// The other files of the model, whose first file is at `path`.
    ///
    /// # Errors
    /// When `path` is not the first, or not named as parts are.
    pub(super) fn others(self, path: &Path) -> Result<impl Iterator<Item = (PathBuf, Self)> + use<>, GgufError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.strip_suffix(&self.ending(0)).filter(|_| self.no == 0);
        let stem = stem.ok_or_else(|| GgufError::NotFirstPart { path: path.to_owned(), ending: self.ending(0) })?;
        let (folder, stem) = (path.parent().map(Path::to_owned).unwrap_or_default(), stem.to_owned());
        Ok((1..self.count).map(move |no| (folder.join(format!("{stem}{}", self.ending(no))), Self { no, ..self })))
    }

    /// How the name of a part ends.
    fn ending(self, no: u64) -> String {
        format!("-{:05}-of-{:05}.gguf", no + 1, self.count)
    }
}
