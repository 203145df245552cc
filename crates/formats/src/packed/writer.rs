//! Writes packed directories block by block.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::packed_config;
use super::online;
use super::scheme::Quantization;
use crate::atomic::{Staged, remove_leftovers};
use crate::config::CONFIG;
use crate::model_files::{shard_name, write_index, write_json};
use crate::side::copy_side_files;
use crate::{FormatError, OutTensor, write_shard};

/// Writes a packed model shard by shard: one per block when it is finished, one for everything outside the blocks, and finally the index,
/// the tokenizer's files and `config.json`. So a directory without `config.json` is unfinished. Its shards are complete, and an interrupted
/// run can continue after the last one.
#[derive(Debug)]
pub struct PackedWriter {
    dir: PathBuf,
    source: PathBuf,
    n_blocks: usize,
    rotated_online: bool,
}

impl PackedWriter {
    /// Creates `dir` if necessary, for a model of `n_blocks` blocks made from the one in `source`. Complete shards of an earlier run are
    /// kept; unfinished files of a killed one are removed.
    ///
    /// # Errors
    /// [`FormatError::OutputIsSource`] when both directories are the same.
    pub fn create(dir: &Path, source: &Path, n_blocks: usize) -> Result<Self, FormatError> {
        let failed = |source| FormatError::writing(dir, None, source);
        fs::create_dir_all(dir).map_err(failed)?;
        let is_same = |source: PathBuf| dir.canonicalize().is_ok_and(|dir| dir == source);
        if source.canonicalize().is_ok_and(is_same) {
            return Err(FormatError::OutputIsSource { dir: dir.to_owned() });
        }
        remove_leftovers(dir)?;
        Ok(Self { dir: dir.to_owned(), source: source.to_owned(), n_blocks, rotated_online: false })
    }

    /// Sets whether the model's activations are rotated at run time.
    pub fn rotated_online(self, rotated_online: bool) -> Self {
        Self { rotated_online, ..self }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether [`Self::finish`] has completed, in this run or an earlier one.
    pub fn is_finished(&self) -> bool {
        self.dir.join(CONFIG).is_file()
    }

    /// Path of the shard of a block, counted from 0.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn block_path(&self, block_idx: usize) -> PathBuf {
        assert!(block_idx < self.n_blocks, "block {block_idx} of {}", self.n_blocks);
        self.shard_path(block_idx)
    }

    /// Path of the shard for tensors outside the blocks.
    pub fn rest_path(&self) -> PathBuf {
        self.shard_path(self.n_blocks)
    }

    /// Writes the shard of a block: the [`packed_tensors`](super::packed_tensors) of its linears, and its other tensors.
    ///
    /// # Errors
    /// Same as [`write_shard`].
    pub fn write_block(&self, block_idx: usize, tensors: &[OutTensor<'_>]) -> Result<(), FormatError> {
        write_shard(&self.block_path(block_idx), tensors)
    }

    /// [`Self::write_block`] up to its last step, which is [`Staged::place`]. Until then, the directory holds the block's earlier shard.
    ///
    /// # Errors
    /// Same as [`write_shard`].
    pub fn stage_block(&self, block_idx: usize, tensors: &[OutTensor<'_>]) -> Result<Staged, FormatError> {
        let staged = Staged::new(&self.block_path(block_idx));
        write_shard(staged.path(), tensors)?;
        Ok(staged)
    }

    /// Where [`Self::stage_block`] writes a block's shard.
    pub fn staged_path(&self, block_idx: usize) -> PathBuf {
        Staged::new(&self.block_path(block_idx)).path().to_owned()
    }

    /// Writes the shard for everything outside the blocks: embeddings, final norm, head.
    pub fn write_rest(&self, tensors: &[OutTensor<'_>]) -> Result<(), FormatError> {
        write_shard(&self.rest_path(), tensors)
    }

    /// Finishes the directory: index, tokenizer's files, and `config.json`, made from the source's `config`.
    ///
    /// `ignore` names the linears that are not quantized (`lm_head`, and others outside the blocks), without `.weight`.
    ///
    /// # Errors
    /// [`FormatError::MissingShard`] when a block was not written; [`FormatError::TwiceWritten`] when two shards contain the same name.
    pub fn finish(&self, config: &Value, quantization: &Quantization, ignore: &[&str]) -> Result<(), FormatError> {
        let shards: Vec<String> = (0..=self.n_blocks).map(|shard_idx| self.shard_name(shard_idx)).collect();
        write_index(&self.dir, &shards)?;
        copy_side_files(&self.source, &self.dir)?;
        let mut config = packed_config(config, quantization, ignore);
        if self.rotated_online {
            online::mark(&mut config);
        }
        write_json(&self.dir.join(CONFIG), &config)
    }

    fn shard_path(&self, shard_idx: usize) -> PathBuf {
        self.dir.join(self.shard_name(shard_idx))
    }

    fn shard_name(&self, shard_idx: usize) -> String {
        shard_name(shard_idx, self.n_blocks + 1)
    }
}
