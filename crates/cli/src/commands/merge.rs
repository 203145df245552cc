//! `omniquant merge`: packs a model with what the authors' release of OmniQuant learned for it.

use anyhow::{Context, Result};
use oq_calib::merge_release;
use oq_models::Model;
use serde_json::json;

use crate::args::MergeArgs;
use crate::output::Output;
use crate::resolve::{Named, refuse_used};

pub fn run(args: &MergeArgs, out: &Output) -> Result<()> {
    refuse_used(&args.out)?;
    let model = Model::open(&Named::new(&args.model)?.directory(out)?)?;
    let bar = out.bar("packing");
    merge_release(&model, &args.parameters, args.scheme, &args.out, &mut |block| {
        bar.message(format!("block {block}"));
        bar.set(block.index, block.of);
    })
    .with_context(|| format!("{}: not merged", args.parameters.display()))?;
    drop(bar);
    let result = json!({"dir": args.out, "scheme": args.scheme.to_string(), "blocks": model.decoder().dims().n_layers});
    out.result(&result, || format!("{}: {}", args.out.display(), args.scheme))
}
