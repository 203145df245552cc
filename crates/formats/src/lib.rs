//! Checkpoints on disk. Reads Hugging Face directories (safetensors, else `pytorch_model.bin`) and GGUF files; writes packed models.
//!
//! - [`Checkpoint`] maps a directory's shards behind one table of names; [`TensorView`] converts values to f32.
//! - [`PackedWriter`] writes a packed model block by block, [`PackedCheckpoint`] reads it back (layout: [`packed`]),
//!   and models that other programs packed.
//! - [`write_shard`] writes tensors that are in memory, [`write_planned`] one after the other as they are made.
//! - [`atomic_write`] writes every file here: readers see all of it or nothing.
//! - [`Scratch`] is disk space for data that does not fit in memory.
//! - [`inspect`] summarizes a directory.
//!
//! Features, all on by default: `gguf` (GGUF files), `pickle` (`pytorch_model.bin`), and `sentencepiece` (vocabularies of `tokenizer.model`,
//! which `gguf` needs too). What is left out is refused, and the error names the feature.
//!
//! Files are not trusted. Every number in a header is checked against the file before it is used. A bad file gives an error with names and
//! numbers, never a panic.
//!
//! ```
//! use oq_formats::{Checkpoint, Dtype, OutTensor, write_shard};
//!
//! let dir = tempfile::tempdir()?;
//! let norm = OutTensor::from_f32("norm.weight", &[3], &[1.0, 0.5, -2.0], Dtype::F16)?;
//! write_shard(&dir.path().join("model.safetensors"), &[norm])?;
//!
//! let checkpoint = Checkpoint::open(dir.path())?;
//! assert_eq!(checkpoint.tensor("norm.weight")?.shape, [3]);
//! assert_eq!(checkpoint.values("norm.weight")?, [1.0, 0.5, -2.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod atomic;
mod checkpoint;
mod config;
mod digest;
mod error;
#[cfg(feature = "gguf")]
pub mod gguf;
mod header;
mod inspect;
mod lfs;
mod mistaken;
mod mmap;
mod model_files;
mod others;
pub mod packed;
#[cfg(feature = "pickle")]
mod pickle;
mod scratch;
#[cfg(feature = "sentencepiece")]
mod sentencepiece;
mod shard;
mod side;
mod text;
mod view;
mod word_split;

pub use atomic::{Staged, atomic_write, is_leftover, remove_file, remove_leftovers};
pub use checkpoint::{Checkpoint, Shard};
pub use config::read_config;
pub use digest::sha256_file;
pub use error::{FormatError, HeaderFault, PackedFault};
pub use inspect::{Summary, inspect};
pub use lfs::{LFS_POINTER, is_lfs_pointer};
pub use model_files::{shard_name, write_index, write_json};
pub use others::{Matrix, transposed};
pub use packed::{
    PackedCheckpoint, PackedWriter, Quantization, is_rotated_online, packed_linear, packed_tensors, quantization_of,
};
#[cfg(feature = "pickle")]
pub use pickle::PickleFault;
pub use safetensors::Dtype;
pub use scratch::Scratch;
#[cfg(feature = "sentencepiece")]
pub use sentencepiece::{SentencePieceModel, SpacePrefix};
pub use shard::{OutTensor, TensorPlan, write_planned, write_shard};
pub use side::copy_side_files;
pub use text::without_mark;
pub use view::{TensorView, to_bytes};
pub use word_split::word_split;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
