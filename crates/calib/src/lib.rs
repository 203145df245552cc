//! Block-wise calibration: learns how to clip and round each block's weights and to rescale its channels, tunes all blocks together,
//! and writes the packed model as it goes.
//!
//! [`quantize`] chooses widths first, where an average of bits is asked for. It takes one block at a time: runs it in full precision for
//! the targets, learns, merges, finalizes the codes, writes the block's shard, and passes the quantized block's output on. With epochs
//! of tuning it then goes through all blocks, again one at a time, and writes each anew. Memory is one block and the calibration tokens'
//! hidden states; of depth it has what tuning learns, three numbers per group. A killed run goes on after its last finished block, or
//! where tuning was kept last, and ends in the same bytes.

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
mod run;
mod widths;

#[cfg(test)]
mod testing;

pub use block::sites::SiteError;
pub use check::check;
pub use disk::journal::JournalError;
pub use disk::names::{JOURNAL, UNTUNED};
pub use disk::states::StatesError;
pub use error::CalibError;
pub use nth::Nth;
pub use plan::{
    Accelerator, LinearPlan, Machine, MemoryPlan, Parts, Plan, Setting, SitePlan, StepTime, Suggestion, TimePlan,
};
pub use run::{Notice, Options, Outcome, quantize};
