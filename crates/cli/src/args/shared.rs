//! Options that several commands share.

use std::path::PathBuf;

use clap::Args;
use oq_quant_core::{Override, QuantSpec};
use oq_recipe::{Method, Overrides, Preset};

use super::keys::KeyArgs;
use super::values::{ComputeArg, DeviceArg, HeadArg, KernelsArg, PrefillArg};

/// Which model.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Directory, name in configs/, or hub id; HUB-ID@REVISION selects a branch, tag or commit
    #[arg(value_name = "MODEL")]
    pub name: String,
    /// Branch, tag or commit of a model on the hub [default: the one in configs/, else main]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
}

/// Which recipe to follow.
#[derive(Clone, Debug, Args)]
pub struct RecipeArgs {
    /// Bits of weights and activations, and group size: w4a16g128, w3a16 (per channel), w4a16g64sym (symmetric), w4a4 and w6a6
    /// (activations too) [default: the recipe file's]
    #[arg(long, value_name = "S", required_unless_present = "recipe")]
    pub scheme: Option<QuantSpec>,
    /// A recipe file, such as an edited copy of one of configs/recipes; keys that it leaves out have their usual values: from
    /// configs/models, else from the preset, else from the paper
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// How much is learned: default (a quarter of the paper's epochs, then tuning of all blocks together), fast (no tuning), best (an
    /// eighth, on four times as much text, and tuning) or paper (as published: clipping, and --let where the paper has it) [default: default]
    #[arg(long, value_name = "PRESET")]
    pub preset: Option<Preset>,
    #[command(flatten)]
    pub more: MoreRecipeArgs,
}

/// What a recipe is besides its scheme and preset.
#[derive(Clone, Debug, Args)]
pub struct MoreRecipeArgs {
    /// omniquant (learned clipping and transformation), smoothquant (transformation without learning) or rtn (round to nearest)
    #[arg(long, value_name = "M")]
    pub method: Option<Method>,
    /// Rescale channels by the equivalent transformation before rounding; at the paper's sites if the recipe names none
    #[arg(long = "let", conflicts_with = "no_let")]
    pub use_let: bool,
    /// Do without the equivalent transformation
    #[arg(long, conflicts_with = "let_sites")]
    pub no_let: bool,
    /// Quantize some linears otherwise: PATTERN is their names (model.layers.0.*, *.down_proj), layers:LIST (first, last, 3, -2, 4..8) or
    /// layers:LIST:PATTERN, and WEIGHT is float (not at all), a width, a group or both (w8, g32, w8g128), or a type such as q6_k. Can be
    /// given several times; the last that matches counts
    #[arg(long = "override", value_name = "PATTERN=WEIGHT")]
    pub own: Vec<Override>,
    #[command(flatten)]
    pub keys: KeyArgs,
}

impl RecipeArgs {
    pub fn overrides(&self) -> Overrides {
        let MoreRecipeArgs { method, use_let, no_let, own, keys } = &self.more;
        let use_let = if *no_let { Some(false) } else { use_let.then_some(true) };
        let (preset, method, overrides) = (self.preset, *method, own.clone());
        Overrides { method, preset, use_let, overrides, ..keys.overrides.clone() }
    }

    /// These options as they are typed, in a fixed order; paths as `path` gives them.
    pub fn words(&self, path: impl Fn(&str) -> String) -> Vec<String> {
        let MoreRecipeArgs { method, use_let, no_let, own, keys } = &self.more;
        let valued = [
            ("--scheme", self.scheme.map(|scheme| scheme.to_string())),
            ("--recipe", self.recipe.as_ref().map(|file| path(&file.to_string_lossy()))),
            ("--preset", self.preset.map(|preset| preset.name().to_owned())),
            ("--method", method.map(|method| method.to_string())),
        ];
        let valued = valued.into_iter().filter_map(|(option, value)| Some([option.to_owned(), value?]));
        let flags = [("--let", use_let), ("--no-let", no_let)];
        let flags = flags.into_iter().filter(|(_, is_given)| **is_given).map(|(flag, _)| flag.to_owned());
        let keys = keys.words.iter().map(|(option, value)| [option.clone(), path(value)]);
        let own = own.iter().flat_map(|own| ["--override".to_owned(), own.to_string()]);
        valued.flatten().chain(flags).chain(keys.flatten()).chain(own).collect()
    }
}

/// The text to evaluate on.
#[derive(Clone, Debug, Args)]
pub struct EvalDataArgs {
    /// Evaluation text: wikitext2, wikitext2:valid, c4, ptb, or a file as for --calib [default: the model's, else wikitext2]
    #[arg(long, value_name = "DATA")]
    pub data: Option<String>,
    /// Field or column with the text, in JSON or parquet files; conversations are rendered with the model's chat template
    /// [default: text, else messages or conversations]
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Folder of datasets (wikitext2/wiki.test.raw, ...) [env: OMNIQUANT_DATA]
    #[arg(long, value_name = "DIR", env = "OMNIQUANT_DATA", hide_env = true)]
    pub data_dir: Option<PathBuf>,
    /// Use only the first N windows [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub windows: Option<u32>,
}

/// How a model runs.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// packed (multiply with packed weights directly, on the CPU), dense (decode them first), cuda (packed on a card, by kernels that
    /// NVRTC compiles for it; not yet run on a GPU), or auto: packed where possible on the CPU
    #[arg(long, value_name = "KERNELS", value_enum, default_value_t = KernelsArg::Auto)]
    pub kernels: KernelsArg,
    /// Compute products in f32, bf16, or auto: bf16 where the device is fast at it
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ComputeArg::Auto)]
    pub compute: ComputeArg,
    /// How packed weights multiply many tokens at a time, such as a prompt: auto (as --compute says) or int8 (activations rounded to
    /// 8 bits: half as fast again, for less than 1 % of perplexity; needs AVX-512 with VNNI and BF16)
    #[arg(long, value_name = "KIND", value_enum, default_value_t = PrefillArg::Auto)]
    pub prefill: PrefillArg,
    /// The output head: stored (as stored) or w8 (rounded to 8 bits, for speed; on the CPU)
    #[arg(long, value_name = "HEAD", value_enum, default_value_t = HeadArg::Stored)]
    pub head: HeadArg,
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
}

/// How the next token is chosen.
#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
    /// Maximum number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// Sampling temperature: 0 is greedy decoding, 1 samples from the model's own probabilities [default: that of
    /// generation_config.json if it sets do_sample, else 0]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Sample only from the most likely tokens whose probabilities add up to P [default: that of generation_config.json, else all]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Sample only from the N most likely tokens; 0 means all [default: that of generation_config.json, else all]
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Make tokens that are already in the text less likely; 1 changes nothing [default: that of generation_config.json, else 1]
    #[arg(long, value_name = "R")]
    pub repetition_penalty: Option<f64>,
    /// Seed of sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Stop before this string; can be given several times
    #[arg(long, value_name = "S")]
    pub stop: Vec<String>,
}
