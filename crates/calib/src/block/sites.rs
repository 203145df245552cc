//! The sites of a model that a recipe transforms.

use oq_let::Site;
use oq_models::Decoder;
use oq_quant_core::{RotateKind, SiteKind};
use oq_recipe::{Method, Recipe};

/// Why a model cannot be transformed as a recipe asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SiteError {
    /// The model has no such site.
    #[error("let.sites: this model has no {kind} site: {reason}; leave it out: {mend}")]
    Missing {
        /// The kind that was requested.
        kind: SiteKind,
        /// Why the model does not have it.
        reason: &'static str,
        /// The option that fixes it: the requested sites that exist; if there are none, no transformation; if the method needs one, any
        /// sites that exist.
        mend: String,
    },
    /// No site can take a shift.
    #[error(
        "let.shift: no site of this model can be shifted, because its linears or norms have no biases: use --let-shift false"
    )]
    Shift,
}

/// Why the MLP's last linear has no scales on its input.
const ROTATED: &str = "the input of the MLP's last linear is rotated online, and scales do not pass through a rotation";

/// The sites of a layer that `recipe` transforms; none if its method transforms nothing.
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
                // SmoothQuant does nothing but transform.
                Method::Smoothquant => there(&SiteKind::ALL).unwrap_or_else(|| "--method rtn".to_owned()),
                _ => "--no-let".to_owned(),
            });
            SiteError::Missing { kind, reason, mend }
        });
        sites.extend(found?);
    }
    Ok(sites)
}
