//! Every file under `configs/`: it parses, resolves, fits its model and is embedded.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use oq_recipe::{ModelEntry, Overrides, Recipe, RecipeFile, Source, find, find_machine, machine_names, names};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

fn file_names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("configs/ and its folders can be read");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("configs/ can be listed").file_name().into_string();
    entries.map(|entry| name(entry).expect("names under configs/ are UTF-8")).collect()
}

fn all() -> impl Iterator<Item = &'static ModelEntry> {
    names().map(|name| find(name).expect("listed by names()"))
}

/// A number of a config, or else that of another key, or else zero.
fn size(model: &ModelEntry, keys: &[&str]) -> usize {
    keys.iter().find_map(|key| model.config[*key].as_u64()).unwrap_or_default() as usize
}

#[test]
fn every_model_is_embedded() {
    let embedded: BTreeSet<String> = names().map(|name| format!("{name}.toml")).collect();
    assert_eq!(embedded, file_names(&configs().join("models")));
    assert!(embedded.len() >= 25, "{embedded:?}");
    assert!(names().is_sorted());
}

#[test]
fn every_machine_is_embedded_and_says_where_its_numbers_come_from() {
    let embedded: BTreeSet<String> = machine_names().map(|name| format!("{name}.toml")).collect();
    assert_eq!(embedded, file_names(&configs().join("machines")));
    for name in machine_names() {
        let profile = find_machine(name).expect("listed by machine_names()");
        assert!(profile.estimate && profile.description.contains("NVIDIA"), "{name}");
        assert!(profile.bf16_gflops > profile.f32_gflops, "{name}");
        assert!(profile.host_memory_gib > profile.device_memory_gib && profile.device_memory_gib.is_some(), "{name}");
    }
    assert!(find_machine("a100").is_none());
}

/// A user may copy any of them, and say the scheme in the file or beside it.
#[test]
fn presets_are_read_as_recipe_files() {
    for file in file_names(&configs().join("recipes")) {
        let path = configs().join("recipes").join(&file);
        let asked = "w3a16g64".parse().unwrap();
        let plain = RecipeFile::read(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let with_scheme = RecipeFile::parse(&format!("scheme = \"w3a16g64\"\n{text}"), &path).unwrap();
        assert_eq!((plain.scheme, with_scheme.scheme), (None, Some(asked)));
        let resolve = |file| Recipe::resolve(asked, find("smollm2-135m"), Some(file), &Overrides::default()).unwrap();
        assert_eq!(resolve(&plain), resolve(&with_scheme), "{file}");
    }
}

#[test]
fn every_recipe_resolves_and_fits() {
    for model in all() {
        let hidden = size(model, &["hidden_size"]);
        let heads = size(model, &["num_attention_heads"]);
        let attention = match size(model, &["head_dim"]) {
            0 => hidden,
            head_dim => heads * head_dim,
        };
        let intermediate = match size(model, &["moe_intermediate_size", "intermediate_size", "ffn_dim"]) {
            0 => 4 * hidden, // Falcon's
            written => written,
        };
        for &scheme in &model.schemes {
            let place = format!("{}/{scheme}", model.name);
            let recipe = Recipe::resolve(scheme, Some(model), None, &Overrides::default())
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            assert!(recipe.calibration.seqlen <= size(model, &["max_position_embeddings"]), "{place}");
            // The inputs of all linears.
            for in_features in [hidden, attention, intermediate] {
                let group = scheme.weight.group;
                assert!(group.divides(in_features), "{place}: {group:?} does not divide in_features {in_features}");
            }
        }
    }
}

#[test]
fn models_of_the_paper_have_its_schemes() {
    #[track_caller]
    fn check(name: &str, expected: &[&str]) {
        let schemes = find(name).unwrap().schemes.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(schemes, expected.iter().map(|&scheme| scheme.to_owned()).collect(), "{name}");
    }
    let paper = ["w4a16", "w4a16g128", "w3a16", "w3a16g128", "w2a16", "w2a16g128", "w2a16g64", "w4a4", "w6a6"];
    let chat = ["w4a16g128", "w3a16g128", "w2a16g128", "w4a4", "w6a6"];
    let is_in_paper = |name: &&str| ["opt-", "llama-", "llama2-"].iter().any(|family| name.starts_with(family));
    for name in names().filter(is_in_paper).filter(|name| !name.starts_with("llama-3.")) {
        check(name, if name.ends_with("-chat") { &chat } else { &paper });
    }
    check("falcon-7b", &["w3a16g64", "w4a4", "w6a6"]);
    check("falcon-40b", &["w4a4", "w6a6"]);
    check("falcon-180b", &["w3a16g512"]);
    check("smollm2-135m", &["w4a16", "w4a16g64", "w3a16g64", "w2a16g64", "w4a4", "w6a6"]);
    for name in ["tiny-llama", "tiny-llama-256", "tiny-opt", "tiny-falcon"] {
        check(name, &["w4a16g64", "w3a16g64", "w2a16g64", "w2a16", "w4a4", "w6a6"]);
    }
}

#[test]
fn models_are_found_by_name_and_hub_id() {
    assert_eq!(find("llama2-7b").unwrap().name, "llama2-7b");
    assert_eq!(find("meta-llama/Llama-2-7b-hf").unwrap().name, "llama2-7b");
    assert_eq!(find("meta-llama/Llama-2-7b-chat-hf").unwrap().name, "llama2-7b-chat");
    assert_eq!(find("tiiuae/falcon-180b").unwrap().name, "falcon-180b");
    assert!(find("LLAMA2-7B").is_none());
    assert!(find("").is_none());
}

#[test]
fn sources_are_whole() {
    for model in all() {
        match &model.source {
            Source::Hub { repo, .. } => assert_eq!(repo.split('/').count(), 2, "{repo}"),
            Source::Wheel { sha256, file, bytes, parts } => {
                assert!(sha256.len() == 64 && sha256.bytes().all(|c| c.is_ascii_hexdigit()), "{sha256}");
                assert!(*bytes > 0 && !file.contains('/') && !parts.is_empty(), "{file}");
                assert!(parts.iter().all(|part| !part.file.starts_with('/')), "{parts:?}");
            }
            Source::Path { path } => assert!(path.starts_with("tests/fixtures/"), "{path}"),
        }
    }
}
