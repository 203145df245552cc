//! Locations: the repository, the per-user cache, and a libtorch that the user provides.
//!
//! The environment is an argument (`var`), so that every rule here is a pure function.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Error, Result};

/// Environment variable that `run.sh` of a folder of `cargo xtask device --prepare` sets to that folder.
pub const PREPARED: &str = "OMNIQUANT_PREPARED";

/// A folder of `cargo xtask device --prepare` that this process runs from, on a machine without the repository.
pub fn prepared() -> Option<&'static Path> {
    static FOLDER: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(PREPARED).map(PathBuf::from));
    FOLDER.as_deref()
}

/// The repository's root, in which xtask is a package; or a prepared folder, which has what is needed of it.
pub fn repository() -> &'static Path {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ lies in the repository's root");
    prepared().unwrap_or_else(here)
}

/// The link that `.cargo/config.toml` sets as LIBTORCH.
pub fn libtorch_link() -> PathBuf {
    repository().join(".libtorch")
}

/// The process environment, in the form that the functions below take.
pub fn process_env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The per-user cache, shared with `omniquant`.
pub fn cache_dir() -> Result<PathBuf> {
    oq_recipe::cache_dir(process_env).map_err(Error::msg)
}

/// A libtorch that the user provides.
#[derive(Debug, PartialEq, Eq)]
pub enum Provided {
    /// LIBTORCH names its folder.
    Folder(PathBuf),
    /// LIBTORCH_USE_PYTORCH asks for the one in Python's torch.
    Python,
}

/// What the user provides, if anything. For its children cargo itself sets LIBTORCH to `link`, which does not count.
pub fn provided(link: &Path, var: impl Fn(&str) -> Option<OsString>) -> Option<Provided> {
    if var("LIBTORCH_USE_PYTORCH").is_some() {
        return Some(Provided::Python);
    }
    let folder = PathBuf::from(var("LIBTORCH")?);
    (!same_path(&folder, link)).then_some(Provided::Folder(folder))
}

/// A cargo command as the user would run it. Variables set by our own cargo are removed: LIBTORCH, because torch-sys is rebuilt
/// whenever that changes, and those about this package, because ring is rebuilt for them.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_"];
        if own.iter().any(|own| name.to_string_lossy().starts_with(own)) {
            cargo.env_remove(name);
        }
    }
    if !matches!(provided(&libtorch_link(), process_env), Some(Provided::Folder(_))) {
        cargo.env_remove("LIBTORCH");
    }
    cargo
}

/// Compares paths by their components, without touching the file system, because the link need not exist yet.
fn same_path(a: &Path, b: &Path) -> bool {
    let plain = |path: &Path| path.components().filter(|part| *part != Component::CurDir).collect::<PathBuf>();
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
    }

    #[test]
    fn the_users_own_libtorch_wins() {
        let link = Path::new("/repo/.libtorch");
        let found = |pairs: &[_]| provided(link, env(pairs));
        assert_eq!(found(&[("LIBTORCH", "/opt/lt")]), Some(Provided::Folder("/opt/lt".into())));
        assert_eq!(found(&[("LIBTORCH_USE_PYTORCH", "1")]), Some(Provided::Python));
        // torch-sys checks LIBTORCH_USE_PYTORCH first.
        assert_eq!(found(&[("LIBTORCH", "/opt/lt"), ("LIBTORCH_USE_PYTORCH", "1")]), Some(Provided::Python));
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn the_link_that_cargo_sets_does_not_count() {
        let link = Path::new("/repo/.libtorch");
        for value in ["/repo/.libtorch", "/repo/.libtorch/", "/repo/./.libtorch"] {
            assert_eq!(provided(link, env(&[("LIBTORCH", value)])), None, "{value}");
        }
    }
}
