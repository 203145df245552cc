//! The chosen width of each unit, in a file beside the journal, so that a resumed run does not measure again.

use std::collections::BTreeMap;
use std::path::Path;

use oq_formats::{FormatError, atomic_write};
use oq_models::{Decoder, LinearName, intern};
use oq_quant_core::{Bits, WeightSpec};
use oq_recipe::{BitBudget, Recipe};
use serde::{Deserialize, Serialize};

use crate::disk::identity::Identity;
use crate::disk::names::WIDTHS;
use crate::model::allocate::{Demand, allocate};
use crate::model::sensitivity::Unit;
use crate::widths::{Open, Widths};

/// The file: the widths chosen for a run, and the measurements behind them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Choice {
    /// The run.
    identity: Identity,
    /// Hash of the weights of each block, see [`Sources`](crate::disk::identity::Sources).
    sources: Vec<String>,
    /// Average bits per code, overridden linears included.
    pub(crate) average: f64,
    /// Seconds that the measurement took.
    wall_secs: f64,
    /// Widths to choose from.
    choices: Vec<Bits>,
    units: Vec<Chosen>,
}

/// Linears that share one width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Chosen {
    block: usize,
    linears: Vec<String>,
    weights: u64,
    bits: Bits,
    /// Estimated divergence for each width, in nats per token, if only these linears are quantized.
    divergence: Vec<f64>,
}

impl Choice {
    /// Chooses widths by the measured costs.
    pub(crate) fn new(
        (identity, sources): (&Identity, Vec<String>),
        (budget, open): (&BitBudget, &Open),
        units: Vec<Unit>,
        wall_secs: f64,
    ) -> Self {
        let demands: Vec<Demand> = units.iter().map(|unit| unit.demand.clone()).collect();
        let widths: Vec<u32> = budget.choices.iter().map(|bits| bits.get()).collect();
        let places = allocate(&demands, &widths, open.share(budget.average));
        let chosen = units.into_iter().zip(places).map(|(unit, place)| Chosen {
            block: unit.block,
            linears: unit.linears.iter().map(|name| name.0.to_owned()).collect(),
            weights: unit.demand.weights,
            bits: budget.choices[place],
            divergence: unit.demand.costs,
        });
        let units: Vec<Chosen> = chosen.collect();
        let average = open.overall(units.iter().map(|unit| unit.weights * u64::from(unit.bits.get())).sum());
        Self { identity: identity.clone(), sources, average, wall_secs, choices: budget.choices.clone(), units }
    }

    /// The choice stored in `dir`, if it was made for this run and for the same weights.
    pub(crate) fn read(dir: &Path, identity: &Identity, sources: &[String]) -> Option<Self> {
        let choice: Self = serde_json::from_slice(&std::fs::read(dir.join(WIDTHS)).ok()?).ok()?;
        (choice.identity == *identity && choice.sources == sources).then_some(choice)
    }

    /// Writes the file atomically.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), FormatError> {
        let text = serde_json::to_string_pretty(self).expect("plain data is JSON") + "\n";
        atomic_write(&dir.join(WIDTHS), text.as_bytes())
    }

    /// Number of linears by width.
    pub(crate) fn linears(&self) -> Vec<(u32, usize)> {
        let mut linears: BTreeMap<u32, usize> = BTreeMap::new();
        for unit in &self.units {
            *linears.entry(unit.bits.get()).or_default() += unit.linears.len();
        }
        linears.into_iter().collect()
    }

    /// The widths of all linears, everything else as the recipe says; none if the choice does not fit the model's shape.
    pub(crate) fn widths(&self, decoder: &dyn Decoder, recipe: &Recipe) -> Option<Widths> {
        let (mut widths, mut open) =
            (Widths::of_recipe(decoder, recipe).ok()?, Open::of(decoder, recipe).ok()?.linears);
        for unit in &self.units {
            for name in &unit.linears {
                let linear = LinearName(intern(name));
                let weight = open.remove(&(unit.block, linear))?;
                widths.set(unit.block, linear, WeightSpec { bits: unit.bits, ..weight });
            }
        }
        open.is_empty().then_some(widths)
    }
}
