//! Which sites of a model a recipe transforms, and what their inputs hold.

use oq_let::{Action, InputStats, Site, Source};
use oq_models::{BlockWeights, Decoder, LinearName};
use oq_quant_core::{RotateKind, SiteKind};
use oq_recipe::Recipe;
use tch::Tensor;

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
        /// An option that does: the other sites that were asked for and are there.
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

/// The sites that `recipe` transforms; none for methods that transform nothing.
pub(crate) fn sites_of(decoder: &dyn Decoder, recipe: &Recipe) -> Result<Vec<Site>, SiteError> {
    let transform = &recipe.transform;
    if !recipe.method.reads_text() {
        return Ok(Vec::new());
    }
    let find = |kind| match (kind, recipe.rotate.kind) {
        (SiteKind::Updown, RotateKind::Online) => Err(ROTATED),
        _ => decoder.sites(kind),
    };
    let mut sites = Vec::new();
    for &kind in &transform.sites {
        let found = find(kind).map_err(|reason| {
            let others = transform.sites.iter().filter(|&&kind| find(kind).is_ok());
            let others: Vec<&str> = others.map(|kind| kind.name()).collect();
            let mend =
                if others.is_empty() { "--no-let".to_owned() } else { format!("--let-sites {}", others.join(",")) };
            SiteError::Missing { kind, reason, mend }
        });
        sites.extend(found?);
    }
    if transform.shift && !sites.is_empty() && !sites.iter().any(|site| site.can_shift) {
        return Err(SiteError::Shift);
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
