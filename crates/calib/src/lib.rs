//! Block-wise calibration: learns how to clip and round each block's weights and to rescale its channels, tunes all blocks together,
//! and writes the packed model as it goes.
//!
//! [`quantize`] chooses widths first, where an average of bits is asked for. It takes one block at a time: runs it in full precision for
//! the targets, learns, merges, finalizes the codes, writes the block's shard, and passes the quantized block's output on. With epochs
//! of tuning it then goes through all blocks, again one at a time, and writes each anew. Memory is one block and the calibration tokens'
//! hidden states; of depth it has what tuning learns, three numbers per group. A killed run goes on after its last finished block, or
//! where tuning was kept last, and ends in the same bytes.

mod adamw;
mod allocate;
mod chain;
mod compensate;
mod error;
mod identity;
mod inputs;
mod journal;
mod learn;
mod output;
mod peak;
mod plan;
mod run;
mod sensitivity;
mod sites;
mod stages;
mod states;
mod student;
mod tune;
mod watch;
mod widths;
mod work;

#[cfg(test)]
mod testing;

pub use error::{CalibError, Nth};
pub use journal::{JOURNAL, JournalError, UNTUNED};
pub use plan::{
    Accelerator, LinearPlan, Machine, MemoryPlan, Mend, Parts, Plan, Setting, SitePlan, StepTime, TimePlan,
};
pub use run::{Notice, Options, Outcome, check, quantize};
pub use sites::SiteError;
