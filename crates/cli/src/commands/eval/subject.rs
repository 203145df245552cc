//! The text that a model is evaluated on.

use std::path::Path;

use anyhow::Result;
use oq_data::{AddSpecial, Hub, Rows, Split, Tokenizer, load_text};
use oq_eval::{Divergence, EvalError, Perplexity, Progress, Reference, divergence, perplexity};
use oq_models::Model;
use oq_ranks::Ranks;
use oq_recipe::{Measurement, ModelEntry};
use tch::Device;

use crate::args::EvalDataArgs;
use crate::card;
use crate::exit::CliError;
use crate::output::Output;
use crate::resolve::data_path;

const DEFAULT_DATA: &str = "wikitext2";
const DEFAULT_SEQLEN: usize = 2048;

/// What to evaluate on.
pub struct Subject {
    /// A dataset's name or a file.
    pub data: String,
    /// Its tokens: at least one window.
    ids: Vec<u32>,
    seqlen: usize,
    windows: Option<usize>,
    /// Those that share the windows.
    ranks: Ranks,
}

impl Subject {
    /// The text of the command line, else of the model's own settings, else WikiText-2, tokenized by `model`. Windows have 2048 tokens,
    /// or as many as the model has positions, unless set.
    pub fn new(
        entry: Option<&ModelEntry>,
        model: &Model,
        args: &EvalDataArgs,
        seqlen: Option<usize>,
        out: &Output,
    ) -> Result<Self> {
        let defaults = entry.map(|entry| entry.eval.clone()).unwrap_or_default();
        // The window length set for another text does not apply to the user's own.
        let own_data = args.data.is_none();
        let data = args.data.clone().or(defaults.data).unwrap_or_else(|| DEFAULT_DATA.to_owned());
        let longest = DEFAULT_SEQLEN.min(model.decoder().dims().max_positions);
        let window = seqlen.or(defaults.seqlen.filter(|_| own_data)).unwrap_or(longest);
        if window < 2 {
            return Err(EvalError::NothingToPredict { seqlen: window }.into());
        }
        let ids = tokens(model.dir(), &data, Split::Test, args, out)?;
        if seqlen.is_none() && ids.len() < window {
            let message = format!(
                "{data} has {} tokens, less than a window of {window}: give a longer text with --data",
                ids.len()
            );
            return Err(CliError::Usage(message).into());
        }
        Ok(Self { data, ids, seqlen: window, windows: args.windows.map(|n| n as usize), ranks: Ranks::alone() })
    }

    /// The same text, with windows that are shared by ranks: each measures its part, and all get the whole.
    ///
    /// # Errors
    /// When there are fewer windows than ranks.
    pub fn shared(self, ranks: &Ranks) -> Result<Self> {
        let (n, size) = (self.n_windows(), ranks.size());
        // Without any, the text is too short for one process too, which says so.
        if (1..size).contains(&n) {
            let message = format!(
                "--ranks {size}: {} has {}: take as many ranks at most",
                self.data,
                card::windows(n, self.seqlen)
            );
            return Err(CliError::Usage(message).into());
        }
        Ok(Self { ranks: ranks.clone(), ..self })
    }

    fn n_windows(&self) -> usize {
        (self.ids.len() / self.seqlen).min(self.windows.unwrap_or(usize::MAX))
    }

    /// Measures this rank's part of the text, which is whole windows.
    fn of_part<T>(&self, measure: impl FnOnce(&[u32]) -> Result<T, EvalError>) -> Result<T, EvalError> {
        let n = self.n_windows();
        if self.ranks.size() == 1 || n == 0 {
            return measure(&self.ids);
        }
        let windows = self.ranks.range(n);
        let ids = &self.ids[windows.start * self.seqlen..windows.end * self.seqlen];
        measure(ids).map_err(|error| error.after(windows.start))
    }

    /// Number of tokens of the whole text.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The perplexity of `model`, whose tokenizer must be that of [`Self::new`].
    pub fn measure(&self, model: &Model, device: Device, what: &str, out: &Output) -> Result<Perplexity> {
        let bar = out.bar(what);
        let mut on = |progress: Progress| bar.set(progress.done, progress.total);
        let own = self.of_part(|ids| perplexity(model, ids, self.seqlen, self.windows, device, &mut on))?;
        Ok(own.joined(&mut |numbers| self.ranks.gathered(numbers))?)
    }

    /// How far `model`, whose tokenizer must be that of [`Self::new`], is from `full`.
    ///
    /// # Errors
    /// Also when the tokenizer of `full` divides the text into other tokens.
    pub fn compare(
        &self,
        full: &Model,
        model: &Model,
        args: &EvalDataArgs,
        device: Device,
        out: &Output,
    ) -> Result<Divergence> {
        if full.dir() != model.dir() && tokens(full.dir(), &self.data, Split::Test, args, out)? != self.ids {
            let [full, model] = [full, model].map(|model| model.dir().display());
            let message = format!(
                "{full} and {model} divide {} into different tokens, so their predictions cannot be compared",
                self.data
            );
            return Err(CliError::Usage(message).into());
        }
        let bar = out.bar("comparing");
        let mut on = |progress: Progress| bar.set(progress.done, progress.total);
        let own = self.of_part(|ids| divergence(full, model, ids, self.seqlen, self.windows, device, &mut on))?;
        Ok(own.joined(&mut |numbers| self.ranks.gathered(numbers))?)
    }

    /// The predictions of the full-precision model `full`, whose tokenizer must be that of [`Self::new`], to compare models with. They lie on
    /// the disk of `dir`.
    pub fn reference<'a>(&self, full: &'a Model, device: Device, dir: &Path, out: &Output) -> Result<Reference<'a>> {
        let bar = out.bar("full precision");
        let mut on = |progress: Progress| bar.set(progress.done, progress.total);
        Ok(Reference::new(full, &self.ids, self.seqlen, self.windows, device, dir, &mut on)?)
    }

    /// What is measured on, as it is recorded.
    pub fn on(&self) -> String {
        card::on(&self.data, &card::windows(self.n_windows(), self.seqlen))
    }

    /// The result as it is recorded.
    pub fn measured(&self, model: &str, result: &Perplexity) -> Measurement {
        card::perplexity(model, &self.data, result)
    }

    /// `wikitext2, 8 windows of 2048`.
    pub fn describe(&self, result: &Perplexity) -> String {
        format!("{}, {} windows of {}", self.data, result.window_nll.len(), result.seqlen)
    }
}

/// Ids of a text, by the model's tokenizer.
pub fn tokens(model: &Path, data: &str, split: Split, args: &EvalDataArgs, out: &Output) -> Result<Vec<u32>> {
    let tokenizer = Tokenizer::open(model)?;
    let rows = Rows::default().with_model(model);
    let rows = args.text_field.as_deref().map_or(rows, |field| rows.with_field(field));
    let text = load_text(&data_path(data), split, args.data_dir.as_deref(), &Hub::from_env(), rows)?;
    if let Some(about) = &text.about {
        out.note(&format!("note: {data}: {about}"));
    }
    Ok(tokenizer.encode(&text.text, AddSpecial::Yes)?)
}
