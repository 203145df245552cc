//! In place of what fetches, where the feature `hub` is off.

use std::path::PathBuf;

use super::event::HubEvent;
use super::settings::Hub;
use crate::error::DataError;

impl Hub {
    /// Refuses.
    pub(crate) fn fetch_dataset_file(
        &self,
        repo: &str,
        file: &str,
        _progress: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<PathBuf, DataError> {
        Err(DataError::NotBuilt { what: format!("{repo}/{file}"), feature: "hub" })
    }
}
