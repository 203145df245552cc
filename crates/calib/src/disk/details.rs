//! The file of block details, which grows with the journal.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use oq_recipe::{BLOCKS, BlockDetails};

use crate::disk::journal::JournalError;

/// The file, created with the first line.
pub(crate) struct DetailsFile {
    path: PathBuf,
}

impl DetailsFile {
    /// The file in `dir`. Of what is in it, the lines of the first `blocks` blocks are kept.
    pub(crate) fn open(dir: &Path, blocks: usize) -> Result<Self, JournalError> {
        let path = dir.join(BLOCKS);
        let io = |source| JournalError::Io { path: path.clone(), source };
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self { path }),
            text => text.map_err(io)?,
        };
        let is_kept = |line: &&str| {
            line.ends_with('\n') && serde_json::from_str::<BlockDetails>(line).is_ok_and(|there| there.index < blocks)
        };
        let kept: String = text.split_inclusive('\n').filter(is_kept).collect();
        if kept != text {
            // What a kill loses here is no more than a part of a report.
            std::fs::write(&path, kept).map_err(io)?;
        }
        Ok(Self { path })
    }

    /// Appends a line.
    pub(crate) fn add(&self, details: &BlockDetails) -> Result<(), JournalError> {
        let line = serde_json::to_string(details).expect("plain data is JSON") + "\n";
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.map_err(|source| JournalError::Io { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use oq_recipe::{Errors, RUN_FOLDER};

    use super::*;

    #[test]
    fn lines_of_finished_blocks_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(RUN_FOLDER)).unwrap();
        let details = |index| BlockDetails {
            index,
            tokens: 8,
            error: Errors { nearest: 0.5, learned: 0.25 },
            linears: Vec::new(),
            sites: Vec::new(),
        };
        let text = || std::fs::read_to_string(dir.path().join(BLOCKS)).unwrap();
        let file = DetailsFile::open(dir.path(), 0).unwrap();
        (0..3).for_each(|index| file.add(&details(index)).unwrap());
        let whole = text();
        let line = |index: usize| whole.lines().nth(index).unwrap().to_owned() + "\n";
        std::fs::write(dir.path().join(BLOCKS), format!("{whole}{{\"index\":1,")).unwrap();
        let file = DetailsFile::open(dir.path(), 2).unwrap();
        assert_eq!(text(), line(0) + &line(1));
        file.add(&details(2)).unwrap();
        assert_eq!(text(), whole);
    }
}
