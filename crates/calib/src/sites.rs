//! Which sites of a model a recipe transforms, and what their inputs hold.

use oq_let::{Action, InputStats, Site, Source};
use oq_models::{BlockWeights, Decoder, LinearName, ModelError, Rotator, check_groups};
use oq_quant_core::{RotateKind, SiteKind};
use oq_recipe::{Method, Recipe};
use tch::Tensor;

use crate::error::CalibError;
use crate::inputs::Inputs;

/// Why a model cannot be transformed as a recipe asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// The model has no such place.
    #[error("let.sites: this model has no {kind} site: {reason}; leave it out: {mend}")]
    Missing {
        /// What was asked for.
        kind: SiteKind,
        /// Why it is not there.
        reason: &'static str,
        /// An option that does: the other sites that were asked for and are there, or none, or what is there at all.
        mend: String,
    },
    /// Nothing can take a shift up.
    #[error(
        "let.shift: no site of this model can be shifted, its linears or norms have no biases; say --let-shift false"
    )]
    Shift,
}

/// Why there are no scales on what the MLP's last linear reads.
const ROTATED: &str = "what the MLP's last linear reads is rotated while the model runs, and scales do not pass that";

/// An error where a recipe asks for what a model of this shape cannot have.
pub(crate) fn check_sites(decoder: &dyn Decoder, recipe: &Recipe) -> Result<(), CalibError> {
    check_groups(decoder, recipe.scheme.weight)?;
    Rotator::check(decoder, recipe.rotate.kind).map_err(ModelError::from)?;
    let (mut is_any, mut can_shift) = (false, false);
    for layer in 0..decoder.dims().n_layers {
        let sites = sites_of(decoder, recipe, layer)?;
        is_any |= !sites.is_empty();
        can_shift |= sites.iter().any(|site| site.can_shift);
    }
    if recipe.transform.shift && is_any && !can_shift {
        return Err(SiteError::Shift.into());
    }
    Ok(())
}

/// The sites of a layer that `recipe` transforms; none for methods that transform nothing.
pub(crate) fn sites_of(decoder: &dyn Decoder, recipe: &Recipe, layer: usize) -> Result<Vec<Site>, SiteError> {
    let transform = &recipe.transform;
    if !recipe.method.reads_text() {
        return Ok(Vec::new());
    }
    let find = |kind| match (kind, recipe.rotate.kind) {
        (SiteKind::Updown, RotateKind::Online) => Err(ROTATED),
        _ => decoder.sites(layer, kind),
    };
    let mut sites = Vec::new();
    for &kind in &transform.sites {
        let found = find(kind).map_err(|reason| {
            let there = |kinds: &[SiteKind]| {
                let there: Vec<&str> =
                    kinds.iter().filter(|&&kind| find(kind).is_ok()).map(|kind| kind.name()).collect();
                (!there.is_empty()).then(|| format!("--let-sites {}", there.join(",")))
            };
            let mend = there(&transform.sites).unwrap_or_else(|| match recipe.method {
                // It does nothing else.
                Method::Smoothquant => there(&SiteKind::ALL).unwrap_or_else(|| "--method rtn".to_owned()),
                _ => "--no-let".to_owned(),
            });
            SiteError::Missing { kind, reason, mend }
        });
        sites.extend(found?);
    }
    Ok(sites)
}

/// Whether the transformation scales what a linear is given.
pub(crate) fn is_rescaled(sites: &[Site], linear: LinearName) -> bool {
    let mut ports = sites.iter().flat_map(|site| &site.ports);
    ports.any(|port| port.module == linear.0 && port.action == Action::MultiplyInput)
}

/// A block's weights and what their inputs held.
pub(crate) struct Seen<'a> {
    pub(crate) weights: &'a BlockWeights,
    pub(crate) inputs: &'a Inputs,
}

impl Source for Seen<'_> {
    fn weight(&self, module: &str) -> &Tensor {
        self.weights.get(&format!("{module}.weight"))
    }

    fn inputs(&self, module: &str) -> Option<&InputStats> {
        self.inputs.of_sites.get(module)
    }
}
