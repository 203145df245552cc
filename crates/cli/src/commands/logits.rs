//! `omniquant logits`: token ids in, logits out.

use anyhow::{Context, Result};
use oq_formats::{Checkpoint, Dtype, OutTensor, write_shard};
use oq_models::Model;
use serde_json::json;
use tch::{Kind, Tensor};

use crate::args::LogitsArgs;
use crate::exit::CliError;
use crate::machine;
use crate::output::Output;
use crate::resolve::Named;

pub fn run(args: &LogitsArgs, out: &Output) -> Result<()> {
    let device = machine::device(args.device)?;
    let ids = read_ids(args)?;
    let dir = Named::new(&args.model)?.directory(out)?;
    let mut model = Model::open(&dir)?;
    if let Some(spec) = args.rtn {
        model = model.with_round_to_nearest(spec)?;
    }
    let logits = oq_eval::logits(&model, &ids, device)?;
    let shape: Vec<usize> = logits.size().iter().map(|&n| n as usize).collect();
    let values = Vec::<f32>::try_from(logits.contiguous().view(-1)).context("logits are f32")?;
    write_shard(&args.out, &[OutTensor::from_f32("logits", &shape, &values, Dtype::F32)?])?;
    out.result(&json!({"out": args.out, "shape": shape}), || format!("{}: logits {shape:?}", args.out.display()))
}

fn read_ids(args: &LogitsArgs) -> Result<Tensor> {
    let file = Checkpoint::open_file(&args.ids)?;
    let view = file.tensor("input_ids")?;
    let kind = match view.dtype {
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        other => {
            let message = format!("{}: input_ids is {other:?}, expected I64 or I32", args.ids.display());
            return Err(CliError::Usage(message).into());
        }
    };
    let [b, t] = *view.shape else {
        let message = format!("{}: input_ids has shape {:?}, expected [batch, tokens]", args.ids.display(), view.shape);
        return Err(CliError::Usage(message).into());
    };
    if b * t == 0 {
        return Err(CliError::Usage(format!("{}: input_ids is empty, [{b}, {t}]", args.ids.display())).into());
    }
    Ok(Tensor::from_data_size(view.bytes, &[b as i64, t as i64], kind).to_kind(Kind::Int64))
}
