//! What the targets share: a folder to put the bytes in, for readers that take paths, and reading all of a checkpoint.

use std::path::{Path, PathBuf};

use oq_formats::Checkpoint;
use tempfile::TempDir;

thread_local! {
    /// In memory where the machine has such a place. A fuzzer ends without clean-up: its folder stays.
    static SCRATCH: TempDir = {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("omniquant-fuzz-").tempdir_in(parent);
        folder.expect("a fuzzer can write temporary files")
    };
}

/// A folder of this thread.
pub fn scratch() -> PathBuf {
    SCRATCH.with(|folder| folder.path().to_owned())
}

/// Puts `bytes` under `name` into [`scratch`].
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch().join(name);
    std::fs::write(&path, bytes).expect("a fuzzer can write temporary files");
    path
}

/// Reads every tensor in every way: what was opened must not fail but by an error.
pub fn read_all(checkpoint: &Checkpoint) {
    for tensor in checkpoint.tensors() {
        assert_eq!(tensor.is_empty(), tensor.shape.contains(&0), "{}", tensor.name);
        let values = tensor.to_f32_vec();
        if let Ok(values) = &values {
            assert_eq!(values.len(), tensor.len(), "{}", tensor.name);
        }
        assert_eq!(tensor.check_finite().is_ok(), tensor.to_finite_f32_vec().is_ok(), "{}", tensor.name);
    }
}
