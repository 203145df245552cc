//! Which sites of a model a recipe transforms.

use oq_let::Site;
use oq_models::Decoder;
use oq_quant_core::{RotateKind, SiteKind};
use oq_recipe::{Method, Recipe};

/// Why a model cannot be transformed as a recipe asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
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
