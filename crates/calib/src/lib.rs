//! Block-wise calibration: learns how to clip each block's weights, and writes the packed model as it goes.
//!
//! [`quantize`] takes one block at a time: runs it in full precision for the targets, learns, finalizes the codes, writes the
//! block's shard, and passes the quantized block's output on. Memory is one block and the calibration tokens' hidden states,
//! whatever the model's depth. A killed run goes on after its last finished block and ends in the same bytes.

mod adamw;
mod error;
mod journal;
mod learn;
mod plan;
mod run;
mod student;

pub use error::CalibError;
pub use journal::{JOURNAL, JournalError};
pub use plan::{LinearPlan, Machine, MemoryPlan, Plan};
pub use run::{Notice, Options, Outcome, quantize};
