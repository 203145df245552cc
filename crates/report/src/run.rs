//! What a run left in its folder, finished or not.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oq_recipe::{
    BITS, BLOCKS, BlockDetails, BlockRecord, EVENTS, Event, MEASURED, Measurement, Metric, Planned, RUN, Recipe,
    RunRecord,
};
use serde::{Deserialize, Serialize};

use crate::text::last_part;

/// Why a run cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The directory has no record of a run.
    #[error("{}: no run of omniquant is recorded there: give a directory that `omniquant quantize` wrote", dir.display())]
    NoRun {
        /// The directory.
        dir: PathBuf,
    },
    /// A record cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A run as far as it is recorded. What is not recorded is absent or empty.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Run {
    /// Its directory.
    pub dir: PathBuf,
    /// The model as given by the user.
    pub model: String,
    /// The resolved recipe.
    pub recipe: Recipe,
    /// Blocks of the model.
    pub n_blocks: usize,
    /// Whether it has ended.
    pub is_finished: bool,
    /// What was known before it started.
    pub planned: Option<Planned>,
    /// The machine and the libraries, once it is finished.
    pub surroundings: Option<Surroundings>,
    /// Bytes of the output and bits per quantized weight, once it is finished.
    pub size: Option<Size>,
    /// Finished blocks, in order.
    pub blocks: Vec<BlockRecord>,
    /// The block that is being learned, with its losses so far.
    pub current: Option<(usize, Vec<f64>)>,
    /// Seconds that are left, as the run itself estimated them last.
    pub secs_left: Option<f64>,
    /// What learning did to each block.
    pub details: Vec<BlockDetails>,
    /// Resident memory by block.
    pub memory: BTreeMap<usize, u64>,
    /// Divergence of each epoch of tuning, in nats.
    pub tuning: Vec<f64>,
    /// The widths that were chosen, if they were.
    pub bits: Option<Bits>,
    /// What was measured of the result.
    pub measured: Vec<Measurement>,
}

/// Machine, libraries, time and memory of a finished run.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "fields mean what they mean in RunRecord")]
pub struct Surroundings {
    pub version: String,
    pub device: String,
    pub compute: String,
    pub threads: usize,
    pub libtorch: String,
    pub tch: String,
    pub wall_secs: f64,
    pub peak_bytes: u64,
    pub started_unix: u64,
    pub finished_unix: u64,
    /// Whether the time is only that since the run was resumed.
    pub is_resumed: bool,
}

/// Size of a packed model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Size {
    /// Of all tensors.
    pub bytes: u64,
    /// Mean bits of a quantized weight, with scales and zero points.
    pub bits_per_weight: Option<f64>,
}

/// Widths that were chosen, and what they were chosen by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bits {
    /// Average bits of a code.
    pub average: f64,
    /// Seconds that the choice took.
    pub wall_secs: f64,
    /// The widths to choose from.
    pub choices: Vec<u32>,
    /// The linears that share a width.
    pub units: Vec<Unit>,
}

/// Linears that share a width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    /// Their block, from 0.
    pub block: usize,
    /// Their names.
    pub linears: Vec<String>,
    /// Their weights.
    pub weights: u64,
    /// The chosen bits.
    pub bits: u32,
    /// Estimated divergence of the predictions for each choice, in nats per token, if only these linears are quantized.
    pub divergence: Vec<f64>,
}

impl Run {
    /// Reads the records of the run in `dir`. Lines that are not understood, such as one that is being written, are passed over.
    pub fn read(dir: &Path) -> Result<Self, ReportError> {
        let text = |path: &str| match fs::read_to_string(dir.join(path)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(ReportError::Io { path: dir.join(path), source }),
        };
        let no_run = || ReportError::NoRun { dir: dir.to_owned() };
        let events = text(EVENTS)?.ok_or_else(no_run)?;
        let mut seen = Seen::default();
        events.lines().filter_map(|line| serde_json::from_str(line).ok()).for_each(|event| seen.take(event));
        let Seen { begun, starts, is_finished, blocks, current, secs_left, memory, tuning } = seen;
        let (model, recipe, n_blocks, planned) = begun.ok_or_else(no_run)?;
        let record = text(RUN)?.and_then(|text| serde_json::from_str::<RunRecord>(&text).ok()).filter(|_| is_finished);
        let (mut blocks, mut tuned) = (blocks, tuning);
        if let Some(record) = &record {
            blocks.clone_from(&record.blocks);
            tuned.clone_from(&record.tuning);
        }
        let mut details: BTreeMap<usize, BlockDetails> = BTreeMap::new();
        for line in text(BLOCKS)?.unwrap_or_default().lines() {
            if let Ok(of_block) = serde_json::from_str::<BlockDetails>(line) {
                details.insert(of_block.index, of_block);
            }
        }
        let is_known = |of_block: &BlockDetails| of_block.index < blocks.len();
        let measured = text(MEASURED)?.unwrap_or_default();
        let size = || {
            oq_formats::inspect(dir)
                .ok()
                .map(|about| Size { bytes: about.total_bytes, bits_per_weight: about.bits_per_weight() })
        };
        Ok(Self {
            dir: dir.to_owned(),
            model,
            recipe: *recipe,
            n_blocks,
            is_finished,
            planned,
            size: if is_finished { size() } else { None },
            current,
            secs_left,
            details: details.into_values().filter(is_known).collect(),
            memory,
            tuning: tuned,
            bits: text(BITS)?.and_then(|text| serde_json::from_str(&text).ok()),
            measured: measured.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
            surroundings: record.map(|record| Surroundings {
                version: record.version,
                device: record.device,
                compute: record.compute,
                threads: record.threads,
                libtorch: record.libtorch,
                tch: record.tch,
                wall_secs: record.wall_secs,
                peak_bytes: record.peak_bytes,
                started_unix: record.started_unix,
                finished_unix: record.finished_unix,
                is_resumed: starts > 1,
            }),
            blocks,
        })
    }

    /// The last part of its directory.
    pub fn name(&self) -> String {
        let dir = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        dir.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// The last part of the model's name.
    pub fn model_name(&self) -> &str {
        last_part(&self.model)
    }

    /// Measurements of the model that was written.
    pub fn of_result(&self) -> impl Iterator<Item = &Measurement> {
        self.measured.iter().filter(|row| row.model == Measurement::THIS)
    }

    /// The same measurement of another model.
    pub(crate) fn beside(&self, row: &Measurement, model: &str) -> Option<f64> {
        let same = |other: &&Measurement| other.model == model && (other.metric, &other.on) == (row.metric, &row.on);
        self.measured.iter().find(same).map(|row| row.value)
    }

    /// A measurement of the result, the first of this metric.
    pub(crate) fn first(&self, metric: Metric) -> Option<&Measurement> {
        self.of_result().find(|row| row.metric == metric)
    }
}

/// What events say.
#[derive(Default)]
struct Seen {
    begun: Option<(String, Box<Recipe>, usize, Option<Planned>)>,
    /// Starts after which blocks were made.
    starts: usize,
    is_finished: bool,
    blocks: Vec<BlockRecord>,
    current: Option<(usize, Vec<f64>)>,
    secs_left: Option<f64>,
    memory: BTreeMap<usize, u64>,
    tuning: Vec<f64>,
}

impl Seen {
    fn take(&mut self, event: Event) {
        match event {
            Event::RunStarted { model, recipe, blocks, planned, .. } => {
                self.starts = if self.blocks.is_empty() { 1 } else { self.starts + 1 };
                self.begun = Some((model, recipe, blocks, planned));
                (self.is_finished, self.current, self.secs_left) = (false, None, None);
            }
            Event::BlockStarted { block } => {
                // It is made again, with those after it.
                self.blocks.truncate(block);
                self.current = Some((block, Vec::new()));
            }
            Event::Epoch { loss, secs_left, .. } => {
                self.secs_left = secs_left;
                self.current.iter_mut().for_each(|(_, losses)| losses.push(loss));
            }
            Event::Retry { .. } => self.current.iter_mut().for_each(|(_, losses)| losses.clear()),
            Event::BlockFinished(block) => {
                self.current = None;
                if block.index == self.blocks.len() {
                    self.blocks.push(block);
                }
            }
            Event::Memory { block: Some(block), resident_bytes } => drop(self.memory.insert(block, resident_bytes)),
            Event::Tuned { epoch, divergence, secs_left, .. } => {
                self.secs_left = secs_left;
                self.tuning.truncate(epoch);
                self.tuning.push(divergence);
            }
            Event::RunFinished { .. } => {
                (self.is_finished, self.secs_left) = (true, None);
            }
            Event::Memory { block: None, .. } | Event::BitsChosen { .. } => {}
        }
    }
}
