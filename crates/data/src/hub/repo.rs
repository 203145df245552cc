//! A repository of the hub, with validated names.

use super::settings::Hub;
use crate::error::DataError;

/// The default branch.
pub(super) const MAIN: &str = "main";

/// A repository at a revision. Its names are validated, because they become parts of paths and URLs.
pub(super) struct Repo {
    /// `` or `datasets/`.
    pub(super) prefix: &'static str,
    pub(super) id: String,
    pub(super) revision: String,
}

impl Repo {
    pub(super) fn new(prefix: &'static str, id: &str, revision: Option<&str>) -> Result<Self, DataError> {
        if !Hub::is_repo_id(id) {
            let expected = "owner/name of letters, digits, '-', '_' and '.'";
            return Err(DataError::BadHubName { what: "hub id", value: id.to_owned(), expected });
        }
        let revision = revision.unwrap_or(MAIN);
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if revision.split('/').any(|part| part.is_empty() || part.starts_with('.')) || !revision.chars().all(ok) {
            let expected = "a branch, a tag or a commit";
            return Err(DataError::BadHubName { what: "revision", value: revision.to_owned(), expected });
        }
        Ok(Self { prefix, id: id.to_owned(), revision: revision.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_that_would_leave_the_cache_are_refused() {
        for bad in ["", "..", "a//b", "../../x", "a b", "x?y"] {
            assert!(Repo::new("", "a/b", Some(bad)).is_err(), "{bad}");
        }
        assert!(Repo::new("", "a/b", Some("refs/pr/1")).is_ok());
    }
}
