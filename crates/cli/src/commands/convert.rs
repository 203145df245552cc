//! `omniquant convert`: converts a GGUF file to a Hugging Face directory.

use anyhow::{Context, Result};
use oq_formats::gguf::convert_to_hf;
use serde_json::json;

use crate::args::ConvertArgs;
use crate::output::{Output, bytes};
use crate::resolve::refuse_used;

pub fn run(args: &ConvertArgs, out: &Output) -> Result<()> {
    refuse_used(&args.out)?;
    let bar = out.bar("converting");
    let converted = convert_to_hf(&args.gguf, &args.out, &mut |progress| {
        bar.set(progress.done, progress.total);
        bar.message(progress.tensor.to_owned());
    })
    .with_context(|| format!("{}: not converted", args.gguf.display()))?;
    drop(bar);
    let result = json!({"dir": converted.dir, "tensors": converted.tensors, "values": converted.values, "weight_bytes": converted.weight_bytes});
    out.result(&result, || {
        format!("{}: {} tensors, {}", converted.dir.display(), converted.tensors, bytes(converted.weight_bytes))
    })
}
