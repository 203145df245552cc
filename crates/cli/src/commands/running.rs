//! Shared by the commands that run a whole model: loading it, sampling, and Ctrl-C.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use oq_data::Generation;
use oq_generate::{Choice, Loaded, Sampler, Sampling, Settings};
use oq_models::{Form, HeadKind, Kernels, Model, Prefill};
use serde_json::{Value, json};
use tch::Device;

use crate::args::{HeadArg, KernelsArg, ModelArgs, PrefillArg, RunArgs, SamplingArgs};
use crate::exit::CliError;
use crate::machine;
use crate::output::Output;
use crate::resolve::Named;

/// The kernels to use: for `auto`, our own if possible.
pub fn kernels(wanted: KernelsArg, model: &Model, device: Device) -> Result<Kernels> {
    Ok(match wanted {
        KernelsArg::Dense => Kernels::Dense,
        KernelsArg::Packed => Kernels::Packed,
        KernelsArg::Cuda => {
            machine::use_cuda_kernels(device)?;
            Kernels::Packed
        }
        KernelsArg::Auto if model.quantization().is_some() && device == Device::Cpu => Kernels::Packed,
        KernelsArg::Auto => Kernels::Dense,
    })
}

/// What packed weights are multiplied with in prefill.
pub fn prefill(wanted: PrefillArg) -> Prefill {
    match wanted {
        PrefillArg::Auto => Prefill::Auto,
        PrefillArg::Int8 => Prefill::Int8,
    }
}

/// A model to load, with the form of its matrices.
pub struct Opened {
    model: Model,
    device: Device,
}

impl Opened {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.model.dir()
    }
}

/// Opens a model in the form requested on the command line.
pub fn open(model: &ModelArgs, args: &RunArgs, out: &Output) -> Result<Opened> {
    let device = machine::device(args.device)?;
    let named = Named::new(model)?;
    let model = Model::open(&named.directory(out)?)?;
    let head = match args.head {
        HeadArg::Stored => HeadKind::Stored,
        HeadArg::W8 => HeadKind::W8,
    };
    let kernels = kernels(args.kernels, &model, device)?;
    let form = Form::new(kernels, machine::compute(args.compute, device), head).with_prefill(prefill(args.prefill));
    let model = model.with_form(form)?;
    Ok(Opened { model, device })
}

/// Loads the model.
pub fn load(opened: Opened, out: &Output) -> Result<Loaded> {
    let bar = out.bar("loading");
    Ok(Loaded::new(opened.model, opened.device, &mut |done, total| bar.set(done, total))?)
}

/// Refuses settings that are invalid for every model, before a model is searched.
pub fn check(args: &SamplingArgs) -> Result<()> {
    // Assume that the model's settings sample: whether they do is not known yet.
    let draws = Generation { draws: true, ..Generation::default() };
    Sampler::new(sampling(args, &draws)?)?;
    Ok(stops(args).map(drop)?)
}

/// Stopping and sampling settings: from the command line, else from the model's own settings, which are then noted.
pub fn settings(
    args: &SamplingArgs,
    generation: &Generation,
    ends: &[u32],
    out: &Output,
) -> Result<(Settings, Sampling)> {
    let sampling = sampling(args, generation)?;
    Sampler::new(sampling)?;
    let taken = taken(args, &sampling);
    if !taken.is_empty() {
        out.note(&format!("note: from the model's generation_config.json: {}", taken.join(", ")));
    }
    if !generation.unknown.is_empty() {
        let names = generation.unknown.join(", ");
        out.note(&format!("note: generation_config.json also sets {names}, which this program does not support"));
    }
    Ok((Settings::new(args.max_tokens).with_stops(stops(args)?).with_ends(ends.to_vec()), sampling))
}

fn stops(args: &SamplingArgs) -> Result<Vec<String>, CliError> {
    let stops: Vec<String> = args.stop.iter().map(|stop| stop.replace("\\n", "\n")).collect();
    match stops.iter().any(String::is_empty) {
        true => Err(CliError::Usage("--stop: an empty string would end every text before it began".to_owned())),
        false => Ok(stops),
    }
}

fn sampling(args: &SamplingArgs, generation: &Generation) -> Result<Sampling, CliError> {
    let of_model = if generation.draws { generation.temperature.unwrap_or(1.0) } else { 0.0 };
    let choice = match args.temperature.unwrap_or(of_model) {
        0.0 if args.top_p.is_some() || args.top_k.is_some() => {
            let mend = "give a --temperature above 0, such as 1";
            let message = format!("--top-p and --top-k are for sampling, but decoding is greedy: {mend}");
            return Err(CliError::Usage(message));
        }
        0.0 => Choice::Greedy,
        temperature => Choice::Draw {
            temperature,
            top_p: args.top_p.or(generation.top_p).unwrap_or(1.0),
            top_k: args.top_k.or(generation.top_k).filter(|&k| k > 0),
        },
    };
    let repetition_penalty = args.repetition_penalty.or(generation.repetition_penalty).unwrap_or(1.0);
    Ok(Sampling::new(choice).with_repetition_penalty(repetition_penalty).with_seed(args.seed))
}

/// Which of these settings come from the model and differ from the defaults.
fn taken(args: &SamplingArgs, sampling: &Sampling) -> Vec<String> {
    let mut taken = Vec::new();
    if let Choice::Draw { temperature, top_p, top_k } = sampling.choice {
        if args.temperature.is_none() {
            taken.push(format!("temperature {temperature}"));
        }
        if args.top_p.is_none() && top_p < 1.0 {
            taken.push(format!("top-p {top_p}"));
        }
        if let (None, Some(top_k)) = (args.top_k, top_k) {
            taken.push(format!("top-k {top_k}"));
        }
    }
    let penalty = sampling.repetition_penalty;
    if args.repetition_penalty.is_none() && penalty != 1.0 {
        taken.push(format!("repetition penalty {penalty}"));
    }
    taken
}

/// The sampling settings, for scripts.
pub fn record_of(sampling: &Sampling) -> Value {
    let (temperature, top_p, top_k) = match sampling.choice {
        Choice::Greedy => (0.0, None, None),
        Choice::Draw { temperature, top_p, top_k } => (temperature, Some(top_p), top_k),
    };
    json!({"temperature": temperature, "top_p": top_p, "top_k": top_k,
        "repetition_penalty": sampling.repetition_penalty, "seed": sampling.seed})
}

/// Prints text as it is generated, unless results are JSON, until the reader is gone or the user interrupts.
pub fn emit(out: &Output, interrupt: &Interrupt) -> impl FnMut(&str) -> ControlFlow<()> {
    |text| {
        let is_read = out.is_json() || out.piece(text);
        if is_read && !interrupt.was_asked() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// What Ctrl-C and SIGTERM do.
#[derive(Clone, Default)]
pub struct Interrupt {
    /// Whether interruptible work is running.
    busy: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
    /// What is printed at the first one.
    note: Option<&'static str>,
}

impl Interrupt {
    /// Handles the signals from now on. They interrupt what [`Self::during`] runs, after printing `note` if there is one. At any other
    /// time, and when repeated, they end the program.
    pub fn install(note: Option<&'static str>) -> Result<Self, CliError> {
        let interrupt = Self { note, ..Self::default() };
        let handler = interrupt.clone();
        ctrlc::set_handler(move || handler.ask())
            .map_err(|e| CliError::Usage(format!("signals cannot be handled: {e}")))?;
        Ok(interrupt)
    }

    /// Also treats the end of the input as such a signal.
    pub fn ask_when_input_ends(&self) {
        let interrupt = self.clone();
        std::thread::spawn(move || {
            // An input that cannot be read has ended.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            interrupt.ask();
        });
    }

    fn ask(&self) {
        if !self.busy.load(Ordering::Relaxed) || self.asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        if let Some(note) = self.note {
            eprintln!("{note}");
        }
    }

    /// Runs work that [`Self::was_asked`] interrupts.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.asked.store(false, Ordering::Relaxed);
        self.busy.store(true, Ordering::Relaxed);
        let result = work();
        self.busy.store(false, Ordering::Relaxed);
        result
    }

    /// Whether an interruption was requested.
    pub fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}
