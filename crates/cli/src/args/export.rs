//! The options of the commands that export.

use std::path::PathBuf;

use clap::Args;
use oq_export::{FORMATS, Format};

use crate::size::Size;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant export llama2-7b-w4 --to gptq
  omniquant export llama2-7b-w4 --to awq,mlx --out exports
  omniquant export llama2-7b-w4 --to dense --shard-size 2GB --json

`omniquant formats` says what each format holds and which programs open it. A model that a format cannot hold is refused before
anything is written. An export that was interrupted begins again when the command is repeated.")]
pub struct ExportArgs {
    /// Directory of a packed model
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Formats: a list of compressed-tensors, gptq, awq, auto-round, mlx, gguf, dense, dense-bf16, dense-f32
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true, value_parser = format_named)]
    pub to: Vec<&'static Format>,
    /// The directory to write; must be missing or empty. With several formats, it gets a directory for each [default: DIR-FORMAT]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Most bytes of tensors in a file
    #[arg(long, value_name = "SIZE", default_value = "4GB")]
    pub shard_size: Size,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant formats
  omniquant formats w3a16g64
  omniquant formats llama2-7b-w4 --json")]
pub struct FormatsArgs {
    /// A scheme, or the directory of a packed model [default: list all formats]
    #[arg(value_name = "MODEL_OR_SCHEME")]
    pub subject: Option<String>,
}

/// A format by its name.
pub fn format_named(name: &str) -> Result<&'static Format, String> {
    let names = || FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", ");
    oq_export::find(name).ok_or_else(|| format!("expected one of {}", names()))
}
