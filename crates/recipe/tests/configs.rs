//! Every file under `configs/`: it parses, resolves, fits its model and is embedded.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use oq_recipe::{
    Family, ModelEntry, Overrides, Recipe, RecipeFile, Shape, Source, find, find_machine, machine_names, names,
};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

fn file_names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("configs/ and its folders can be read");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("configs/ can be listed").file_name().into_string();
    entries.map(|entry| name(entry).expect("names under configs/ are UTF-8")).collect()
}

fn all() -> impl Iterator<Item = (&'static ModelEntry, Shape)> {
    names().map(|name| {
        let model = find(name).expect("listed by names()");
        (model, model.shape.unwrap_or_else(|| panic!("{name} has no [shape]")))
    })
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
    for (model, shape) in all() {
        for &scheme in &model.schemes {
            let place = format!("{}/{scheme}", model.name);
            let recipe = Recipe::resolve(scheme, Some(model), None, &Overrides::default())
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            assert!(recipe.calibration.seqlen <= shape.max_positions, "{place}");
            // The inputs of all linears of all three families.
            for in_features in [shape.hidden, shape.heads * shape.head_dim, shape.intermediate] {
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
    for name in names().filter(|name| name.starts_with("opt-") || name.starts_with("llama")) {
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
    for (model, _) in all() {
        match &model.source {
            Source::Hub { repo, .. } => assert_eq!(repo.split('/').count(), 2, "{repo}"),
            Source::Wheel { sha256, file, bytes, .. } => {
                assert!(sha256.len() == 64 && sha256.bytes().all(|c| c.is_ascii_hexdigit()), "{sha256}");
                assert!(*bytes > 0 && !file.starts_with('/'), "{file}");
            }
            Source::Path { path } => assert!(path.starts_with("tests/fixtures/"), "{path}"),
        }
    }
}

/// Parameters of a model with that shape, head included only where it is not the embedding.
fn parameters(family: Family, s: Shape) -> usize {
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let attention = s.hidden * (q + 2 * kv) + q * s.hidden;
    let width = s.embedding.unwrap_or(s.hidden);
    let embedding = s.vocab * width * if s.tied { 1 } else { 2 };
    let outside = match family {
        Family::Llama => s.hidden,                                              // last norm
        Family::Opt if width == s.hidden => (s.max_positions + 4) * s.hidden,   // 2 positions more, last norm with bias
        Family::Opt => (s.max_positions + 2) * s.hidden + 2 * width * s.hidden, // projections in and out, no last norm
        Family::Falcon => 2 * s.hidden,
    };
    let block = match family {
        Family::Llama => attention + 3 * s.hidden * s.intermediate + 2 * s.hidden,
        // Biases of q, k, v, out and fc2, of fc1; two norms with biases.
        Family::Opt => attention + 2 * s.hidden * s.intermediate + 5 * s.hidden + s.intermediate + 4 * s.hidden,
        // One norm with one K/V head (7B), else two.
        Family::Falcon => {
            attention + 2 * s.hidden * s.intermediate + if s.kv_heads == 1 { 2 * s.hidden } else { 4 * s.hidden }
        }
    };
    embedding + outside + s.layers * block
}

/// A wrong digit in a shape shows in the number of parameters.
#[test]
fn shapes_have_the_published_number_of_parameters() {
    #[track_caller]
    fn check(name: &str, expected: usize) {
        let model = find(name).unwrap_or_else(|| panic!("{name} is not in configs/"));
        assert_eq!(parameters(model.family, model.shape.unwrap()), expected, "{name}");
    }
    check("llama-7b", 6_738_415_616);
    check("llama-13b", 13_015_864_320);
    check("llama-30b", 32_528_943_616);
    check("llama-65b", 65_285_660_672);
    for chat in ["", "-chat"] {
        check(&format!("llama2-7b{chat}"), 6_738_415_616);
        check(&format!("llama2-13b{chat}"), 13_015_864_320);
        check(&format!("llama2-70b{chat}"), 68_976_648_192);
    }
    check("opt-125m", 125_239_296);
    check("opt-350m", 331_196_416);
    check("opt-1.3b", 1_315_758_080);
    check("opt-2.7b", 2_651_596_800);
    check("opt-6.7b", 6_658_473_984);
    check("opt-13b", 12_853_473_280);
    check("opt-30b", 29_974_540_288);
    check("falcon-7b", 6_921_720_704);
    check("falcon-40b", 41_303_293_952);
    check("falcon-180b", 179_522_565_120);
    check("smollm2-135m", 134_515_008);
    check("tinyllama-1.1b", 1_100_048_384);
    check("tiny-llama", 1_049_728);
    check("tiny-llama-256", 2_885_376);
    check("tiny-opt", 990_208);
    check("tiny-falcon", 820_480);

    // Published in round numbers only.
    let opt_66b = find("opt-66b").unwrap().shape.unwrap();
    assert_eq!(parameters(Family::Opt, opt_66b).div_ceil(1_000_000_000), 66);
}
