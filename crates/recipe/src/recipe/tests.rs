use oq_quant_core::{Bits, RotateKind, SiteKind};

use super::*;
use crate::{BitBudget, Calibration, Learn, Loss, Outer, Preset, Rotate, Rounding, Transform, Tune, find};

fn resolve(scheme: &str, model: Option<&str>, file: &str, overrides: Overrides) -> Result<Recipe, RecipeError> {
    let scheme = scheme.parse().unwrap();
    let file = RecipeFile::parse(&format!("scheme = \"{scheme}\"\n{file}"), Path::new("my.toml")).unwrap();
    Recipe::resolve(scheme, model.map(|name| find(name).unwrap()), Some(&file), &overrides)
}

#[test]
fn later_layers_win() {
    let none = Overrides::default;
    let epochs = |model, file, overrides| resolve("w2a16g64", model, file, overrides).unwrap().learn.epochs;
    assert_eq!(epochs(None, "", none()), 10);
    assert_eq!(epochs(Some("smollm2-135m"), "", none()), 1);
    assert_eq!(epochs(Some("smollm2-135m"), "learn.epochs = 7", none()), 7);
    let typed = none().epochs(9);
    assert_eq!(epochs(Some("smollm2-135m"), "learn.epochs = 7", typed.clone()), 9);
    assert_eq!(epochs(None, "", typed), 9);
}

#[test]
fn presets_lie_between_the_paper_and_the_recipe() {
    #[track_caller]
    fn check(preset: Option<Preset>, file: &str, expected: (Start, Rounding, Loss, usize)) {
        let overrides = Overrides { preset, ..Overrides::default() };
        let Recipe { calibration, learn, tune, .. } = resolve("w4a16", Some("smollm2-135m"), file, overrides).unwrap();
        assert_eq!((learn.start, learn.rounding, learn.loss, learn.epochs), expected);
        let expected = match preset {
            Some(Preset::Best) => (64, 1),
            None | Some(Preset::Default) => (16, 1),
            Some(Preset::Fast | Preset::Paper) => (16, 0),
        };
        assert_eq!((calibration.samples, tune.epochs), expected);
    }
    let ours = |epochs| (Start::Compensate, Rounding::Learned, Loss::Relative, epochs);
    check(None, "", ours(1));
    check(Some(Preset::Default), "", ours(1));
    check(Some(Preset::Fast), "", ours(1));
    check(Some(Preset::Best), "", ours(1));
    check(Some(Preset::Paper), "", (Start::Whole, Rounding::Fixed, Loss::Mse, 4));
    check(Some(Preset::Fast), "learn.epochs = 7", ours(7));
    check(None, "learn.start = \"search\"\nlearn.loss = \"mse\"", (Start::Search, Rounding::Learned, Loss::Mse, 1));
    let resolve = |preset| {
        let overrides = Overrides::default().preset(preset);
        Recipe::resolve("w4a16".parse().unwrap(), find("opt-66b"), None, &overrides).unwrap().learn.epochs
    };
    assert_eq!([Preset::Paper, Preset::Default, Preset::Fast, Preset::Best].map(resolve), [20, 5, 5, 3]);
    // The paper's second target is for rounded activations, or its own.
    let both = |model, file, preset, aug_loss| {
        let mut overrides = Overrides::default().preset(preset);
        overrides.learn.aug_loss = aug_loss;
        self::resolve("w2a16g64", model, file, overrides).unwrap().learn.aug_loss
    };
    assert!(both(None, "", Preset::Paper, None) && both(Some("smollm2-135m"), "", Preset::Paper, None));
    assert!(![Preset::Fast, Preset::Default, Preset::Best].iter().any(|&preset| both(None, "", preset, None)));
    assert!(both(None, "learn.aug_loss = true", Preset::Default, None) && both(None, "", Preset::Best, Some(true)));
    let published = |scheme: &str, preset| {
        let (scheme, overrides) = (scheme.parse().unwrap(), Overrides::default().preset(preset));
        Recipe::resolve(scheme, find("llama-7b"), None, &overrides).unwrap().learn.aug_loss
    };
    assert!(published("w2a16g64", Preset::Paper) && !published("w2a16g64", Preset::Default));
    assert!(published("w4a4", Preset::Default));
    let typed = Overrides::default().preset(Preset::Best).epochs(4);
    let typed = self::resolve("w4a16", None, "", typed).unwrap();
    assert_eq!((typed.learn.epochs, typed.calibration.samples, typed.segments()), (4, 512, 1024));
    assert_eq!("slow".parse::<Preset>(), Err("must be one of paper, fast, default, best".to_owned()));
}

#[test]
fn few_bits_of_activations_are_rotated_where_nothing_else_is_said() {
    #[track_caller]
    fn check(scheme: &str, model: Option<&str>, file: &str, overrides: Overrides, expected: RotateKind) {
        assert_eq!(resolve(scheme, model, file, overrides).unwrap().rotate, Rotate { kind: expected, seed: 0 });
    }
    use RotateKind::{Merged, Online};
    let none = Overrides::default;
    check("w4a4", None, "", none(), Online);
    check("w4a4", Some("llama2-7b"), "", none(), Online);
    check("w4a5", None, "", none(), RotateKind::None);
    check("w4a16", None, "", none(), RotateKind::None);
    check("w4a4", Some("opt-125m"), "", none(), RotateKind::None);
    check("w4a4", Some("opt-125m"), "", none().rotate(Online), Online);
    check("w4a4", Some("falcon-7b"), "", none(), RotateKind::None);
    check("w4a4", None, "", none().preset(Preset::Paper), RotateKind::None);
    check("w4a4", None, "", none().preset(Preset::Best), Online);
    check("w4a4", None, "", none().method(Method::Rtn), RotateKind::None);
    check("w4a4", None, "method = \"smoothquant\"", none(), RotateKind::None);
    check("w4a4", None, "rotate.kind = \"none\"", none(), RotateKind::None);
    check("w4a4", None, "rotate.kind = \"none\"", none().rotate(Merged), Merged);
    let paper = none().preset(Preset::Paper).rotate(Merged);
    check("w4a16", None, "", paper, Merged);
    let seeded = resolve("w4a4", None, "rotate.seed = 5", none()).unwrap().rotate;
    assert_eq!(seeded, Rotate { kind: Online, seed: 5 });
}

#[test]
fn every_key_reaches_the_recipe() {
    let scheme: QuantSpec = "w3a16g64".parse().unwrap();
    let expected = Recipe {
        scheme,
        method: Method::Rtn,
        calibration: Calibration {
            data: "my text.txt".to_owned(),
            samples: 6,
            seqlen: 12,
            seed: 7,
            batch: 3,
            steps: 9,
        },
        learn: Learn {
            epochs: 11,
            lwc_lr: 0.25,
            aug_loss: true,
            loss: Loss::Mse,
            start: Start::Whole,
            rounding: Rounding::Fixed,
            expert_tokens: 128,
        },
        transform: Transform { sites: vec![SiteKind::Updown, SiteKind::Qk], shift: true, lr: 0.125, alpha: 0.0 },
        tune: Tune { epochs: 2, lr: 0.5, codes: 1.5 },
        rotate: Rotate { kind: RotateKind::Online, seed: 0 },
        bits: Some(BitBudget { average: 2.5, choices: vec![Bits::ALL[0], Bits::ALL[5]] }),
        outer: Outer { head_bits: Some(Bits::ALL[4]), embed_bits: Some(Bits::ALL[6]) },
        overrides: vec!["*.down_proj=w8".parse().unwrap()],
    };
    let typed = Overrides::default()
        .method(Method::Rtn)
        .calib("my text.txt".to_owned())
        .samples(6)
        .seqlen(12)
        .epochs(11)
        .seed(7)
        .lwc_lr(0.25)
        .batch(3)
        .steps(9)
        .aug_loss(true)
        .loss(Loss::Mse)
        .start(Start::Whole)
        .rounding(Rounding::Fixed)
        .expert_tokens(128)
        .let_sites(vec![SiteKind::Updown, SiteKind::Qk])
        .let_shift(true)
        .let_lr(0.125)
        .let_alpha(0.0)
        .tune_epochs(2)
        .tune_lr(0.5)
        .tune_codes(1.5)
        .rotate(RotateKind::Online)
        .bits(2.5)
        .bit_choices(vec![Bits::ALL[0], Bits::ALL[5]])
        .head_bits(Some(Bits::ALL[4]))
        .embed_bits(Some(Bits::ALL[6]));
    let typed = Overrides { overrides: expected.overrides.clone(), ..typed };
    assert_eq!(Recipe::resolve(scheme, None, None, &typed).unwrap(), expected);

    let text = expected.to_toml().unwrap();
    let file = RecipeFile::parse(&text, Path::new("recipe.toml")).unwrap();
    assert_eq!(Recipe::resolve(scheme, find("opt-125m"), Some(&file), &Overrides::default()).unwrap(), expected);
}

#[test]
fn overrides_of_the_command_line_come_last() {
    let overrides = |file: &str, typed: &[&str]| {
        let typed = typed.iter().map(|text| text.parse().unwrap()).collect();
        let typed = Overrides { overrides: typed, ..Overrides::default() };
        let recipe = resolve("w3a16g64", None, file, typed).unwrap();
        let read = RecipeFile::parse(&recipe.to_toml().unwrap(), Path::new("recipe.toml")).unwrap();
        assert_eq!(read.overrides, recipe.overrides, "as it is written");
        recipe.overrides.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let file = "[[override]]\nnames = \"*.down_proj\"\nbits = 8\ngroup = 32\n[[override]]\nlayers = \"first,-2..\"\nweight = \"float\"";
    assert_eq!(overrides(file, &[]), ["*.down_proj=w8g32", "layers:first,-2..=float"]);
    assert_eq!(overrides(file, &["*=w4"]), ["*.down_proj=w8g32", "layers:first,-2..=float", "*=w4"]);
    let wrong = RecipeFile::parse("[[override]]\nnames = \"*\"\nweight = \"int8\"", Path::new("my.toml"));
    let message = wrong.expect_err("must be refused").to_string();
    assert!(message.contains("my.toml:3:10: `int8` is not a width"), "{message}");
}

#[test]
fn bad_values() {
    #[track_caller]
    fn check(overrides: Overrides, expected: &str) {
        let error = Recipe::resolve("w4a16".parse().unwrap(), None, None, &overrides).expect_err("must be refused");
        assert_eq!(error.to_string(), expected);
    }
    let none = Overrides::default;
    let data = "calibration.data = \" \": must be a dataset such as wikitext2, or a text file";
    check(none().calib(" ".to_owned()), data);
    check(none().samples(0), "calibration.samples = 0: must be 1 or more");
    check(none().seqlen(1), "calibration.seqlen = 1: must be 2 or more");
    let too_large = |key| format!("{key} = 9223372036854775808: must be 9223372036854775807 (2^63 - 1) or less");
    check(none().seed(1 << 63), &too_large("calibration.seed"));
    check(none().samples(1 << 63), &too_large("calibration.samples"));
    check(none().seqlen(1 << 63), &too_large("calibration.seqlen"));
    check(none().epochs(1 << 63), &too_large("learn.epochs"));
    check(none().tune_epochs(1 << 63), &too_large("tune.epochs"));
    check(none().tune_epochs(1001), "tune.epochs = 1001: must be 1000 or less");
    let batch = |given| format!("calibration.batch = {given}: must be 1 to calibration.samples, which is 128");
    check(none().batch(0), &batch(0));
    check(none().batch(129), &batch(129));
    let epochs = "learn.epochs = 0: must be 1 or more (to learn nothing, use method = \"rtn\")";
    check(none().epochs(0), epochs);
    for lr in [0.0, -0.01, f64::NAN, f64::INFINITY] {
        let message = format!("learn.lwc_lr = {lr}: must be positive and finite, such as 1e-2");
        check(none().lwc_lr(lr), &message);
        let message = format!("let.lr = {lr}: must be positive and finite, such as 5e-3");
        check(none().let_lr(lr), &message);
        let message = format!("tune.lr = {lr}: must be positive and finite, such as 5e-3");
        check(none().tune_lr(lr), &message);
    }
    for alpha in [-0.5, 1.5, f64::NAN, f64::INFINITY] {
        check(none().let_alpha(alpha), &format!("let.alpha = {alpha}: must be 0 to 1"));
    }
    let twice = vec![SiteKind::Vo, SiteKind::Norm, SiteKind::Vo];
    let message = "let.sites = [\"vo\", \"norm\", \"vo\"]: must be without repetition";
    check(none().let_sites(twice), message);
    let empty = "let.sites = []: must be one or more of norm, vo, qk, updown for smoothquant (to round only, use \
                 method = \"rtn\")";
    check(none().method(Method::Smoothquant).use_let(false), empty);
    check(none().method(Method::Smoothquant).let_sites(vec![]), empty);
}

#[test]
fn sites_follow_what_is_asked_for() {
    #[track_caller]
    fn check(scheme: &str, model: Option<&str>, file: &str, overrides: Overrides, expected: &[SiteKind]) {
        let recipe = resolve(scheme, model, file, overrides).unwrap();
        assert_eq!(recipe.transform.sites, expected);
    }
    use SiteKind::{Norm, Qk, Updown, Vo};
    let none = Overrides::default;
    let on = || none().use_let(true);
    let off = || none().use_let(false);
    let method = |method| none().method(method);
    let smoothquant = || method(Method::Smoothquant);

    check("w4a16", None, "", none(), &[]);
    check("w4a16", None, "", on(), &[Norm, Vo]);
    check("w4a16", None, "", smoothquant(), &[Norm, Vo]);
    check("w4a16", None, "method = \"smoothquant\"", none(), &[Norm, Vo]);
    check("w4a16", Some("opt-350m"), "let.sites = []", on(), &[Vo]);
    check("w4a4", None, "", off(), &[]);
    check("w4a4", None, "let.sites = []", none(), &[]);
    check("w4a4", None, "let.sites = []", on(), &[Norm, Vo, Qk]);
    check("w4a4", None, "let.sites = []", smoothquant(), &[Norm, Vo, Qk]);
    check("w4a4", None, "let.sites = [\"updown\"]", on(), &[Updown]);
    check("w4a4", None, "let.sites = [\"updown\"]", smoothquant(), &[Updown]);
    check("w4a4", None, "let.sites = [\"updown\"]", off(), &[]);
    let typed = on().let_sites(vec![Qk]);
    check("w4a4", None, "let.sites = [\"updown\"]", typed, &[Qk]);
    // Kept as resolved, though nothing reads them.
    check("w4a4", None, "", method(Method::Rtn), &[Norm, Vo, Qk]);
}

#[test]
fn refuses_a_file_for_another_scheme() {
    let file = RecipeFile::parse("scheme = \"w3a16\"", Path::new("my.toml")).unwrap();
    let error = Recipe::resolve("w4a16".parse().unwrap(), None, Some(&file), &Overrides::default());
    let expected =
        "the recipe file is for w3a16, but the requested scheme is w4a16: give one of them, or make them equal";
    assert_eq!(error.expect_err("must be refused").to_string(), expected);
}

#[test]
fn methods_have_names() {
    for method in [Method::Omniquant, Method::Smoothquant, Method::Rtn] {
        assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
    }
    let error = "gptq".parse::<Method>().expect_err("must be refused");
    assert_eq!(error.to_string(), "method = \"gptq\": must be omniquant, smoothquant or rtn");
}

#[test]
fn toml_round_trip() {
    let typed =
        Overrides::default().calib("a \"quoted\"\\path\n.txt".to_owned()).seed(i64::MAX as u64).lwc_lr(0.1 + 0.2);
    let recipe = Recipe::resolve("w3a16g64sym".parse().unwrap(), None, None, &typed).unwrap();
    let text = recipe.to_toml().unwrap();
    assert_eq!(Recipe::parse(&text, Path::new("recipe.toml")).unwrap(), recipe);

    let incomplete = text.replace("batch = 1\n", "");
    let error = Recipe::parse(&incomplete, Path::new("recipe.toml")).expect_err("must be refused").to_string();
    assert!(error.contains("missing key `batch`"), "{error}");
    for (line, key) in [("sites = []\n", "sites"), ("shift = false\n", "shift"), ("alpha = 0.5\n", "alpha")] {
        let error = Recipe::parse(&text.replace(line, ""), Path::new("recipe.toml")).expect_err("must be refused");
        assert!(error.to_string().contains(&format!("missing key `{key}`")), "{error}");
    }
    let without = &text[..text.find("[let]").unwrap()];
    let error = Recipe::parse(without, Path::new("recipe.toml")).expect_err("must be refused").to_string();
    assert!(error.contains("missing key `let`"), "{error}");
    let hostile = text.replace("samples = 128", "samples = 0");
    assert!(matches!(Recipe::parse(&hostile, Path::new("recipe.toml")), Err(RecipeError::Value { .. })));
}

#[test]
fn reading_says_which_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("absent.toml");
    let error = RecipeFile::read(&file).expect_err("must be refused").to_string();
    assert!(error.contains("absent.toml: cannot be read"), "{error}");
    std::fs::write(&file, "scheme = \"w4a16\"\n").unwrap();
    assert_eq!(RecipeFile::read(&file).unwrap().method, None);
}

#[test]
fn settings_that_nothing_reads_are_named() {
    #[track_caller]
    fn check(scheme: &str, overrides: Overrides, expected: &[&str]) {
        let recipe = resolve(scheme, None, "", overrides.clone()).unwrap();
        assert_eq!(overrides.unread(&recipe), expected);
    }
    let learning = Overrides::default().epochs(3).start(Start::Search).tune_epochs(2);
    check("w4a16", learning.clone(), &[]);
    let by = |method| learning.clone().method(method).let_alpha(0.7);
    check("w4a4", by(Method::Smoothquant), &["learn.epochs", "learn.start", "tune.epochs"]);
    check("w4a4", by(Method::Rtn), &["learn.epochs", "learn.start", "let.alpha", "tune.epochs"]);
    let text = Overrides::default().calib("mine.txt".to_owned()).samples(4).seed(5);
    let rounded = text.clone().method(Method::Rtn);
    check("w4a16", text, &[]);
    check("w4a16", rounded.clone(), &["calibration.data", "calibration.samples", "calibration.seed"]);
    check("w4a16", rounded.bits(3.5).batch(2), &["calibration.batch"]);
    let shift = Overrides::default().let_shift(true).tune_epochs(0).tune_lr(1e-3);
    check("w4a16", shift, &["let.shift", "tune.lr"]);
}

/// Segments and their tokens.
#[track_caller]
fn check_text(preset: Preset, file: &str, overrides: Overrides, expected: [usize; 2]) {
    let overrides = Overrides { preset: Some(preset), ..overrides };
    let Text { segments, tokens } = resolve("w3a16g64", None, file, overrides).unwrap().text();
    assert_eq!([segments, tokens], expected, "{preset:?} {file}");
}

#[test]
fn few_long_segments_become_more_and_shorter_ones() {
    let text = |samples, seqlen| Overrides::default().samples(samples).seqlen(seqlen);
    check_text(Preset::Default, "", Overrides::default(), [128, 2048]);
    check_text(Preset::Default, "", text(16, 1024), [64, 256]);
    check_text(Preset::Fast, "", text(16, 2048), [64, 512]);
    check_text(Preset::Best, "", text(64, 1024), [256, 256]);
    // There are enough, or too few tokens, or an odd number of them.
    check_text(Preset::Default, "", text(64, 1024), [64, 1024]);
    check_text(Preset::Default, "", text(4, 512), [8, 256]);
    check_text(Preset::Default, "", text(4, 511), [4, 511]);
    check_text(Preset::Default, "", text(4, 1000), [8, 500]);
    // Said otherwise, in larger batches, and where nothing is learned.
    check_text(Preset::Paper, "", text(16, 1024), [16, 1024]);
    check_text(Preset::Default, "calibration.steps = 0", text(16, 1024), [16, 1024]);
    check_text(Preset::Default, "", text(16, 1024).steps(32), [32, 512]);
    check_text(Preset::Default, "", text(16, 1024).batch(2), [16, 1024]);
    check_text(Preset::Default, "", text(16, 1024).method(Method::Smoothquant), [16, 1024]);
}
