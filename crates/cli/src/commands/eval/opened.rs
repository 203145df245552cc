//! Opening the model to evaluate, and the one to compare it with.

use std::path::Path;

use anyhow::Result;
use oq_models::{Form, HeadKind, Model};
use oq_recipe::{RUN, RunRecord};
use serde_json::{Map, Value, json};
use tch::Device;

use crate::args::{EvalArgs, HeadArg, ModelArgs};
use crate::card;
use crate::commands::running;
use crate::exit::CliError;
use crate::machine;
use crate::output::Output;
use crate::ranks::Team;
use crate::resolve::Named;

/// A model to evaluate, in the form that the command line asks for.
pub struct Opened {
    /// The model as it was given.
    pub as_given: String,
    pub named: Named,
    pub model: Model,
    pub form: Form,
    pub device: Device,
}

impl Opened {
    /// Opens a model of the command line.
    pub fn new(name: &str, team: &Team, args: &EvalArgs, out: &Output) -> Result<Self> {
        let device = machine::device(team.device(args.device))?;
        let model = ModelArgs { name: name.to_owned(), revision: args.revision.clone() };
        let named = Named::new(&model)?;
        let dir = named.directory(out)?;
        if args.card {
            if !Path::new(&named.name).is_dir() {
                let message = format!("{}: --card writes to a directory: give the model's", named.name);
                return Err(CliError::Usage(message).into());
            }
            card::check(&dir)?;
        }
        let mut model = Model::open(&dir)?;
        if let Some(spec) = args.rtn {
            model = model.with_round_to_nearest(spec)?;
        }
        let head = match args.head {
            // The fastest for whole windows, with the same results.
            HeadArg::Stored => HeadKind::Wide,
            HeadArg::W8 => HeadKind::W8,
        };
        let kernels = running::kernels(args.kernels, &model, device)?;
        let prefill = running::prefill(args.prefill);
        let form = Form::new(kernels, machine::compute(args.compute, device), head).with_prefill(prefill);
        Ok(Self { as_given: name.to_owned(), named, model: model.with_form(form)?, form, device })
    }

    /// The name and the model to compare with, computed in f32, if the command line asks for a comparison. That is the model of
    /// `--against`, else the stored weights of a model that is rounded as it is loaded, else the model that the record of the run names.
    pub fn full(&self, args: &EvalArgs, out: &Output) -> Result<Option<(String, Model)>> {
        let name = match &args.against {
            Some(name) => name.clone(),
            None if !args.kl => return Ok(None),
            None if args.rtn.is_some() => return Ok(Some((self.named.name.clone(), self.model.reopened()?))),
            None => self.base()?,
        };
        let named = Named::new(&ModelArgs { name, revision: None })?;
        let model = Model::open(&named.directory(out)?)?;
        Ok(Some((named.name, model)))
    }

    /// The model that this one was made from, by the record of the run.
    fn base(&self) -> Result<String> {
        let path = self.model.dir().join(RUN);
        let record = std::fs::read(&path).ok();
        let record = record.and_then(|bytes| serde_json::from_slice::<RunRecord>(&bytes).ok());
        let unknown = || {
            let message =
                format!("{} does not say which model this was made from: name it with --against", path.display());
            CliError::Missing(message)
        };
        Ok(record.ok_or_else(unknown)?.model)
    }

    /// What was evaluated, and how, for scripts.
    pub fn record(&self, args: &EvalArgs, results: Value, wall_secs: f64) -> Value {
        let Self { named, model, form, device, .. } = self;
        let mut record = Map::new();
        let about = json!({"model": named.name, "rtn": args.rtn, "quantized": model.quantization()});
        let how = json!({"kernels": form.kernels.name(), "compute": form.compute.name(), "head": form.head.name(), "prefill": form.prefill.name(),
            "device": machine::device_name(*device), "wall_secs": wall_secs, "peak_bytes": machine::peak_bytes()});
        for part in [about, results, how] {
            let Value::Object(part) = part else { unreachable!("parts of a record are objects") };
            record.extend(part);
        }
        Value::Object(record)
    }
}
