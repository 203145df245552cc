//! Helpers of the end-to-end tests: fixtures, running the program, and runs through the libraries.

mod family;
mod fixtures;
mod models;
mod program;
mod workspace;

pub use family::{check_family, write_random};
pub use fixtures::{copied, fixture, repository, tokens};
pub use models::{
    F64_BLOCK, block_losses, calibration, check_recorded_losses, checkpoints, f64_block, files, in_f32, measure,
    model_files, relative_error,
};
pub use program::{LIMIT, cargo, examples, kill, omniquant, run, run_json, start, wait};
pub use workspace::{packages, rust_sources};
