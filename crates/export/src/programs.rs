//! Which programs open which exports, and on which path they compute.

use oq_quant_core::{ActSpec, GroupSize, Storage, Symmetry, WeightSpec};
use serde::Serialize;

use self::Evidence::{Read, Run};
use crate::format::Format;
use crate::layout::mlx;
use crate::subject::Subject;

/// How a statement of [`Program`] is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// The program opened such exports on a CPU, and computed what the packed model computes.
    Run,
    /// Its source says so; it needs a device that was not there.
    Read,
}

/// A program that opens a format.
#[derive(Clone, Debug, Serialize)]
pub struct Program {
    #[serde(skip)]
    format: &'static str,
    /// Its name and version.
    pub name: &'static str,
    /// How it computes.
    pub path: &'static str,
    /// How that is known.
    pub evidence: Evidence,
    /// Whether it opens a model that the format holds.
    #[serde(skip)]
    opens: fn(&Subject) -> bool,
}

/// The programs that open the model in `format`, which must hold it.
pub fn programs(format: &Format, subject: &Subject) -> Vec<&'static Program> {
    PROGRAMS.iter().filter(|program| program.format == format.name && (program.opens)(subject)).collect()
}

/// A kind of model that a format holds, and a program that knows the format does not open.
#[derive(Clone, Debug, Serialize)]
pub struct Limit {
    #[serde(skip)]
    format: &'static str,
    /// The program's name and version.
    pub name: &'static str,
    /// What it does with such a model.
    pub why: &'static str,
    /// What would do instead.
    pub instead: &'static str,
    #[serde(skip)]
    meets: fn(&Subject) -> bool,
}

/// The programs that know `format` and do not open the model in it, although they open others.
pub fn limits_of_programs(format: &Format, subject: &Subject) -> Vec<&'static Limit> {
    LIMITS.iter().filter(|limit| limit.format == format.name && (limit.meets)(subject)).collect()
}

/// The limits that were met when [`PROGRAMS`] were run.
static LIMITS: [Limit; 1] = [Limit {
    format: CT,
    name: TRANSFORMERS_CT,
    why: "it loses the zero points of experts, and stops with \"Asymmetric quant requires zero-point values\"",
    instead: "a symmetric scheme",
    meets: |subject| is_float(subject) && has_integer_codes(subject) && has_experts_with_zero_points(subject),
}];

const fn row(
    format: &'static str,
    name: &'static str,
    path: &'static str,
    evidence: Evidence,
    opens: fn(&Subject) -> bool,
) -> Program {
    Program { format, name, path, evidence, opens }
}

/// Every program of a format, as of November 2026.
static PROGRAMS: [Program; 28] = [
    row(CT, TRANSFORMERS_CT, DECODED, Run, |subject| {
        is_float(subject) && has_integer_codes(subject) && !has_experts_with_zero_points(subject)
    }),
    row(CT, TRANSFORMERS_CT, "decodes the weights when it loads them, to bfloat16", Run, |subject| {
        is_float(subject) && all(subject, |w| w.storage.has_float_codes())
    }),
    row(CT, VLLM_CPU, "4-bit kernel", Run, |subject| all(subject, |w| is_integer(w, &[4]))),
    row(CT, VLLM_CPU, "products of 8-bit integers", Run, |subject| !is_float(subject) && is_whole(subject)),
    row(CT, VLLM_CUDA, MARLIN, Read, |subject| is_float(subject) && all(subject, is_for_marlin)),
    row(CT, VLLM_CUDA, "Humming, from compute capability 7.5 on", Read, |subject| {
        is_float(subject) && all(subject, |w| is_integer(w, &[2, 3, 4, 5, 6, 8])) && !all(subject, is_for_marlin)
    }),
    row(CT, VLLM_CUDA, "products of 8-bit integers", Read, |subject| !is_float(subject) && is_whole(subject)),
    row(GPTQ, TRANSFORMERS_GPTQ, "4-bit kernel of libtorch", Run, |subject| {
        all(subject, |w| is_integer(w, &[4]) && is_grouped(w))
    }),
    row(GPTQ, TRANSFORMERS_GPTQ, DECODES, Run, |subject| all(subject, |w| is_integer(w, &[2, 3, 8]))),
    row(GPTQ, VLLM_CPU, "4-bit kernel", Run, |subject| all(subject, |w| is_integer(w, &[4]) && is_symmetric(w))),
    row(GPTQ, VLLM_CUDA, MARLIN, Read, |subject| all(subject, |w| is_integer(w, &[4, 8]) && is_symmetric(w))),
    row(AWQ, VLLM_CPU, "4-bit kernel", Run, is_whole),
    row(AWQ, VLLM_CUDA, MARLIN, Read, is_whole),
    row(AWQ, TRANSFORMERS_GPTQ, "4-bit kernel of libtorch", Run, |subject| all(subject, is_grouped)),
    row(AWQ, MLX, "4-bit kernel", Run, |subject| all(subject, is_grouped) && mlx::runs(subject)),
    row(AUTO_ROUND, "transformers 5.24 with auto-round 0.16", DECODES, Run, |subject| {
        all(subject, |w| !is_integer(w, &[4]) || is_symmetric(w))
    }),
    row(AUTO_ROUND, "transformers 5.24 with auto-round 0.16 and gptqmodel 7.7", DECODES, Run, |subject| {
        all(subject, |w| is_integer(w, &[4]) && !is_symmetric(w))
    }),
    row(AUTO_ROUND, VLLM_CPU, "4-bit kernel", Run, |subject| all(subject, |w| is_integer(w, &[4]))),
    row("mlx", MLX, "kernels for each width", Run, Subject::is_well_known),
    row("mlx", "mlx-lm 0.32 on Metal", "kernels for each width", Read, Subject::is_well_known),
    row("gguf", "llama.cpp 0.4 on a CPU", "kernels for each type, which round activations to 8 bits", Run, |_| true),
    row("dense", TRANSFORMERS, DENSE, Run, |_| true),
    row("dense", VLLM_CPU, DENSE, Run, Subject::is_well_known),
    row("dense", MLX, DENSE, Run, mlx::runs),
    row("dense", "mistralrs 0.9 on a CPU", DENSE, Run, mlx::runs),
    row("dense-bf16", TRANSFORMERS, DENSE, Run, |_| true),
    row("dense-bf16", VLLM_CPU, DENSE, Run, Subject::is_well_known),
    row("dense-f32", TRANSFORMERS, DENSE, Run, |_| true),
];

const CT: &str = "compressed-tensors";
const GPTQ: &str = "gptq";
const AWQ: &str = "awq";
const AUTO_ROUND: &str = "auto-round";

const TRANSFORMERS: &str = "transformers 5.24";
const TRANSFORMERS_CT: &str = "transformers 5.24 with compressed-tensors 0.20";
const TRANSFORMERS_GPTQ: &str = "transformers 5.24 with optimum 2.3 and gptqmodel 7.7";
const VLLM_CPU: &str = "vLLM 0.32 on a CPU";
const VLLM_CUDA: &str = "vLLM 0.32 on CUDA";
const MLX: &str = "mlx-lm 0.32 on a CPU";

const MARLIN: &str = "Marlin";
const DENSE: &str = "dense products";
const DECODED: &str = "decodes the weights when it loads them";
const DECODES: &str = "decodes the weights for every product";

fn all(subject: &Subject, one: impl Fn(WeightSpec) -> bool) -> bool {
    is_whole(subject) && subject.uniform().is_some_and(one)
}

/// Whether all linears of blocks are quantized, and nothing else: what every row was tried with.
fn is_whole(subject: &Subject) -> bool {
    subject.outer().is_empty() && !subject.leaves_out() && subject.is_well_known()
}

fn is_float(subject: &Subject) -> bool {
    subject.act() == ActSpec::Float
}

fn has_integer_codes(subject: &Subject) -> bool {
    subject.weights().iter().all(|weight| weight.storage == Storage::Half)
}

fn is_integer(weight: WeightSpec, bits: &[u32]) -> bool {
    weight.storage == Storage::Half && bits.contains(&weight.bits.get())
}

fn is_symmetric(weight: WeightSpec) -> bool {
    weight.symmetry != Symmetry::Asymmetric
}

fn is_for_marlin(weight: WeightSpec) -> bool {
    is_integer(weight, &[4]) || is_integer(weight, &[8]) && is_symmetric(weight)
}

fn has_experts_with_zero_points(subject: &Subject) -> bool {
    subject.experts().is_some() && !subject.weights().iter().all(|weight| is_symmetric(*weight))
}

fn is_grouped(weight: WeightSpec) -> bool {
    weight.group != GroupSize::PerChannel
}
