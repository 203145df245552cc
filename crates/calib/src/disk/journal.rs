//! The journal of a run: one JSON line per finished shard, so that a killed run can be resumed.
//!
//! The first line has everything that decides the result, and the surroundings in which the run began. A line is appended and synced
//! once the block's shard is written, and then the shard is placed. A torn last line counts as not written.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use oq_formats::is_leftover;
use oq_recipe::{BlockRecord, RECORDS, RUN_FOLDER};
use serde::{Deserialize, Serialize};

use crate::disk::identity::{Identity, Surroundings};
use crate::disk::names::{EARLIER_JOURNAL, JOURNAL, WIDTHS};
use crate::nth::Nth;

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    #[serde(flatten)]
    pub(crate) identity: Identity,
    /// Where blocks were made whose line says nothing else; older journals lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) surroundings: Option<Surroundings>,
}

/// A shard of a run: a block as learned, or as tuned afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The block with this index, as learned.
    Learned(usize),
    /// The block with this index, as tuned.
    Tuned(usize),
}

/// A line of the journal: a shard on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finished<R = BlockRecord> {
    /// Its file name.
    pub(crate) shard: String,
    /// sha256 of the shard.
    pub(crate) sha256: String,
    /// Hash of the weights that the block was made from, see [`Sources`](crate::disk::identity::Sources); older journals lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    /// Where it was made, if the first line says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) surroundings: Option<Surroundings>,
    /// How learning or tuning went.
    #[serde(flatten)]
    pub(crate) record: R,
}

/// How tuning went, repeated in the line of each tuned block. An epoch tunes all blocks together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TunedRecord {
    /// Which block, from 0.
    pub(crate) tuned: usize,
    /// Mean divergence of each epoch, in nats.
    pub(crate) divergences: Vec<f64>,
    /// Restarts of tuning after a number that was not finite.
    pub(crate) retries: u32,
    /// sha256 of the state of tuning that it was made from.
    pub(crate) state: String,
}

/// Why a journal could not be opened or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The directory holds a run, and `--resume` was not given.
    #[error("{} holds a run with {blocks} finished blocks: continue it with --resume, or choose another --out", dir.display())]
    Occupied {
        /// The directory.
        dir: PathBuf,
        /// Number of its finished blocks.
        blocks: usize,
    },
    /// The directory has files that do not belong to a run.
    #[error("{} is not empty and does not hold a run of this program: choose another --out", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds a run of an earlier version, which kept its journal elsewhere.
    #[error("{} holds a run of an earlier version of this program, which alone can resume it: choose another --out", dir.display())]
    Earlier {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds a different run.
    #[error(
        "{} holds a run with a different {differences}: repeat its command line to resume it, or choose another --out",
        dir.display()
    )]
    Different {
        /// The directory.
        dir: PathBuf,
        /// What differs.
        differences: String,
    },
    /// The run was made from different weights.
    #[error(
        "{}: block {block} was made from a different checkpoint, not the one in {}: choose another --out", dir.display(), model.display()
    )]
    OtherSource {
        /// The directory.
        dir: PathBuf,
        /// The first block with different weights.
        block: Nth,
        /// The checkpoint given now.
        model: PathBuf,
    },
    /// A rank does not see the journal of the first one.
    #[error(
        "{}: {source}: rank 0 writes there, and all ranks need to see it; give an --out on a file system that they share", path.display()
    )]
    Unseen {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Ranks were started with different command lines, or on different files.
    #[error("{}: rank 0 runs with a different {differences}: start all ranks with the same command and the same files", dir.display())]
    OtherRank {
        /// The directory.
        dir: PathBuf,
        /// What differs.
        differences: String,
    },
    /// Another process writes to the directory.
    #[error("{}: another run is writing there: wait for it to finish, or choose another --out", dir.display())]
    Busy {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be created or written to.
    #[error("{}: cannot be written: {source}; choose another --out", dir.display())]
    Unwritable {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Input or output failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// An open journal.
pub(crate) struct Journal {
    path: PathBuf,
    /// None where another rank writes it.
    file: Option<File>,
    learned: Vec<Finished>,
    tuned: Vec<Finished<TunedRecord>>,
    /// The surroundings in which it was begun.
    begun: Option<Surroundings>,
    /// The surroundings of this process.
    here: Option<Surroundings>,
}

impl Journal {
    /// Starts the journal of a model of `n_blocks` in a directory without finished blocks, or opens the existing one if `resume` is set. It
    /// is locked until dropped.
    pub(crate) fn open(dir: &Path, asked: &Header, n_blocks: usize, resume: bool) -> Result<Self, JournalError> {
        let path = dir.join(JOURNAL);
        let io = |source| JournalError::Io { path: path.clone(), source };
        let unwritable = |source| JournalError::Unwritable { dir: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(unwritable)?;
        let holds_files = holds_files(dir).map_err(io)?;
        if holds_files && !path.exists() {
            let dir = dir.to_owned();
            let is_earlier = dir.join(EARLIER_JOURNAL).exists();
            return Err(if is_earlier { JournalError::Earlier { dir } } else { JournalError::Foreign { dir } });
        }
        std::fs::create_dir_all(dir.join(RUN_FOLDER)).map_err(unwritable)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(unwritable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Busy { dir: dir.to_owned() }),
            // Some network file systems have no locks. That does not stop a run.
            Err(TryLockError::Error(error)) => tracing::debug!(%error, "the journal cannot be locked"),
        }
        let text = std::fs::read_to_string(&path).map_err(io)?;
        let Lines { header, learned, tuned, kept } = Lines::of(&text, n_blocks);
        // A run that has finished no block does not stand in the way of another run.
        let resumes = |header: &Header| header == asked || !learned.is_empty() && header.identity == asked.identity;
        let here = asked.surroundings.clone();
        let Some(header) = header.filter(|header| resumes(header) || holds_files) else {
            if holds_files {
                return Err(JournalError::Foreign { dir: dir.to_owned() });
            }
            file.set_len(0).map_err(io)?;
            append(&path, &file, asked)?;
            let file = Some(file);
            return Ok(Self { file, path, learned: Vec::new(), tuned: Vec::new(), begun: here.clone(), here });
        };
        if !resume && !learned.is_empty() {
            return Err(JournalError::Occupied { dir: dir.to_owned(), blocks: learned.len() });
        }
        if header.identity != asked.identity {
            let differences = header.identity.differences(&asked.identity);
            return Err(JournalError::Different { dir: dir.to_owned(), differences });
        }
        if kept < text.len() {
            file.set_len(kept as u64).map_err(io)?;
        }
        Ok(Self { path, file: Some(file), learned, tuned, begun: header.surroundings, here })
    }

    /// Reads the journal that another rank has opened for the same run, and writes nothing.
    pub(crate) fn read(dir: &Path, asked: &Header, n_blocks: usize) -> Result<Self, JournalError> {
        let path = dir.join(JOURNAL);
        let unseen = |source| JournalError::Unseen { path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(unseen)?;
        let Lines { header, learned, tuned, .. } = Lines::of(&text, n_blocks);
        let header = header.ok_or_else(|| unseen(std::io::ErrorKind::UnexpectedEof.into()))?;
        if header.identity != asked.identity {
            let differences = header.identity.differences(&asked.identity);
            return Err(JournalError::OtherRank { dir: dir.to_owned(), differences });
        }
        Ok(Self { path, file: None, learned, tuned, begun: header.surroundings, here: asked.surroundings.clone() })
    }

    /// Blocks learned so far, by this process or earlier ones, in order.
    pub(crate) fn learned(&self) -> &[Finished] {
        &self.learned
    }

    /// Blocks tuned so far, in order.
    pub(crate) fn tuned(&self) -> &[Finished<TunedRecord>] {
        &self.tuned
    }

    /// What differs here from where the last block was finished, with both values; none if nothing does, or if it is unknown.
    pub(crate) fn moved(&self) -> Option<String> {
        let of_block = match self.tuned.last() {
            Some(block) => block.surroundings.as_ref(),
            None => self.learned.last().and_then(|block| block.surroundings.as_ref()),
        };
        let (there, here) = (of_block.or(self.begun.as_ref())?, self.here.as_ref()?);
        Some(there.differences(here)).filter(|differences| !differences.is_empty())
    }

    /// Drops this shard and those after it.
    pub(crate) fn forget(&mut self, first: Stage) -> Result<(), JournalError> {
        let (learned, tuned) = match first {
            Stage::Learned(block) => (block, 0),
            Stage::Tuned(block) => (self.learned.len(), block),
        };
        if let Some(file) = &self.file {
            let text = std::fs::read_to_string(&self.path).map_err(|source| self.io(source))?;
            // Truncated in one step: if the process is killed here, the lines before are still there.
            let kept: usize = text.split_inclusive('\n').take(1 + learned + tuned).map(str::len).sum();
            file.set_len(kept as u64).and_then(|()| file.sync_data()).map_err(|source| self.io(source))?;
        }
        self.learned.truncate(learned);
        self.tuned.truncate(tuned);
        Ok(())
    }

    /// Records a learned block.
    pub(crate) fn finish_learned(&mut self, block: Finished) -> Result<(), JournalError> {
        let block = self.finish(block)?;
        self.learned.push(block);
        Ok(())
    }

    /// Records a tuned block.
    pub(crate) fn finish_tuned(&mut self, block: Finished<TunedRecord>) -> Result<(), JournalError> {
        let block = self.finish(block)?;
        self.tuned.push(block);
        Ok(())
    }

    /// Appends a line, with the surroundings if they differ from the first line's.
    fn finish<R: Serialize>(&self, block: Finished<R>) -> Result<Finished<R>, JournalError> {
        let surroundings = self.here.clone().filter(|here| self.begun.as_ref() != Some(here));
        let block = Finished { surroundings, ..block };
        if let Some(file) = &self.file {
            append(&self.path, file, &block)?;
        }
        Ok(block)
    }

    fn io(&self, source: std::io::Error) -> JournalError {
        JournalError::Io { path: self.path.clone(), source }
    }
}

/// The lines of a journal.
struct Lines {
    header: Option<Header>,
    learned: Vec<Finished>,
    tuned: Vec<Finished<TunedRecord>>,
    /// Bytes of those that count.
    kept: usize,
}

impl Lines {
    /// All blocks are learned before the first is tuned, and both are numbered from 0 without gaps. The first line that does not fit, and
    /// all after it, are dropped.
    fn of(text: &str, n_blocks: usize) -> Self {
        let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let header = lines.next().and_then(|line| serde_json::from_str(line).ok());
        let (mut learned, mut tuned) = (Vec::new(), Vec::new());
        let mut kept = text.find('\n').map_or(0, |end| end + 1);
        for line in lines {
            if learned.len() < n_blocks {
                match serde_json::from_str::<Finished>(line) {
                    Ok(block) if block.record.index == learned.len() => learned.push(block),
                    _ => break,
                }
            } else {
                match serde_json::from_str::<Finished<TunedRecord>>(line) {
                    Ok(block) if block.record.tuned == tuned.len() && tuned.len() < n_blocks => tuned.push(block),
                    _ => break,
                }
            }
            kept += line.len();
        }
        Self { header, learned, tuned, kept }
    }
}

/// Appends a line, and returns once it is on the disk.
fn append(path: &Path, mut file: &File, line: &impl Serialize) -> Result<(), JournalError> {
    let mut line = serde_json::to_string(line).expect("a record of plain fields is JSON");
    line.push('\n');
    let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
    written.map_err(|source| JournalError::Io { path: path.to_owned(), source })
}

/// Whether `out` has anything besides a torn journal, the run's own records and unfinished temporary files.
fn holds_files(out: &Path) -> std::io::Result<bool> {
    let is_own = |path: &Path| [JOURNAL, WIDTHS].iter().chain(&RECORDS).any(|own| path == out.join(own));
    let folder = out.join(RUN_FOLDER);
    for dir in [out, &folder].into_iter().filter(|dir| dir.is_dir()) {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            if !(path == folder || is_own(&path) || is_leftover(&entry.file_name())) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_BLOCKS: usize = 3;

    fn header(recipe: &str) -> Header {
        let identity = Identity {
            version: "1".into(),
            recipe: recipe.into(),
            model: "m".into(),
            calibration: "c".into(),
            compute: "f32".into(),
        };
        Header { identity, surroundings: Some(on(1)) }
    }

    fn on(threads: usize) -> Surroundings {
        Surroundings { libtorch: "2".into(), device: "cpu".into(), threads, attention: "own".into(), ranks: 1 }
    }

    fn block(index: usize) -> Finished {
        Finished {
            shard: format!("{index}.safetensors"),
            sha256: "0".into(),
            source: (index > 0).then(|| "1".into()),
            surroundings: None,
            record: BlockRecord {
                index,
                losses: vec![0.1, 1.0 / 3.0],
                final_loss: Some(0.5),
                wall_secs: 1.0,
                retries: 0,
                beyond_f16: None,
                starved: Vec::new(),
            },
        }
    }

    #[test]
    fn resumes_after_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let id = header("r");
        let mut journal = Journal::open(dir.path(), &id, N_BLOCKS, false).unwrap();
        journal.finish_learned(block(0)).unwrap();
        journal.finish_learned(block(1)).unwrap();
        drop(journal);
        let path = dir.path().join(JOURNAL);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(dir.path(), &id, N_BLOCKS, true).unwrap();
            let lines = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(journal.learned().len(), lines.saturating_sub(1), "cut at {cut}");
            for next in journal.learned().len()..2 {
                journal.finish_learned(block(next)).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn refuses_other_runs_and_foreign_files() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (header(r#"{"learn":{"epochs":20}}"#), header(r#"{"learn":{"epochs":5}}"#));
        // No block is finished: another run may begin.
        drop(Journal::open(dir.path(), &other, N_BLOCKS, false).unwrap());
        let mut journal = Journal::open(dir.path(), &ours, N_BLOCKS, false).unwrap();
        assert!(matches!(Journal::open(dir.path(), &ours, N_BLOCKS, true), Err(JournalError::Busy { .. })));
        std::fs::write(dir.path().join("0.safetensors"), "").unwrap();
        journal.finish_learned(block(0)).unwrap();
        drop(journal);
        assert!(matches!(
            Journal::open(dir.path(), &ours, N_BLOCKS, false),
            Err(JournalError::Occupied { blocks: 1, .. })
        ));
        match Journal::open(dir.path(), &other, N_BLOCKS, true) {
            Err(JournalError::Different { differences, .. }) => {
                assert_eq!(differences, "recipe (learn.epochs was 20 and is now 5)");
            }
            other => panic!("{:?}", other.map(|j| j.learned)),
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
        assert!(matches!(Journal::open(dir.path(), &header("a"), N_BLOCKS, true), Err(JournalError::Foreign { .. })));
    }

    #[test]
    fn surroundings_are_recorded_when_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let on_threads = |threads| Header { surroundings: Some(on(threads)), ..header("r") };
        let open = |threads| Journal::open(dir.path(), &on_threads(threads), N_BLOCKS, true).unwrap();
        // No block is finished: the run begins with these surroundings.
        drop(open(8));
        assert_eq!(open(1).moved(), None);
        let mut journal = open(1);
        journal.finish_learned(block(0)).unwrap();
        drop(journal);
        let mut journal = open(4);
        assert_eq!(journal.moved().unwrap(), "threads was 1 and is now 4");
        journal.finish_learned(block(1)).unwrap();
        drop(journal);
        assert_eq!(open(4).moved(), None);
        let journal = open(1);
        assert_eq!(journal.moved().unwrap(), "threads was 4 and is now 1");
        let elsewhere = Finished { surroundings: Some(on(4)), ..block(1) };
        assert_eq!(journal.learned(), [block(0), elsewhere]);
        drop(journal);
        // A journal without the surroundings in which it was begun.
        let lines = std::fs::read_to_string(dir.path().join(JOURNAL)).unwrap();
        let (first, _) = lines.split_once('\n').unwrap();
        let old = first.replace(&format!(",\"surroundings\":{}", serde_json::to_string(&on(1)).unwrap()), "");
        assert_ne!(old, first);
        std::fs::write(dir.path().join(JOURNAL), lines.replace(first, &old)).unwrap();
        let mut journal = open(4);
        assert_eq!(journal.moved(), None);
        journal.forget(Stage::Learned(1)).unwrap();
        assert_eq!(journal.moved(), None);
    }

    #[test]
    fn forgets_a_block_and_those_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let id = header("r");
        let mut journal = Journal::open(dir.path(), &id, N_BLOCKS, false).unwrap();
        (0..3).for_each(|i| journal.finish_learned(block(i)).unwrap());
        journal.forget(Stage::Learned(1)).unwrap();
        journal.finish_learned(block(1)).unwrap();
        drop(journal);
        assert_eq!(Journal::open(dir.path(), &id, N_BLOCKS, true).unwrap().learned(), [block(0), block(1)]);
    }

    #[test]
    fn learned_and_tuned_blocks_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let id = header("r");
        let open = || Journal::open(dir.path(), &id, 2, true).unwrap();
        let counts = |journal: &Journal| (journal.learned().len(), journal.tuned().len());
        let tuned = |block| {
            let Finished { shard, sha256, source, surroundings, .. } = self::block(block);
            let record = TunedRecord { tuned: block, divergences: vec![0.5, 0.25], retries: 1, state: "0".into() };
            Finished { shard, sha256, source, surroundings, record }
        };
        let mut journal = open();
        (0..2).for_each(|i| journal.finish_learned(block(i)).unwrap());
        (0..2).for_each(|i| journal.finish_tuned(tuned(i)).unwrap());
        drop(journal);
        let mut journal = open();
        assert_eq!((journal.learned(), journal.tuned()), (&[block(0), block(1)][..], &[tuned(0), tuned(1)][..]));
        journal.forget(Stage::Tuned(1)).unwrap();
        assert_eq!(counts(&journal), (2, 1));
        drop(journal);
        let mut journal = open();
        assert_eq!(counts(&journal), (2, 1));
        // Tuned blocks depend on all learned ones.
        journal.forget(Stage::Learned(1)).unwrap();
        drop(journal);
        assert_eq!(counts(&open()), (1, 0));
        // A block is not tuned before all are learned: neither line is believed.
        let mut journal = open();
        journal.finish_tuned(tuned(0)).unwrap();
        journal.finish_learned(block(1)).unwrap();
        drop(journal);
        assert_eq!(counts(&open()), (1, 0));
        // No more blocks of a stage than the model has.
        let mut journal = open();
        (1..3).for_each(|i| journal.finish_learned(block(i)).unwrap());
        drop(journal);
        let mut journal = open();
        assert_eq!(counts(&journal), (2, 0));
        (0..3).for_each(|i| journal.finish_tuned(tuned(i)).unwrap());
        drop(journal);
        assert_eq!(counts(&open()), (2, 2));
    }
}
