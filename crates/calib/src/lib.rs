//! Block-wise calibration. It learns how to clip and round each block's weights and how to rescale its channels. Optionally it then
//! tunes all blocks together. It writes the packed model block by block.
//!
//! If average bits are requested, [`quantize`] first chooses the width of each linear. Then it takes one block at a time: it computes
//! the targets in full precision, learns, merges the transformation, computes the codes, writes the block's shard, and runs the
//! quantized block to get the next one's inputs. If the recipe has epochs of tuning, it then tunes all blocks, again with one block in
//! memory at a time, and writes each of them anew. Memory holds one block and the hidden states of the calibration tokens. Only tuning
//! needs memory for every block: three numbers per group. A killed run resumes after its last finished block, or from the last saved
//! state of tuning, and ends in the same bytes.

mod block;
mod check;
mod compute;
mod disk;
mod error;
mod merged;
mod model;
mod nth;
mod optim;
mod plan;
mod release;
mod run;
mod split;
mod widths;

#[cfg(test)]
mod testing;

pub use block::sites::SiteError;
pub use check::check;
pub use disk::journal::JournalError;
pub use disk::names::{JOURNAL, TUNING};
pub use disk::states::StatesError;
pub use error::CalibError;
pub use nth::Nth;
pub use plan::{
    Accelerator, BYTES_PER_SEC, LinearPlan, Machine, MemoryPlan, Parts, Plan, Setting, SitePlan, StepTime, Suggestion,
    TimePlan,
};
pub use release::{ReleaseError, merge_release};
pub use run::{Notice, Options, Outcome, quantize};
pub use split::check_ranks;
pub use widths::outer_specs;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
