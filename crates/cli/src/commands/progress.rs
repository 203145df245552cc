//! The progress of `omniquant quantize`: on stderr, and as events in the run's folder.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use oq_calib::{Notice, Nth};
use oq_recipe::{EVENTS, Event, Recipe};

use crate::machine::resident_bytes;
use crate::output::{Bar, bytes, seconds};

/// The shortest time between two looks at the memory.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Shows progress on stderr.
pub struct Show {
    bar: Bar,
    n_blocks: usize,
    epochs: usize,
    tune_epochs: usize,
    secs_left: Option<f64>,
    /// When the memory was looked at last.
    looked: Option<Instant>,
    /// The most that was seen since the last block.
    resident: u64,
}

impl Show {
    /// Nothing yet, for a model of `n_blocks`.
    pub fn new(bar: Bar, n_blocks: usize, recipe: &Recipe) -> Self {
        let (epochs, tune_epochs) = (recipe.learn.epochs, recipe.tune.epochs);
        Self { bar, n_blocks, epochs, tune_epochs, secs_left: None, looked: None, resident: 0 }
    }

    /// Shows what happened. When a block is finished, returns what memory it took.
    pub fn on(&mut self, notice: &Notice) -> Option<Event> {
        self.look();
        match notice {
            Notice::Progress { done, total } => self.bar.set(*done, *total),
            Notice::Event(Event::BlockStarted { block }) => self.bar.message(self.block(*block)),
            Notice::Event(Event::Epoch { block, epoch, loss, secs_left, .. }) => {
                self.secs_left = *secs_left;
                let epoch = Nth { index: *epoch, of: self.epochs };
                let message = format!("{}, epoch {epoch}, loss {loss:.3e}{}", self.block(*block), self.memory());
                self.bar.message(message);
            }
            Notice::Event(Event::BlockFinished(block)) => {
                self.bar.line(|| {
                    let loss = block.final_loss.map_or(String::new(), |loss| format!(", loss {loss:.3e}"));
                    let (which, took, memory) = (self.block(block.index), block.wall_secs, self.memory());
                    format!("{which} finished in {took:.1} s{loss}{}{memory}", left(self.secs_left))
                });
                return Some(self.taken(Some(block.index)));
            }
            Notice::Event(Event::Tuned { epoch, divergence, secs_left, .. }) => {
                let epoch = Nth { index: *epoch, of: self.tune_epochs };
                let message = format!("tuning epoch {epoch}, divergence {divergence:.4}");
                self.bar.line(|| format!("{message}{}{}", left(*secs_left), self.memory()));
                self.bar.message(message + &self.memory());
            }
            Notice::Event(Event::BitsChosen { average, linears }) => self.bar.line(|| {
                let widths: Vec<String> = linears.iter().map(|(bits, n)| format!("{n} of {bits} bits")).collect();
                format!("linears: {}; {average:.3} bits on average", widths.join(", "))
            }),
            Notice::Event(_) => {}
        }
        None
    }

    /// The end: what memory was taken after the last block.
    pub fn finish(mut self) -> Event {
        self.looked = None;
        self.look();
        self.taken(None)
    }

    fn look(&mut self) {
        if self.looked.is_none_or(|looked| looked.elapsed() >= BETWEEN_LOOKS) {
            self.looked = Some(Instant::now());
            self.resident = self.resident.max(resident_bytes().unwrap_or_default());
        }
    }

    fn taken(&mut self, block: Option<usize>) -> Event {
        Event::Memory { block, resident_bytes: std::mem::take(&mut self.resident) }
    }

    fn block(&self, index: usize) -> String {
        format!("block {}", Nth { index, of: self.n_blocks })
    }

    fn memory(&self) -> String {
        if self.resident > 0 { format!(", {}", bytes(self.resident)) } else { String::new() }
    }
}

fn left(secs: Option<f64>) -> String {
    secs.map_or(String::new(), |secs| format!(", {} left", seconds(secs)))
}

/// `events.jsonl`, opened at the first event.
pub struct Events {
    path: PathBuf,
    file: Option<File>,
}

impl Events {
    /// The events of a run in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join(EVENTS), file: None }
    }

    /// Appends an event.
    pub fn write(&mut self, event: &Event) -> Result<()> {
        let context =
            || format!("cannot write {}; finished blocks are kept: continue with --resume", self.path.display());
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new().create(true).append(true).open(&self.path).with_context(context)?;
                // A full disk or a kill may have left a partial line.
                let written = std::fs::read(&self.path).with_context(context)?;
                let whole_lines = written.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
                file.set_len(whole_lines as u64).with_context(context)?;
                self.file.insert(file)
            }
        };
        file.write_all(event.to_line().as_bytes()).with_context(context)
    }
}
