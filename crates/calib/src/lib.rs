//! Block-wise calibration: learns how to clip each block's weights and to rescale its channels, and writes the packed model as it
//! goes.
//!
//! [`quantize`] takes one block at a time: runs it in full precision for the targets, learns, merges, finalizes the codes, writes
//! the block's shard, and passes the quantized block's output on. Memory is one block and the calibration tokens' hidden states,
//! whatever the model's depth. A killed run goes on after its last finished block and ends in the same bytes.

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
mod plan;
mod run;
mod sensitivity;
mod sites;
mod stages;
mod states;
mod student;
mod tune;
mod widths;
mod work;

pub use error::CalibError;
pub use journal::{JOURNAL, JournalError};
pub use plan::{
    Accelerator, LinearPlan, Machine, MemoryPlan, Mend, Parts, Plan, Setting, SitePlan, StepTime, TimePlan,
};
pub use run::{Notice, Options, Outcome, check, quantize};
pub use sites::SiteError;
