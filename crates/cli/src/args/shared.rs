//! Options that several commands have.

use std::path::PathBuf;

use clap::Args;
use oq_quant_core::QuantSpec;
use oq_recipe::{Method, Overrides, Preset};

use super::keys::KeyArgs;
use super::values::{ComputeArg, DeviceArg, HeadArg, KernelsArg};

/// Which model.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Directory, name in configs/, or hub id; HUB-ID@REVISION is a branch, tag or commit of it
    #[arg(value_name = "MODEL")]
    pub name: String,
    /// Branch, tag or commit of a model on the hub [default: main, or what configs/ has]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
}

/// Which recipe to follow.
#[derive(Clone, Debug, Args)]
pub struct RecipeArgs {
    /// Bits of weights and activations, groups: w4a16g128, w3a16 (per channel), w4a16g64sym (symmetric), w4a4 and w6a6
    /// (activations too) [default: the recipe file's]
    #[arg(long, value_name = "S", required_unless_present = "recipe")]
    pub scheme: Option<QuantSpec>,
    /// A recipe file, such as a changed copy of one of configs/recipes; what it leaves out is as without one: the model's own
    /// settings (configs/models), the preset's, the paper's
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// How much is learned: default (in half of the paper's epochs), fast (a quarter), best (an eighth, on four times as much
    /// text, and then all blocks tuned together) or paper (as published: clipping, and --let where the paper has it)
    /// [default: default]
    #[arg(long, value_name = "PRESET")]
    pub preset: Option<Preset>,
    /// omniquant (learned clipping and transformation), smoothquant (a transformation that is not learned) or rtn (round to
    /// nearest)
    #[arg(long, value_name = "M")]
    pub method: Option<Method>,
    /// Transform channels equivalently before rounding, at the sites of the paper where the recipe has none
    #[arg(long = "let", conflicts_with = "no_let")]
    pub use_let: bool,
    /// Transform nothing
    #[arg(long, conflicts_with = "let_sites")]
    pub no_let: bool,
    #[command(flatten)]
    pub keys: KeyArgs,
}

impl RecipeArgs {
    pub fn overrides(&self) -> Overrides {
        let use_let = if self.no_let { Some(false) } else { self.use_let.then_some(true) };
        Overrides { method: self.method, preset: self.preset, use_let, ..self.keys.0.clone() }
    }
}

/// What to measure on.
#[derive(Clone, Debug, Args)]
pub struct EvalDataArgs {
    /// Text to measure on: wikitext2, wikitext2:valid, or a file as for --calib [default: the model's, else wikitext2]
    #[arg(long, value_name = "DATA")]
    pub data: Option<String>,
    /// Field or column with the text, in files of JSON or parquet; conversations are written by the model's chat template
    /// [default: text, else messages or conversations]
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Folder of datasets (wikitext2/wiki.test.raw, ...); also the variable OMNIQUANT_DATA
    #[arg(long, value_name = "DIR", env = "OMNIQUANT_DATA", hide_env = true)]
    pub data_dir: Option<PathBuf>,
    /// Measure the first N windows only [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub windows: Option<u32>,
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
    /// 0 always takes the likeliest token, 1 draws by the model's own probabilities [default: generation_config.json's if it draws
    /// (do_sample), else 0]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Draw from the likeliest tokens that together are as probable as this [default: generation_config.json's, else from all]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Draw from so many of the likeliest tokens; 0 draws from all [default: generation_config.json's, else from all]
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Make tokens that are in the text already less likely; 1 leaves them [default: generation_config.json's, else 1]
    #[arg(long, value_name = "R")]
    pub repetition_penalty: Option<f64>,
    /// Same seed, same draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// End before this string; may be given several times
    #[arg(long, value_name = "S")]
    pub stop: Vec<String>,
}
