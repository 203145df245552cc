//! Runs the settings, and measures each result when it is there.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::Result;
use oq_calib::JOURNAL;
use oq_eval::Reference;
use oq_models::Model;
use oq_recipe::{Measurement, Metric};
use oq_report::Run;
use serde_json::Value;
use tch::Device;

use super::child::{self, Said};
use super::settings::Setting;
use crate::args::{Global, SweepArgs};
use crate::card;
use crate::commands::eval::Subject;
use crate::commands::report;
use crate::commands::running::Interrupt;
use crate::exit::CliError;
use crate::machine;
use crate::output::{Bar, Output, with_causes};

/// The longest wait, so that an interruption is noticed and progress is shown.
const NAP: Duration = Duration::from_millis(500);
/// Parts of the whole in which progress is counted.
const PARTS: usize = 10_000;

/// Why settings failed, by index.
pub type Failed = BTreeMap<usize, String>;

/// Keeps what is known of a sweep.
pub type Keep<'a> = &'a dyn Fn(&Failed) -> Result<Value>;

/// The runs of a sweep.
pub struct Runs<'a> {
    pub settings: &'a [Setting],
    /// The model in full precision.
    pub model: &'a Model,
    pub name: &'a str,
    /// What the results are measured on.
    pub subject: &'a Subject,
    pub device: Device,
    /// The sweep's directory.
    pub dir: &'a Path,
}

impl Runs<'_> {
    /// Runs and measures what is not finished. `write` keeps what is known after each change. Returns why settings failed.
    ///
    /// # Errors
    /// When it is stopped, and when nothing can be measured at all; then the runs that are going on are stopped first.
    pub fn all(&self, (args, global): (&SweepArgs, &Global), write: Keep<'_>, out: &Output) -> Result<Failed> {
        let mut failed = Failed::new();
        write(&failed)?;
        let is_quantized = |&i: &usize| self.settings[i].is_quantized();
        let (quantized, unfinished): (Vec<usize>, Vec<usize>) = (0..self.settings.len()).partition(is_quantized);
        let unmeasured: Vec<usize> = quantized.into_iter().filter(|&i| !self.is_measured(i)).collect();
        if unmeasured.is_empty() && unfinished.is_empty() {
            return Ok(failed);
        }
        let note = "stopping; finished settings and blocks are kept (interrupt again to stop at once)";
        let interrupt = Interrupt::install(Some(note))?;
        let reference = self.subject.reference(self.model, self.device, self.dir, out)?;
        let bar = out.bar(&format!("sweep of {} settings", self.settings.len()));
        // Not by what is left to do: a sweep that goes on gives each run as many threads as before, and so the same result.
        let jobs = usize::from(args.jobs).min(self.settings.len());
        let options: Vec<Vec<OsString>> =
            self.settings.iter().map(|setting| child::options(setting, args, global, threads(jobs, global))).collect();
        let shown = Shown { interrupt: &interrupt, bar: &bar, out };
        interrupt.during(|| {
            for i in unmeasured.iter().copied().take_while(|_| !interrupt.was_asked()) {
                self.measured(i, &reference, &mut failed, &shown);
            }
            self.run_all((VecDeque::from(unfinished), jobs, &options), &reference, (&mut failed, write), &shown)
        })?;
        Ok(failed)
    }

    /// Runs the `waiting` settings, `jobs` at a time, until all have ended or it is interrupted.
    fn run_all(
        &self,
        (mut waiting, jobs, options): (VecDeque<usize>, usize, &[Vec<OsString>]),
        reference: &Reference<'_>,
        (failed, write): (&mut Failed, Keep<'_>),
        shown: &Shown<'_>,
    ) -> Result<()> {
        let (to, said) = channel();
        let mut running: BTreeMap<usize, ChildStdin> = BTreeMap::new();
        write(failed)?;
        loop {
            while running.len() < jobs
                && !shown.interrupt.was_asked()
                && let Some(i) = waiting.pop_front()
            {
                wait_for_others(&self.settings[i], shown);
                if shown.interrupt.was_asked() {
                    break;
                }
                match child::start(i, &options[i], to.clone()) {
                    Ok(input) => drop(running.insert(i, input)),
                    Err(error) => drop(failed.insert(i, with_causes(&error, ": "))),
                }
                write(failed)?;
            }
            if shown.interrupt.was_asked() {
                stop(running, &said);
                return Err(CliError::Stopped.into());
            }
            if running.is_empty() {
                return Ok(());
            }
            let is_going = |i: &usize| running.contains_key(i) || waiting.contains(i);
            match self.listen(&said, &is_going, shown) {
                // It was interrupted.
                None => {}
                Some(Said::Line(i, line)) => shown.say(&self.settings[i], &line),
                Some(Said::Ended(i, None)) => {
                    running.remove(&i);
                    self.measured(i, reference, failed, shown);
                    write(failed)?;
                }
                Some(Said::Ended(i, Some(why))) => {
                    running.remove(&i);
                    shown.say(&self.settings[i], &format!("failed: {why}"));
                    failed.insert(i, why);
                    write(failed)?;
                }
            }
        }
    }

    /// What a run says next; none after an interruption. Meanwhile shows how far the runs are.
    fn listen(&self, said: &Receiver<Said>, is_going: &dyn Fn(&usize) -> bool, shown: &Shown<'_>) -> Option<Said> {
        loop {
            if shown.interrupt.was_asked() {
                return None;
            }
            match said.recv_timeout(NAP) {
                Ok(said) => return Some(said),
                // This process holds a sender.
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => self.show(is_going, shown.bar),
            }
        }
    }

    /// Shows how far the runs are.
    fn show(&self, is_going: &dyn Fn(&usize) -> bool, bar: &Bar) {
        let secs = |setting: &Setting| setting.plan.time.as_ref().map(|time| time.total_secs);
        let weights: Option<Vec<f64>> = self.settings.iter().map(secs).collect();
        let weights = weights.unwrap_or_else(|| vec![1.0; self.settings.len()]);
        let (mut done, mut at) = (0.0, Vec::new());
        for (i, setting) in self.settings.iter().enumerate() {
            let run = if is_going(&i) { setting.run() } else { None };
            let part = run.as_ref().map_or(0.0, progress);
            done += weights[i] * if is_going(&i) { part } else { 1.0 };
            at.extend(run.filter(|_| part < 1.0).map(|_| format!("{} {:.0}%", setting.name, 100.0 * part)));
        }
        bar.message(at.join(", "));
        bar.set((done / weights.iter().sum::<f64>() * PARTS as f64) as usize, PARTS);
    }

    /// Measures a result.
    fn measured(&self, which: usize, reference: &Reference<'_>, failed: &mut Failed, shown: &Shown<'_>) {
        let setting = &self.settings[which];
        match self.measure(setting, reference, shown.bar) {
            Ok(divergence) => shown.say(setting, &format!("divergence {divergence:.5}")),
            Err(error) => {
                let why = format!("it is quantized, but cannot be measured: {}", with_causes(&error, ": "));
                shown.say(setting, &why);
                failed.insert(which, why);
            }
        }
    }

    fn measure(&self, setting: &Setting, reference: &Reference<'_>, bar: &Bar) -> Result<f64> {
        let model = Model::open(&setting.dir)?;
        let compared = reference.divergence(&model, &mut |progress| {
            bar.message(format!("measuring {} {}%", setting.name, 100 * progress.done / progress.total));
        })?;
        let data = &self.subject.data;
        let [divergence, agreement] = card::divergence(self.name, data, &compared);
        let full = card::perplexity(Measurement::FULL, data, &compared.full);
        let quantized = card::perplexity(card::THIS, data, &compared.quantized);
        report::measured(&setting.dir, &[full, quantized, divergence, agreement])?;
        Ok(compared.mean())
    }

    /// Whether a result has been measured on this text.
    fn is_measured(&self, which: usize) -> bool {
        let on = self.subject.on();
        let is_this = |row: &Measurement| row.metric == Metric::Divergence && row.on == on;
        card::recorded(&self.settings[which].dir).iter().any(is_this)
    }
}

/// Where a sweep shows what happens, and what interrupts it.
struct Shown<'a> {
    interrupt: &'a Interrupt,
    bar: &'a Bar,
    out: &'a Output,
}

impl Shown<'_> {
    fn say(&self, setting: &Setting, line: &str) {
        self.bar.say(&format!("{}: {line}", setting.name), self.out);
    }
}

/// Stops the runs that are going on, and waits for their ends.
fn stop(running: BTreeMap<usize, ChildStdin>, said: &Receiver<Said>) {
    let mut left = running.len();
    // This ends their inputs.
    drop(running);
    while left > 0 {
        match said.recv() {
            Ok(Said::Ended(..)) => left -= 1,
            Ok(Said::Line(..)) => {}
            Err(_) => break,
        }
    }
}

/// Threads of each run: a share of those that the command line or the machine has; none to leave that to the run.
fn threads(jobs: usize, global: &Global) -> Option<usize> {
    let all = global.threads.map(usize::from);
    if jobs == 1 { all } else { Some((all.unwrap_or_else(machine::cores) / jobs).max(1)) }
}

/// The share of a run that is done; tuning counts as much as the blocks before it.
fn progress(run: &Run) -> f64 {
    let share = |done: usize, of: usize| done as f64 / of.max(1) as f64;
    let epochs = run.current.as_ref().map_or(0.0, |(_, losses)| share(losses.len(), run.recipe.learn.epochs));
    let learned = ((run.blocks.len() as f64 + epochs.min(1.0)) / run.n_blocks.max(1) as f64).min(1.0);
    match run.recipe.tune_epochs() {
        0 => learned,
        n => (learned + share(run.tuning.len(), n)) / 2.0,
    }
}

/// Waits until no other process runs this setting. After a kill, a run notices a moment later that its sweep is gone.
fn wait_for_others(setting: &Setting, shown: &Shown<'_>) {
    let mut is_said = false;
    while is_locked(&setting.dir.join(JOURNAL)) && !shown.interrupt.was_asked() {
        if !is_said {
            shown.say(setting, "waiting for the process that runs it");
            is_said = true;
        }
        std::thread::sleep(NAP);
    }
}

fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}
