use std::fs;

use oq_quant_core::QuantSpec;
use oq_recipe::Overrides;

use super::*;

fn recipe(scheme: &str, overrides: &Overrides) -> Recipe {
    Recipe::resolve(scheme.parse().unwrap(), None, None, overrides).unwrap()
}

/// The card of a model that is quantized by `recipe`.
fn card(recipe: &Recipe, origin: &Origin, model: &str) -> String {
    let is_online = recipe.rotate.kind == RotateKind::Online;
    card_of(&Subject::from(recipe.scheme).rotated_online(is_online), recipe, origin, model)
}

fn card_of(subject: &Subject, recipe: &Recipe, origin: &Origin, model: &str) -> String {
    let card = Card {
        name: &format!("{model}-{}", recipe.scheme),
        model,
        origin,
        recipe,
        subject,
        bits_per_code: f64::from(recipe.scheme.weight.bits.get()),
        bits_per_weight: 4.25,
        bytes: [1 << 20, 1 << 18],
        command: &["omniquant", "quantize", model, "--scheme", &recipe.scheme.to_string()],
    };
    card.text()
}

fn known() -> Origin {
    let terms = vec![("license", "apache-2.0".to_owned())];
    Origin { base: Some("owner/model".to_owned()), is_known: true, terms }
}

#[test]
fn a_card_says_what_the_model_is() {
    let recipe = recipe("w4a16g64", &Overrides::default());
    let text = card(&recipe, &known(), "model");
    for part in [
        "---\nbase_model: \"owner/model\"\nbase_model_relation: quantized\nlicense: \"apache-2.0\"\nlibrary_name: transformers\n\
         pipeline_tag: text-generation\ntags:\n- omniquant\n- quantized\n- compressed-tensors\n- 4-bit\n---\n\n# model-w4a16g64\n",
        "This is `owner/model`, quantized to 4 bits per weight by OmniQuant",
        "Its licence is apache-2.0, like the original's.",
        "| weights | 4 bits, with a scale and a zero point for each 64 weights |",
        "| activations | not quantized |",
        "| size | 256.00 KiB, originally 1.00 MiB; 4.250 bits per quantized weight, scales included |",
        "| method | clipping learned in 5 epochs from `compensate`, rounding learned, all blocks tuned together in 1 epoch |",
        "| calibration text | `wikitext2`: 256 segments of 2048 tokens |",
        "Not measured yet.",
        "omniquant eval model\nomniquant eval model-w4a16g64 --card\n",
        "vllm serve model-w4a16g64 --dtype float16",
        "place = \"model-w4a16g64\"",
        "```sh\nomniquant quantize model --scheme w4a16g64\n```",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[test]
fn what_other_programs_refuse_is_not_offered_to_them() {
    let text = card(&recipe("w4a4", &Overrides::default()), &Origin::default(), "mine");
    assert!(text.starts_with("---\nlibrary_name: omniquant\n"), "{text}");
    assert!(text.contains("Other programs refuse this model: its activations are rotated"), "{text}");
    assert!(!text.contains("from_pretrained") && !text.contains("vllm"), "{text}");
    assert!(text.contains("| activations | 4 bits, with a scale and a zero point for each token"), "{text}");
    assert!(text.contains("This is `mine`, ") && text.contains("The original's terms of use apply."), "{text}");
}

#[test]
fn programs_that_fail_at_experts_are_named() {
    let text = |scheme: &str, architecture: &str| {
        let recipe = recipe(scheme, &Overrides::default());
        let subject = Subject::from(recipe.scheme).of_model(architecture, []);
        card_of(&subject, &recipe, &known(), "model")
    };
    let limit = "Not with transformers 5.24 with compressed-tensors 0.20: it loses the zero points of experts";
    let asymmetric = text("w4a16g64", "mixtral");
    assert!(asymmetric.contains(limit) && asymmetric.contains("a symmetric scheme"), "{asymmetric}");
    assert!(!asymmetric.contains("from_pretrained") && !asymmetric.contains("were not tried"), "{asymmetric}");
    for text in [text("w4a16g64sym", "mixtral"), text("w4a16g64", "llama")] {
        assert!(!text.contains("Not with") && text.contains("from_pretrained"), "{text}");
    }
}

#[test]
fn names_from_outside_stay_text() {
    let evil = "x`|<script>\n---\n# y";
    let origin = Origin { base: Some(evil.to_owned()), is_known: false, terms: vec![("license", evil.to_owned())] };
    let recipe = recipe("w4a16g64", &Overrides::default().calib(evil.to_owned()));
    let text = card(&recipe, &origin, evil);
    assert_eq!(text.lines().filter(|line| *line == "---").count(), 2, "{text}");
    assert!(!text.contains("# y\n") || !text.lines().any(|line| line.starts_with("# y")), "{text}");
    let front: Vec<&str> = text.split("---\n").collect();
    assert!(front[1].contains("license: \"x`|<script>\u{fffd}---\u{fffd}# y\"\n"), "{text}");
}

#[test]
fn a_file_that_is_there_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe("w4a16g64", &Overrides::default());
    let spec: QuantSpec = recipe.scheme;
    let (origin, subject) = (known(), Subject::from(spec));
    let card = Card {
        name: "a",
        model: "b",
        origin: &origin,
        recipe: &recipe,
        subject: &subject,
        bits_per_code: 4.0,
        bits_per_weight: 4.25,
        bytes: [2, 1],
        command: &["omniquant"],
    };
    card.write(dir.path()).unwrap();
    let path = dir.path().join(CARD);
    assert_eq!(fs::read_to_string(&path).unwrap(), card.text());
    check(dir.path()).unwrap();
    fs::write(&path, "mine").unwrap();
    card.write(dir.path()).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn paths_do_not_tell_where_things_lie() {
    assert_eq!(last_part("/home/me/calib.txt"), "calib.txt");
    assert_eq!(last_part("wikitext2:valid"), "wikitext2:valid");
    assert_eq!(last_part("norm,vo"), "norm,vo");
}
