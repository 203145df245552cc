//! Types of option values.

use clap::ValueEnum;
use oq_formats::Dtype;
use oq_recipe::{Profile, find_machine, machine_names};

/// The device that computes blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    Auto,
    Cpu,
    Cuda(usize),
}

impl std::fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
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

/// The type that products are computed in; `Auto` is bf16 where the device is fast at it, else f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeArg {
    Auto,
    F32,
    Bf16,
}

/// How linears are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelsArg {
    Auto,
    Dense,
    Packed,
    Cuda,
}

/// What learning computes clipping with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LearnKernelsArg {
    Auto,
    Cuda,
}

/// How the output head is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HeadArg {
    Stored,
    W8,
}

/// What packed weights are multiplied with in prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrefillArg {
    Auto,
    Int8,
}

/// The machine to plan a run for.
#[derive(Clone, Copy, Debug)]
pub enum PlanDeviceArg {
    /// This machine.
    Here(DeviceArg),
    /// One of the machines in `configs/machines`.
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
            format!("{error}, or a machine in configs/machines: {known}")
        })
    }
}

/// Type of stored weights.
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

    /// Name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
        }
    }
}
