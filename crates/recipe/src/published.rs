//! The settings of OmniQuant's experiments (arXiv 2308.13137, section 4.1 and appendix), by scheme and family.
//!
//! What the paper sets for single models of a family stands in their folders of `configs/`.

use oq_quant_core::{ActSpec, QuantSpec, RotateKind, SiteKind};

use crate::{Calibration, Family, Learn, Loss, Method, Recipe, Rotate, Rounding, Start, Transform, Tune};

/// Tokens of a segment.
pub(crate) const SEQLEN: usize = 2048;

/// The paper's settings for a scheme; `chat` and `post_norm` are those of [`crate::ModelEntry`].
///
/// Weight widths that the paper does not have take the settings of W4, activations of 5 bits and more those of W6A6, of
/// fewer those of W4A4.
pub(crate) fn published(scheme: QuantSpec, family: Family, chat: bool, post_norm: bool) -> Recipe {
    let (epochs, aug_loss) = match (family, scheme.weight.bits.get(), few_act_bits(scheme)) {
        // The paper has no such runs of Falcon, which takes LLaMA's.
        (Family::Llama | Family::Falcon, _, Some(few)) => (20, few),
        (Family::Opt, _, Some(_)) => (20, false),
        (Family::Llama, 2, None) => (40, true),
        (Family::Llama, 3, None) => (20, chat),
        (Family::Llama, _, None) => (20, false),
        (Family::Opt, 2, None) => (40, false),
        (Family::Opt, _, None) => (20, false),
        // The paper has Falcon at 3 bits only; 2 bits take LLaMA's.
        (Family::Falcon, 2, None) => (40, true),
        (Family::Falcon, _, None) => (10, true),
    };
    Recipe {
        scheme,
        method: Method::Omniquant,
        calibration: Calibration { data: "wikitext2".to_owned(), samples: 128, seqlen: SEQLEN, seed: 2, batch: 1 },
        // The paper's text swaps this rate with the one of its transformation; its code has 1e-2 here, 5e-3 there.
        learn: Learn {
            epochs,
            lwc_lr: 1e-2,
            aug_loss,
            loss: Loss::Mse,
            start: Start::Whole,
            rounding: Rounding::Fixed,
        },
        transform: published_transform(scheme, family, post_norm),
        // The paper has none; the rate was chosen on SmolLM2-135M (`benches/record`).
        tune: Tune { epochs: 0, lr: 5e-3 },
        rotate: Rotate::default(),
        bits: None,
    }
}

fn published_transform(scheme: QuantSpec, family: Family, post_norm: bool) -> Transform {
    let few_act_bits = few_act_bits(scheme);
    let sites = match (family, few_act_bits) {
        (Family::Llama | Family::Falcon, None) => Vec::new(),
        _ => default_sites(scheme, post_norm),
    };
    // Shifts take the offsets out of OPT's activations; weights alone have nothing to gain from them.
    let shift = family == Family::Opt && few_act_bits.is_some();
    let alpha = if family == Family::Opt && few_act_bits == Some(true) { 0.75 } else { 0.5 };
    Transform { sites, shift, lr: 5e-3, alpha }
}

/// The sites of the paper that help a scheme, of those that a model has.
pub(crate) fn default_sites(scheme: QuantSpec, post_norm: bool) -> Vec<SiteKind> {
    let mut sites = vec![SiteKind::Norm, SiteKind::Vo];
    if post_norm {
        // Such a norm's output is also what the next residual sum starts from: it has no channels of its own.
        sites.retain(|&site| site != SiteKind::Norm);
    }
    if scheme.act != ActSpec::Float {
        // Left out for weights alone: it scales whole rows, and a row's codes do not depend on its scale.
        sites.push(SiteKind::Qk);
    }
    sites
}

/// The rotations that help a scheme beyond the paper: those of LLaMA's activations in few bits. What ReLU makes is positive and fills its grids,
/// which rotations take from it: tiny-opt is worse off by 3 % with them.
pub(crate) fn default_rotation(scheme: QuantSpec, family: Family) -> RotateKind {
    match (family, few_act_bits(scheme)) {
        (Family::Llama, Some(true)) => RotateKind::Online,
        _ => RotateKind::None,
    }
}

/// Whether activations have 4 bits or fewer; none where they are not quantized.
fn few_act_bits(scheme: QuantSpec) -> Option<bool> {
    match scheme.act {
        ActSpec::Float => None,
        ActSpec::PerToken(bits) => Some(bits.get() <= 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Overrides, Preset, find, recipe_for};

    /// What a model of `configs/` is quantized by when nothing is typed but the scheme.
    fn resolve(model: &str, scheme: &str) -> Recipe {
        let scheme = scheme.parse().unwrap();
        let paper = Overrides { preset: Some(Preset::Paper), ..Overrides::default() };
        Recipe::resolve(scheme, find(model), recipe_for(model, scheme), &paper).unwrap()
    }

    #[test]
    fn clipping_of_the_paper() {
        #[track_caller]
        fn check(model: &str, scheme: &str, epochs: usize, aug_loss: bool, samples: usize) {
            let recipe = resolve(model, scheme);
            let (start, rounding) = (Start::Whole, Rounding::Fixed);
            assert_eq!(recipe.learn, Learn { epochs, lwc_lr: 1e-2, aug_loss, loss: Loss::Mse, start, rounding });
            let data = "wikitext2".to_owned();
            assert_eq!(recipe.calibration, Calibration { data, samples, seqlen: 2048, seed: 2, batch: 1 });
            assert_eq!(recipe.method, Method::Omniquant);
        }
        check("llama-7b", "w4a16g128", 20, false, 128);
        check("llama-7b", "w3a16", 20, false, 128);
        check("llama2-13b", "w2a16g64", 40, true, 128);
        check("llama2-70b", "w4a16g128", 20, false, 128);
        check("llama2-70b", "w2a16", 40, true, 128);
        check("llama2-7b-chat", "w3a16g128", 20, true, 128);
        check("llama2-7b-chat", "w4a16g128", 20, false, 128);
        check("opt-6.7b", "w2a16g128", 40, false, 128);
        check("opt-6.7b", "w3a16g128", 20, false, 128);
        check("falcon-7b", "w3a16g64", 10, true, 128);
        check("falcon-180b", "w3a16g512", 40, true, 32);

        check("llama-7b", "w4a4", 20, true, 128);
        check("llama-7b", "w6a6", 20, false, 128);
        check("llama-30b", "w4a4", 20, true, 128);
        check("llama2-7b", "w4a4", 20, false, 128);
        check("llama2-13b", "w6a6", 20, false, 128);
        check("opt-6.7b", "w4a4", 20, false, 128);
        check("opt-6.7b", "w6a6", 20, false, 128);
    }

    #[test]
    fn transformation_of_the_paper() {
        #[track_caller]
        fn check(model: &str, scheme: &str, sites: &[SiteKind], shift: bool, lr: f64, alpha: f64) {
            assert_eq!(resolve(model, scheme).transform, Transform { sites: sites.to_vec(), shift, lr, alpha });
        }
        use SiteKind::{Norm, Qk, Vo};
        check("llama-7b", "w2a16g64", &[], false, 5e-3, 0.5);
        check("llama-7b", "w4a4", &[Norm, Vo, Qk], false, 5e-3, 0.5);
        check("llama-7b", "w6a6", &[Norm, Vo, Qk], false, 5e-3, 0.5);
        check("llama-30b", "w4a4", &[Norm, Vo, Qk], false, 5e-3, 0.75);
        check("llama-30b", "w6a6", &[Norm, Vo, Qk], false, 5e-3, 0.5);
        check("llama2-7b", "w4a4", &[Norm, Vo, Qk], false, 1e-3, 0.75);
        check("llama2-7b", "w6a6", &[Norm, Vo, Qk], false, 5e-3, 0.5);
        check("opt-6.7b", "w2a16g64", &[Norm, Vo], false, 5e-3, 0.5);
        check("opt-6.7b", "w4a16", &[Norm, Vo], false, 5e-3, 0.5);
        check("opt-66b", "w4a16", &[Norm, Vo], false, 5e-3, 0.5);
        check("opt-66b", "w3a16", &[Norm, Vo], false, 5e-3, 0.3);
        check("opt-66b", "w3a16g128", &[Norm, Vo], false, 5e-3, 0.3);
        check("opt-6.7b", "w4a4", &[Norm, Vo, Qk], true, 5e-3, 0.75);
        check("opt-6.7b", "w6a6", &[Norm, Vo, Qk], true, 5e-3, 0.5);
        check("falcon-7b", "w3a16g64", &[], false, 5e-3, 0.5);
    }

    #[test]
    fn beyond_the_paper() {
        #[track_caller]
        fn check(model: &str, scheme: &str, epochs: usize, aug_loss: bool, sites: &[SiteKind], alpha: f64) {
            let Recipe { learn, transform, .. } = resolve(model, scheme);
            assert_eq!((learn.epochs, learn.aug_loss), (epochs, aug_loss));
            assert_eq!((transform.sites.as_slice(), transform.alpha), (sites, alpha));
        }
        use SiteKind::{Norm, Qk, Vo};
        check("llama-7b", "w8a8", 20, false, &[Norm, Vo, Qk], 0.5);
        check("llama-7b", "w4a8g128", 20, false, &[Norm, Vo, Qk], 0.5);
        check("llama-7b", "w2a3", 20, true, &[Norm, Vo, Qk], 0.5);
        check("opt-1.3b", "w8a3", 20, false, &[Norm, Vo, Qk], 0.75);
        check("falcon-40b", "w4a4", 20, true, &[Norm, Vo, Qk], 0.5);
        check("falcon-40b", "w6a6", 20, false, &[Norm, Vo, Qk], 0.5);
        check("falcon-40b", "w4a16", 10, true, &[], 0.5);
        // OPT-350M has its norms at the ends of its blocks.
        check("opt-350m", "w4a16", 20, false, &[Vo], 0.5);
        check("opt-350m", "w5a16g64", 20, false, &[Vo], 0.5);
        check("opt-350m", "w4a4", 20, false, &[Vo, Qk], 0.75);
        check("opt-350m", "w8a8", 20, false, &[Vo, Qk], 0.5);
    }
}
