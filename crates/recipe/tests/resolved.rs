//! Every model and scheme under every preset resolves to the recipe that stands in `golden/resolved.txt`.
//!
//! That file has each distinct recipe once, as JSON without its scheme, and below it who is quantized by it: what is
//! typed (a preset, a method; `-` for nothing), a model and its schemes. `OQ_BLESS=1` writes it anew, for a change that is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use oq_quant_core::QuantSpec;
use oq_recipe::{Method, ModelEntry, Overrides, Preset, Recipe, find, names};
use serde_json::{Value, json};

const SCHEMES: [&str; 14] = [
    "w2a16",
    "w2a16g64",
    "w2a16g128",
    "w3a16",
    "w3a16g64",
    "w3a16g128",
    "w4a16",
    "w4a16g64",
    "w4a16g128",
    "w6a6",
    "w4a4",
    "w8a8",
    "w4a16g64sym",
    "w5a16",
];

/// What is typed beside the scheme, by the name that the golden file has for it.
fn typed() -> Vec<(&'static str, Overrides)> {
    let preset = |preset| Overrides::default().preset(preset);
    let method = |method| Overrides::default().method(method);
    vec![
        ("-", Overrides::default()),
        ("paper", preset(Preset::Paper)),
        ("default", preset(Preset::Default)),
        ("fast", preset(Preset::Fast)),
        ("best", preset(Preset::Best)),
        ("rtn", method(Method::Rtn)),
        ("smoothquant", method(Method::Smoothquant)),
        ("let", preset(Preset::Paper).use_let(true)),
    ]
}

/// Models that no file names: one of each family, and what their `config.json` may say beyond it.
fn unnamed() -> Vec<ModelEntry> {
    let configs: [(&str, Value); 6] = [
        ("a-llama", json!({"model_type": "llama", "max_position_embeddings": 4096})),
        ("a-short-llama", json!({"model_type": "llama", "max_position_embeddings": 512})),
        ("a-qwen3", json!({"model_type": "qwen3"})),
        ("an-opt", json!({"model_type": "opt"})),
        ("a-post-norm-opt", json!({"model_type": "opt", "do_layer_norm_before": false})),
        ("a-falcon", json!({"model_type": "falcon"})),
    ];
    configs.iter().map(|(name, config)| ModelEntry::of_directory(Path::new(name), config)).collect()
}

/// What the program makes of a model, a scheme and what is typed.
fn resolve(model: &ModelEntry, scheme: QuantSpec, typed: &Overrides) -> Recipe {
    Recipe::resolve(scheme, Some(model), None, typed).unwrap_or_else(|e| panic!("{}/{scheme}: {e}", model.name))
}

/// Recipes without their schemes, and who is quantized by each: the schemes by what is typed and model.
type ByRecipe = BTreeMap<String, BTreeMap<(usize, String), BTreeSet<String>>>;

fn resolved() -> String {
    let mut recipes = ByRecipe::new();
    let (typed, unnamed) = (typed(), unnamed());
    let mut models: Vec<&ModelEntry> = names().filter_map(find).collect();
    models.extend(&unnamed);
    for model in models {
        let listed = SCHEMES.iter().map(|scheme| scheme.parse().expect("a scheme"));
        for scheme in listed.chain(model.schemes.iter().copied()) {
            for (at, (_, typed)) in typed.iter().enumerate() {
                let mut recipe = serde_json::to_value(resolve(model, scheme, typed)).expect("a recipe has no maps");
                recipe.as_object_mut().expect("a table").remove("scheme");
                let who = recipes.entry(recipe.to_string()).or_default();
                who.entry((at, model.name.clone())).or_default().insert(scheme.to_string());
            }
        }
    }
    let mut text = String::new();
    for (recipe, who) in recipes {
        writeln!(text, "{recipe}").expect("a String can be written");
        for ((at, model), schemes) in who {
            let schemes: Vec<String> = schemes.into_iter().collect();
            writeln!(text, "  {} {model}: {}", typed[at].0, schemes.join(" ")).expect("a String can be written");
        }
    }
    text
}

#[test]
fn recipes_are_what_they_were() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/resolved.txt");
    let resolved = resolved();
    if std::env::var_os("OQ_BLESS").is_some() {
        std::fs::write(&path, &resolved).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    let place = golden.lines().zip(resolved.lines()).position(|(expected, found)| expected != found);
    if let Some(at) = place {
        let line = |text: &str| text.lines().nth(at).unwrap_or_default().to_owned();
        panic!("line {}:\nexpected {}\n   found {}", at + 1, line(&golden), line(&resolved));
    }
    assert_eq!(golden.lines().count(), resolved.lines().count());
}
