//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use oq_data::Task;
use oq_formats::Dtype;
use oq_quant_core::{Bits, QuantSpec, RotateKind, SiteKind};
use oq_recipe::{Loss, Method, Overrides, Preset, Profile, Rounding, Start, find_machine, machine_names};

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

Exit codes: 2 recipe or usage, 3 missing or broken input, 4 does not fit, 5 numeric failure, 130 stopped; 1 anything else."
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
    Doctor,
    /// Print a completion script, to be sourced by the shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where blocks are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    Auto,
    Cpu,
    Cuda(usize),
}

impl std::str::FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// What products are computed in while blocks are learned; by itself bf16 where the device multiplies it fast, else f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeArg {
    Auto,
    F32,
    Bf16,
}

/// Who multiplies with linears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelsArg {
    Auto,
    Dense,
    Packed,
}

/// How the head is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HeadArg {
    Stored,
    W8,
}

/// Which recipe to follow.
#[derive(Clone, Debug, Args)]
pub struct RecipeArgs {
    /// Bits of weights and activations, groups: w4a16g128, w3a16 (per channel), w4a16g64sym (symmetric), w4a4 and w6a6
    /// (activations too) [default: the recipe file's]
    #[arg(long, value_name = "S", required_unless_present = "recipe")]
    pub scheme: Option<QuantSpec>,
    /// A recipe file; without one, configs/MODEL/SCHEME.toml, else the paper's settings for the scheme
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// omniquant (learned clipping and transformation), smoothquant (a transformation that is not learned) or rtn (round to
    /// nearest)
    #[arg(long, value_name = "M")]
    pub method: Option<Method>,
    /// Calibration text: wikitext2, wikitext2:valid, or a file
    #[arg(long, value_name = "DATA")]
    pub calib: Option<String>,
    /// Calibration segments
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Tokens of a calibration segment
    #[arg(long, value_name = "N")]
    pub seqlen: Option<usize>,
    /// Passes over the segments for each block
    #[arg(long, value_name = "N")]
    pub epochs: Option<usize>,
    /// Seed of the choice of segments
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Learning rate of the clipping strengths
    #[arg(long, value_name = "X")]
    pub lwc_lr: Option<f64>,
    /// Segments per optimizer step
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Add the error on the quantized model's own input to the loss: true or false
    #[arg(long, value_name = "BOOL")]
    pub aug_loss: Option<bool>,
    /// How much is learned: default (in half of the paper's epochs), fast (a quarter), best (on four
    /// times as much text, and then all blocks tuned together) or paper (clipping alone, as published)
    #[arg(long, value_name = "PRESET")]
    pub preset: Option<Preset>,
    /// What is minimized: relative (each token's error as a share of its size) or mse
    #[arg(long, value_name = "LOSS")]
    pub loss: Option<Loss>,
    /// Where learning starts: compensate (weights make good each other's rounding errors), search (least error of weights, by
    /// their inputs) or whole (98 % of the range, as published)
    #[arg(long, value_name = "START")]
    pub start: Option<Start>,
    /// How weights are rounded: learned, or fixed as they start
    #[arg(long, value_name = "HOW")]
    pub rounding: Option<Rounding>,
    /// Transform channels equivalently before rounding, at the sites of the paper where the recipe has none
    #[arg(long = "let", conflicts_with = "no_let")]
    pub use_let: bool,
    /// Transform nothing
    #[arg(long)]
    pub no_let: bool,
    /// Where to transform: a list of norm, vo, qk, updown, such as norm,vo
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "no_let")]
    pub let_sites: Option<Vec<SiteKind>>,
    /// Also shift channels, where linears have biases (OPT): true or false
    #[arg(long, value_name = "BOOL")]
    pub let_shift: Option<bool>,
    /// Learning rate of the scales and shifts of channels
    #[arg(long, value_name = "X")]
    pub let_lr: Option<f64>,
    /// Where scales start: 0 evens out the weights, 1 the activations
    #[arg(long, value_name = "X")]
    pub let_alpha: Option<f64>,
    /// Passes, each over new segments, in which all blocks' scales, norms and biases are tuned together, after the blocks; 0 for none
    #[arg(long, value_name = "N")]
    pub tune_epochs: Option<usize>,
    /// Learning rate of that tuning
    #[arg(long, value_name = "X")]
    pub tune_lr: Option<f64>,
    /// Rotate channels first, so that none is much larger than the others: none, merged (into the weights) or online (also queries, keys
    /// and what the MLP's last linear reads, while the model runs)
    #[arg(long, value_name = "KIND")]
    pub rotate: Option<RotateKind>,
    /// Bits of a code on average, such as 3.25: each linear gets a width by how much the predictions suffer, in place of the scheme's
    #[arg(long, value_name = "X")]
    pub bits: Option<f64>,
    /// Widths to choose among [default: 2,3,4,5,6,8]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub bit_choices: Option<Vec<Bits>>,
}

impl RecipeArgs {
    pub fn overrides(&self) -> Overrides {
        Overrides {
            method: self.method,
            data: self.calib.clone(),
            samples: self.samples,
            seqlen: self.seqlen,
            epochs: self.epochs,
            seed: self.seed,
            lwc_lr: self.lwc_lr,
            batch: self.batch,
            aug_loss: self.aug_loss,
            loss: self.loss,
            start: self.start,
            rounding: self.rounding,
            preset: self.preset,
            transform: if self.no_let { Some(false) } else { self.use_let.then_some(true) },
            sites: self.let_sites.clone(),
            shift: self.let_shift,
            let_lr: self.let_lr,
            alpha: self.let_alpha,
            tune_epochs: self.tune_epochs,
            tune_lr: self.tune_lr,
            rotate: self.rotate,
            bits: self.bits,
            bit_choices: self.bit_choices.clone(),
        }
    }
}

/// What to measure on.
#[derive(Clone, Debug, Args)]
pub struct EvalDataArgs {
    /// Text to measure on: wikitext2, wikitext2:valid, or a file [default: the model's, else wikitext2]
    #[arg(long, value_name = "DATA")]
    pub data: Option<String>,
    /// Folder of datasets (wikitext2/wiki.test.raw, ...); also the variable OMNIQUANT_DATA
    #[arg(long, value_name = "DIR", env = "OMNIQUANT_DATA")]
    pub data_dir: Option<PathBuf>,
    /// Measure the first N windows only [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub windows: Option<u32>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant quantize tiny-llama --scheme w2a16g64 --report
  omniquant quantize tiny-opt --scheme w4a4 --report
  omniquant quantize tiny-llama --scheme w3a16g64 --bits 3.25 --report
  omniquant quantize ./my-llama --scheme w3a16g128 --calib notes.txt --samples 32 --out my-llama-w3
  omniquant quantize llama2-7b --scheme w4a16g128 --out llama2-7b-w4 --resume

A run that was stopped or killed goes on with the same command and --resume.")]
pub struct QuantizeArgs {
    /// Directory, name in configs/, or hub id
    pub model: String,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Directory of the packed model [default: MODEL-SCHEME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with the run in --out (or begin it)
    #[arg(long)]
    pub resume: bool,
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
    /// Directory, name in configs/, or hub id
    pub model: String,
    #[command(flatten)]
    pub data: EvalDataArgs,
    /// Tokens of a window [default: the model's, else 2048]
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
    /// The matrix that makes logits: stored (as it is) or w8 (rounded to 8 bits)
    #[arg(long, value_name = "HEAD", value_enum, default_value_t = HeadArg::Stored)]
    pub head: HeadArg,
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
}

/// How a model runs.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// packed (weights are multiplied as they are, on the CPU), dense (they are decoded first), or auto: packed where they
    /// can be
    #[arg(long, value_name = "KERNELS", value_enum, default_value_t = KernelsArg::Auto)]
    pub kernels: KernelsArg,
    /// Products in f32, bf16, or auto: bf16 where the device multiplies it fast
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ComputeArg::Auto)]
    pub compute: ComputeArg,
    /// The matrix that makes logits: stored (as it is) or w8 (rounded to 8 bits, for speed; on the CPU)
    #[arg(long, value_name = "HEAD", value_enum, default_value_t = HeadArg::Stored)]
    pub head: HeadArg,
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
}

/// How tokens are chosen.
#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
    /// Most tokens to write
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// How daring: 0 always takes the likeliest token, 1 draws as the model says
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,
    /// Draw from the likeliest tokens that together are as probable as this [default: from all]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Draw from so many of the likeliest tokens [default: from all]
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Make tokens that are in the text already less likely; 1 leaves them
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub repetition_penalty: f64,
    /// Same seed, same draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// End before this string; may be given several times
    #[arg(long, value_name = "S")]
    pub stop: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant generate tiny-llama --prompt 'The river'
  omniquant generate llama2-7b-w4 -f notes.txt --temperature 0.8 --top-p 0.95
  omniquant generate llama2-7b-w4 --prompt 'A list:' --stop '\\n\\n' --json

Text goes to stdout as it comes; with --json, one object at the end. In --stop, \\n is a line's end.")]
pub struct GenerateArgs {
    /// Directory, name in configs/, or hub id
    pub model: String,
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
    /// Directory, name in configs/, or hub id
    pub model: String,
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
  omniquant bench tiny-llama
  omniquant bench llama2-7b-w4 --prompt-tokens 1024 --tokens 128 --runs 5
  omniquant bench llama2-7b-w4 --kernels dense --json")]
pub struct BenchArgs {
    /// Directory, name in configs/, or hub id
    pub model: String,
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

What --measure finds is kept in the cache, and later plans of this machine say how long a run takes.")]
pub struct PlanArgs {
    /// Directory, name in configs/, or hub id
    pub model: String,
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

/// The machine that a run is planned for.
#[derive(Clone, Copy, Debug)]
pub enum PlanDeviceArg {
    /// This one.
    Here(DeviceArg),
    /// One of `configs/machines`.
    Named(&'static Profile),
}

impl std::str::FromStr for PlanDeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(profile) = find_machine(text) {
            return Ok(Self::Named(profile));
        }
        text.parse().map(Self::Here).map_err(|error: String| {
            let known = machine_names().collect::<Vec<_>>().join(", ");
            format!("{error}, or a machine of configs/machines: {known}")
        })
    }
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Directory, name in configs/, or hub id
    pub model: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  omniquant logits tiny-llama --ids ids.safetensors --out logits.safetensors

IN holds `input_ids`, I64 or I32 [batch, tokens]; OUT will hold `logits`, F32 [batch, tokens, vocabulary].")]
pub struct LogitsArgs {
    /// Directory, name in configs/, or hub id
    pub model: String,
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
    /// The directory to write
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

/// How weights are stored.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FloatType {
    F16,
    Bf16,
    F32,
}

impl FloatType {
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
            Self::F32 => Dtype::F32,
        }
    }

    /// As `config.json` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
        }
    }
}
