//! The exit codes of errors.

use oq_calib::{CalibError, JournalError, ReleaseError, StatesError};
use oq_data::{DataError, ErrorKind};
use oq_eval::EvalError;
use oq_export::{ExportError, Refusal};
use oq_formats::FormatError;
use oq_formats::gguf::GgufError;
use oq_generate::GenerateError;
use oq_isa::IsaError;
use oq_judge::{EndpointError, JudgeError};
use oq_models::ModelError;
use oq_quant_core::TensorError;
use oq_ranks::RanksError;
use oq_recipe::RecipeError;
use oq_report::ReportError;
use oq_serve::ServeError;

/// The recipe or the command line is wrong.
const USAGE: u8 = 2;
/// An input is missing, unreachable or broken.
const INPUT: u8 = 3;
/// Memory or disk space does not suffice.
const DOES_NOT_FIT: u8 = 4;
/// Numbers are not finite.
const NUMERIC: u8 = 5;
/// Ctrl-C.
const STOPPED: u8 = 130;
const OTHER: u8 = 1;

/// Errors that the command line itself raises.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// An input is missing.
    #[error("{0}")]
    Missing(String),
    /// Ctrl-C.
    #[error("stopped")]
    Stopped,
    /// The plan does not fit.
    #[error("this run does not fit:\n  {0}")]
    DoesNotFit(String),
}

/// The code of the first error in the chain that has one.
pub fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(known_code).unwrap_or(OTHER)
}

fn known_code(error: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = error.downcast_ref::<CliError>() {
        return Some(match error {
            CliError::Usage(_) => USAGE,
            CliError::Missing(_) => INPUT,
            CliError::Stopped => STOPPED,
            CliError::DoesNotFit(_) => DOES_NOT_FIT,
        });
    }
    if error.is::<IsaError>() {
        return Some(USAGE);
    }
    if let Some(error) = error.downcast_ref::<RecipeError>() {
        return Some(if matches!(error, RecipeError::Read { .. }) { INPUT } else { USAGE });
    }
    if let Some(error) = error.downcast_ref::<CalibError>() {
        return Some(calib_code(error));
    }
    if let Some(error) = error.downcast_ref::<RanksError>() {
        return Some(if matches!(error, RanksError::Environment { .. }) { USAGE } else { OTHER });
    }
    if let Some(error) = error.downcast_ref::<ReleaseError>() {
        return Some(match error {
            ReleaseError::Scheme { .. } | ReleaseError::Groups { .. } => USAGE,
            ReleaseError::Model(error) => model_code(error),
            ReleaseError::Format(error) => format_code(error),
            _ => INPUT,
        });
    }
    if let Some(error) = error.downcast_ref::<EvalError>() {
        return match error {
            EvalError::TooShort { .. }
            | EvalError::NothingToPredict { .. }
            | EvalError::OneToken { .. }
            | EvalError::Vocabulary { .. } => Some(USAGE),
            EvalError::NotFinite { .. } => Some(NUMERIC),
            EvalError::Stopped => Some(STOPPED),
            EvalError::Reference { source, .. } => Some(io_code(source)),
            EvalError::Data(error) => known_code(error),
            EvalError::Model(error) => Some(model_code(error)),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<GenerateError>() {
        return match error {
            GenerateError::Empty | GenerateError::ContextFull { .. } | GenerateError::Setting { .. } => Some(USAGE),
            GenerateError::NotFinite { .. } => Some(NUMERIC),
            GenerateError::Model(error) => Some(model_code(error)),
            GenerateError::Data(error) => known_code(error),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<JudgeError>() {
        return match error {
            JudgeError::OtherContest { .. } => Some(USAGE),
            JudgeError::Io { source, .. } => Some(io_code(source)),
            // Its cause decides.
            JudgeError::Answer { .. } | JudgeError::Judge { .. } => None,
            _ => Some(INPUT),
        };
    }
    if error.is::<EndpointError>() {
        return Some(INPUT);
    }
    if let Some(error) = error.downcast_ref::<ServeError>() {
        return Some(if matches!(error, ServeError::Bind { .. }) { USAGE } else { OTHER });
    }
    if let Some(error) = error.downcast_ref::<ModelError>() {
        return Some(model_code(error));
    }
    if error.is::<Refusal>() {
        return Some(USAGE);
    }
    if let Some(error) = error.downcast_ref::<ExportError>() {
        return Some(match error {
            ExportError::Refused(_) | ExportError::Used { .. } => USAGE,
            ExportError::Linear { .. } => NUMERIC,
            ExportError::Format(error) => format_code(error),
            ExportError::Gguf(error) => return known_code(error),
            _ => OTHER,
        });
    }
    if let Some(error) = error.downcast_ref::<ReportError>() {
        return Some(match error {
            ReportError::Io { source, .. } => io_code(source),
            _ => INPUT,
        });
    }
    if let Some(error) = error.downcast_ref::<FormatError>() {
        return Some(format_code(error));
    }
    if let Some(error) = error.downcast_ref::<GgufError>() {
        return Some(match error {
            GgufError::Write(error) => format_code(error),
            GgufError::Io { source, .. } => io_code(source),
            _ => INPUT,
        });
    }
    if let Some(error) = error.downcast_ref::<DataError>() {
        return Some(match error.kind() {
            ErrorKind::MissingInput | ErrorKind::Unreachable | ErrorKind::Corrupt => INPUT,
            ErrorKind::Usage => USAGE,
            ErrorKind::Machine => match error {
                DataError::DiskFull { .. } => DOES_NOT_FIT,
                _ => OTHER,
            },
        });
    }
    error.downcast_ref::<std::io::Error>().map(io_code)
}

fn calib_code(error: &CalibError) -> u8 {
    match error {
        CalibError::InBlock { source, .. } => calib_code(source),
        CalibError::Stopped { .. } | CalibError::TuningStopped { .. } => STOPPED,
        CalibError::Diverged { .. }
        | CalibError::TuningDiverged { .. }
        | CalibError::Overflow { .. }
        | CalibError::Linear { .. } => NUMERIC,
        CalibError::Segments { .. }
        | CalibError::Site(_)
        | CalibError::Bits { .. }
        | CalibError::TooManyRanks { .. }
        | CalibError::NothingToSplit { .. } => USAGE,
        CalibError::Model(error) => model_code(error),
        CalibError::Format(error) => format_code(error),
        CalibError::States(StatesError { source, .. }) => io_code(source),
        CalibError::Journal(JournalError::Io { source, .. }) => io_code(source),
        CalibError::Journal(JournalError::Unwritable { source, .. }) if io_code(source) == DOES_NOT_FIT => DOES_NOT_FIT,
        CalibError::Journal(_) => USAGE,
        _ => OTHER,
    }
}

fn model_code(error: &ModelError) -> u8 {
    match error {
        ModelError::UnknownArchitecture { .. }
        | ModelError::TokenId { .. }
        | ModelError::TooLong { .. }
        | ModelError::PackedDevice { .. }
        | ModelError::PrefillDense
        | ModelError::Kernel(_)
        | ModelError::Rotate(_)
        | ModelError::Override(_)
        | ModelError::AlreadyQuantized { .. } => USAGE,
        ModelError::Quantize {
            source:
                TensorError::GroupDoesNotDivide { .. }
                | TensorError::NoSuperBlocks { .. }
                | TensorError::NoBlocks { .. }
                | TensorError::NoRole { .. },
            ..
        } => USAGE,
        ModelError::Quantize { .. } => NUMERIC,
        ModelError::ConfigKey { .. } | ModelError::Shape { .. } | ModelError::Prefixed { .. } => INPUT,
        ModelError::Format(error) => format_code(error),
        _ => OTHER,
    }
}

fn format_code(error: &FormatError) -> u8 {
    match error {
        FormatError::NoSpace { .. } => DOES_NOT_FIT,
        FormatError::OutputIsSource { .. } => USAGE,
        FormatError::NotFinite { .. } => NUMERIC,
        FormatError::Io { source, .. } => io_code(source),
        _ => INPUT,
    }
}

fn io_code(error: &std::io::Error) -> u8 {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => DOES_NOT_FIT,
        std::io::ErrorKind::NotFound => INPUT,
        _ => OTHER,
    }
}
