//! The command line: the program's commands, and what each takes.

mod keys;
mod shared;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use oq_data::Task;
use oq_quant_core::QuantSpec;

pub use self::shared::{EvalDataArgs, ModelArgs, RecipeArgs, RunArgs, SamplingArgs};
pub use self::values::{ComputeArg, DeviceArg, FloatType, HeadArg, KernelsArg, PlanDeviceArg};
use crate::size::Size;

/// Quantizes large language models to 2-8 bits by learned clipping and equivalent transformation (OmniQuant), and measures
/// what it cost.
///
/// MODEL is a directory with a Hugging Face checkpoint (full precision or packed), a name from configs/ such as llama2-7b
/// or tiny-llama, or a hub id such as meta-llama/Llama-2-7b-hf.
#[derive(Debug, Parser)]
#[command(
    name = "omniquant",
    version,
    after_help = "Examples:
  omniquant plan llama2-7b --scheme w4a16g128
  omniquant quantize llama2-7b --scheme w4a16g128 --out llama2-7b-w4
  omniquant eval llama2-7b-w4
  omniquant generate llama2-7b-w4 --prompt 'Once upon a time'

Exit codes: 2 recipe or usage, 3 missing or broken input, 4 does not fit, 5 numeric failure, 130 stopped; 1 anything else.

Environment: OMNIQUANT_DATA (--data-dir); HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE (downloads);
XDG_CACHE_HOME (what was fetched and measured); OMNIQUANT_KERNEL (multiplies packed weights by that kernel, such as avx2 or scalar);
RUST_LOG, NO_COLOR."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Heading of what every command takes.
const EVERYWHERE: &str = "Options of every command";

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Print one JSON object to stdout; progress and logs go to stderr
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
    /// Only errors on stderr, no progress
    #[arg(short, long, global = true, help_heading = EVERYWHERE, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More on stderr; twice for everything
    #[arg(short, long, global = true, help_heading = EVERYWHERE, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Form of the log lines on stderr
    #[arg(long, global = true, help_heading = EVERYWHERE, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// CPU threads [default: the machine's cores]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Quantize a model and write it packed
    Quantize(QuantizeArgs),
    /// Measure a model's perplexity
    Eval(EvalArgs),
    /// Continue a text
    Generate(GenerateArgs),
    /// Talk to a model
    Chat(ChatArgs),
    /// Measure how fast a model reads and writes, and the memory it takes
    Bench(BenchArgs),
    /// Say what a run would do, what it would take, and whether it fits
    Plan(PlanArgs),
    /// Say what is in a checkpoint or a packed model
    Inspect(InspectArgs),
    /// Compute logits of token ids, to compare with other programs
    Logits(LogitsArgs),
    /// Turn a GGUF file into a Hugging Face directory
    Convert(ConvertArgs),
    /// Write a model of random weights, to measure memory and speed on
    // For who works on this program: `cargo xtask synth`.
    #[command(hide = true)]
    Synth(SynthArgs),
    /// Say what this machine has: libtorch, devices, memory, data
    #[command(after_help = "Example:
  omniquant doctor --json")]
    Doctor,
    /// Print a completion script, to be sourced by the shell
    #[command(after_help = "Example:
  source <(omniquant completions bash)")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant quantize tiny-llama --scheme w2a16g64 --report
  omniquant quantize tiny-opt --scheme w4a4 --report
  omniquant quantize tiny-llama --scheme w3a16g64 --bits 3.25 --report
  omniquant quantize ./my-llama --scheme w3a16g128 --calib notes.txt --samples 32 --out my-llama-w3
  omniquant quantize llama2-7b --scheme w4a16g128 --out llama2-7b-w4 --resume

Options that show no default have the recipe's, which `omniquant plan MODEL --scheme S --json` prints.
A run that was stopped or killed goes on with the same command and --resume.")]
pub struct QuantizeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Directory of the packed model [default: MODEL-SCHEME, or MODEL-SCHEME-3.25bits with --bits 3.25]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with the run in --out (or begin it)
    #[arg(long)]
    pub resume: bool,
    /// Begin even where the plan says that memory or disk is too small
    #[arg(long)]
    pub force: bool,
    /// Then measure full precision, round-to-nearest and the result
    #[arg(long)]
    pub report: bool,
    #[command(flatten)]
    pub eval: EvalDataArgs,
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
    /// Products of learning in bf16 or f32; auto takes bf16 where the device multiplies it fast
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ComputeArg::Auto)]
    pub compute: ComputeArg,
    /// Memory for hidden states between blocks, such as 8GiB; the rest of them lies in --out while it runs [default: all of
    /// them are in memory]
    #[arg(long, value_name = "SIZE")]
    pub cache_memory: Option<Size>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant eval tiny-llama
  omniquant eval llama2-7b-w4 --windows 8
  omniquant eval llama2-7b-w4 --kernels packed --compute bf16
  omniquant eval tiny-llama --rtn w3a16g64 --json
  omniquant eval llama2-7b-w4 --tasks piqa,arc_easy --data-dir data")]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: EvalDataArgs,
    /// Tokens of a window [default: 2048, or as many as the model has positions for; without --data what configs/ has for it]
    #[arg(long, value_name = "N")]
    pub seqlen: Option<usize>,
    /// Zero-shot accuracy in place of perplexity: a list of piqa, arc_easy, arc_challenge, boolq, hellaswag, winogrande, whose files lie
    /// in the folder tasks of --data-dir
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with_all = ["data", "windows", "seqlen"])]
    pub tasks: Vec<Task>,
    /// Ask the first N items of each task only [default: all]
    #[arg(long, value_name = "N", requires = "tasks", value_parser = clap::value_parser!(u32).range(1..))]
    pub items: Option<u32>,
    /// Round the weights to nearest first
    #[arg(long, value_name = "S")]
    pub rtn: Option<QuantSpec>,
    /// dense (packed weights are decoded first), packed (multiplied as they are, on the CPU), or auto: packed where they
    /// can be
    #[arg(long, value_name = "KERNELS", value_enum, default_value_t = KernelsArg::Dense)]
    pub kernels: KernelsArg,
    /// Products in f32, bf16, or auto: bf16 where the device multiplies it fast
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ComputeArg::F32)]
    pub compute: ComputeArg,
    /// The matrix that makes logits: stored (as it is, held in f32 here) or w8 (rounded to 8 bits)
    #[arg(long, value_name = "HEAD", value_enum, default_value_t = HeadArg::Stored)]
    pub head: HeadArg,
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant generate tiny-llama --prompt 'The river'
  omniquant generate llama2-7b-w4 -f notes.txt --temperature 0.8 --top-p 0.95
  omniquant generate llama2-7b-w4 --prompt 'A list:' --stop '\\n\\n' --json

Text goes to stdout as it comes; with --json, one object at the end. In --stop, \\n is a newline.
What the model's generation_config.json sets (do_sample, temperature, top_p, top_k, repetition_penalty) is the default.")]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text to continue
    #[arg(long, value_name = "TEXT", required_unless_present = "file", conflicts_with = "file")]
    pub prompt: Option<String>,
    /// A file with the text to continue; - for stdin
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant chat smollm2-135m
  omniquant chat llama2-7b-chat-w4 --system 'Answer in one sentence.' --temperature 0.7

One line is one message. Ctrl-C ends an answer, Ctrl-D the conversation. With --json every answer is one object in a line.")]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant bench smollm2-135m
  omniquant bench llama2-7b-w4 --prompt-tokens 1024 --tokens 128 --runs 5
  omniquant bench llama2-7b-w4 --kernels dense --json")]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens to read at once
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt_tokens: u32,
    /// Tokens to write one by one
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// Times to do so; results are medians
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant plan llama2-7b --scheme w4a16g128 --measure
  omniquant plan llama2-70b --scheme w4a16g128 --device a100-40g
  omniquant plan tiny-llama --scheme w2a16g64 --json

Options that show no default have the recipe's, which --json prints.
What --measure finds is kept in the cache, and later plans of this machine say how long a run takes.")]
pub struct PlanArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Where the packed model would go [default: here]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// auto, cpu, cuda:N, or a machine that is not this one: a name in configs/machines
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: PlanDeviceArg,
    /// Products of learning in bf16 or f32; auto takes bf16 where the device multiplies it fast
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ComputeArg::Auto)]
    pub compute: ComputeArg,
    /// Memory for hidden states between blocks, such as 8GiB; the rest of them lies in --out [default: all of them are in memory]
    #[arg(long, value_name = "SIZE")]
    pub cache_memory: Option<Size>,
    /// Measure first how fast this machine is: about 10 seconds
    #[arg(long)]
    pub measure: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant inspect tiny-llama
  omniquant inspect llama2-7b-w4 --json")]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  omniquant logits tiny-llama --ids ids.safetensors --out logits.safetensors

IN holds `input_ids`, I64 or I32 [batch, tokens]; OUT will hold `logits`, F32 [batch, tokens, vocabulary].")]
pub struct LogitsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A safetensors file with input_ids
    #[arg(long, value_name = "IN")]
    pub ids: PathBuf,
    /// The safetensors file to write
    #[arg(long, value_name = "OUT")]
    pub out: PathBuf,
    /// Round the weights to nearest first
    #[arg(long, value_name = "S")]
    pub rtn: Option<QuantSpec>,
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  omniquant convert SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2")]
pub struct ConvertArgs {
    /// A GGUF file of a LLaMA model
    pub gguf: PathBuf,
    /// The directory to write, absent or empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant synth llama2-70b --layers 1
  omniquant synth opt-1.3b --out /data/opt-1.3b-random --seed 3 --dtype bf16

The directory holds a checkpoint as the hub has them, with a tokenizer of bytes.")]
pub struct SynthArgs {
    /// Name in configs/, whose shape it has
    pub model: String,
    /// Blocks [default: the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub layers: Option<u32>,
    /// The directory to write, absent or empty [default: out/synth-MODEL, with -Nl for N layers]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Same seed, same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Type of the weights
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = FloatType::F16)]
    pub dtype: FloatType,
}
