//! The settings of a run and its records: [`Recipe`]s in TOML, the models and machines known by name, and run records.
//!
//! A recipe is resolved once, from the paper's settings, a preset, the model's own settings, a file and the command line. After that it is
//! complete; no later code fills in a setting.
//!
//! ```
//! use oq_recipe::{Overrides, Recipe, find};
//!
//! let scheme = "w3a16g128".parse()?;
//! let overrides = Overrides::default().samples(64);
//! let recipe = Recipe::resolve(scheme, find("llama2-7b"), None, &overrides)?;
//! // A quarter of the 20 of the paper.
//! assert_eq!((recipe.learn.epochs, recipe.calibration.samples), (5, 64));
//! assert!(recipe.transform.sites.is_empty(), "the paper transforms LLaMA only where activations are quantized too");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cache;
mod choices;
mod details;
mod embedded;
mod error;
mod machine;
mod model;
mod overrides;
mod parse;
mod patch;
mod preset;
mod recipe;
mod record;
mod setting;
mod tables;
mod when;

pub use cache::cache_dir;
pub use choices::{Family, Loss, Method, Preset, Rounding, Start};
pub use details::{
    BLOCKS, BlockDetails, CLIP_BINS, Errors, LinearDetails, MEASURED, Measurement, Metric, Planned, QUANTILES,
    Quantiles, SiteDetails,
};
pub use error::RecipeError;
pub use machine::{Profile, find_machine, machine_names};
pub use model::{EvalDefaults, ModelEntry, Source, WheelPart, find, names};
pub use patch::{RecipeFile, SharePatch};
pub use recipe::Text;
pub use record::{
    BITS, BlockRecord, EVENTS, Event, RECIPE, RECORDS, REPORT, RUN, RUN_FOLDER, RunRecord, StarvedExpert,
};
pub use tables::{
    BitBudget, BitsPatch, Calibration, CalibrationPatch, Key, KeyOption, Learn, LearnPatch, Outer, OuterPatch,
    Overrides, Recipe, Rotate, RotatePatch, Transform, TransformPatch, Tune, TunePatch, keys,
};
pub use when::When;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
