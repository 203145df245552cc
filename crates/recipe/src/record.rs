//! Records of a run: `run.json`, written when it ends, and `events.jsonl`, with a line for each event.
//!
//! Clocks and measurements are up to the caller; this module only defines their format.

use serde::{Deserialize, Serialize};

use crate::details::{BLOCKS, MEASURED, Planned};
use crate::tables::Recipe;

/// The folder of an output directory that has everything about the run. All other files are the model, which can be published without it.
pub const RUN_FOLDER: &str = "omniquant";
/// The events, one line for each [`Event`]. This path and the next ones start at the output directory.
pub const EVENTS: &str = "omniquant/events.jsonl";
/// The [`RunRecord`].
pub const RUN: &str = "omniquant/run.json";
/// The [`Recipe`].
pub const RECIPE: &str = "omniquant/recipe.toml";
/// The width of each linear and what it was chosen by, if average bits were requested.
pub const BITS: &str = "omniquant/bits.json";
/// The page that shows all of this.
pub const REPORT: &str = "omniquant/report.html";
/// All files in which a run is recorded.
pub const RECORDS: [&str; 6] = [EVENTS, RUN, RECIPE, BLOCKS, MEASURED, REPORT];

/// `run.json`: what was run, on what machine, and how it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this program.
    pub version: String,
    /// The model as given by the user.
    pub model: String,
    /// The resolved recipe, including its seed.
    pub recipe: Recipe,
    /// The device, such as `cpu` or `cuda:0`.
    pub device: String,
    /// The type that matrix products were computed in, such as `bf16`.
    pub compute: String,
    /// CPU threads.
    pub threads: usize,
    /// Version of libtorch.
    pub libtorch: String,
    /// Version of the `tch` crate.
    pub tch: String,
    /// Finished blocks, in order.
    pub blocks: Vec<BlockRecord>,
    /// Mean divergence of predictions in each epoch of tuning, in nats.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tuning: Vec<f64>,
    /// Duration in seconds; for a resumed run, since it was resumed.
    pub wall_secs: f64,
    /// Peak resident memory.
    pub peak_bytes: u64,
    /// Start, in seconds since 1970.
    pub started_unix: u64,
    /// End, in seconds since 1970.
    pub finished_unix: u64,
}

/// Record of one block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockRecord {
    /// Counted from 0.
    pub index: usize,
    /// Mean loss of each epoch; empty if nothing was learned.
    pub losses: Vec<f64>,
    /// Mean squared error of the quantized block's output against the full-precision model's; none if nothing was learned.
    pub final_loss: Option<f64>,
    /// Duration of the block.
    pub wall_secs: f64,
    /// Number of times that it was rolled back because the loss was not finite.
    pub retries: usize,
    /// Largest magnitude among its activations and hidden states on the calibration text, if it exceeds float16: then load the packed model
    /// in another type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beyond_f16: Option<f64>,
    /// Experts that too few calibration tokens reached ([`Learn::expert_tokens`](crate::Learn::expert_tokens)).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starved: Vec<StarvedExpert>,
}

/// An expert that too few calibration tokens reached to be learned from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StarvedExpert {
    /// Which of the block's experts, from 0.
    pub expert: usize,
    /// The calibration tokens that reached it.
    pub tokens: u64,
}

/// One line of `events.jsonl`; the key `event` names the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields mean what they mean in RunRecord and BlockRecord")]
pub enum Event {
    /// The recipe is resolved and the model is open.
    RunStarted {
        model: String,
        recipe: Box<Recipe>,
        blocks: usize,
        started_unix: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        planned: Option<Planned>,
    },
    /// A block's weights are loaded.
    BlockStarted { block: usize },
    /// An epoch of a block has ended. `secs_left` is for the whole run, once it can be estimated.
    Epoch { block: usize, epoch: usize, loss: f64, lr: f64, secs_left: Option<f64> },
    /// A block has been written.
    BlockFinished(BlockRecord),
    /// The most resident memory that was seen while a block was learned, or by what followed the last block; looked at after each step.
    Memory { block: Option<usize>, resident_bytes: u64 },
    /// The loss was not finite, so the block starts again with the learning rate `lr`.
    Retry { block: usize, epoch: usize, batch: usize, lr: f64 },
    /// An epoch of tuning all blocks, on its own segments, has ended; `divergence` is its mean, in nats.
    Tuned { epoch: usize, divergence: f64, lr: f64, secs_left: Option<f64> },
    /// Widths have been chosen: the mean bits of a code, and the number of linears per width.
    BitsChosen { average: f64, linears: Vec<(u32, usize)> },
    /// All blocks have been written.
    RunFinished { wall_secs: f64, peak_bytes: u64, finished_unix: u64 },
}

impl RunRecord {
    /// The content of `run.json`, with a final newline.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("keys are strings and no value refuses to be written") + "\n"
    }
}

impl Event {
    /// A line of `events.jsonl`, newline included.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("keys are strings and no value refuses to be written") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Overrides;

    fn recipe() -> Recipe {
        Recipe::resolve("w3a16g64".parse().unwrap(), None, None, &Overrides::default()).unwrap()
    }

    fn block() -> BlockRecord {
        let (losses, final_loss) = (vec![0.25, 0.125], Some(0.5));
        BlockRecord { index: 1, losses, final_loss, wall_secs: 1.5, retries: 1, beyond_f16: None, starved: Vec::new() }
    }

    #[test]
    fn run_round_trip() {
        let record = RunRecord {
            version: "0.1.0".to_owned(),
            model: "tiny-llama".to_owned(),
            recipe: recipe(),
            device: "cpu".to_owned(),
            compute: "bf16".to_owned(),
            threads: 2,
            libtorch: "2.13.0".to_owned(),
            tch: "0.26.0".to_owned(),
            blocks: vec![block()],
            tuning: vec![0.5],
            wall_secs: 12.5,
            peak_bytes: 1 << 33,
            started_unix: 1_700_000_000,
            finished_unix: 1_700_000_012,
        };
        let text = record.to_json();
        assert!(text.contains("\"scheme\": \"w3a16g64\"") && text.ends_with("}\n"), "{text}");
        assert_eq!(serde_json::from_str::<RunRecord>(&text).unwrap(), record);
    }

    #[test]
    fn event_lines() {
        #[track_caller]
        fn check(event: &Event, expected: &str) {
            assert_eq!(event.to_line(), format!("{expected}\n"));
            assert_eq!(&serde_json::from_str::<Event>(expected).unwrap(), event);
        }
        check(&Event::BlockStarted { block: 1 }, r#"{"event":"block_started","block":1}"#);
        check(
            &Event::Epoch { block: 1, epoch: 0, loss: 0.25, lr: 0.01, secs_left: None },
            r#"{"event":"epoch","block":1,"epoch":0,"loss":0.25,"lr":0.01,"secs_left":null}"#,
        );
        check(
            &Event::BlockFinished(block()),
            r#"{"event":"block_finished","index":1,"losses":[0.25,0.125],"final_loss":0.5,"wall_secs":1.5,"retries":1}"#,
        );
        check(
            &Event::BlockFinished(BlockRecord { losses: vec![], beyond_f16: Some(131072.0), ..block() }),
            r#"{"event":"block_finished","index":1,"losses":[],"final_loss":0.5,"wall_secs":1.5,"retries":1,"beyond_f16":131072.0}"#,
        );
        check(
            &Event::Memory { block: Some(1), resident_bytes: 4096 },
            r#"{"event":"memory","block":1,"resident_bytes":4096}"#,
        );
        check(
            &Event::BitsChosen { average: 3.25, linears: vec![(3, 21), (4, 7)] },
            r#"{"event":"bits_chosen","average":3.25,"linears":[[3,21],[4,7]]}"#,
        );
        check(
            &Event::Retry { block: 1, epoch: 2, batch: 3, lr: 0.005 },
            r#"{"event":"retry","block":1,"epoch":2,"batch":3,"lr":0.005}"#,
        );
        check(
            &Event::RunFinished { wall_secs: 2.5, peak_bytes: 4096, finished_unix: 1_700_000_012 },
            r#"{"event":"run_finished","wall_secs":2.5,"peak_bytes":4096,"finished_unix":1700000012}"#,
        );
        let started = Event::RunStarted {
            model: "opt-125m".to_owned(),
            recipe: Box::new(recipe()),
            blocks: 12,
            started_unix: 1,
            planned: None,
        };
        assert_eq!(serde_json::from_str::<Event>(&started.to_line()).unwrap(), started);
        assert_eq!(started.to_line().matches('\n').count(), 1);
    }
}
