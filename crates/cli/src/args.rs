//! The command line: the program's commands and their options.

mod export;
mod judge;
mod keys;
mod serve;
mod shared;
mod sweep;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use oq_data::Task;
use oq_export::Format;
use oq_quant_core::QuantSpec;

pub use self::export::{ExportArgs, FormatsArgs};
pub use self::judge::JudgeArgs;
pub use self::serve::ServeArgs;
pub use self::shared::{EvalDataArgs, ModelArgs, RecipeArgs, RunArgs, SamplingArgs};
pub use self::sweep::SweepArgs;
pub use self::values::{
    ComputeArg, DeviceArg, FloatType, HeadArg, KernelsArg, LearnKernelsArg, PlanDeviceArg, PrefillArg,
};
use crate::size::Size;

/// Quantizes large language models to 2-8 bits by learned clipping and equivalent transformation (OmniQuant), and evaluates
/// the result.
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
XDG_CACHE_HOME (cached downloads and measurements); OMNIQUANT_KERNEL (the instruction set of our loops, such as avx2 or scalar);
RUST_LOG, NO_COLOR."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Heading of the options that every command has.
const EVERYWHERE: &str = "Options of every command";

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Print one JSON object to stdout; progress and logs go to stderr
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
    /// Print only errors to stderr, and no progress
    #[arg(short, long, global = true, help_heading = EVERYWHERE, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more to stderr; give it twice for everything
    #[arg(short, long, global = true, help_heading = EVERYWHERE, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Format of log lines on stderr
    #[arg(long, global = true, help_heading = EVERYWHERE, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Number of CPU threads [default: the machine's cores]
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
    /// Quantize a model and write it in packed form
    Quantize(QuantizeArgs),
    /// Quantize a model at several settings, and compare the results
    Sweep(SweepArgs),
    /// Measure perplexity, divergence from the full-precision model, or zero-shot tasks
    Eval(EvalArgs),
    /// Continue a text
    Generate(GenerateArgs),
    /// Chat with a model
    Chat(ChatArgs),
    /// Answer other programs over HTTP, as OpenAI's API does
    Serve(ServeArgs),
    /// Let a third model judge the answers of two
    Judge(JudgeArgs),
    /// Measure the speed of prefill and decode, and the memory they take
    Bench(BenchArgs),
    /// Show what a run would do, what it would take, and whether it fits
    Plan(PlanArgs),
    /// Show a run, or several side by side, in an HTML page
    Report(ReportArgs),
    /// Show the contents of a checkpoint or a packed model
    Inspect(InspectArgs),
    /// Compute the logits of given token ids, to compare with other programs
    Logits(LogitsArgs),
    /// Pack a model with what the authors' release of OmniQuant learned for it
    Merge(MergeArgs),
    /// Convert a GGUF file to a Hugging Face directory
    Convert(ConvertArgs),
    /// Write a packed model in the formats of other programs
    Export(ExportArgs),
    /// Show which formats hold a model, and which programs open them
    Formats(FormatsArgs),
    /// Write a model with random weights, to measure memory and speed
    // For developers of this program: `cargo xtask synth`.
    #[command(hide = true)]
    Synth(SynthArgs),
    /// Show the libtorch, devices, memory and data of this machine
    #[command(after_help = "Example:
  omniquant doctor --json")]
    Doctor,
    /// Print a completion script for the shell to source
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
  omniquant quantize tiny-llama --scheme w2a16g64 --override layers:first,last=float
  omniquant quantize tiny-llama --scheme w4a16g64sym --head-bits 8 --embed-bits 8
  omniquant quantize tiny-llama --scheme w4a16g64 --export gptq,awq
  omniquant quantize ./my-llama --scheme w3a16g128 --calib notes.txt --samples 32 --out my-llama-w3
  omniquant quantize llama2-7b --scheme w4a16g128 --out llama2-7b-w4 --resume

The other defaults are the recipe's, which `omniquant plan MODEL --scheme S --json` prints.
To resume a run that was stopped or killed, repeat its command with --resume.")]
pub struct QuantizeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Directory of the packed model [default: MODEL-SCHEME, or MODEL-SCHEME-3.25bits with --bits 3.25]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Resume the run in --out, or start it if there is none
    #[arg(long)]
    pub resume: bool,
    /// Start the run even if the plan says that memory or disk space does not suffice
    #[arg(long)]
    pub force: bool,
    /// Afterwards, measure the perplexity of full precision, round-to-nearest and the result
    #[arg(long)]
    pub report: bool,
    /// Afterwards, write the result in these formats too, each to OUT-FORMAT: a list as `omniquant export --to` takes it. What they
    /// cannot hold is refused before the run
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = export::format_named)]
    pub export: Vec<&'static Format>,
    #[command(flatten)]
    pub eval: EvalDataArgs,
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
    /// What weights are clipped and decoded with: auto (our loops on a CPU, libtorch's operations on a card) or cuda (our kernels, which
    /// NVRTC compiles for the card; not yet run on a GPU)
    #[arg(long, value_name = "KERNELS", value_enum, default_value_t = LearnKernelsArg::Auto)]
    pub kernels: LearnKernelsArg,
    /// Compute products in bf16 or f32 while learning, or auto: bf16 where the device is fast at it
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ComputeArg::Auto)]
    pub compute: ComputeArg,
    /// Memory for hidden states between blocks, such as 8GiB; the rest is kept on the disk of --out during the run [default: all in
    /// memory]
    #[arg(long, value_name = "SIZE")]
    pub cache_memory: Option<Size>,
    /// Share the run among N processes on this machine, which are started here and split --threads: each takes its part of every batch. Under
    /// torchrun, srun or mpirun, ranks are as they say, and --out is a directory that all of them see
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub ranks: Option<u16>,
    /// Stop when the input ends, as on Ctrl-C
    // `omniquant sweep` holds the other end, so that no run outlives it.
    #[arg(long, hide = true)]
    pub until_input_ends: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant eval tiny-llama
  omniquant eval llama2-7b-w4 --windows 8
  omniquant eval llama2-7b-w4 --kernels packed --compute bf16
  omniquant eval tiny-llama --rtn w3a16g64 --json
  omniquant eval llama2-7b-w4 --against llama2-7b
  omniquant eval llama2-7b-w4 --tasks piqa,arc_easy --data-dir data
  omniquant eval llama2-7b llama2-7b-w4 --tasks boolq --items 500 --answers boolq.jsonl --resume
  omniquant eval llama2-7b-w4 --against llama2-7b --ranks 4
  omniquant eval llama2-7b-w4 --card")]
pub struct EvalArgs {
    /// Directories, names in configs/, or hub ids; HUB-ID@REVISION selects a branch, tag or commit
    #[arg(value_name = "MODEL", required = true)]
    pub models: Vec<String>,
    /// Branch, tag or commit of a model on the hub [default: the one in configs/, else main]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    #[command(flatten)]
    pub data: EvalDataArgs,
    /// Tokens per window [default: 2048, or the model's number of positions if that is smaller; without --data, the value in configs/]
    #[arg(long, value_name = "N")]
    pub seqlen: Option<usize>,
    /// Ask zero-shot tasks instead of measuring perplexity: a list of piqa, arc_easy, arc_challenge, boolq, hellaswag, winogrande, lambada,
    /// with their files in the folder tasks of --data-dir
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with_all = ["data", "windows", "seqlen"])]
    pub tasks: Vec<Task>,
    /// Compare the predictions with those of this model in full precision: divergence, and how often both find the same token the likeliest
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["tasks", "kl"])]
    pub against: Option<String>,
    /// The same, with the model that this one was quantized from, as its directory records it, or with the stored weights if --rtn is given
    #[arg(long, conflicts_with = "tasks")]
    pub kl: bool,
    /// Use only the first N items of each task [default: all]
    #[arg(long, value_name = "N", requires = "tasks", value_parser = clap::value_parser!(u32).range(1..))]
    pub items: Option<u32>,
    /// Write the answer to each item to FILE, a line of JSON each
    #[arg(long, value_name = "FILE", requires = "tasks")]
    pub answers: Option<PathBuf>,
    /// Go on from the answers in the file of --answers
    #[arg(long, requires = "answers")]
    pub resume: bool,
    /// Also write the results to FILE in the format of the lm-evaluation-harness
    #[arg(long, value_name = "FILE", requires = "tasks")]
    pub harness: Option<PathBuf>,
    /// Quantize the weights to scheme S by rounding to nearest first
    #[arg(long, value_name = "S")]
    pub rtn: Option<QuantSpec>,
    /// dense (decode packed weights first), packed (multiply with packed weights directly, on the CPU), cuda (so on a card, by kernels
    /// that NVRTC compiles for it; not yet run on a GPU), or auto: packed where possible
    #[arg(long, value_name = "KERNELS", value_enum, default_value_t = KernelsArg::Dense)]
    pub kernels: KernelsArg,
    /// Compute products in f32, bf16, or auto: bf16 where the device is fast at it
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ComputeArg::F32)]
    pub compute: ComputeArg,
    /// How packed weights multiply many tokens at a time, such as a prompt: auto (as --compute says) or int8 (activations rounded to
    /// 8 bits: half as fast again, for less than 1 % of perplexity; needs AVX-512 with VNNI and BF16)
    #[arg(long, value_name = "KIND", value_enum, default_value_t = PrefillArg::Auto)]
    pub prefill: PrefillArg,
    /// The output head: stored (as stored, converted to f32 here) or w8 (rounded to 8 bits)
    #[arg(long, value_name = "HEAD", value_enum, default_value_t = HeadArg::Stored)]
    pub head: HeadArg,
    /// Also write the result to the model's card, the README.md of a directory that `omniquant quantize` wrote
    #[arg(long, conflicts_with_all = ["rtn", "head", "prefill"])]
    pub card: bool,
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
    /// Share the windows or items among N processes on this machine, which are started here and split --threads. Under torchrun, srun or
    /// mpirun, ranks are as they say
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "answers")]
    pub ranks: Option<u16>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant generate tiny-llama --prompt 'The river'
  omniquant generate llama2-7b-w4 -f notes.txt --temperature 0.8 --top-p 0.95
  omniquant generate llama2-7b-w4 --prompt 'A list:' --stop '\\n\\n' --json

Text is streamed to stdout; with --json, one object is printed at the end. In --stop, \\n is a newline.
The defaults of do_sample, temperature, top_p, top_k and repetition_penalty come from the model's generation_config.json.")]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text to continue
    #[arg(long, value_name = "TEXT", required_unless_present = "file", conflicts_with = "file")]
    pub prompt: Option<String>,
    /// A file with the text to continue, or - for stdin
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

Every line is a message. Ctrl-C stops an answer, Ctrl-D ends the conversation. With --json every answer is one object on a line.")]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// System prompt
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
    /// Tokens of the prefill
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt_tokens: u32,
    /// Tokens to decode one by one
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// Number of runs; results are medians
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

The other defaults are the recipe's, which --json prints.
The cache keeps what --measure finds, so that later plans for this machine say how long a run takes.")]
pub struct PlanArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Directory that the packed model would go to [default: the working directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// auto, cpu, cuda:N, or the name of another machine in configs/machines
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: PlanDeviceArg,
    /// Compute products in bf16 or f32 while learning, or auto: bf16 where the device is fast at it
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ComputeArg::Auto)]
    pub compute: ComputeArg,
    /// Memory for hidden states between blocks, such as 8GiB; the rest is kept on the disk of --out [default: all in memory]
    #[arg(long, value_name = "SIZE")]
    pub cache_memory: Option<Size>,
    /// Plan for N ranks, each with such a machine or card to itself
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub ranks: Option<u16>,
    /// First measure how fast this machine is, in about 10 seconds
    #[arg(long)]
    pub measure: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant report tiny-llama-w3a16g64
  omniquant report tiny-llama-w3a16g64 --follow
  omniquant report llama-w2 llama-w3 llama-w4 --out comparison.html

A page needs nothing but a browser: no other file, no script, no network.
`omniquant quantize` writes it at the end of a run. It has what `--report` and
`omniquant eval DIR --card` measured.")]
pub struct ReportArgs {
    /// Directories that `omniquant quantize` wrote, or is writing
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The page [default for one run: RUN/omniquant/report.html]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write the page again every few seconds until the run ends, or Ctrl-C; the page reads itself again
    #[arg(long)]
    pub follow: bool,
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

IN contains `input_ids`, I64 or I32 [batch, tokens]. OUT will contain `logits`, F32 [batch, tokens, vocabulary].")]
pub struct LogitsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A safetensors file with input_ids
    #[arg(long, value_name = "IN")]
    pub ids: PathBuf,
    /// The safetensors file to write
    #[arg(long, value_name = "OUT")]
    pub out: PathBuf,
    /// Quantize the weights to scheme S by rounding to nearest first
    #[arg(long, value_name = "S")]
    pub rtn: Option<QuantSpec>,
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
}

#[derive(Debug, Args)]
#[command(
    // Shorter than a line of 80 columns.
    override_usage = "omniquant merge --parameters <FILE> --scheme <S> --out <DIR> <MODEL>",
    after_help = "Example:
  omniquant merge llama2-7b --parameters params.pth --scheme w3a16g128 --out w3

The scheme is that of the run that learned them: wWBITSaABITS, and gGROUP_SIZE
if it had one. sym is its --symmetric together with --disable_zero_point."
)]
pub struct MergeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The release's omni_parameters.pth, or the same tensors in safetensors
    #[arg(long, value_name = "FILE")]
    pub parameters: PathBuf,
    /// The scheme that they were learned for
    #[arg(long, value_name = "S")]
    pub scheme: QuantSpec,
    /// The directory to write; must be missing or empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  omniquant convert SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2")]
pub struct ConvertArgs {
    /// A GGUF file
    pub gguf: PathBuf,
    /// The directory to write; must be missing or empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant synth llama2-70b --layers 1
  omniquant synth opt-1.3b --out /data/opt-1.3b-random --seed 3 --dtype bf16

The directory contains a checkpoint in Hugging Face's format, with a byte tokenizer.")]
pub struct SynthArgs {
    /// Name in configs/ of the model whose shape to use
    pub model: String,
    /// Blocks [default: the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub layers: Option<u32>,
    /// The directory to write; must be missing or empty [default: out/synth-MODEL, with -Nl for N layers]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Seed: the same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Type of the weights
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = FloatType::F16)]
    pub dtype: FloatType,
}
