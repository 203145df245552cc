//! The model card: `README.md` of a packed model, for those to whom it is published. It says what the model is, how it was made and
//! measured, and which programs open it. An existing `README.md` is never overwritten; measurements go between its marks.

mod markdown;
mod origin;
mod programs;
mod results;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use oq_export::{Limit, Subject, Tensor};
use oq_formats::atomic_write;
use oq_quant_core::{ActSpec, GroupSize, RotateKind, Storage, Symmetry};
use oq_recipe::{Method, RUN_FOLDER, Recipe};

use self::markdown::{block, code, command, plain, quoted, table};
use self::programs::{cells, example, examples, limits, others};
use crate::last_part::last_part;
use crate::output::bytes;

pub use self::origin::Origin;
pub use self::programs::warning;
pub use self::results::CARD;
pub use self::results::{THIS, check, divergence, on, perplexity, record, recorded, task, windows};

/// What a card says.
pub struct Card<'a> {
    /// A name for the packed model.
    pub name: &'a str,
    /// The model that was quantized, as named on the command line.
    pub model: &'a str,
    /// Where it comes from.
    pub origin: &'a Origin,
    /// The settings of the run.
    pub recipe: &'a Recipe,
    /// How it was quantized.
    pub subject: &'a Subject,
    /// Mean bits of a code.
    pub bits_per_code: f64,
    /// Mean bits of a quantized weight, with scales and zero points.
    pub bits_per_weight: f64,
    /// Bytes of all tensors, before and after.
    pub bytes: [u64; 2],
    /// The command that made it.
    pub command: &'a [&'a str],
}

impl Card<'_> {
    /// Writes the card to `dir`, unless there is a file of its name.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(CARD);
        if !path.exists() {
            atomic_write(&path, self.text().as_bytes())?;
        }
        Ok(())
    }

    /// The text of the card.
    fn text(&self) -> String {
        let recipe = self.recipe;
        let mut text = self.front_matter();
        let mut say = |part: &str| write!(text, "\n{part}").expect("writing to a string cannot fail");
        say(&format!("# {}\n", plain(self.name)));
        say(&format!("{}\n", self.introduction()));
        let scheme = code(&self.subject.to_string());
        say(&table(["scheme", &scheme], self.properties()));
        say("## Quality\n");
        let measure = [command(["omniquant", "eval", self.model]), command(["omniquant", "eval", self.name, "--card"])];
        let nothing = format!(
            "Not measured yet. These commands measure perplexity on WikiText-2 in full precision and of this model; the second one writes \
             it here:\n\n{}",
            block("sh", &measure.join("\n"))
        );
        say(&results::section(&[], &nothing));
        say("## How to run it\n");
        let others = others(self.subject);
        let own = ["omniquant", "with packed or decoded weights", "tested"].map(str::to_owned);
        let opened = others.as_deref().unwrap_or_default();
        let rows = [own].into_iter().chain(opened.iter().map(|program| cells(program)));
        say(&table(["program", "how it computes", ""], rows));
        match &others {
            Err(refusal) => say(&format!("Other programs refuse this model: {}.\n", plain(&refusal.why))),
            Ok(programs) if programs.is_empty() && limits(self.subject).is_empty() => {
                say("Other programs were not tried on it.\n");
            }
            Ok(_) => {
                for Limit { name, why, instead, .. } in limits(self.subject) {
                    say(&format!("Not with {name}: {why}. Quantize with {instead} for it.\n"));
                }
            }
        }
        let (language, own) = example(self.name);
        say(&block(language, &own));
        for (name, language, text) in examples(opened, self.name) {
            say(&format!("{name}:\n\n{}", block(language, &text)));
        }
        say("## How it was made\n");
        say(&block("sh", &command(self.command.iter().copied())));
        let version = env!("CARGO_PKG_VERSION");
        say(&format!("With omniquant {version}. Of paths, only the last part is shown."));
        if recipe.method.learns() {
            say(&format!("All settings are in `{}`, if that was published too.", oq_recipe::RECIPE));
        }
        text.push('\n');
        text
    }

    /// What programs read of a card.
    fn front_matter(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        if let Some(base) = &self.origin.base {
            lines.push(format!("base_model: {}", quoted(base)));
        }
        if self.origin.is_known {
            lines.push("base_model_relation: quantized".to_owned());
        }
        lines.extend(self.origin.terms.iter().map(|(key, value)| format!("{key}: {}", quoted(value))));
        let opened = others(self.subject).unwrap_or_default();
        let in_transformers = opened.iter().any(|program| program.name.starts_with("transformers"));
        lines.push(format!("library_name: {}", if in_transformers { "transformers" } else { "omniquant" }));
        lines.extend(
            ["pipeline_tag: text-generation", "tags:", "- omniquant", "- quantized", "- compressed-tensors"]
                .map(str::to_owned),
        );
        let widths: BTreeSet<u32> = self.subject.weights().iter().map(|weight| weight.bits.get()).collect();
        lines.extend(widths.iter().map(|bits| format!("- {bits}-bit")));
        format!("---\n{}\n---\n", lines.join("\n"))
    }

    fn introduction(&self) -> String {
        let base = match (&self.origin.base, self.origin.is_known) {
            (Some(base), true) => code(base),
            (Some(base), false) => format!("{} (its files name {})", code(self.model), code(base)),
            (None, _) => code(self.model),
        };
        let bits = self.bits_per_code;
        let bits = if bits.fract() == 0.0 { format!("{bits}") } else { format!("{bits:.2}") };
        let how = match self.recipe.method {
            Method::Omniquant => "OmniQuant ([arXiv 2308.13137](https://arxiv.org/abs/2308.13137))",
            Method::Smoothquant => "SmoothQuant ([arXiv 2211.10438](https://arxiv.org/abs/2211.10438))",
            Method::Rtn => "rounding to nearest",
        };
        let terms = match self.origin.terms.iter().find(|(key, _)| *key == "license") {
            Some((_, name)) => format!("Its licence is {}, like the original's.", plain(name)),
            None => "The original's terms of use apply.".to_owned(),
        };
        format!("This is {base}, quantized to {bits} bits per weight by {how}. {terms}")
    }

    fn properties(&self) -> Vec<[String; 2]> {
        let recipe = self.recipe;
        let mut rows = Vec::new();
        let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
        row("weights", weights(recipe));
        row("activations", activations(recipe.scheme.act));
        if !recipe.overrides.is_empty() {
            let own: Vec<String> = recipe.overrides.iter().map(|own| code(&own.to_string())).collect();
            row("overrides", own.join(", "));
        }
        let outer: Vec<String> = self.subject.outer().iter().filter_map(outer_row).collect();
        if !outer.is_empty() {
            row("outside the blocks", outer.join(", "));
        }
        row("not quantized", not_quantized(self.subject));
        let [before, after] = self.bytes.map(bytes);
        let rate = self.bits_per_weight;
        row("size", format!("{after}, originally {before}; {rate:.3} bits per quantized weight, scales included"));
        row("method", method(recipe));
        if recipe.rotate.kind != RotateKind::None {
            row("rotation", recipe.rotate.kind.to_string());
        }
        if recipe.reads_text() {
            let data = code(&last_part(&recipe.calibration.data));
            row(
                "calibration text",
                format!("{data}: {} segments of {} tokens", recipe.segments(), recipe.text().tokens),
            );
        }
        row(
            "folder of the run",
            format!("`{RUN_FOLDER}`: records of how it was made; no program needs it to run the model"),
        );
        rows
    }
}

fn outer_row(tensor: &Tensor) -> Option<String> {
    Some(format!("{} by {}, rounded to nearest", code(&tensor.name), code(&tensor.weight?.to_string())))
}

fn not_quantized(subject: &Subject) -> String {
    let has = |head: bool| subject.outer().iter().any(|tensor| (tensor.name == "lm_head") == head);
    let linears = subject.leaves_out().then_some("some linears (see overrides)");
    let embedding = (!has(false)).then_some("embeddings");
    let head = (!has(true)).then_some(if has(false) { "an output head of its own" } else { "output head" });
    let parts = [linears, embedding, head, Some("norms"), Some("biases")];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn weights(recipe: &Recipe) -> String {
    let weight = recipe.scheme.weight;
    if recipe.scheme.mixture.is_some() || weight.storage != Storage::Half {
        return format!("{}, {} bits in most linears", recipe.scheme.to_string().to_uppercase(), weight.bits);
    }
    let bits = match &recipe.bits {
        Some(bits) => format!("{} bits on average, each linear its own number", bits.average),
        None => format!("{} bits", weight.bits),
    };
    let shared = match weight.group {
        GroupSize::PerChannel => "each output channel".to_owned(),
        GroupSize::Channels(n) => format!("each {n} weights"),
    };
    let grid = match weight.symmetry {
        Symmetry::Asymmetric => "a scale and a zero point",
        Symmetry::Symmetric | Symmetry::FullRange => "a scale",
    };
    if weight.storage != Storage::Half {
        return format!("{bits}, as the type {}", code(&weight.to_string()));
    }
    format!("{bits}, with {grid} for {shared}")
}

fn activations(act: ActSpec) -> String {
    match act {
        ActSpec::Float => "not quantized".to_owned(),
        ActSpec::PerToken(bits) => {
            format!(
                "{bits} bits, with a scale and a zero point for each token: inputs of linears, queries, keys and values"
            )
        }
        ActSpec::PerTokenSymmetric(bits) => format!("{bits} bits, with a scale for each token: inputs of linears"),
    }
}

fn method(recipe: &Recipe) -> String {
    let sites: Vec<&str> = recipe.transform.sites.iter().map(|site| site.name()).collect();
    let rescaled = || format!("channels rescaled at {}", sites.join(", "));
    let parts = match recipe.method {
        Method::Rtn => vec!["rounded to nearest".to_owned()],
        Method::Smoothquant => vec![rescaled()],
        Method::Omniquant => {
            let learn = &recipe.learn;
            let mut parts = vec![
                format!("clipping learned in {} from `{}`", epochs(learn.epochs), learn.start),
                format!("rounding {}", learn.rounding),
            ];
            parts.extend((!sites.is_empty()).then(rescaled));
            let tuned = || format!("all blocks tuned together in {}", epochs(recipe.tune.epochs));
            parts.extend((recipe.tune.epochs > 0).then(tuned));
            parts
        }
    };
    parts.join(", ")
}

fn epochs(n: usize) -> String {
    if n == 1 { "1 epoch".to_owned() } else { format!("{n} epochs") }
}

#[cfg(test)]
mod tests;
