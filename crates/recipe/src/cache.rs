//! The per-user cache folder, for downloads and measurements.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::model::{ModelEntry, Source};

/// `$XDG_CACHE_HOME/omniquant`, else `~/.cache/omniquant`, with variables looked up by `var`. Relative paths are ignored, as the XDG
/// specification requires.
///
/// # Errors
/// What to fix, if neither variable names an absolute folder.
pub fn cache_dir(var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, &'static str> {
    let absolute = |name: &str| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    let base =
        base.ok_or("no place for the cache: neither XDG_CACHE_HOME nor HOME names an absolute folder; set one")?;
    Ok(base.join("omniquant"))
}

impl ModelEntry {
    /// Path in `cache` of the file that wheels contain; none for other models.
    pub fn wheel_file(&self, cache: &Path) -> Option<PathBuf> {
        let Source::Wheel { file, .. } = &self.source else { return None };
        Some(cache.join("models").join(&self.name).join(Path::new(file).file_name()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_follows_xdg() {
        let at = |pairs: &[(&str, &str)]| {
            cache_dir(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        assert_eq!(at(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")]), Ok("/c/omniquant".into()));
        assert_eq!(at(&[("HOME", "/h")]), Ok("/h/.cache/omniquant".into()));
        assert_eq!(at(&[("XDG_CACHE_HOME", ""), ("HOME", "/h")]), Ok("/h/.cache/omniquant".into()));
        assert_eq!(at(&[("XDG_CACHE_HOME", "c"), ("HOME", "/h")]), Ok("/h/.cache/omniquant".into()));
        assert!(at(&[("HOME", "h")]).unwrap_err().contains("XDG_CACHE_HOME"));
        assert!(at(&[]).is_err());
    }

    #[test]
    fn only_wheels_have_files_there() {
        let at = |name: &str| crate::find(name).unwrap().wheel_file(Path::new("/c"));
        let smollm2 = at("smollm2-135m").unwrap();
        assert_eq!(smollm2.parent(), Some(Path::new("/c/models/smollm2-135m")));
        assert_eq!(smollm2.extension(), Some("gguf".as_ref()));
        assert_eq!(at("llama2-7b"), None);
    }
}
