//! What commands that run a whole model share: how it is loaded, how tokens are chosen, and Ctrl-C.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use oq_generate::{Choice, Loaded, Sampler, Sampling, Settings};
use oq_models::{Form, HeadKind, Kernels, Model};
use tch::Device;

use crate::args::{HeadArg, KernelsArg, RunArgs, SamplingArgs};
use crate::exit::CliError;
use crate::machine;
use crate::output::Output;
use crate::resolve::Named;

/// Who multiplies: where `auto` is asked for, our own kernels if they can.
pub fn kernels(wanted: KernelsArg, model: &Model, device: Device) -> Kernels {
    match wanted {
        KernelsArg::Dense => Kernels::Dense,
        KernelsArg::Packed => Kernels::Packed,
        KernelsArg::Auto if model.quantization().is_some() && device == Device::Cpu => Kernels::Packed,
        KernelsArg::Auto => Kernels::Dense,
    }
}

/// Loads a model as the command line asks.
pub fn load(model: &str, args: &RunArgs, out: &Output) -> Result<Loaded> {
    let device = machine::device(args.device)?;
    let named = Named::new(model);
    let model = Model::open(&named.directory(out)?)?;
    let head = match args.head {
        HeadArg::Stored => HeadKind::Stored,
        HeadArg::W8 => HeadKind::W8,
    };
    let kernels = kernels(args.kernels, &model, device);
    let model = model.with_form(Form { kernels, compute: machine::compute(args.compute, device), head })?;
    let bar = out.bar("loading");
    Ok(Loaded::new(model, device, &mut |done, total| bar.set(done, total))?)
}

/// When a text ends, and how its tokens are chosen.
pub fn settings(args: &SamplingArgs, ends: &[u32]) -> Result<(Settings, Sampler)> {
    let stops: Vec<String> = args.stop.iter().map(|stop| stop.replace("\\n", "\n")).collect();
    if stops.iter().any(String::is_empty) {
        return Err(CliError::Usage("--stop: an empty string would end every text before it began".to_owned()).into());
    }
    let SamplingArgs { max_tokens, temperature, top_p, top_k, repetition_penalty, seed, .. } = *args;
    let choice = match temperature {
        0.0 if top_p.is_some() || top_k.is_some() => {
            let mend = "give a --temperature above 0, such as 1";
            return Err(
                CliError::Usage(format!("--top-p and --top-k are about draws, and there are none: {mend}")).into()
            );
        }
        0.0 => Choice::Greedy,
        _ => Choice::Draw { temperature, top_p: top_p.unwrap_or(1.0), top_k },
    };
    let sampler = Sampler::new(Sampling { choice, repetition_penalty, seed })?;
    Ok((Settings { max_tokens, stops, ends: ends.to_vec() }, sampler))
}

/// Shows a text as it comes, unless results are JSON, for as long as somebody reads it and nobody asks for an end.
pub fn tell(out: &Output, interrupt: &Interrupt) -> impl FnMut(&str) -> ControlFlow<()> {
    |text| {
        let is_read = out.is_json() || out.piece(text);
        if is_read && !interrupt.was_asked() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// What Ctrl-C and SIGTERM do.
#[derive(Clone, Default)]
pub struct Interrupt {
    /// Whether something is at work that ends when it is asked to.
    busy: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Handles the signals from here on: they end what [`Self::during`] runs, after a line with `note` where there is one, and the program
    /// at any other time, and when they come again.
    pub fn install(note: Option<&'static str>) -> Result<Self, CliError> {
        let interrupt = Self::default();
        let Self { busy, asked } = interrupt.clone();
        let handler = move || {
            if !busy.load(Ordering::Relaxed) || asked.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            if let Some(note) = note {
                eprintln!("{note}");
            }
        };
        ctrlc::set_handler(handler).map_err(|e| CliError::Usage(format!("signals cannot be handled: {e}")))?;
        Ok(interrupt)
    }

    /// Runs what [`Self::was_asked`] ends.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.asked.store(false, Ordering::Relaxed);
        self.busy.store(true, Ordering::Relaxed);
        let result = work();
        self.busy.store(false, Ordering::Relaxed);
        result
    }

    /// Whether an end is asked for.
    pub fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}
