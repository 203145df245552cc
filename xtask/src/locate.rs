//! Where things lie: the repository, the per-user cache, and a libtorch that the user provides.
//!
//! The environment is an argument (`var`), so that every rule here is a plain function.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Error, Result};

/// The repository's root: xtask is a package of the workspace that it serves.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ lies in the repository's root")
}

/// The link that `.cargo/config.toml` names as LIBTORCH.
pub fn libtorch_link() -> PathBuf {
    repository().join(".libtorch")
}

/// The process environment, as the functions below take it.
pub fn process_env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The per-user cache, which `omniquant` has too.
pub fn cache_dir() -> Result<PathBuf> {
    oq_recipe::cache_dir(process_env).map_err(Error::msg)
}

/// A libtorch that the user takes care of.
#[derive(Debug, PartialEq, Eq)]
pub enum Provided {
    /// LIBTORCH names its folder.
    Folder(PathBuf),
    /// LIBTORCH_USE_PYTORCH asks for the one inside Python's torch.
    Python,
}

/// What the user provides, if anything. cargo itself sets LIBTORCH to `link` for its children, which provides nothing.
pub fn provided(link: &Path, var: impl Fn(&str) -> Option<OsString>) -> Option<Provided> {
    if var("LIBTORCH_USE_PYTORCH").is_some() {
        return Some(Provided::Python);
    }
    let folder = PathBuf::from(var("LIBTORCH")?);
    (!same_path(&folder, link)).then_some(Provided::Folder(folder))
}

/// A cargo as the user would call it. What our own cargo told us is taken away: LIBTORCH, because torch-sys is rebuilt
/// whenever that variable changes, and the variables about this package, because ring is.
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

/// Compares paths by their components, without asking the file system: the link need not exist yet.
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
    fn a_libtorch_of_the_users_own_wins() {
        let link = Path::new("/repo/.libtorch");
        let found = |pairs: &[_]| provided(link, env(pairs));
        assert_eq!(found(&[("LIBTORCH", "/opt/lt")]), Some(Provided::Folder("/opt/lt".into())));
        assert_eq!(found(&[("LIBTORCH_USE_PYTORCH", "1")]), Some(Provided::Python));
        // torch-sys looks at LIBTORCH_USE_PYTORCH first.
        assert_eq!(found(&[("LIBTORCH", "/opt/lt"), ("LIBTORCH_USE_PYTORCH", "1")]), Some(Provided::Python));
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn what_cargo_sets_provides_nothing() {
        let link = Path::new("/repo/.libtorch");
        for value in ["/repo/.libtorch", "/repo/.libtorch/", "/repo/./.libtorch"] {
            assert_eq!(provided(link, env(&[("LIBTORCH", value)])), None, "{value}");
        }
    }
}
