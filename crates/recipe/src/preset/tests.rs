use super::*;
use crate::{Loss, Overrides, Rounding, Start, find, names};

/// What a model of `configs/` is quantized by when nothing is typed but the scheme.
fn resolve(model: &str, scheme: &str) -> Recipe {
    let scheme = scheme.parse().unwrap();
    let paper = Overrides::default().preset(Preset::Paper);
    Recipe::resolve(scheme, find(model), None, &paper).unwrap()
}

#[test]
fn clipping_of_the_paper() {
    #[track_caller]
    fn check(model: &str, scheme: &str, epochs: usize, aug_loss: bool, samples: usize) {
        let recipe = resolve(model, scheme);
        let (start, rounding) = (Start::Whole, Rounding::Fixed);
        assert_eq!(
            recipe.learn,
            Learn { epochs, lwc_lr: 1e-2, aug_loss, loss: Loss::Mse, start, rounding, expert_tokens: 0 }
        );
        let data = "wikitext2".to_owned();
        assert_eq!(recipe.calibration, Calibration { data, samples, seqlen: 2048, seed: 2, batch: 1, steps: 0 });
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

fn has_settings(model: &crate::ModelEntry) -> bool {
    let bare = crate::ModelEntry::of_directory(Path::new(&model.name), &serde_json::Value::Null);
    (&model.calibration, &model.learn, &model.when) != (&bare.calibration, &bare.learn, &bare.when)
}

/// What a file is as a preset it is as a recipe file too.
#[test]
fn presets_are_recipe_files() {
    for preset in Preset::ALL {
        for model in names().filter_map(find) {
            // As a recipe file the paper's has the last word, where as a preset it lies under the model's own settings.
            if preset == Preset::Paper && has_settings(model) {
                continue;
            }
            for scheme in model.schemes.iter().copied() {
                let by = |file, preset| {
                    let overrides = Overrides { preset, ..Overrides::default() };
                    Recipe::resolve(scheme, Some(model), file, &overrides).unwrap()
                };
                assert_eq!(
                    by(Some(settings_of(preset)), None),
                    by(None, Some(preset)),
                    "{preset:?} {} {scheme}",
                    model.name
                );
            }
        }
    }
}

#[test]
fn every_file_is_a_preset() {
    let names: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
    let mut expected = Preset::ALL.map(Preset::name);
    expected.sort_unstable();
    assert_eq!(names, expected);
    for (at, preset) in Preset::ALL.into_iter().enumerate() {
        assert_eq!((preset as usize, preset.name().parse()), (at, Ok(preset)));
    }
}
