//! Options of `omniquant sweep`.

use std::path::PathBuf;

use clap::Args;

use super::shared::{EvalDataArgs, ModelArgs, MoreRecipeArgs};
use super::values::{ComputeArg, DeviceArg};
use crate::size::Size;

#[derive(Debug, Args)]
#[command(
    // Shorter than a line of 80 columns.
    override_usage = "omniquant sweep --schemes <LIST> [OPTIONS] <MODEL>",
    after_help = "Examples:
  omniquant sweep tiny-llama --schemes w4a16g64,w3a16g64,w2a16g64
  omniquant sweep llama2-7b --schemes w4a16g128,w3a16g128,q4_k_m \\
    --presets fast,default --budget 4GiB --windows 16
  omniquant sweep llama2-7b --schemes w4a16g128,w3a16g128 --dry-run
  omniquant sweep tiny-llama --schemes w3a16g64 --presets fast,default --jobs 2

Each setting is a run of `omniquant quantize` in OUT/SCHEME-PRESET, and is then
compared with the model in full precision: perplexity, divergence, agreement.
OUT/report.html shows all of them, OUT/sweep.json has them for scripts.

A sweep that was stopped or killed goes on when its command is repeated. More
schemes and presets can be added then; what is finished is kept. A setting that
fails does not end the others, and is tried again next time."
)]
pub struct SweepArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The schemes, as `omniquant quantize` takes them: a list such as w4a16g128,w3a16g128,q4_k_m
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    pub schemes: Vec<String>,
    /// The presets for each of them: a list of default, fast, best and paper
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "default")]
    pub presets: Vec<String>,
    /// Directory of the runs and their comparison [default: MODEL-sweep]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Leave out what becomes larger than this, such as 4GiB, by the plan; at the end, name the best of the rest
    #[arg(long, value_name = "SIZE")]
    pub budget: Option<Size>,
    /// Runs at a time; they share the threads, and each takes its own memory
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
    /// Show the settings with their sizes, memory and time, and start nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Start even if the plan says that memory or disk space does not suffice
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub eval: EvalDataArgs,
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
    /// Compute products in bf16 or f32 while learning, or auto: bf16 where the device is fast at it
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ComputeArg::Auto)]
    pub compute: ComputeArg,
    /// Memory for hidden states between blocks, for each run at a time, such as 8GiB; the rest is kept on the disk of --out [default: all in
    /// memory]
    #[arg(long, value_name = "SIZE")]
    pub cache_memory: Option<Size>,
    #[command(flatten)]
    pub recipe: MoreRecipeArgs,
}
