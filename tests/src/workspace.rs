//! The workspace as cargo knows it, and its source files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{cargo, repository, run};

/// The packages of the workspace, as `cargo metadata` describes them.
pub fn packages() -> Vec<Value> {
    let output = run(cargo().args(["metadata", "--format-version", "1", "--no-deps", "--offline"]), 0);
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    metadata["packages"].as_array().expect("a workspace has packages").clone()
}

/// The text of all Rust files in `folder` and below, by path in the repository.
pub fn rust_sources(folder: &Path) -> BTreeMap<PathBuf, String> {
    let (mut sources, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the folder can be listed") {
            let path = entry.expect("the folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("sources are text");
                sources.insert(path.strip_prefix(repository()).expect("it lies there").to_owned(), text);
            }
        }
    }
    sources
}
