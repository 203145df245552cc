//! The dependency rules: which packages may depend on which, and which may link libtorch. Also house rules that no compiler checks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oq_tests::{repository, rust_sources};
use serde_json::Value;

/// Each package of `crates/`, with the workspace packages that it may depend on.
const DEPEND_ON: &[(&str, &[&str])] = &[
    ("oq-torch-link", &[]),
    ("oq-random", &[]),
    ("oq-isa", &[]),
    ("oq-runtime", &["oq-isa"]),
    ("oq-quant-core", &[]),
    ("oq-recipe", &["oq-quant-core"]),
    ("oq-formats", &["oq-quant-core"]),
    ("oq-export", &["oq-formats", "oq-quant-core"]),
    ("oq-report", &["oq-formats", "oq-recipe"]),
    ("oq-data", &["oq-formats", "oq-random"]),
    ("oq-kernels", &["oq-isa", "oq-quant-core"]),
    ("oq-slices", &[]),
    ("oq-cuda", &[]),
    ("oq-ranks", &[]),
    ("oq-attention", &["oq-isa"]),
    ("oq-lwc", &["oq-cuda", "oq-quant-core", "oq-slices"]),
    ("oq-let", &["oq-quant-core"]),
    ("oq-rotation", &["oq-random"]),
    // From oq-let it uses only the types that describe sites.
    (
        "oq-models",
        &["oq-cuda", "oq-quant-core", "oq-formats", "oq-let", "oq-slices", "oq-attention", "oq-kernels", "oq-rotation"],
    ),
    (
        "oq-calib",
        &[
            "oq-cuda",
            "oq-runtime",
            "oq-quant-core",
            "oq-random",
            "oq-ranks",
            "oq-recipe",
            "oq-formats",
            "oq-lwc",
            "oq-let",
            "oq-rotation",
            "oq-models",
        ],
    ),
    ("oq-eval", &["oq-runtime", "oq-formats", "oq-data", "oq-models"]),
    ("oq-generate", &["oq-attention", "oq-data", "oq-models", "oq-random", "oq-slices"]),
    ("oq-serve", &["oq-data", "oq-generate"]),
    ("oq-judge", &[]),
    (
        "oq-cli",
        &[
            "oq-cuda",
            "oq-isa",
            "oq-runtime",
            "oq-quant-core",
            "oq-random",
            "oq-ranks",
            "oq-recipe",
            "oq-report",
            "oq-formats",
            "oq-export",
            "oq-data",
            "oq-models",
            "oq-calib",
            "oq-eval",
            "oq-export",
            "oq-generate",
            "oq-serve",
            "oq-judge",
        ],
    ),
    ("xtask", &["oq-recipe"]),
    ("oq-emulated", &["oq-cuda"]),
    ("oq-protected", &[]),
];

/// Packages that build and run their own tests without libtorch.
const WITHOUT_LIBTORCH: &[&str] = &[
    "oq-torch-link",
    "oq-random",
    "oq-isa",
    "oq-runtime",
    "oq-quant-core",
    "oq-recipe",
    "oq-formats",
    "oq-export",
    "oq-report",
    "oq-data",
    "oq-attention",
    "oq-kernels",
    "oq-judge",
    "xtask",
];

/// Files that may contain unsafe code.
const UNSAFE: &[&str] = &[
    "benches/kernels/limits.rs",
    "crates/attention/src/avx512_bf16.rs",
    "crates/cuda/src/lib.rs",
    "crates/formats/src/mmap.rs",
    "crates/generate/src/cache.rs",
    "crates/kernels/src/aarch64/mod.rs",
    "crates/kernels/src/x86_64/mod.rs",
    "crates/lwc/src/tensors.rs",
    "crates/models/src/attention.rs",
    "crates/models/src/decode.rs",
    "crates/models/src/head.rs",
    "crates/models/src/packed.rs",
    "crates/ranks/src/group.rs",
    "crates/runtime/src/lib.rs",
    "crates/slices/src/lib.rs",
    "tests/emulated/src/lib.rs",
    "tests/protected/src/lib.rs",
];

const MAX_LINES: usize = 800;

/// The workspace's packages by name, from `cargo metadata`.
fn packages() -> BTreeMap<String, Value> {
    oq_tests::packages().into_iter().map(|package| (text(&package["name"]).to_owned(), package)).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// A package's directory, relative to the repository.
fn folder(package: &Value) -> PathBuf {
    let manifest = Path::new(text(&package["manifest_path"]));
    let folder = manifest.parent().expect("a manifest lies in a folder");
    folder.strip_prefix(repository()).expect("packages lie in the repository").to_owned()
}

#[test]
fn packages_depend_downwards_only() {
    let packages = packages();
    let table: BTreeMap<&str, &[&str]> = DEPEND_ON.iter().copied().collect();
    for (name, package) in &packages {
        // Tests and benches may depend on everything.
        if ["oq-tests", "oq-benches"].contains(&name.as_str()) {
            continue;
        }
        let row = table.get(name.as_str()).unwrap_or_else(|| panic!("{name} has no row in the table"));
        let dependencies = package["dependencies"].as_array().expect("a list");
        // `kind` is null for normal dependencies.
        let normal = dependencies.iter().filter(|d| d["kind"].is_null()).map(|d| text(&d["name"]));
        let here: BTreeSet<&str> = normal.filter(|dependency| packages.contains_key(*dependency)).collect();
        assert_eq!(here, row.iter().copied().collect(), "{name}: dependencies on the left, the table on the right");
    }
    for name in table.keys() {
        assert!(packages.contains_key(*name), "{name} is in the table and not in the workspace");
    }
}

/// All packages that depend on `package`, directly or not, as a normal, build or dev dependency, with any feature, on any system. It reads
/// only Cargo.lock, so packages that cargo has not fetched cannot hide a dependency or make the test fail.
fn dependents_of(package: &str) -> BTreeSet<String> {
    let lock = std::fs::read_to_string(repository().join("Cargo.lock")).unwrap();
    let lock: toml::Table = lock.parse().expect("Cargo.lock is TOML");
    let packages = lock["package"].as_array().expect("a list of packages");
    let name = |package: &toml::Value| package["name"].as_str().expect("a name").to_owned();
    // `name`, or `name version` if there are several versions.
    let needs = |package: &toml::Value, found: &BTreeSet<String>| {
        let needed = package.get("dependencies").and_then(toml::Value::as_array).into_iter().flatten();
        let mut names = needed.filter_map(|entry| entry.as_str()?.split(' ').next());
        names.any(|name| found.contains(name))
    };
    let mut found = BTreeSet::from([package.to_owned()]);
    loop {
        let known = found.len();
        let more: Vec<String> = packages.iter().filter(|package| needs(package, &found)).map(name).collect();
        found.extend(more);
        if found.len() == known {
            return found;
        }
    }
}

#[test]
fn what_needs_no_libtorch_does_not_link_it() {
    let linking = dependents_of("torch-sys");
    assert!(["tch", "oq-cli", "oq-models"].iter().all(|name| linking.contains(*name)), "{linking:?}");
    for name in WITHOUT_LIBTORCH {
        assert!(!linking.contains(*name), "{name} depends on libtorch");
    }
}

#[test]
fn a_package_is_named_after_its_folder() {
    for (name, package) in packages() {
        let folder = folder(&package);
        let last = folder.file_name().expect("no package lies at the root").to_string_lossy();
        let expected = if last == "xtask" { last.into_owned() } else { format!("oq-{last}") };
        assert_eq!(name, expected, "in {}", folder.display());
    }
}

#[test]
fn every_package_takes_the_lints_of_the_workspace() {
    for (name, package) in packages() {
        let manifest = std::fs::read_to_string(repository().join(folder(&package)).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true\n"), "{name} has lints of its own");
    }
}

/// All Rust files of the repository: path and text, sorted.
fn sources() -> BTreeMap<String, String> {
    let folders = ["crates", "xtask", "tests", "benches"].map(|name| rust_sources(&repository().join(name)));
    folders.into_iter().flatten().map(|(path, text)| (path.to_string_lossy().into_owned(), text)).collect()
}

#[test]
fn unsafe_lines_are_where_they_are_known() {
    // Concatenated, so that this file does not match.
    let lint = concat!("unsafe", "_code");
    let found: Vec<String> =
        sources().into_iter().filter(|(_, text)| text.contains(lint)).map(|(name, _)| name).collect();
    assert_eq!(found, UNSAFE, "files that name the lint");
    let root = std::fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    assert!(root.contains(&format!("{lint} = \"deny\"")), "the lint makes this list complete");
}

#[test]
fn no_source_file_is_too_long() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{name}: {lines} lines, {MAX_LINES} at most");
    }
}
